// Mean-field inference on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dense_crf/lattice.hpp"

namespace amn::dense_crf {

enum class Normalization { symmetric, before, after, none };

struct Kernel {
    std::shared_ptr<const Lattice> lattice;
    Normalization normalization;
    std::vector<float> compat;  // 1 value (Potts), labels values (diagonal) or labels² values (symmetric matrix)
    bool potts;
};

// The unary energies of one problem: either (labels, n) energies, or a label map whose label has `energy_right` and the
// others `energy_wrong`. Problems solved together are of one sort.
struct Unary {
    const float* energies = nullptr;
    const uint8_t* labels = nullptr;
    float energy_right = 0, energy_wrong = 0;
    const float* start = nullptr;  // (labels, n) marginals to start from, or nullptr: softmax(-unary)
    float* marginals = nullptr;    // (labels, n) out, or nullptr
    int32_t* best = nullptr;       // (n) the most probable labels out, or nullptr
};

// Mean field over `problems` that share labels and kernels.
void mean_field(std::vector<Unary> problems, int64_t labels, int64_t n, const std::vector<Kernel>& kernels,
                int iterations, int threads);

}  // namespace amn::dense_crf
