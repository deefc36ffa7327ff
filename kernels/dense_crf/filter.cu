// Filtering with lattices on a GPU.
//
// Rows of channels: each point and each vertex has `groups` groups of V channels side by side, those of all problems
// (unaries of one image) one after the other. A thread has one group of one row, so that the threads of one row read
// neighbouring words. Sums run in an order that the lattice alone decides: no floating-point atomics.
#pragma once

#include "dense_crf/device.hpp"

namespace amn::gpu {

// The sum of the terms begins..ends of a chunk; `term` adds one of them to a sum, from its lanes on. The sum of a
// vertex' only chunk is its row (target >= 0), those of several are partial sums (row -1 - target of `partial`).
template <int V, class Term>
AMN_DEVICE void sum_chunk(Place at, i64 count, i64 groups, const i32* begins, const i32* ends, const i32* targets,
                          float* rows, float* partial, Term term) {
    i64 chunk, group;
    split(at.index(), groups, chunk, group);
    if (chunk >= count) return;
    Lanes<V> sum = zero<V>();
    for (i64 i = begins[chunk], end = ends[chunk]; i < end; ++i) term(sum, i, group * V);
    const i64 width = groups * V, target = targets[chunk];
    put((target < 0 ? partial + (-1 - target) * width : rows + target * width) + group * V, sum);
}

// Splat. The entries of a vertex are cut into chunks of a fixed length.
template <int V>
AMN_DEVICE void splat(Place at, i64 count, i64 groups, const i32* begins, const i32* ends, const i32* targets,
                      const i32* row_points, const float* row_weights, const float* values, float* rows,
                      float* partial) {
    sum_chunk<V>(at, count, groups, begins, ends, targets, rows, partial, [=](Lanes<V>& sum, i64 i, i64 lanes) {
        add(sum, row_weights[i], fetch<V>(values + row_points[i] * (groups * V) + lanes));
    });
}

// The sums of partial sums, where a vertex had more than a chunk: cut into chunks likewise, until one is left.
template <int V>
AMN_DEVICE void sum_partial(Place at, i64 count, i64 groups, const i32* begins, const i32* ends, const i32* targets,
                            float* rows, float* partial) {
    sum_chunk<V>(at, count, groups, begins, ends, targets, rows, partial, [=](Lanes<V>& sum, i64 i, i64 lanes) {
        add(sum, 1.0f, fetch<V>(partial + i * (groups * V) + lanes));
    });
}

// Blur along one axis: (1/2, 1, 1/2), missing neighbours being 0. `neighbours` are the axis' (previous, following).
template <int V>
AMN_DEVICE void blur(Place at, i64 count, i64 groups, const i32* neighbours, const float* from, float* to) {
    i64 vertex, group;
    split(at.index(), groups, vertex, group);
    if (vertex >= count) return;
    const i64 width = groups * V, lanes = group * V;
    const int2 near = reinterpret_cast<const int2*>(neighbours)[vertex];
    Lanes<V> sides = zero<V>();
    if (near.x >= 0) add(sides, 1.0f, fetch<V>(from + near.x * width + lanes));
    if (near.y >= 0) add(sides, 1.0f, fetch<V>(from + near.y * width + lanes));
    Lanes<V> sum = fetch<V>(from + vertex * width + lanes);
    add(sum, 0.5f, sides);
    put(to + vertex * width + lanes, sum);
}

// A pairwise term's row in the table of terms; all but `sides` are pointers.
enum TermField {
    vertices,  // i32 [sides][point]
    weights,   // float [sides][point]
    after,     // float [point]: the slice's factor
    rows,      // float [vertex][width]
    compat,    // float [channel of a problem]: what a filtered value adds to the logit
    sides,
    term_fields
};

template <class T>
AMN_DEVICE const T* pointer(const i64* term, TermField field) {
    return reinterpret_cast<const T*>(term[field]);
}

// Slice: the V channels from `lanes` on of a point's filtered row.
template <int V>
AMN_DEVICE Lanes<V> sliced(const i64* term, i64 total, i64 width, i64 point, i64 lanes) {
    const i32* vertex = pointer<i32>(term, vertices) + point;
    const float* weight = pointer<float>(term, weights) + point;
    const float* values = pointer<float>(term, rows) + lanes;
    Lanes<V> sum = zero<V>();
    for (i64 j = 0; j < term[sides]; ++j) add(sum, weight[j * total], fetch<V>(values + vertex[j * total] * width));
    const float factor = pointer<float>(term, after)[point];
    AMN_UNROLL
    for (int v = 0; v < V; ++v) sum.lane[v] = sum.lane[v] * factor;
    return sum;
}

template <int V>
AMN_DEVICE void slice(Place at, const i64* term, i64 total, i64 groups, float* out) {
    i64 point, group;
    split(at.index(), groups, point, group);
    if (point >= total) return;
    put(out + point * groups * V + group * V, sliced<V>(term, total, groups * V, point, group * V));
}

}  // namespace amn::gpu

using namespace amn::gpu;

#define AMN_OF_WIDTH(V)                                                                                               \
    AMN_KERNEL(splat_##V,                                                                                             \
               (i64 count, i64 groups, const i32* begins, const i32* ends, const i32* targets, const i32* row_points, \
                const float* row_weights, const float* values, float* rows, float* partial),                          \
               (splat<V>(at, count, groups, begins, ends, targets, row_points, row_weights, values, rows, partial)))  \
    AMN_KERNEL(                                                                                                       \
        sum_partial_##V,                                                                                              \
        (i64 count, i64 groups, const i32* begins, const i32* ends, const i32* targets, float* rows, float* partial), \
        (sum_partial<V>(at, count, groups, begins, ends, targets, rows, partial)))                                    \
    AMN_KERNEL(blur_##V, (i64 count, i64 groups, const i32* neighbours, const float* from, float* to),                \
               (blur<V>(at, count, groups, neighbours, from, to)))                                                    \
    AMN_KERNEL(slice_##V, (const i64* term, i64 total, i64 groups, float* out),                                       \
               (slice<V>(at, term, total, groups, out)))
AMN_OF_WIDTH(1)
AMN_OF_WIDTH(2)
AMN_OF_WIDTH(4)
