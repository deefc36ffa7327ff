// Building permutohedral lattices on a GPU, all images of a batch in one launch of each kernel.
//
// A vertex of a point's simplex is an entry; entry (point, remainder) has the number point * (d + 1) + remainder. Keys
// stay in an array of their own; the hash table's slots hold entries' numbers, the lowest of those with one key, so the
// table ends the same whatever the order of insertion, up to where its slots lie. Vertices are numbered in the order of
// their first entries, which depends on neither: equal bits at each run, and within any batch.
//
// Arrays of entries lie with the points innermost, [remainder][point], so that neighbouring threads read neighbouring
// words. Compile without fused multiply-add (--fmad=false).
#include "dense_crf/device.hpp"
#include "dense_crf/embed.hpp"
#include "dense_crf/keys.hpp"

namespace amn::gpu {

constexpr u32 no_entry = 0xffffffffu;

// Where the quotients lie in a key (see keys.hpp): word[d], shift[d], bias[d].
struct Packing {
    const i64 *word, *shift, *bias;
};

AMN_DEVICE Packing packing_of(const i64* plan, i64 d) { return {plan, plan + d, plan + 2 * d}; }

constexpr int most_words = 2;  // up to 6 dimensions: six quotients of at most 21 bits

AMN_DEVICE bool same(const u64* a, const u64* b, i64 words) {
    bool equal = a[0] == b[0];
    AMN_UNROLL
    for (int w = 1; w < most_words; ++w)
        if (w < words) equal &= a[w] == b[w];
    return equal;
}

// Keys and barycentric weights of a point's d + 1 entries.
template <int D>
AMN_DEVICE void embed(Place at, const i32* tiles, const i64* images, i64 total, const float* sigmas, const float* scale,
                      const i64* plan, i64 words, u64* keys, float* weights) {
    const Pixel pixel = pixel_of(at.block, at.thread, tiles, images);
    if (!pixel.there) return;
    float feature[D];
    AMN_UNROLL
    for (int j = 0; j < D; ++j) feature[j] = 0.0f;
    if (pixel.real && !sigmas) {
        const float* matrix = reinterpret_cast<const float*>(pixel.image[source]);
        AMN_UNROLL
        for (int j = 0; j < D; ++j) feature[j] = matrix[j * pixel.image[points] + pixel.own];
    } else if (pixel.real) {
        i64 x, y;
        split(pixel.own, pixel.image[width], y, x);
        feature[0] = static_cast<float>(x) / sigmas[0];
        if constexpr (D > 1) feature[1] = static_cast<float>(y) / sigmas[1];
        const u8* colours = reinterpret_cast<const u8*>(pixel.image[source]) + 3 * pixel.own;
        AMN_UNROLL
        for (int j = 2; j < D; ++j) feature[j] = static_cast<float>(colours[j - 2]) / sigmas[j];
    }
    float base[D + 1], rank[D + 1], weight[D + 1];
    lattice::embed<D>(D, scale, feature, base, rank, weight);

    const Packing packing = packing_of(plan, D);
    u64 key[most_words] = {0, 0}, unit[most_words][D];  // unit: what one in a quotient adds to the key's words
    AMN_UNROLL
    for (int j = 0; j < D; ++j) {
        const u64 quotient = static_cast<u64>(static_cast<i64>(base[j] / static_cast<float>(D + 1)) + packing.bias[j]);
        AMN_UNROLL
        for (int w = 0; w < most_words; ++w) {
            unit[w][j] = packing.word[j] == w ? 1ull << packing.shift[j] : 0;
            key[w] += quotient * unit[w][j];
        }
    }
    AMN_UNROLL
    for (int r = 0; r <= D; ++r) {
        const i64 entry = r * total + pixel.point;
        weights[entry] = pixel.real ? weight[r] : 0.0f;
        AMN_UNROLL
        for (int w = 0; w < most_words; ++w)
            if (w < words) keys[entry * words + w] = key[w];
        key[0] += 1;  // to the next remainder: all coordinates rise by one, that of rank d - r falls by d
        AMN_UNROLL
        for (int j = 0; j < D; ++j) {
            AMN_UNROLL
            for (int w = 0; w < most_words; ++w) key[w] -= rank[j] == static_cast<float>(D - r) ? unit[w][j] : 0;
        }
    }
}

// The entries' array position from their number.
AMN_DEVICE i64 place_of(u32 entry, i64 sides, i64 total) {
    const u32 point = entry / static_cast<u32>(sides);
    return static_cast<i64>(entry - point * static_cast<u32>(sides)) * total + point;
}

// Each entry's slot; slots get the lowest entry of their key. A table that is too full sets `overflow`.
AMN_DEVICE void insert(Place at, const i32* tiles, const i64* images, i64 total, i64 sides, const u64* keys, i64 words,
                       u32* table, u32* slots, i64 most_steps, u32* overflow) {
    const u32 tile = at.block / static_cast<u32>(sides), r = at.block % static_cast<u32>(sides);
    const Pixel pixel = pixel_of(tile, at.thread, tiles, images);
    if (!pixel.there) return;
    const u32 entry = static_cast<u32>(pixel.point * sides + r);
    const i64 place = r * total + pixel.point;
    const u64* key = keys + place * words;
    u32* own = table + pixel.image[table_first];
    const u64 mask = static_cast<u64>(pixel.image[table_mask]);
    u64 slot = (lattice::hash_of<most_words>(key, static_cast<int>(words)) >> 32) & mask;
    for (i64 step = 0; step < most_steps; ++step) {
        u32 found = load_shared_word(own + slot);
        if (found == no_entry) found = compare_and_swap(own + slot, no_entry, entry);
        if (found == no_entry || same(key, keys + place_of(found, sides, total) * words, words)) {
            if (entry < found && found != no_entry) keep_lowest(own + slot, entry);
            slots[place] = static_cast<u32>(pixel.image[table_first] + static_cast<i64>(slot));
            return;
        }
        slot = (slot + 1) & mask;
    }
    slots[place] = static_cast<u32>(pixel.image[table_first]);
    set_bits(overflow, 1);
}

// 1 at entries that are their vertex' first, in the order of entries' numbers: the running sum numbers the vertices.
AMN_DEVICE void mark_firsts(Place at, const i32* tiles, const i64* images, i64 total, i64 sides, const u32* table,
                            const u32* slots, i32* first) {
    const Pixel pixel = pixel_of(at.block, at.thread, tiles, images);
    if (!pixel.there) return;
    for (i64 r = 0; r < sides; ++r) {
        const u32 entry = static_cast<u32>(pixel.point * sides + r);
        first[entry] = table[slots[r * total + pixel.point]] == entry;
    }
}

// Entries' vertices, and for each vertex its first entry's place and its image. `numbers` is the running sum.
AMN_DEVICE void number(Place at, const i32* tiles, const i64* images, i64 total, i64 sides, const u32* table,
                       const u32* slots, const i32* numbers, i32* vertices, i32* first_places, i32* owners) {
    const u32 tile = at.block / static_cast<u32>(sides), r = at.block % static_cast<u32>(sides);
    const Pixel pixel = pixel_of(tile, at.thread, tiles, images);
    if (!pixel.there) return;
    const i64 place = r * total + pixel.point;
    const u32 first = table[slots[place]];
    const i32 vertex = numbers[first] - 1;
    vertices[place] = vertex;
    if (first == static_cast<u32>(pixel.point * sides + r)) {
        first_places[vertex] = static_cast<i32>(place);
        owners[vertex] = static_cast<i32>(pixel.number);
    }
}

// Each vertex' following neighbour along an axis, and so the previous one of that: neighbours[axis][vertex] is
// (previous, following), filled with -1 beforehand.
AMN_DEVICE void find_neighbours(Place at, i64 count, i64 sides, i64 total, const i64* images, const u64* keys,
                                i64 words, const i64* plan, const u32* table, const i32* numbers,
                                const i32* first_places, const i32* owners, i32* neighbours) {
    if (at.index() >= count * sides) return;
    i64 axis, vertex;
    split(at.index(), count, axis, vertex);
    const i64 d = sides - 1;
    const Packing packing = packing_of(plan, d);
    u64 key[most_words];
    AMN_UNROLL
    for (int w = 0; w < most_words; ++w) key[w] = w < words ? keys[first_places[vertex] * words + w] : 0;
    const u64 remainder_mask = (1ull << lattice::remainder_bits(static_cast<int>(d))) - 1;
    // All coordinates rise by one, which wraps the remainder d; that of the axis falls by d.
    const bool wraps = (key[0] & remainder_mask) == static_cast<u64>(d);
    key[0] += wraps ? static_cast<u64>(-d) : 1;
    for (i64 j = 0; j < d; ++j) {
        const u64 change = (wraps ? 1ull : 0ull) - (j == axis ? 1ull : 0ull);
        AMN_UNROLL
        for (int w = 0; w < most_words; ++w) key[w] += packing.word[j] == w ? change << packing.shift[j] : 0;
    }
    const i64* image = images + image_fields * owners[vertex];
    const u32* own = table + image[table_first];
    const u64 mask = static_cast<u64>(image[table_mask]);
    u64 slot = lattice::hash_of<most_words>(key, static_cast<int>(words)) >> 32;
    for (u64 step = 0; step <= mask; ++step, ++slot) {
        const u32 found = own[slot & mask];
        if (found == no_entry) return;
        if (!same(key, keys + place_of(found, sides, total) * words, words)) continue;
        const i32 following = numbers[found] - 1;
        neighbours[2 * (axis * count + vertex) + 1] = following;
        neighbours[2 * (axis * count + following)] = static_cast<i32>(vertex);
        return;
    }
}

// Entries in the order of their vertices, as the splat gathers them; `places` are theirs before the sorting.
AMN_DEVICE void make_rows(Place at, i64 count, i64 total, const i32* sorted_vertices, const i64* places,
                          const float* weights, i32* row_points, float* row_weights, i32* row_firsts) {
    const i64 i = at.index();
    if (i >= count) return;
    i64 r, point;
    split(places[i], total, r, point);
    row_points[i] = static_cast<i32>(point);
    row_weights[i] = weights[places[i]];
    if (i == 0 || sorted_vertices[i - 1] != sorted_vertices[i]) row_firsts[sorted_vertices[i]] = static_cast<i32>(i);
}

}  // namespace amn::gpu

using namespace amn::gpu;

#define AMN_EMBED(D)                                                                                     \
    AMN_KERNEL(embed_##D,                                                                                \
               (const i32* tiles, const i64* images, i64 total, const float* sigmas, const float* scale, \
                const i64* plan, i64 words, u64* keys, float* weights),                                  \
               (embed<D>(at, tiles, images, total, sigmas, scale, plan, words, keys, weights)))
AMN_EMBED(1)
AMN_EMBED(2)
AMN_EMBED(3)
AMN_EMBED(4)
AMN_EMBED(5)
AMN_EMBED(6)

AMN_KERNEL(insert_entries,
           (const i32* tiles, const i64* images, i64 total, i64 sides, const u64* keys, i64 words, u32* table,
            u32* slots, i64 most_steps, u32* overflow),
           (insert(at, tiles, images, total, sides, keys, words, table, slots, most_steps, overflow)))

AMN_KERNEL(mark_first_entries,
           (const i32* tiles, const i64* images, i64 total, i64 sides, const u32* table, const u32* slots, i32* first),
           (mark_firsts(at, tiles, images, total, sides, table, slots, first)))

AMN_KERNEL(number_vertices,
           (const i32* tiles, const i64* images, i64 total, i64 sides, const u32* table, const u32* slots,
            const i32* numbers, i32* vertices, i32* first_places, i32* owners),
           (number(at, tiles, images, total, sides, table, slots, numbers, vertices, first_places, owners)))

AMN_KERNEL(find_all_neighbours,
           (i64 count, i64 sides, i64 total, const i64* images, const u64* keys, i64 words, const i64* plan,
            const u32* table, const i32* numbers, const i32* first_places, const i32* owners, i32* neighbours),
           (find_neighbours(at, count, sides, total, images, keys, words, plan, table, numbers, first_places, owners,
                            neighbours)))

AMN_KERNEL(make_splat_rows,
           (i64 count, i64 total, const i32* sorted_vertices, const i64* places, const float* weights, i32* row_points,
            float* row_weights, i32* row_firsts),
           (make_rows(at, count, total, sorted_vertices, places, weights, row_points, row_weights, row_firsts)))
