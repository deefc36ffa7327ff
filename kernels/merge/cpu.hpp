// Merging activation maps over scales on the CPU; see cpu.cpp. F is float or double.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace amn::merge {

template <class F>
struct Scale {
    const F* map;  // (channels, height, width), dense
    std::int64_t height, width;
};

// A grid to write. The maps are resized to `extent`, of which the first `size` rows and columns are written.
template <class F>
struct Target {
    F* out;  // (kept channels, size), dense
    std::array<std::int64_t, 2> size, extent;
};

// Sum over scales of the kept channels, each divided by its maximum + 1e-5.
template <class F>
void cam(const std::vector<Scale<F>>& scales, const std::vector<std::int64_t>& kept, const Target<F>& target,
         int threads);

// Softmax over all channels of the mean over scales; of the kept channels. Where the seed (seed_size, dense), sampled by
// Pillow's nearest rule, is not 0: (p - minimum) / (maximum - minimum + 1e-5).
template <class F>
void amn(const std::vector<Scale<F>>& scales, std::int64_t channels, const std::vector<std::int64_t>& kept,
         const std::uint8_t* seed, std::array<std::int64_t, 2> seed_size, const Target<F>& target, int threads);

}  // namespace amn::merge
