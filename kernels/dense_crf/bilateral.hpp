// The bilateral filter of batches of images, and the energies of single-stage losses that stand on it.
#pragma once

#include <cstdint>
#include <vector>

namespace amn::dense_crf {

// A batch of images (images, 3, height, width), and the kernel's standard deviations.
struct Guides {
    const float* pixels;
    int64_t images, height, width;
    double sigma_rgb, sigma_xy;
};

// out (images, channels, height, width) = A · values, or Aᵀ · values, per image. Images run in parallel.
// Throws std::invalid_argument where images or values hold NaN or infinity, or the sigmas are out of range.
void bilateral_filter(const Guides& guides, const float* values, int64_t channels, bool transpose, float* out,
                      int threads);

// How a low-resolution grid lies in a full one: sources per target, as PyTorch's interpolate rounds it.
struct Grid {
    int64_t full_height, full_width, height, width;
    float step_y, step_x;
};

enum class Gradient { none, published, exact };

// A batch's energies Σ S · G · (A S) with S = probabilities · region; G = 1 without a gate, else
// max(0, region - max over the channels of the probabilities), and 1 where the label is 255.
struct Energy {
    Guides guides;  // full resolution; sigma_xy is that of the low-resolution grid
    Grid grid;
    const float* probabilities;  // (images, channels, full_height, full_width), sampled bilinearly
    const float* regions;        // (images, full_height, full_width), sampled by the nearest rule
    const uint8_t* labels;       // the same; nullptr: no gate
    int64_t channels;
    Gradient gradient;
};

// The energy of each image. field (images, channels, height, width): its derivative with respect to the sampled
// probabilities, the gate held constant: "published" 2 G (A S) region, "exact" (G (A S) + Aᵀ (G S)) region.
std::vector<double> energies(const Energy& energy, float* field, int threads);

// gradient (planes, full_height, full_width) = factor · the transposed bilinear sampling of field (planes, height, width).
void spread(const float* field, const Grid& grid, int64_t planes, float factor, float* gradient, int threads);

}  // namespace amn::dense_crf
