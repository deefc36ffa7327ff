// Pillow's nearest rule for resizing label maps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace amn {

// The source position of each of `target` samples along a side of `size` pixels: floor((i + 1/2) size / target), reached
// as Pillow reaches it, by repeated addition in double precision.
inline std::vector<std::int64_t> nearest_index(std::int64_t size, std::int64_t target) {
    std::vector<std::int64_t> index(static_cast<std::size_t>(target));
    const double step = static_cast<double>(size) / static_cast<double>(target);
    double position = 0.5 * step;
    for (auto& i : index) {
        i = std::min(static_cast<std::int64_t>(position), size - 1);
        position += step;
    }
    return index;
}

}  // namespace amn
