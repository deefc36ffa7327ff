// Pairwise terms, made ready for the passes.
#pragma once

#include <cstdint>
#include <vector>

#include "dense_crf/mean_field.hpp"

namespace amn::dense_crf {

// One kernel, made ready: weights with the normalisation in them.
struct Term {
    const Lattice* lattice;
    const uint32_t* offset;
    Buffer<float> splat, slice_own;  // slice_own only where it differs
    const float* slice;
    const std::vector<float>* compat = nullptr;  // applied after the slice; nullptr: a Potts weight, in the weights
    Buffer<float> rows[2];                       // the values being sliced, and those being splatted
};

// With `weigh` the Potts weight is in the weights.
Term prepare(const Kernel& kernel, bool weigh, int threads);

}  // namespace amn::dense_crf
