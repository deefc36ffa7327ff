// The dense CRF on the CPU: permutohedral lattices and mean field over them. Torch-free, raw pointers.
#pragma once

#include <cstdint>
#include <vector>

namespace amn::dense_crf {

enum class Normalization { symmetric, before, after, none };

class Lattice {
public:
    Lattice(const float* features, int dimension, int64_t points);

    int dimension() const { return d_; }
    int64_t points() const { return n_; }
    int64_t vertices() const { return m_; }
    // out (channels, n) = K · values (channels, n); out may be values.
    void filter(const float* values, float* out, int64_t channels) const;
    // The factors before and after the filter, (n) each.
    void norm(Normalization normalization, float* before, float* after) const;

private:
    int d_;
    int64_t n_, m_;
    std::vector<uint32_t> offset_;      // (n, d + 1)
    std::vector<float> weight_;         // (n, d + 1)
    std::vector<uint32_t> neighbours_;  // (d + 1, m, 2); m where there is none
};

struct Kernel {
    const Lattice* lattice;
    Normalization normalization;
    const float* compat;  // 1 value (Potts), labels values (diagonal) or labels² values (symmetric matrix)
    int64_t compat_size;
};

// q (labels, n) after `iterations` updates, from softmax(-unary) or from `start`.
void mean_field(const float* unary, int64_t labels, int64_t n, const std::vector<Kernel>& kernels, int iterations,
                const float* start, float* q);

}  // namespace amn::dense_crf
