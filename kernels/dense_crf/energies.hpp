// What the energies of a problem are.
#pragma once

#include <cstdint>

#include "dense_crf/channels.hpp"

namespace amn::dense_crf {

// finite: any energies. of_labels: those of a label map. forbid: some are +inf. The last two members of `Examined` hold
// for of_labels alone.
struct Examined {
    bool of_labels, forbid, huge;
    float right, wrong;
};

// Magnitudes beyond this are replaced (see `bounded`): they could not be told from a channel that stands for no label.
constexpr float most_energy = 1.0e29f;

// Examines energies (labels, n). If they come from a label map, `map` gets its labels: at each point one label has the
// energy `right` and the others `wrong`, or all have the same energy (`labels`).
// Throws std::invalid_argument on NaN, on -inf, and on a point where every label is forbidden.
Examined examine(const float* energies, int64_t labels, int64_t n, int threads, uint8_t* map);

// The energies less each point's least one, and at most `most_energy`; +inf stays. The marginals are the same.
Buffer<float> bounded(const float* energies, int64_t labels, int64_t n);

}  // namespace amn::dense_crf
