#include "dense_crf/terms.hpp"

#include <algorithm>
#include <cmath>

#include "common/parallel.hpp"

namespace amn::dense_crf {
namespace {

// out = weight * factor, points first .. first + count of (n, vertices) arrays; factor is the first of these points'.
void scale_weights(const float* weight, const float* factor, int vertices, int64_t first, int64_t count, float* out) {
    weight += first * vertices, out += first * vertices;
    for (int64_t p = 0; p < count; ++p)
        for (int j = 0; j < vertices; ++j) out[p * vertices + j] = weight[p * vertices + j] * factor[p];
}

}  // namespace

Term prepare(const Kernel& kernel, bool weigh, int threads) {
    const Lattice& lattice = *kernel.lattice;
    const int vertices = lattice.dimension() + 1;
    const int64_t n = lattice.points();
    Term term{};
    term.lattice = &lattice;
    term.offset = lattice.offset();
    term.splat = Buffer<float>(n * vertices);
    const double factor = weigh ? static_cast<double>(kernel.compat[0]) * lattice.alpha() : lattice.alpha();
    const bool even =
        factor > 0 && (kernel.normalization == Normalization::symmetric || kernel.normalization == Normalization::none);
    if (!even) term.slice_own = Buffer<float>(n * vertices);
    term.slice = even ? term.splat.data() : term.slice_own.data();
    if (!weigh) term.compat = &kernel.compat;
    const float* mass = kernel.normalization == Normalization::none ? nullptr : lattice.mass(threads);
    const auto kind = kernel.normalization;
    const float root = static_cast<float>(even ? std::sqrt(factor) : 1.0),
                whole = static_cast<float>(even ? 1.0 : factor);
    const auto weigh_part = [&](int64_t part) {
        constexpr int64_t step = 64;
        float before[step], after[step];
        for (int64_t first = n * part / threads; first < n * (part + 1) / threads; first += step) {
            const int64_t count = std::min(step, n * (part + 1) / threads - first);
            std::fill(before, before + step, root);
            std::fill(after, after + step, even ? root : whole);
            if (kind == Normalization::symmetric) {
                for (int64_t p = 0; p < count; ++p) {
                    const float norm = 1.0f / std::sqrt(mass[first + p] + 1e-20f);
                    before[p] *= norm, after[p] *= norm;
                }
            } else if (kind != Normalization::none) {
                float* side = kind == Normalization::before ? before : after;
                for (int64_t p = 0; p < count; ++p) side[p] *= 1.0f / (mass[first + p] + 1e-20f);
            }
            scale_weights(lattice.weight(), before, vertices, first, count, term.splat.data());
            if (!even) scale_weights(lattice.weight(), after, vertices, first, count, term.slice_own.data());
        }
    };
    parallel_for(threads, threads, [&] { return weigh_part; });
    return term;
}

}  // namespace amn::dense_crf
