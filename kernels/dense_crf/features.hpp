// The points that a lattice embeds.
#pragma once

#include <cstdint>
#include <vector>

namespace amn::dense_crf {

constexpr int max_dimension = 32;

// The points to embed: a matrix, a pixel grid, or the pixels of an image.
class Features {
public:
    // Throws std::invalid_argument on NaN, infinity, and a sigma that is not greater than 0.
    // (d, n), each already divided by its sigma.
    Features(const float* matrix, int dimension, int64_t points);
    // x / sx, y / sy.
    Features(int64_t height, int64_t width, double sx, double sy);
    // x / sx, y / sy, and the three channels of an image with these strides in bytes, divided by `colours`.
    Features(const uint8_t* image, int64_t height, int64_t width, const int64_t strides[3], double sx, double sy,
             const double colours[3]);

    int dimension() const { return d_; }
    int64_t points() const { return n_; }
    float lowest(int j) const { return lowest_[j]; }
    float highest(int j) const { return highest_[j]; }
    // Features of 64 points from `first`, (d, 64); zeros beyond the last point.
    void fill(int64_t first, float* tile) const;

private:
    int d_;
    int64_t n_, width_ = 0;
    const float* matrix_ = nullptr;
    const uint8_t* image_ = nullptr;
    int64_t strides_[3] = {};
    std::vector<float> x_, y_, colour_;  // quotients, made once: a division for each column, row and grey level
    std::vector<float> lowest_, highest_;
};

}  // namespace amn::dense_crf
