// The balanced per-pixel classification loss on the CPU; see cpu.cpp.
#pragma once

#include <array>
#include <cstdint>

namespace amn::pixel_loss {

enum class Type : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

struct Problem {
    const void* logits;                         // (batch, channels, height, width)
    Type type;                                  // of the logits and the gradient
    std::array<std::int64_t, 4> shape;          // batch, channels, height, width
    std::array<std::int64_t, 4> strides;        // of the logits, in elements
    const std::uint8_t* labels;                 // (batch, label height, label width)
    std::array<std::int64_t, 2> label_size;     // label height, label width
    std::array<std::int64_t, 3> label_strides;  // in elements
    double eps;
    int ignore_index;
    int threads;
};

// Background first.
struct Sums {
    std::array<double, 2> losses{}, pixels{};
    int highest_label = -1;  // of the sampled labels, `ignore_index` apart
};

// Writes the softmax's maximum and logarithm of the sum of each pixel to `normaliser` (2, batch, height, width), float
// (double for double logits). Where the highest label is not below the number of channels nothing else has a meaning.
Sums forward(const Problem& problem, void* normaliser);

// Writes the gradient of weights[0] * background sum + weights[1] * foreground sum, in the type of the logits, into
// memory without gaps. Returns the highest of the sampled labels, `ignore_index` apart; if it is not below the number of
// channels, the gradient has no meaning.
int backward(const Problem& problem, const void* normaliser, std::array<double, 2> weights, void* gradient,
             const std::array<std::int64_t, 4>& gradient_strides);

}  // namespace amn::pixel_loss
