// The hot loops, once for each instruction set: a unit sets its target, then includes this.
#include <type_traits>

#include "common/vectors.hpp"

#include "dense_crf/embed.hpp"
#include "dense_crf/passes.hpp"

namespace {

using amn::dense_crf::Blocks;
using amn::dense_crf::KeyFields;
using amn::dense_crf::Passes;
using amn::dense_crf::Spread;
using amn::dense_crf::tile_points;

template <int D>
void embed_tile(int dimension, const float* scale, const float* features, int32_t* quotient, int32_t* rank,
                float* weight) {
    using F = Vec<native_lanes>;
    constexpr int slots = (D ? D : 32) + 1;
    const int d = D ? D : dimension;
    F feature[slots], base[slots], ranks[slots], weights[slots];
    float lanes[slots][native_lanes];
    const float inverse = 1.0f / static_cast<float>(d + 1);
    for (int p = 0; p < tile_points; p += native_lanes) {
        for (int j = 0; j < d; ++j) feature[j] = load<F>(features + j * tile_points + p);
        amn::lattice::embed<D, F>(d, scale, feature, base, ranks, weights);
        for (int j = 0; j < d; ++j) {
            const auto whole = __builtin_convertvector(amn::lattice::round_even(base[j] * inverse), Ints<native_lanes>);
            __builtin_memcpy(quotient + j * tile_points + p, &whole, sizeof whole);
        }
        for (int j = 0; j <= d; ++j) {
            store(lanes[j], weights[j]);
            const auto whole = __builtin_convertvector(ranks[j], Ints<native_lanes>);
            __builtin_memcpy(rank + j * tile_points + p, &whole, sizeof whole);
        }
        for (int i = 0; i < native_lanes; ++i)
            for (int j = 0; j <= d; ++j) weight[(p + i) * (d + 1) + j] = lanes[j][i];
    }
}

void embed(int d, const float* scale, const float* features, int32_t* quotient, int32_t* rank, float* weight) {
    if (d == 2) return embed_tile<2>(d, scale, features, quotient, rank, weight);
    if (d == 5) return embed_tile<5>(d, scale, features, quotient, rank, weight);
    embed_tile<0>(d, scale, features, quotient, rank, weight);
}

constexpr int wide_lanes = native_lanes / 2;
typedef int64_t Wide __attribute__((vector_size(wide_lanes * 8)));
typedef uint64_t Words __attribute__((vector_size(wide_lanes * 8)));
typedef int32_t Narrow __attribute__((vector_size(wide_lanes * 4)));
typedef uint32_t Places __attribute__((vector_size(wide_lanes * 4)));

inline Wide widen(const int32_t* p) {
    Narrow v;
    __builtin_memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Wide);
}

inline void put_key(Words key, int hash_shift, uint64_t* keys, uint32_t* starts) {
    __builtin_memcpy(keys, &key, sizeof key);
    const Places start = __builtin_convertvector((key * amn::dense_crf::hash_factor) >> hash_shift, Places);
    __builtin_memcpy(starts, &start, sizeof start);
}

template <int D>
void keys_tile(const KeyFields& fields, const int32_t* quotient, const int32_t* rank, int hash_shift, uint64_t* keys,
               uint32_t* starts) {
    const int d = D ? D : fields.d;
    for (int p = 0; p < tile_points; p += wide_lanes) {
        Words key = Words{} + fields.bias;
        Wide place[D ? D : 32];
        for (int j = 0; j < d; ++j) {
            key += (Words)widen(quotient + j * tile_points + p) << fields.shift[j];
            place[j] = widen(rank + j * tile_points + p);
        }
        put_key(key, hash_shift, keys + p, starts + p);
        for (int r = 1; r <= d; ++r) {  // one step along the axis whose rank is next
            key += 1;
            for (int j = 0; j < d; ++j)
                key -= (Words)(place[j] == Wide{} + (d - r + 1)) & (Words{} + (uint64_t{1} << fields.shift[j]));
            put_key(key, hash_shift, keys + r * tile_points + p, starts + r * tile_points + p);
        }
    }
}

void keys(const KeyFields& fields, const int32_t* quotient, const int32_t* rank, int hash_shift, uint64_t* keys,
          uint32_t* starts) {
    if (fields.d == 5) return keys_tile<5>(fields, quotient, rank, hash_shift, keys, starts);
    keys_tile<0>(fields, quotient, rank, hash_shift, keys, starts);
}

void follow(const uint64_t* from, const KeyFields& fields, uint64_t step, uint64_t wrap, int hash_shift, uint64_t* keys,
            uint32_t* starts) {
    for (int i = 0; i < tile_points; i += wide_lanes) {
        Words key;
        __builtin_memcpy(&key, from + i, sizeof key);
        const Words last = (Words)((key & fields.remainder_mask) == Words{} + static_cast<uint64_t>(fields.d));
        key += step + (last & (wrap - step));
        put_key(key, hash_shift, keys + i, starts + i);
    }
}

// Both kernels of an image in one loop (V = 3 and 6): neighbouring pixels splat into the same few rows of the Gaussian
// lattice, each waiting for the store before, and the bilateral lattice's work fills the wait.
template <int W, int V, int U>
void slice_points(const Spread* lattices, int64_t points, const float* add, float* out) {
    const Spread& a = lattices[0];
    const Spread& b = lattices[U ? 1 : 0];
    const int v = V ? V : a.vertices;
    const uint32_t *offset_a = a.offset, *offset_b = b.offset;
    const float *weight_a = a.weight, *weight_b = b.weight, *rows_a = a.rows, *rows_b = b.rows;
    for (int64_t p = 0; p < points; ++p) {
        Pack<W> sum = Pack<W>::load(add + p * W);
        for (int j = 0; j < v; ++j)
            sum = fma(Pack<W>::broadcast(weight_a[j]), Pack<W>::load(rows_a + size_t{offset_a[j]} * W), sum);
        offset_a += v, weight_a += v;
        if constexpr (U > 0) {
            Pack<W> more = Pack<W>::broadcast(0.0f);
            for (int j = 0; j < U; ++j)
                more = fma(Pack<W>::broadcast(weight_b[j]), Pack<W>::load(rows_b + size_t{offset_b[j]} * W), more);
            offset_b += U, weight_b += U;
            for (int i = 0; i < Pack<W>::parts; ++i) sum.part[i] = sum.part[i] + more.part[i];
        }
        sum.store(out + p * W);
    }
}

template <int W>
void slice(const Spread* lattices, int count, int64_t points, const float* add, float* out) {
    if (count == 2 && lattices[0].vertices == 3 && lattices[1].vertices == 6)
        return slice_points<W, 3, 6>(lattices, points, add, out);
    for (int i = 0; i < count; ++i, add = out) {
        if (lattices[i].vertices == 3)
            slice_points<W, 3, 0>(lattices + i, points, add, out);
        else if (lattices[i].vertices == 6)
            slice_points<W, 6, 0>(lattices + i, points, add, out);
        else
            slice_points<W, 0, 0>(lattices + i, points, add, out);
    }
}

template <int W, int V, int U>
void splat_points(const Spread* lattices, int64_t points, const float* values) {
    const Spread& a = lattices[0];
    const Spread& b = lattices[U ? 1 : 0];
    const int v = V ? V : a.vertices;
    const uint32_t *offset_a = a.offset, *offset_b = b.offset;
    const float *weight_a = a.weight, *weight_b = b.weight;
    float *rows_a = a.rows, *rows_b = b.rows;
    for (int64_t p = 0; p < points; ++p) {
        const Pack<W> value = Pack<W>::load(values + p * W);
        for (int j = 0; j < v; ++j) {
            float* row = rows_a + size_t{offset_a[j]} * W;
            fma(Pack<W>::broadcast(weight_a[j]), value, Pack<W>::load(row)).store(row);
        }
        offset_a += v, weight_a += v;
        if constexpr (U > 0) {
            for (int j = 0; j < U; ++j) {
                float* row = rows_b + size_t{offset_b[j]} * W;
                fma(Pack<W>::broadcast(weight_b[j]), value, Pack<W>::load(row)).store(row);
            }
            offset_b += U, weight_b += U;
        }
    }
}

template <int W>
void splat(const Spread* lattices, int count, int64_t points, const float* values) {
    if (count == 2 && lattices[0].vertices == 3 && lattices[1].vertices == 6)
        return splat_points<W, 3, 6>(lattices, points, values);
    for (int i = 0; i < count; ++i) {
        if (lattices[i].vertices == 3)
            splat_points<W, 3, 0>(lattices + i, points, values);
        else if (lattices[i].vertices == 6)
            splat_points<W, 6, 0>(lattices + i, points, values);
        else
            splat_points<W, 0, 0>(lattices + i, points, values);
    }
}

// Calls f(blocks, tail) with constants.
template <class F>
inline void with_blocks(int blocks, int tail, F f) {
    const auto with_tail = [&](auto constant) {
        if (tail == 8) return f(constant, std::integral_constant<int, 8>{});
        if (tail == 4) return f(constant, std::integral_constant<int, 4>{});
        f(constant, std::integral_constant<int, 0>{});
    };
    if (blocks == 4) return with_tail(std::integral_constant<int, 4>{});
    if (blocks == 2) return with_tail(std::integral_constant<int, 2>{});
    with_tail(std::integral_constant<int, 1>{});
}

constexpr int tile_block = tile_points * 16;  // from one block of 16 channels to the next, in a tile

// The weight in T lanes, of its 16: no second load.
template <int T>
inline Pack<T> narrow(const Pack<16>& w) {
    Pack<T> v;
    __builtin_memcpy(v.part, w.part, sizeof v.part);
    return v;
}

template <int NB, int T>
inline void slice_vertex(const Spread& lattice, float weight, size_t offset, Pack<16>* sum, Pack<T ? T : 4>& rest) {
    const Pack<16> w = Pack<16>::broadcast(weight);
    const float* row = lattice.rows + offset * 16;
    for (int b = 0; b < NB; ++b) sum[b] = fma(w, Pack<16>::load(row + b * lattice.block_stride), sum[b]);
    if constexpr (T > 0) rest = fma(narrow<T>(w), Pack<T>::load(lattice.tail + offset * T), rest);
}

template <int NB, int T, int V, int U>
void slice_blocks_points(const Spread* lattices, int64_t points, const float* add, float* out) {
    constexpr int tail = T ? T : 4;
    const Spread a = lattices[0], b = lattices[U ? 1 : 0];
    const int v = V ? V : a.vertices;
    for (int64_t p = 0; p < points; ++p) {
        Pack<16> sum[NB];
        Pack<tail> rest = Pack<tail>::broadcast(0.0f);
        for (int i = 0; i < NB; ++i) sum[i] = Pack<16>::load(add + i * tile_block + p * 16);
        if constexpr (T > 0) rest = Pack<tail>::load(add + NB * tile_block + p * T);
        for (int j = 0; j < v; ++j) slice_vertex<NB, T>(a, a.weight[p * v + j], a.offset[p * v + j], sum, rest);
        for (int j = 0; j < U; ++j) slice_vertex<NB, T>(b, b.weight[p * U + j], b.offset[p * U + j], sum, rest);
        for (int i = 0; i < NB; ++i) sum[i].store(out + i * tile_block + p * 16);
        if constexpr (T > 0) rest.store(out + NB * tile_block + p * T);
    }
}

void slice_blocks(const Spread* lattices, int count, int64_t points, int blocks, int tail, const float* add,
                  float* out) {
    with_blocks(blocks, tail, [&](auto nb, auto t) {
        if (count == 2 && lattices[0].vertices == 3 && lattices[1].vertices == 6)
            return slice_blocks_points<nb.value, t.value, 3, 6>(lattices, points, add, out);
        for (int i = 0; i < count; ++i)
            slice_blocks_points<nb.value, t.value, 0, 0>(lattices + i, points, i ? out : add, out);
    });
}

template <int NB, int T>
inline void splat_vertex(const Spread& lattice, float weight, size_t offset, const Pack<16>* value,
                         const Pack<T ? T : 4>& rest) {
    const Pack<16> w = Pack<16>::broadcast(weight);
    float* row = lattice.rows + offset * 16;
    for (int b = 0; b < NB; ++b, row += lattice.block_stride) fma(w, value[b], Pack<16>::load(row)).store(row);
    if constexpr (T > 0) {
        float* tail = lattice.tail + offset * T;
        fma(narrow<T>(w), rest, Pack<T>::load(tail)).store(tail);
    }
}

template <int NB, int T, int V, int U>
void splat_blocks_points(const Spread* lattices, int64_t points, const float* values) {
    constexpr int tail = T ? T : 4;
    const Spread a = lattices[0], b = lattices[U ? 1 : 0];
    const int v = V ? V : a.vertices;
    for (int64_t p = 0; p < points; ++p) {
        Pack<16> value[NB];
        Pack<tail> rest = Pack<tail>::broadcast(0.0f);
        for (int i = 0; i < NB; ++i) value[i] = Pack<16>::load(values + i * tile_block + p * 16);
        if constexpr (T > 0) rest = Pack<tail>::load(values + NB * tile_block + p * T);
        for (int j = 0; j < v; ++j) splat_vertex<NB, T>(a, a.weight[p * v + j], a.offset[p * v + j], value, rest);
        for (int j = 0; j < U; ++j) splat_vertex<NB, T>(b, b.weight[p * U + j], b.offset[p * U + j], value, rest);
    }
}

void splat_blocks(const Spread* lattices, int count, int64_t points, int blocks, int tail, const float* values) {
    with_blocks(blocks, tail, [&](auto nb, auto t) {
        if (count == 2 && lattices[0].vertices == 3 && lattices[1].vertices == 6)
            return splat_blocks_points<nb.value, t.value, 3, 6>(lattices, points, values);
        for (int i = 0; i < count; ++i) splat_blocks_points<nb.value, t.value, 0, 0>(lattices + i, points, values);
    });
}

// One load and one store for each vertex: the chain's last value and the edge's share of it are carried along. Edges
// of weight 0 end a chain without a branch.
template <int W>
void blur(const uint32_t* index, const float* half, int64_t count, float* rows) {
    if (count == 0) return;
    using P = Pack<W>;
    P here = P::load(rows + static_cast<size_t>(index[0]) * W), carried = P::broadcast(0.0f);
    for (int64_t k = 0; k + 1 < count; ++k) {
        const P next = P::load(rows + static_cast<size_t>(index[k + 1]) * W);
        const P edge = P::broadcast(half[k]);
        P out;
        for (int i = 0; i < P::parts; ++i) {
            out.part[i] = here.part[i] + (carried.part[i] + edge.part[i] * next.part[i]);
            carried.part[i] = edge.part[i] * here.part[i];
        }
        out.store(rows + static_cast<size_t>(index[k]) * W);
        here = next;
    }
    P out;
    for (int i = 0; i < P::parts; ++i) out.part[i] = here.part[i] + carried.part[i];
    out.store(rows + static_cast<size_t>(index[count - 1]) * W);
}

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
    const Vec<4> ab = f(__builtin_shufflevector(v[0], v[1], 0, 1, 4, 5), __builtin_shufflevector(v[0], v[1], 2, 3, 6, 7));
    const Vec<4> cd = f(__builtin_shufflevector(v[2], v[3], 0, 1, 4, 5), __builtin_shufflevector(v[2], v[3], 2, 3, 6, 7));
    return f(__builtin_shufflevector(ab, cd, 0, 2, 4, 6), __builtin_shufflevector(ab, cd, 1, 3, 5, 7));
}

// Lanes 4i .. 4i + 3 are v[i].
inline Pack<16> repeat_each(Vec<4> v) {
#if AMN_LANES == 16
    return {{__builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)}};
#elif AMN_LANES == 8
    return {{__builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1), __builtin_shufflevector(v, v, 2, 2, 2, 2, 3, 3, 3, 3)}};
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

// z = exp(z - top) for the W channels of a point; returns their sum in four parts.
template <int W>
inline Vec<4> raise(float* at, float top) {
    Pack<W> z = Pack<W>::load(at);
    const auto shift = Pack<W>::broadcast(top);
    for (int k = 0; k < Pack<W>::parts; ++k) z.part[k] = exp(z.part[k] - shift.part[k]);
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

// `blocks` blocks of 16 channels, then blocks of 8 and of 4 if there are any. Sums across channels are taken for four
// points at a time and end in one vector with a lane for each point. The tile is passed over for the maxima, the
// exponentials and the quotients one after another: together, each point's chain of dependent steps is too long for the
// processor to look past it to the next point.
template <bool implicit, bool eight, bool four>
void softmax_points(int blocks, float copies, int64_t points, float* tile, float* last) {
    using V4 = Vec<4>;
    using F = Vec<native_lanes>;
    float* const tile8 = tile + static_cast<int64_t>(blocks) * tile_block;
    float* const tile4 = tile8 + (eight ? tile_points * 8 : 0);
    float tops[tile_points], sums[tile_points], less[tile_points];
    const int64_t whole = (points + native_lanes - 1) / native_lanes * native_lanes;
    for (int64_t p = 0; p < whole; p += 4) {
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
            for (int i = 0; i < 4; ++i) sum[i] = sum[i] + raise<16>(tile + b * tile_block + (p + i) * 16, tops[p + i]);
        }
        if constexpr (eight) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sum[i] = sum[i] + raise<8>(tile8 + (p + i) * 8, tops[p + i]);
        }
        if constexpr (four) {  // four points' channels side by side: one exponential
            Pack<16> z = Pack<16>::load(tile4 + p * 4);
            const Pack<16> shift = repeat_each(load<V4>(tops + p));
            for (int k = 0; k < Pack<16>::parts; ++k) z.part[k] = exp(z.part[k] - shift.part[k]);
            z.store(tile4 + p * 4);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sum[i] = sum[i] + load<V4>(tile4 + (p + i) * 4);
        }
        store(sums + p, across(sum, added));
    }
    for (int64_t p = 0; p < whole; p += native_lanes) {
        const F rest = implicit ? exp(-load<F>(tops + p)) : F{};
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

template <bool implicit>
void softmax_tile(int blocks, bool eight, bool four, float copies, int64_t points, float* tile, float* last) {
    if (eight && four) return softmax_points<implicit, true, true>(blocks, copies, points, tile, last);
    if (eight) return softmax_points<implicit, true, false>(blocks, copies, points, tile, last);
    if (four) return softmax_points<implicit, false, true>(blocks, copies, points, tile, last);
    softmax_points<implicit, false, false>(blocks, copies, points, tile, last);
}

void softmax_blocks(const Blocks& blocks, float copies, int64_t points, float* tile, float* last) {
    int wide = 0;
    bool eight = false, four = false;
    for (int b = 0; b < blocks.count; ++b) {
        wide += blocks.width[b] == 16;
        eight |= blocks.width[b] == 8;
        four |= blocks.width[b] == 4;
    }
    if (copies > 0) return softmax_tile<true>(wide, eight, four, copies, points, tile, last);
    softmax_tile<false>(wide, eight, four, copies, points, tile, last);
}

const Passes table = {
    AMN_ISA_NAME,
    embed,
    keys,
    follow,
    {slice<1>, slice<2>, slice<4>, slice<8>, slice<16>},
    {splat<1>, splat<2>, splat<4>, splat<8>, splat<16>},
    slice_blocks,
    splat_blocks,
    {blur<1>, blur<2>, blur<4>, blur<8>, blur<16>},
    softmax_groups,
    softmax_blocks,
};

}  // namespace
