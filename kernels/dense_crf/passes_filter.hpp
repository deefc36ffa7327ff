// Slice, splat and blur. Part of passes_impl.hpp.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/vectors.hpp"
#include "dense_crf/passes.hpp"

namespace {

using amn::dense_crf::Base;
using amn::dense_crf::Spread;
using amn::dense_crf::tile_points;

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

template <int NB, int T, int V, int U, bool labelled>
void slice_blocks_points(const Spread* lattices, int64_t points, const Base& add, float* out) {
    constexpr int tail = T ? T : 4;
    const Spread a = lattices[0], b = lattices[U ? 1 : 0];
    const int v = V ? V : a.vertices;
    const float* const rows = add.rows;
    const uint8_t* const labels = add.labels;
    const size_t lanes = add.lanes;
    for (int64_t p = 0; p < points; ++p) {
        Pack<16> sum[NB];
        Pack<tail> rest = Pack<tail>::broadcast(0.0f);
        if constexpr (labelled) {
            const float* row = rows + labels[p] * lanes;
            for (int i = 0; i < NB; ++i) sum[i] = Pack<16>::load(row + i * 16);
            if constexpr (T > 0) rest = Pack<tail>::load(row + NB * 16);
        } else {
            for (int i = 0; i < NB; ++i) sum[i] = Pack<16>::load(rows + i * tile_block + p * 16);
            if constexpr (T > 0) rest = Pack<tail>::load(rows + NB * tile_block + p * T);
        }
        for (int j = 0; j < v; ++j) slice_vertex<NB, T>(a, a.weight[p * v + j], a.offset[p * v + j], sum, rest);
        for (int j = 0; j < U; ++j) slice_vertex<NB, T>(b, b.weight[p * U + j], b.offset[p * U + j], sum, rest);
        for (int i = 0; i < NB; ++i) sum[i].store(out + i * tile_block + p * 16);
        if constexpr (T > 0) rest.store(out + NB * tile_block + p * T);
    }
}

void slice_blocks(const Spread* lattices, int count, int64_t points, int blocks, int tail, const Base& add,
                  float* out) {
    with_blocks(blocks, tail, [&](auto nb, auto t) {
        constexpr int NB = nb.value, T = t.value;
        if (count == 2 && lattices[0].vertices == 3 && lattices[1].vertices == 6) {
            if (add.labels) return slice_blocks_points<NB, T, 3, 6, true>(lattices, points, add, out);
            return slice_blocks_points<NB, T, 3, 6, false>(lattices, points, add, out);
        }
        for (int i = 0; i < count; ++i) {
            if (i == 0 && add.labels)
                slice_blocks_points<NB, T, 0, 0, true>(lattices, points, add, out);
            else
                slice_blocks_points<NB, T, 0, 0, false>(lattices + i, points, i ? Base{out} : add, out);
        }
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

// Blurs one block's rows along the chains: one load and one store for each vertex. The chain's last value and the edge's
// share of it are carried along. Edges of weight 0 end a chain without a branch.
template <int W>
struct Blur {
    static constexpr int width = W;
    float* rows;
    float* at = nullptr;  // the row that `here` is the value of
    Pack<W> here{}, carried{};

    float* row(uint32_t number) const { return rows + size_t{number} * W; }
    void start(uint32_t first) {
        at = row(first);
        here = Pack<W>::load(at);
        carried = Pack<W>::broadcast(0.0f);
    }
    void step(float half, uint32_t to) {
        float* const after = row(to);
        const Pack<W> next = Pack<W>::load(after), edge = Pack<W>::broadcast(half);
        Pack<W> out;
        for (int i = 0; i < Pack<W>::parts; ++i) {
            out.part[i] = here.part[i] + (carried.part[i] + edge.part[i] * next.part[i]);
            carried.part[i] = edge.part[i] * here.part[i];
        }
        out.store(at);
        here = next;
        at = after;
    }
    void end() const {
        Pack<W> out;
        for (int i = 0; i < Pack<W>::parts; ++i) out.part[i] = here.part[i] + carried.part[i];
        out.store(at);
    }
};

// All blocks in one pass: the chains are read once.
template <class... Blurs>
void blur_chains(const uint32_t* index, const float* half, int64_t count, Blurs... blurs) {
    if (count == 0) return;
    (blurs.start(index[0]), ...);
    for (int64_t k = 0; k + 1 < count; ++k) {
        // These rows outgrow the second-level cache: fetching them ahead is 10 % of a call with 21 or 81 labels.
        if constexpr (((Blurs::width >= 8) || ...)) {
            const uint32_t coming = index[std::min(k + 64, count - 1)];
            (__builtin_prefetch(blurs.row(coming), 1), ...);
        }
        const float edge = half[k];
        const uint32_t to = index[k + 1];
        (blurs.step(edge, to), ...);
    }
    (blurs.end(), ...);
}

template <int W>
void blur(const uint32_t* index, const float* half, int64_t count, float* rows) {
    blur_chains(index, half, count, Blur<W>{rows});
}

void blur_blocks(const uint32_t* index, const float* half, int64_t count, float* rows, int tail, float* tail_rows) {
    if (tail == 8) return blur_chains(index, half, count, Blur<16>{rows}, Blur<8>{tail_rows});
    blur_chains(index, half, count, Blur<16>{rows}, Blur<4>{tail_rows});
}

}  // namespace
