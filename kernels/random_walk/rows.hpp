// One row of one step of the walk: the hot loop. Included by one source file per instruction set, which defines Vec.
#pragma once

#include <cstdint>

namespace amn::random_walk {

// What a row needs. Pointers point at the row's first pixel (map 0, plane 0).
struct Row {
    int64_t planes, stride, columns;
    const int64_t* shift;       // per plane: from a pixel to its neighbour in a map
    const int64_t* back;        // per plane: from a pixel to the neighbour on the other side, in the coefficients
    const float* coefficients;
    int64_t maps, map_size;     // maps in this call (1 to 4), numbers from one map to the next
    const float* now;           // t_k
    float* next;                // t_{k+1}
    float* change;              // in: t_k - t_{k-1}, out: t_{k+1} - t_k
    bool fresh;                 // a step of the plain walk, or the first of the recurrence
    int64_t results, result_size;
    float* result;              // result_e += weight_e t_{k+1}
    const float* weight;
};

// The plain walk's step is t + q / 2, with q = 2 (S - I) t. The Chebyshev recurrence 2 S t_k - t_{k-1} is carried by its
// differences, d_{k+1} = d_k + q, t_{k+1} = t_k + d_{k+1} (Reinsch): near the eigenvalue 1, where the walk's answer lies,
// the usual form multiplies the rounding of each step by the number of steps left. With S_ii in the sum and the usual
// form the VOC-sized golden case is off by 7.5e-5 of the maximum, with this one by DIFF_ERROR.

using RowFunction = void (*)(const Row&);

void row_baseline(const Row& row);
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define AMN_X86_DISPATCH 1
void row_avx2(const Row& row);
void row_avx512(const Row& row);
#endif

}  // namespace amn::random_walk
