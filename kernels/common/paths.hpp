// Pairs of pixels within a radius, and the straight paths between them; common/paths.py is the same in Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace amn {

struct Offset {
    std::int64_t dy, dx;
};

// The offsets with dy² + dx² < radius² in one half-plane, in reading order: each pair of pixels appears once.
inline std::vector<Offset> half_plane(std::int64_t radius) {
    std::vector<Offset> offsets;
    for (std::int64_t dy = 0; dy < radius; ++dy)
        for (std::int64_t dx = 1 - radius; dx < radius; ++dx)
            if ((dy > 0 || dx > 0) && dy * dy + dx * dx < radius * radius) offsets.push_back({dy, dx});
    return offsets;
}

// Whether the pixel is closer than 1 to the line from (0, 0) to the offset, and between its ends.
inline bool on_path(Offset o, Offset pixel) {
    const std::int64_t cross = o.dy * pixel.dx - o.dx * pixel.dy;
    return pixel.dy >= 0 && pixel.dy <= o.dy && pixel.dx >= std::min<std::int64_t>(o.dx, 0) &&
           pixel.dx <= std::max<std::int64_t>(o.dx, 0) && cross * cross < o.dy * o.dy + o.dx * o.dx;
}

// The pixels of that path, both ends included, in reading order.
inline std::vector<Offset> path(Offset o) {
    std::vector<Offset> pixels;
    for (std::int64_t y = 0; y <= o.dy; ++y)
        for (std::int64_t x = std::min<std::int64_t>(o.dx, 0); x <= std::max<std::int64_t>(o.dx, 0); ++x)
            if (on_path(o, {y, x})) pixels.push_back({y, x});
    return pixels;
}

}  // namespace amn
