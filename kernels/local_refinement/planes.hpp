// What a step of pixel-adaptive refinement reads and writes: planes with margins, and weights in its own order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/memory.hpp"
#include "common/parallel.hpp"
#include "local_refinement/cpu.hpp"

namespace amn::local_refinement {

constexpr std::int64_t kLanes = 16;

struct Offset {
    std::int64_t dy, dx;
};

// A dilation beyond the image reaches the edge's pixel, as one of size - 1 does.
inline std::vector<Offset> offsets(const Dilations& dilations, Size size) {
    std::vector<Offset> result;
    for (const std::int64_t dilation : dilations) {
        const std::int64_t down = std::min(dilation, size.height - 1), right = std::min(dilation, size.width - 1);
        for (int dy = -1; dy <= 1; ++dy)
            for (int dx = -1; dx <= 1; ++dx)
                if (dy != 0 || dx != 0) result.push_back({dy * down, dx * right});
    }
    return result;
}

inline std::int64_t widest(const std::vector<Offset>& neighbours) {
    std::int64_t margin = 0;
    for (const Offset& o : neighbours) margin = std::max(margin, o.dx);
    return margin;
}

inline std::int64_t blocks_of(std::int64_t width) { return (width + kLanes - 1) / kLanes; }

// Channels with a margin left and right of each row.
template <class F>
class Planes {
public:
    Planes(Size size, std::int64_t margin)
        : size(size), margin(margin), stride(2 * margin + blocks_of(size.width) * kLanes), plane(size.height * stride),
          data_(static_cast<std::size_t>(size.channels * plane)) {
        std::fill_n(data_.data(), size.channels * plane, F(0));
    }

    F* row(std::int64_t channel, std::int64_t y) { return data_.data() + channel * plane + y * stride + margin; }
    const F* row(std::int64_t channel, std::int64_t y) const {
        return data_.data() + channel * plane + y * stride + margin;
    }

    void fill_margins(std::int64_t channel, std::int64_t y) {
        F* values = row(channel, y);
        std::fill(values - margin, values, values[0]);
        std::fill(values + size.width, values + size.width + margin, values[size.width - 1]);
    }
    void read(const F* dense, bool margins, int threads) {
        parallel_for(size.height, threads, [&] {
            return [&](std::int64_t y) {
                for (std::int64_t c = 0; c < size.channels; ++c) {
                    std::copy_n(dense + (c * size.height + y) * size.width, size.width, row(c, y));
                    if (margins) fill_margins(c, y);
                }
            };
        });
    }
    void write(F* dense, int threads) const {
        parallel_for(size.height, threads, [&] {
            return [&](std::int64_t y) {
                for (std::int64_t c = 0; c < size.channels; ++c)
                    std::copy_n(row(c, y), size.width, dense + (c * size.height + y) * size.width);
            };
        });
    }

    Size size;
    std::int64_t margin, stride, plane;

private:
    Buffer<F> data_;
};

// Weights [y][block][neighbour][lane]; 0 in lanes beyond the last column.
template <class F>
class Weights {
public:
    Weights(const Dilations& dilations, Size size)
        : neighbours(offsets(dilations, size)), count(static_cast<std::int64_t>(neighbours.size())),
          blocks(blocks_of(size.width)), values_(static_cast<std::size_t>(size.height * blocks * count * kLanes)) {}
    F* at(std::int64_t y, std::int64_t block) const { return values_.data() + (y * blocks + block) * count * kLanes; }

    std::vector<Offset> neighbours;
    std::int64_t count, blocks;

private:
    Buffer<F> values_;
};

// Where the neighbours of a row begin, in channel 0.
template <class F>
void neighbour_rows(const Planes<F>& planes, const std::vector<Offset>& neighbours, std::int64_t y, const F** rows) {
    for (const Offset& o : neighbours)
        *rows++ = planes.row(0, std::clamp<std::int64_t>(y + o.dy, 0, planes.size.height - 1)) + o.dx;
}

}  // namespace amn::local_refinement
