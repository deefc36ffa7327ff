#include "dense_crf/energies.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "common/parallel.hpp"

namespace amn::dense_crf {

Examined examine(const float* energies, int64_t labels, int64_t n, int threads, uint8_t* map) {
    float right = energies[0], wrong = energies[0];
    for (int64_t p = 0; p < n && right == wrong; ++p) {  // the first point that has a label
        for (int64_t l = 0; l < labels; ++l) {
            right = std::min(l ? right : energies[p], energies[l * n + p]);
            wrong = std::max(l ? wrong : energies[p], energies[l * n + p]);
        }
    }
    const float low = right, high = wrong;
    std::vector<int> found(static_cast<size_t>(threads), 0);
    constexpr int forbids = 1, invalid = 2, other = 4, large = 8;
    constexpr int64_t step = 512;
    const auto examine_part = [&](int64_t part) {
        float suspicion[step], lowest[step];
        int lower[step], higher[step], same[step], label[step];
        if (labels > 255 || !(low < high)) found[part] |= other;
        for (int64_t first = n * part / threads; first < n * (part + 1) / threads; first += step) {
            const int64_t count = std::min(step, n * (part + 1) / threads - first);
            std::fill(suspicion, suspicion + count, 0.0f);
            for (int64_t l = 0; l < labels; ++l) {
                const float* plane = energies + l * n + first;
                for (int64_t p = 0; p < count; ++p)
                    suspicion[p] += plane[p] * 1.66e35f * 0.0f;  // NaN beyond large_energy
            }
            float sum = 0;
            for (int64_t p = 0; p < count; ++p) sum += suspicion[p];
            if (!(sum == 0.0f)) {
                std::fill(lowest, lowest + count, std::numeric_limits<float>::infinity());
                for (int64_t l = 0; l < labels; ++l) {
                    for (int64_t p = 0; p < count; ++p) {
                        const float energy = energies[l * n + first + p];
                        if (std::isnan(energy)) found[part] |= invalid;
                        if (std::isinf(energy))
                            found[part] |= forbids;
                        else if (std::abs(energy) > large_energy)
                            found[part] |= large;
                        lowest[p] = std::min(lowest[p], energy);
                    }
                }
                for (int64_t p = 0; p < count; ++p)
                    if (std::isinf(lowest[p])) found[part] |= invalid;
            }
            if (found[part] & other) continue;
            std::fill(lower, lower + count, 0);
            std::fill(higher, higher + count, 0);
            std::fill(same, same + count, 0);
            std::fill(label, label + count, 0);
            for (int64_t l = 0; l < labels; ++l) {
                const float *plane = energies + l * n + first, *zeroth = energies + first;
                for (int64_t p = 0; p < count; ++p) {
                    lower[p] += plane[p] == low;
                    higher[p] += plane[p] == high;
                    same[p] += plane[p] == zeroth[p];
                    label[p] = plane[p] == low ? static_cast<int>(l) : label[p];
                }
            }
            int strange = 0;
            for (int64_t p = 0; p < count; ++p) {
                const bool one = lower[p] == 1 && higher[p] == labels - 1;
                strange |= !one && same[p] != labels;
                map[first + p] = static_cast<uint8_t>(one ? label[p] : labels);
            }
            if (strange) found[part] |= other;
        }
    };
    parallel_for(threads, threads, [&] { return examine_part; });
    int all = 0;
    for (int flags : found) all |= flags;
    if (all & invalid)
        throw std::invalid_argument(
            "unary holds NaN or -inf, or +inf for every label of a point, expected finite energies");
    return {!(all & (forbids | other)), (all & forbids) != 0, (all & large) != 0, right, wrong};
}

Buffer<float> bounded(const float* energies, int64_t labels, int64_t n) {
    Buffer<float> result(static_cast<size_t>(labels * n));
    for (int64_t p = 0; p < n; ++p) {
        float least = std::numeric_limits<float>::infinity();
        for (int64_t l = 0; l < labels; ++l) least = std::min(least, energies[l * n + p]);
        for (int64_t l = 0; l < labels; ++l) {
            const float energy = energies[l * n + p];
            const double more = static_cast<double>(energy) - least;
            result[l * n + p] = std::isinf(energy) ? energy : static_cast<float>(std::min<double>(more, most_energy));
        }
    }
    return result;
}

}  // namespace amn::dense_crf
