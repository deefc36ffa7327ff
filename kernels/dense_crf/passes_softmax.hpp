// Logits to marginals. Part of passes_impl.hpp.
#pragma once

#include "common/vectors.hpp"
#include "dense_crf/passes.hpp"
#include "dense_crf/passes_filter.hpp"

namespace {

using amn::dense_crf::Blocks;

template <int G, bool implicit>
void softmax_group(float copies, int64_t count, float* tile, float* last) {
    using F = Vec<native_lanes>;
    const F zero = F{}, one = zero + 1.0f, many = splat<F>(copies);
    for (int64_t i = 0; i < count; i += native_lanes) {
        const F z = load<F>(tile + i);
        F q, q_last = zero;
        if constexpr (G == 1 && implicit) {
            const F e = exp(z < zero ? z : -z);
            const F own = z < zero ? e : one, rest = z < zero ? one : e;
            const F inverse = one / (own + many * rest);
            q = own * inverse;
            q_last = rest * inverse;
        } else if constexpr (G == 1) {
            q = one;
        } else {
            F top = max(z, swap_lanes<1>(z));
            if constexpr (G == 4) top = max(top, swap_lanes<2>(top));
            if constexpr (implicit) top = max(top, zero);
            const F e = exp(z - top);
            F sum = e + swap_lanes<1>(e);
            if constexpr (G == 4) sum = sum + swap_lanes<2>(sum);
            F rest = zero;
            if constexpr (implicit) {
                rest = exp(-top);
                sum = sum + many * rest;
            }
            const F inverse = one / sum;
            q = e * inverse;
            q_last = rest * inverse;
        }
        if (last) {
            store(tile + i, q);
            store(last + i, q_last);
        } else {
            store(tile + i, q - q_last);
        }
    }
}

void softmax_groups(int group, float copies, int64_t count, float* tile, float* last) {
    if (copies > 0) {
        if (group == 1) return softmax_group<1, true>(copies, count, tile, last);
        if (group == 2) return softmax_group<2, true>(copies, count, tile, last);
        return softmax_group<4, true>(copies, count, tile, last);
    }
    if (group == 1) return softmax_group<1, false>(copies, count, tile, last);
    if (group == 2) return softmax_group<2, false>(copies, count, tile, last);
    return softmax_group<4, false>(copies, count, tile, last);
}

// Halves a vector down to four lanes.
template <class T, class F>
inline Vec<4> to_four(T v, F f) {
    constexpr int L = sizeof(T) / 4;
    if constexpr (L == 4) {
        return v;
    } else {
        Vec<L / 2> halves[2];
        __builtin_memcpy(halves, &v, sizeof v);
        return to_four(f(halves[0], halves[1]), f);
    }
}

// Lane i is v[i]'s lanes put together.
template <class F>
inline Vec<4> across(const Vec<4>* v, F f) {
    const Vec<4> ab =
        f(__builtin_shufflevector(v[0], v[1], 0, 1, 4, 5), __builtin_shufflevector(v[0], v[1], 2, 3, 6, 7));
    const Vec<4> cd =
        f(__builtin_shufflevector(v[2], v[3], 0, 1, 4, 5), __builtin_shufflevector(v[2], v[3], 2, 3, 6, 7));
    return f(__builtin_shufflevector(ab, cd, 0, 2, 4, 6), __builtin_shufflevector(ab, cd, 1, 3, 5, 7));
}

// Lanes 4i .. 4i + 3 are v[i].
inline Pack<16> repeat_each(Vec<4> v) {
#if AMN_LANES == 16
    return {{__builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)}};
#elif AMN_LANES == 8
    return {
        {__builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1), __builtin_shufflevector(v, v, 2, 2, 2, 2, 3, 3, 3, 3)}};
#else
    return {{splat<Vec<4>>(v[0]), splat<Vec<4>>(v[1]), splat<Vec<4>>(v[2]), splat<Vec<4>>(v[3])}};
#endif
}

const auto largest = [](auto a, auto b) { return max(a, b); };
const auto added = [](auto a, auto b) { return a + b; };

template <int W, class F>
inline Vec<4> to_four(const Pack<W>& v, F f) {
    auto whole = v.part[0];
    for (int i = 1; i < Pack<W>::parts; ++i) whole = f(whole, v.part[i]);
    return to_four(whole, f);
}

// z = exp(z - top), or exp(z), for the W channels of a point; returns their sum in four parts.
template <int W, bool shift>
inline Vec<4> raise(float* at, const float* top) {
    Pack<W> z = Pack<W>::load(at);
    if constexpr (shift) {
        const auto highest = Pack<W>::broadcast(*top);
        for (int k = 0; k < Pack<W>::parts; ++k) z.part[k] = z.part[k] - highest.part[k];
    }
    for (int k = 0; k < Pack<W>::parts; ++k) z.part[k] = exp(z.part[k]);
    z.store(at);
    return to_four(z, added);
}

template <int W>
inline void weigh(float* at, float inverse, float less) {
    Pack<W> q = Pack<W>::load(at);
    const auto factor = Pack<W>::broadcast(inverse), rest = Pack<W>::broadcast(less);
    for (int k = 0; k < Pack<W>::parts; ++k) q.part[k] = q.part[k] * factor.part[k] - rest.part[k];
    q.store(at);
}

// The highest logit of a whole tile.
inline float highest_of(const float* tile, int64_t count) {
    using F = Vec<native_lanes>;
    F top[4];
    for (F& t : top) t = splat<F>(-3.0e38f);
    for (int64_t i = 0; i < count; i += 4 * native_lanes)
        for (int k = 0; k < 4; ++k) top[k] = max(top[k], load<F>(tile + i + k * native_lanes));
    const Vec<4> four = to_four(max(max(top[0], top[1]), max(top[2], top[3])), largest);
    return std::max(std::max(four[0], four[1]), std::max(four[2], four[3]));
}

// `blocks` blocks of 16 channels, then blocks of 8 and of 4 if there are any. Sums across channels are taken for four
// points at a time and end in one vector with a lane for each point. The tile is passed over for the maxima, the
// exponentials and the quotients one after another: together, each point's chain of dependent steps is too long for the
// processor to look past it to the next point.
//
// Without `shift`, exponentials are of the logits themselves. Next to the implicit label's logit of 0 only an overflow
// could do harm, and the caller has seen that none comes near.
template <bool implicit, bool shift, bool eight, bool four>
void softmax_points(int blocks, float copies, int64_t points, float* tile, float* last) {
    using V4 = Vec<4>;
    using F = Vec<native_lanes>;
    float* const tile8 = tile + static_cast<int64_t>(blocks) * tile_block;
    float* const tile4 = tile8 + (eight ? tile_points * 8 : 0);
    float tops[tile_points], sums[tile_points], less[tile_points];
    const int64_t whole = (points + native_lanes - 1) / native_lanes * native_lanes;
    for (int64_t p = 0; shift && p < whole; p += 4) {
        V4 top[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            top[i] = splat<V4>(implicit ? 0.0f : -3.0e38f);
            for (int b = 0; b < blocks; ++b)
                top[i] = max(top[i], to_four(Pack<16>::load(tile + b * tile_block + (p + i) * 16), largest));
            if constexpr (eight) top[i] = max(top[i], to_four(Pack<8>::load(tile8 + (p + i) * 8), largest));
            if constexpr (four) top[i] = max(top[i], load<V4>(tile4 + (p + i) * 4));
        }
        store(tops + p, across(top, largest));
    }
    for (int64_t p = 0; p < whole; p += 4) {
        V4 sum[4] = {};
        for (int b = 0; b < blocks; ++b) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
                sum[i] = sum[i] + raise<16, shift>(tile + b * tile_block + (p + i) * 16, tops + p + i);
        }
        if constexpr (eight) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sum[i] = sum[i] + raise<8, shift>(tile8 + (p + i) * 8, tops + p + i);
        }
        if constexpr (four) {  // four points' channels side by side: one exponential
            Pack<16> z = Pack<16>::load(tile4 + p * 4);
            if constexpr (shift) {
                const Pack<16> each = repeat_each(load<V4>(tops + p));
                for (int k = 0; k < Pack<16>::parts; ++k) z.part[k] = z.part[k] - each.part[k];
            }
            for (int k = 0; k < Pack<16>::parts; ++k) z.part[k] = exp(z.part[k]);
            z.store(tile4 + p * 4);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sum[i] = sum[i] + load<V4>(tile4 + (p + i) * 4);
        }
        store(sums + p, across(sum, added));
    }
    for (int64_t p = 0; p < whole; p += native_lanes) {
        F rest = F{} + (implicit ? 1.0f : 0.0f);
        if constexpr (implicit && shift) rest = exp(-load<F>(tops + p));
        const F inverse = 1.0f / (load<F>(sums + p) + copies * rest);
        const F q_last = rest * inverse;
        store(sums + p, inverse);
        store(less + p, last ? F{} : q_last);
        if (last) store(last + p, q_last);
    }
    for (int64_t p = 0; p < whole; ++p) {
        for (int b = 0; b < blocks; ++b) weigh<16>(tile + b * tile_block + p * 16, sums[p], less[p]);
        if constexpr (eight) weigh<8>(tile8 + p * 8, sums[p], less[p]);
        if constexpr (four) weigh<4>(tile4 + p * 4, sums[p], less[p]);
    }
}

template <bool implicit, bool shift>
void softmax_tile(int blocks, bool eight, bool four, float copies, int64_t points, float* tile, float* last) {
    if (eight && four) return softmax_points<implicit, shift, true, true>(blocks, copies, points, tile, last);
    if (eight) return softmax_points<implicit, shift, true, false>(blocks, copies, points, tile, last);
    if (four) return softmax_points<implicit, shift, false, true>(blocks, copies, points, tile, last);
    softmax_points<implicit, shift, false, false>(blocks, copies, points, tile, last);
}

void softmax_blocks(const Blocks& blocks, float copies, int64_t points, float* tile, float* last) {
    int wide = 0, lanes = 0;
    bool eight = false, four = false;
    for (int b = 0; b < blocks.count; ++b) {
        wide += blocks.width[b] == 16;
        eight |= blocks.width[b] == 8;
        four |= blocks.width[b] == 4;
        lanes += blocks.width[b];
    }
    if (copies <= 0) return softmax_tile<false, true>(wide, eight, four, copies, points, tile, last);
    constexpr float no_overflow = 64.0f;  // exp(64) = 6e27, and some hundred of them
    if (points == tile_points && highest_of(tile, int64_t{tile_points} * lanes) < no_overflow)
        return softmax_tile<true, false>(wide, eight, four, copies, points, tile, last);
    softmax_tile<true, true>(wide, eight, four, copies, points, tile, last);
}

}  // namespace
