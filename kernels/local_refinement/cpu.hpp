// Pixel-adaptive refinement on the CPU; see cpu.cpp. F is float or double.
#pragma once

#include <cstdint>
#include <vector>

namespace amn::local_refinement {

enum class Kind { par, pamr };

struct Size {
    std::int64_t images, channels, height, width;
    std::int64_t pixels() const { return height * width; }
};

// 8 neighbours for each dilation, in the order of reference.py.
using Dilations = std::vector<std::int64_t>;

// How an image becomes an affinity. `position` is added to each neighbour's weight; all are multiplied by `scale`.
struct Rule {
    Kind kind;
    std::vector<double> position;
    double scale;
};

// Steps of a mask through an affinity, or through the transposed one.
struct Steps {
    std::int64_t iterations;
    bool transpose;
};

// image: (images, C, H, W). out: (images, 8 * dilations, H, W).
template <class F>
void affinity(const F* image, Size size, const Dilations& dilations, const Rule& rule, F* out, int threads);

// mask, out: (images, K, H, W); weights: (images, 8 * dilations, H, W).
template <class F>
void propagate(const F* weights, const F* mask, Size size, const Dilations& dilations, Steps steps, F* out,
               int threads);

// The same with the affinities of images (images, image_channels, H, W). One image's affinity exists at a time.
template <class F>
void refine(const F* image, std::int64_t image_channels, const F* mask, Size size, const Dilations& dilations,
            const Rule& rule, Steps steps, F* out, int threads);

}  // namespace amn::local_refinement
