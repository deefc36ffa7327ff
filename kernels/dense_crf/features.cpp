#include "dense_crf/features.hpp"

#include <algorithm>
#include <stdexcept>

#include "dense_crf/passes.hpp"

namespace amn::dense_crf {
namespace {

// i / sigma for i < count.
std::vector<float> quotients(int64_t count, double sigma) {
    const auto divisor = static_cast<float>(sigma);
    if (!(divisor > 0)) throw std::invalid_argument("a sigma is not greater than 0 in single precision");
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(i) / divisor;
    return values;
}

}  // namespace

Features::Features(const float* matrix, int dimension, int64_t points)
    : d_(dimension), n_(points), matrix_(matrix), lowest_(dimension, 0.0f), highest_(dimension, 0.0f) {
    // The zeros that fill the last group of points count as well.
    for (int j = 0; j < d_; ++j) {
        float low = 0, high = 0, suspicion = 0;
        for (int64_t i = 0; i < n_; ++i) {
            const float value = matrix[j * n_ + i];
            low = value < low ? value : low;
            high = value > high ? value : high;
            suspicion += value * 0.0f;  // NaN for any that is not finite
        }
        if (suspicion != 0.0f) throw std::invalid_argument("features hold NaN or infinity, expected finite numbers");
        lowest_[j] = low, highest_[j] = high;
    }
}

Features::Features(int64_t height, int64_t width, double sx, double sy)
    : d_(2), n_(height * width), width_(width), x_(quotients(width, sx)), y_(quotients(height, sy)) {
    lowest_ = {0, 0};
    highest_ = {x_.back(), y_.back()};
}

Features::Features(const uint8_t* image, int64_t height, int64_t width, const int64_t strides[3], double sx, double sy,
                   const double colours[3])
    : Features(height, width, sx, sy) {
    d_ = 5;
    image_ = image;
    std::copy(strides, strides + 3, strides_);
    for (int c = 0; c < 3; ++c) {
        const auto levels = quotients(256, colours[c]);
        colour_.insert(colour_.end(), levels.begin(), levels.end());
        lowest_.push_back(0);
        highest_.push_back(levels.back());
    }
}

void Features::fill(int64_t first, float* tile) const {
    const int64_t count = std::min<int64_t>(tile_points, n_ - first);
    if (count < tile_points) std::fill(tile, tile + d_ * tile_points, 0.0f);
    if (matrix_) {
        // Within the range that the keys were laid out for, whatever another thread has written since.
        for (int j = 0; j < d_; ++j) {
            const float *from = matrix_ + j * n_ + first, low = lowest_[j], high = highest_[j];
            for (int64_t p = 0; p < count; ++p) {
                const float given = from[p], value = given > low ? given : low;  // NaN: low
                tile[j * tile_points + p] = value < high ? value : high;
            }
        }
        return;
    }
    int64_t x = first % width_, y = first / width_;
    const uint8_t* pixel = image_ ? image_ + y * strides_[0] + x * strides_[1] : nullptr;
    for (int64_t p = 0; p < count; ++p) {
        tile[p] = x_[x];
        tile[tile_points + p] = y_[y];
        if (image_) {
            for (int c = 0; c < 3; ++c) tile[(2 + c) * tile_points + p] = colour_[256 * c + pixel[c * strides_[2]]];
            pixel += strides_[1];
        }
        if (++x == width_) {
            x = 0, ++y;
            if (image_) pixel = image_ + y * strides_[0];
        }
    }
}

}  // namespace amn::dense_crf
