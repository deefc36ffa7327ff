// One row of one step of the walk: the hot loop. Included by one source file per instruction set, which defines Vec.
#pragma once

#include <cstdint>

#include "common/instruction_set.hpp"

namespace amn::random_walk {

struct Neighbour {
    int64_t affinity;  // where a pixel's affinity to this neighbour lies, seen from the pixel in plane 0
    int64_t dx;
};

// The neighbours in one row of the map: to the left, and from the same column on to the right.
struct Line {
    int64_t shift;  // from a row to this one, in a map
    const Neighbour *left, *right, *end;
};

// What a row needs. Pointers point at the row's first pixel (map 0, plane 0), which is aligned to 64 bytes.
struct Row {
    const Line* lines;
    int64_t line_count, reach, columns;
    const float* affinities;
    const float* scale;      // 2 / column sum
    int64_t maps, map_size;  // maps in this call (1 to 4), numbers from one map to the next
    const float* now;        // t_k
    float* next;             // t_{k+1}
    float* change;           // in: t_k - t_{k-1}, out: t_{k+1} - t_k
    bool fresh;              // a step of the plain walk, or the first of the recurrence
    int64_t results, result_size;
    float* result;  // result_e += weight_e t_{k+1}
    const float* weight;
};

// One step of the walk is y_i + 1/c_i Σ_j A_ij (y_j - y_i). Written with differences, a constant map stays constant bit by
// bit, and what rounds is the change, not the value. The Chebyshev recurrence t_{k+1} = 2 P t_k - t_{k-1} is carried by its
// differences too (Reinsch): with q = 2 (P - 1) t_k, d_{k+1} = d_k + q and t_{k+1} = t_k + d_{k+1}. Near the eigenvalue 1,
// where the walk's answer lies, the usual form multiplies each step's rounding by the number of steps left.
using RowFunction = void (*)(const Row&);

void row_baseline(const Row& row);
#ifdef AMN_X86_DISPATCH
void row_avx2(const Row& row);
void row_avx512(const Row& row);
#endif

}  // namespace amn::random_walk
