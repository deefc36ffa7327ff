// The affinity random walk on the CPU.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "random_walk/affinity.hpp"

namespace amn::random_walk {

// A polynomial of the walk's matrix, in Chebyshev polynomials T_k (or powers) of it: rows of `degree + 1` coefficients.
// Several rows share one walk.
struct Polynomials {
    const double* coefficients;
    int64_t count, degree;
    bool chebyshev;
};

// x: (maps, h, w). out: (count, maps, h, w) = x (1 - edge) times each polynomial of the transition matrix.
// The same bits for any number of threads, and for any instruction set that multiplies and adds in one rounding
// (all but x86-64's baseline). Values are limited to the range of x (1 - edge), which the exact answer never leaves.
// Another thread may set `stop`: the walk then returns early, and `out` has no meaning.
void walk(const Affinities& affinities, const float* x, int64_t maps, const Polynomials& polynomials, int64_t threads,
          const std::string& instructions, std::atomic<bool>& stop, float* out);

}  // namespace amn::random_walk
