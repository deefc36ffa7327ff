// IRN's affinity and displacement losses on the CPU; see cpu.cpp.
#pragma once

#include <array>
#include <cstdint>

namespace amn::pair_loss {

// Dense maps, row-major. F is float or double.
template <class F>
struct Problem {
    const F* edge;               // (batch, height, width): logits
    const F* displacement;       // (batch, 2, height, width)
    const std::uint8_t* labels;  // (batch, height, width)
    std::int64_t batch, height, width;
    std::int64_t radius;  // height >= radius, width >= 2 * radius - 1
    int ignore_index;
    int threads;
};

// The planes of a pixel's tally.
//  background, foreground, negative: in how many pairs of that kind this pixel has the highest edge of the path;
//  the others: over the pairs with this pixel at an end, the sum of the sign of its displacement's error.
enum Plane { background, foreground, negative, foreground_y, foreground_x, background_y, background_x, planes };

struct Sums {
    std::array<double, 5> losses;       // bg_pos, fg_pos, neg, dp_fg, dp_bg
    std::array<std::int64_t, 3> pairs;  // background, foreground, negative
};

// Fills `tallies` (batch, planes, height, width) and returns the losses summed over their pairs.
template <class F>
Sums forward(const Problem<F>& problem, std::int32_t* tallies);

// Writes the gradients of Σ weights[k] * losses[k].
template <class F>
void backward(const Problem<F>& problem, const std::int32_t* tallies, const std::array<double, 5>& weights,
              F* edge_gradient, F* displacement_gradient);

}  // namespace amn::pair_loss
