// The mean-field update on a GPU. Rows of channels as in filter.cu.
#include "dense_crf/filter.cu"

namespace amn::gpu {

// The terms' shares added to the base of a problem's channels first .. first + V.
template <int V>
AMN_DEVICE Lanes<V> logits_of(const i64* terms, i64 term_count, i64 total, i64 width, const float* base, i64 point,
                              i64 lanes, i64 channel) {
    Lanes<V> logits = fetch<V>(base + point * width + lanes);
    for (i64 t = 0; t < term_count; ++t) {
        const i64* term = terms + t * term_fields;
        const Lanes<V> share = sliced<V>(term, total, width, point, lanes);
        const Lanes<V> factor = fetch<V>(pointer<float>(term, compat) + channel);
        AMN_UNROLL
        for (int v = 0; v < V; ++v) logits.lane[v] = logits.lane[v] + factor.lane[v] * share.lane[v];
    }
    return logits;
}

AMN_DEVICE float greater(float a, float b) { return a > b ? a : b; }

// One update for problems of at most V channels, a thread for each point and problem: slice, compatibility, unary,
// softmax. Writes what the next splat takes, which is Q less the last label's where that has no channel, and at the end
// (`last` not null) Q itself.
template <int V>
AMN_DEVICE void update(Place at, const i64* terms, i64 term_count, i64 total, i64 problems, i64 implicit,
                       const float* base, float* out, float* last) {
    i64 point, problem;
    split(at.index(), problems, point, problem);
    if (point >= total) return;
    const i64 width = problems * V, lanes = problem * V;
    Lanes<V> q = logits_of<V>(terms, term_count, total, width, base, point, lanes, 0);
    float top = implicit ? 0.0f : q.lane[0], sum = 0.0f;
    AMN_UNROLL
    for (int v = 0; v < V; ++v) top = greater(top, q.lane[v]);
    AMN_UNROLL
    for (int v = 0; v < V; ++v) {
        q.lane[v] = exponential(q.lane[v] - top);
        sum = sum + q.lane[v];
    }
    const float rest = implicit ? exponential(-top) : 0.0f;
    sum = sum + rest;
    const float q_last = rest / sum, less = last ? 0.0f : q_last;
    AMN_UNROLL
    for (int v = 0; v < V; ++v) q.lane[v] = q.lane[v] / sum - less;
    put(out + point * width + lanes, q);
    if (last) last[point * problems + problem] = q_last;
}

// The same for more channels: `team` threads have one point and problem, a group of 4 channels each in turn; the block's
// memory holds logits, then the teams' maxima and sums. Steps 0, 1, 2: logits and maxima; exponentials; quotients.
template <int step>
AMN_DEVICE void update_wide(Place at, float* shared, const i64* terms, i64 term_count, i64 total, i64 problems,
                            i64 groups, i64 team, i64 implicit, const float* base, float* out, float* last) {
    const i32 members = static_cast<i32>(team), teams = block_threads / members;
    const i32 mine = static_cast<i32>(at.thread) / members, me = static_cast<i32>(at.thread) % members;
    const i64 item = static_cast<i64>(at.block) * teams + mine;
    if (mine >= teams || item >= total * problems) return;
    const i32 stride = static_cast<i32>(groups) * 4;
    float* const logits = shared + mine * stride;
    float* const maxima = shared + teams * stride + mine * members;
    float* const sums = maxima + teams * members;
    if constexpr (step == 0) {
        i64 point, problem;
        split(item, problems, point, problem);
        float top = -3.0e38f;
        for (i32 g = me; g < static_cast<i32>(groups); g += members) {
            const Lanes<4> own =
                logits_of<4>(terms, term_count, total, problems * stride, base, point, problem * stride + 4 * g, 4 * g);
            put(logits + 4 * g, own);
            AMN_UNROLL
            for (int v = 0; v < 4; ++v) top = greater(top, own.lane[v]);
        }
        maxima[me] = top;
        return;
    }
    float top = implicit ? 0.0f : -3.0e38f;
    for (i32 m = 0; m < members; ++m) top = greater(top, maxima[m]);
    if constexpr (step == 1) {
        float sum = 0.0f;
        for (i32 g = me; g < static_cast<i32>(groups); g += members) {
            Lanes<4> own = fetch<4>(logits + 4 * g);
            AMN_UNROLL
            for (int v = 0; v < 4; ++v) {
                own.lane[v] = exponential(own.lane[v] - top);
                sum = sum + own.lane[v];
            }
            put(logits + 4 * g, own);
        }
        sums[me] = sum;
        return;
    }
    const float rest = implicit ? exponential(-top) : 0.0f;
    float quarter[4] = {rest, 0.0f, 0.0f, 0.0f};  // four short sums round less than a long one
    for (i32 m = 0; m < members; m += 4) {
        AMN_UNROLL
        for (int k = 0; k < 4; ++k)
            if (m + k < members) quarter[k] = quarter[k] + sums[m + k];
    }
    const float sum = (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
    const float q_last = rest / sum, less = last ? 0.0f : q_last;
    for (i32 g = me; g < static_cast<i32>(groups); g += members) {
        Lanes<4> own = fetch<4>(logits + 4 * g);
        AMN_UNROLL
        for (int v = 0; v < 4; ++v) own.lane[v] = own.lane[v] / sum - less;
        put(out + item * stride + 4 * g, own);
    }
    if (last && me == 0) last[item] = q_last;
}

// A matrix of compatibilities: out = base - matrix · filtered, a thread for each channel of each point and problem.
AMN_DEVICE void mix(Place at, i64 items, i64 labels, i64 stride, const float* matrix, const float* filtered,
                    const float* base, float* out) {
    i64 item, label;
    split(at.index(), stride, item, label);
    if (item >= items) return;
    const i64 channel = item * stride + label;
    float energy = 0.0f;
    if (label < labels)
        for (i64 o = 0; o < labels; ++o) energy = energy + matrix[label * labels + o] * filtered[item * stride + o];
    out[channel] = base[channel] - energy;
}

// What is wrong or special with the energies of each image: 1 where a label is forbidden (+inf), 2 where a value is
// NaN or -inf or all labels of a point are forbidden, 4 where a magnitude exceeds 2048. `planes` has a pointer to (labels, points) for each problem.
AMN_DEVICE void examine(Place at, const i32* tiles, const i64* images, i64 problems, i64 labels, const i64* planes,
                        u32* flags) {
    const Pixel pixel = pixel_of(at.block, at.thread, tiles, images);
    if (!pixel.real) return;
    const float largest = 3.402823466e38f, large_energy = 2048.0f;
    u32 found = 0;
    for (i64 m = 0; m < problems; ++m) {
        const float* plane = reinterpret_cast<const float*>(planes[pixel.number * problems + m]) + pixel.own;
        bool any = false;
        for (i64 l = 0; l < labels; ++l) {
            const float energy = plane[l * pixel.image[points]];
            if (energy > largest)
                found |= 1;
            else if (energy >= -largest)
                any = true;
            else
                found |= 2;
            if (energy <= largest && (energy > large_energy || energy < -large_energy)) found |= 4;
        }
        if (!any) found |= 2;
    }
    if (found) set_bits(flags + pixel.number, found);
}

// Planes (labels, points) to rows: the updates' base (-energy, or the last label's energy less it where that has no
// channel), or the marginals to start from as an update would have left them.
AMN_DEVICE void load(Place at, const i32* tiles, const i64* images, i64 problems, i64 labels, i64 stride, i64 implicit,
                     i64 marginals, const i64* planes, float* out) {
    const Pixel pixel = pixel_of(at.block, at.thread, tiles, images);
    if (!pixel.there) return;
    const i64 channels = labels - implicit;
    for (i64 m = 0; m < problems; ++m) {
        const i64 n = pixel.image[points];
        const float* plane = reinterpret_cast<const float*>(planes[pixel.number * problems + m]) + pixel.own;
        const float last = implicit && pixel.real ? plane[channels * n] : 0.0f;
        float* row = out + (pixel.point * problems + m) * stride;
        for (i64 c = 0; c < stride; ++c) {
            float value = marginals ? 0.0f : far_below;
            if (c < channels) {
                value = pixel.real ? plane[c * n] : 0.0f;
                if (marginals)
                    value = value - last;
                else if (implicit)
                    value = last - value;
                else
                    value = -value > far_below ? -value : far_below;
            }
            row[c] = value;
        }
    }
}

// Rows of Q to planes (labels, points) float, or with `best` to the labels (points) i32 of the largest.
AMN_DEVICE void answer(Place at, const i32* tiles, const i64* images, i64 problems, i64 labels, i64 stride,
                       i64 implicit, i64 best, const float* q, const float* last, const i64* planes) {
    const Pixel pixel = pixel_of(at.block, at.thread, tiles, images);
    if (!pixel.real) return;
    const i64 channels = labels - implicit;
    for (i64 m = 0; m < problems; ++m) {
        const float* row = q + (pixel.point * problems + m) * stride;
        const i64 to = planes[pixel.number * problems + m];
        float highest = -1.0f;
        i32 label = 0;
        for (i64 l = 0; l < labels; ++l) {
            const float value = l < channels ? row[l] : last[pixel.point * problems + m];
            if (!best) reinterpret_cast<float*>(to)[l * pixel.image[points] + pixel.own] = value;
            if (value > highest) {
                highest = value;
                label = static_cast<i32>(l);
            }
        }
        if (best) reinterpret_cast<i32*>(to)[pixel.own] = label;
    }
}

}  // namespace amn::gpu

#define AMN_UPDATE(V)                                                                                       \
    AMN_KERNEL(update_##V,                                                                                  \
               (const i64* terms, i64 term_count, i64 total, i64 problems, i64 implicit, const float* base, \
                float* out, float* last),                                                                   \
               (update<V>(at, terms, term_count, total, problems, implicit, base, out, last)))
AMN_UPDATE(1)
AMN_UPDATE(2)
AMN_UPDATE(4)

AMN_KERNEL_IN_STEPS(
    update_many,
    (const i64* terms, i64 term_count, i64 total, i64 problems, i64 groups, i64 team, i64 implicit, const float* base,
     float* out, float* last),
    (update_wide<0>(at, shared, terms, term_count, total, problems, groups, team, implicit, base, out, last)),
    (update_wide<1>(at, shared, terms, term_count, total, problems, groups, team, implicit, base, out, last)),
    (update_wide<2>(at, shared, terms, term_count, total, problems, groups, team, implicit, base, out, last)))

AMN_KERNEL(mix_labels,
           (i64 items, i64 labels, i64 stride, const float* matrix, const float* filtered, const float* base,
            float* out),
           (mix(at, items, labels, stride, matrix, filtered, base, out)))

AMN_KERNEL(examine_energies,
           (const i32* tiles, const i64* images, i64 problems, i64 labels, const i64* planes, u32* flags),
           (examine(at, tiles, images, problems, labels, planes, flags)))

AMN_KERNEL(load_rows,
           (const i32* tiles, const i64* images, i64 problems, i64 labels, i64 stride, i64 implicit, i64 marginals,
            const i64* planes, float* out),
           (load(at, tiles, images, problems, labels, stride, implicit, marginals, planes, out)))

AMN_KERNEL(give_answer,
           (const i32* tiles, const i64* images, i64 problems, i64 labels, i64 stride, i64 implicit, i64 best,
            const float* q, const float* last, const i64* planes),
           (answer(at, tiles, images, problems, labels, stride, implicit, best, q, last, planes)))
