// What the energies of a problem are.
#pragma once

#include <cstdint>

#include "common/memory.hpp"

namespace amn::dense_crf {

struct Examined {
    bool of_labels;      // they come from a label map
    bool forbid;         // some are +inf
    bool large;          // some exceed `large_energy`
    float right, wrong;  // of a label map
};

// Beyond this magnitude, what the kernels add to an energy would lose its last bits: energies are replaced by what they
// exceed the point's least one by (see `bounded`), and every label has a channel.
constexpr float large_energy = 2048.0f;
// The most that a replaced energy may be: it must not be taken for a channel that stands for no label.
constexpr float most_energy = 1.0e29f;

// Examines energies (labels, n). If they come from a label map, `map` gets its labels: at each point one label has the
// energy `right` and the others `wrong`, or all have the same energy (`labels`).
// Throws std::invalid_argument on NaN, on -inf, and on a point where every label is forbidden.
Examined examine(const float* energies, int64_t labels, int64_t n, int threads, uint8_t* map);

// The energies less each point's least one, and at most `most_energy`; +inf stays. The marginals are the same.
Buffer<float> bounded(const float* energies, int64_t labels, int64_t n);

}  // namespace amn::dense_crf
