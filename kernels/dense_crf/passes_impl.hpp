// The hot loops, once for each instruction set: a unit sets its target, then includes this.
#include "dense_crf/simd.hpp"

#include "dense_crf/lattice.hpp"
#include "dense_crf/passes.hpp"

namespace {

using amn::dense_crf::Blocks;
using amn::dense_crf::Passes;
using amn::dense_crf::tile_points;

template <int D>
void embed_tile(int dimension, const float* scale, const float* features, int32_t* quotient, int32_t* rank,
                float* weight) {
    using F = Vec<native_lanes>;
    constexpr int slots = (D ? D : 32) + 1;
    const int d = D ? D : dimension;
    F feature[slots], base[slots], ranks[slots], weights[slots];
    float lanes[slots][native_lanes], places[slots][native_lanes];
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
            store(places[j], ranks[j]);
        }
        for (int i = 0; i < native_lanes; ++i) {
            for (int j = 0; j <= d; ++j) weight[(p + i) * (d + 1) + j] = lanes[j][i];
            for (int j = 0; j <= d; ++j) rank[(p + i) * (d + 1) + j] = static_cast<int32_t>(places[j][i]);
        }
    }
}

void embed(int d, const float* scale, const float* features, int32_t* quotient, int32_t* rank, float* weight) {
    if (d == 2) return embed_tile<2>(d, scale, features, quotient, rank, weight);
    if (d == 5) return embed_tile<5>(d, scale, features, quotient, rank, weight);
    embed_tile<0>(d, scale, features, quotient, rank, weight);
}

template <int W, int V>
void slice_points(const uint32_t* offset, const float* weight, int vertices, int64_t points, const float* rows,
                  const float* add, float* out) {
    const int v = V ? V : vertices;
    for (int64_t p = 0; p < points; ++p, offset += v, weight += v) {
        Pack<W> sum = Pack<W>::load(add + p * W);
        for (int j = 0; j < v; ++j)
            sum = fma(Pack<W>::broadcast(weight[j]), Pack<W>::load(rows + static_cast<size_t>(offset[j]) * W), sum);
        sum.store(out + p * W);
    }
}

template <int W>
void slice(const uint32_t* offset, const float* weight, int vertices, int64_t points, const float* rows,
           const float* add, float* out) {
    if (vertices == 3) return slice_points<W, 3>(offset, weight, vertices, points, rows, add, out);
    if (vertices == 6) return slice_points<W, 6>(offset, weight, vertices, points, rows, add, out);
    slice_points<W, 0>(offset, weight, vertices, points, rows, add, out);
}

template <int W, int V>
void splat_points(const uint32_t* offset, const float* weight, int vertices, int64_t points, const float* values,
                  float* rows) {
    const int v = V ? V : vertices;
    for (int64_t p = 0; p < points; ++p, offset += v, weight += v) {
        const Pack<W> value = Pack<W>::load(values + p * W);
        for (int j = 0; j < v; ++j) {
            float* row = rows + static_cast<size_t>(offset[j]) * W;
            fma(Pack<W>::broadcast(weight[j]), value, Pack<W>::load(row)).store(row);
        }
    }
}

template <int W>
void splat(const uint32_t* offset, const float* weight, int vertices, int64_t points, const float* values,
           float* rows) {
    if (vertices == 3) return splat_points<W, 3>(offset, weight, vertices, points, values, rows);
    if (vertices == 6) return splat_points<W, 6>(offset, weight, vertices, points, values, rows);
    splat_points<W, 0>(offset, weight, vertices, points, values, rows);
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
void softmax_group(int64_t count, float* tile, float* last) {
    using F = Vec<native_lanes>;
    const F zero = F{}, one = zero + 1.0f;
    for (int64_t i = 0; i < count; i += native_lanes) {
        const F z = load<F>(tile + i);
        F q, q_last = zero;
        if constexpr (G == 1 && implicit) {
            const F e = exp(z < zero ? z : -z);
            const F larger = one / (one + e), smaller = e * larger;
            q = z < zero ? smaller : larger;
            q_last = z < zero ? larger : smaller;
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
                sum = sum + rest;
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

void softmax_groups(int group, bool implicit, int64_t count, float* tile, float* last) {
    if (implicit) {
        if (group == 1) return softmax_group<1, true>(count, tile, last);
        if (group == 2) return softmax_group<2, true>(count, tile, last);
        return softmax_group<4, true>(count, tile, last);
    }
    if (group == 1) return softmax_group<1, false>(count, tile, last);
    if (group == 2) return softmax_group<2, false>(count, tile, last);
    return softmax_group<4, false>(count, tile, last);
}

const auto largest = [](auto a, auto b) { return max(a, b); };
const auto added = [](auto a, auto b) { return a + b; };

template <int W, class F>
inline void for_block(int64_t p, float* tile, F f) {
    for (int i = 0; i < Pack<W>::parts; ++i) f(tile + p * W + i * Pack<W>::lanes, typename Pack<W>::T{});
}

// Calls f(address, vector type) for each vector of a point, in a fixed order.
template <class F>
inline void for_vectors(const Blocks& blocks, int64_t p, float* tile, F f) {
    for (int b = 0; b < blocks.count; ++b) {
        float* block = tile + tile_points * blocks.first[b];
        switch (blocks.width[b]) {
            case 16: for_block<16>(p, block, f); break;
            case 8: for_block<8>(p, block, f); break;
            case 4: for_block<4>(p, block, f); break;
            case 2: f(block + 2 * p, 0.0f), f(block + 2 * p + 1, 0.0f); break;
            default: f(block + p, 0.0f);
        }
    }
}

template <bool implicit>
void softmax_points(const Blocks& blocks, int64_t points, float* tile, float* last) {
    for (int64_t p = 0; p < points; ++p) {
        float top = implicit ? 0.0f : -3.0e38f, sum = 0.0f;
        for_vectors(blocks, p, tile, [&](float* at, auto type) {
            top = max(top, reduce(load<decltype(type)>(at), largest));
        });
        for_vectors(blocks, p, tile, [&](float* at, auto type) {
            using T = decltype(type);
            const T e = exp(load<T>(at) - top);
            store(at, e);
            sum += reduce(e, added);
        });
        const float rest = implicit ? exp(-top) : 0.0f;
        const float inverse = 1.0f / (sum + rest);
        const float q_last = rest * inverse;
        const float less = last ? 0.0f : q_last;
        for_vectors(blocks, p, tile, [&](float* at, auto type) {
            using T = decltype(type);
            store(at, load<T>(at) * inverse - less);
        });
        if (last) last[p] = q_last;
    }
}

void softmax_blocks(const Blocks& blocks, bool implicit, int64_t points, float* tile, float* last) {
    if (implicit) return softmax_points<true>(blocks, points, tile, last);
    softmax_points<false>(blocks, points, tile, last);
}

const Passes table = {
    AMN_ISA_NAME,
    embed,
    {slice<1>, slice<2>, slice<4>, slice<8>, slice<16>},
    {splat<1>, splat<2>, splat<4>, splat<8>, splat<16>},
    {blur<1>, blur<2>, blur<4>, blur<8>, blur<16>},
    softmax_groups,
    softmax_blocks,
};

}  // namespace
