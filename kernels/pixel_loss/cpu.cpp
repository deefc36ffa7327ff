// The balanced per-pixel classification loss: the definition is in reference.py.
//
// The pixels are cut into tiles. A tile's logits are read once, widened into a buffer [channel][pixel] that stays in
// the cache, and all arithmetic runs there over the pixels: one form for every type and layout, and every pixel's sum
// runs over the channels in order whatever the vector width. No target, one-hot or probability tensor exists.
#include "pixel_loss/cpu.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "common/huge_pages.hpp"
#include "common/nearest.hpp"
#include "common/parallel.hpp"
#include "common/simd.hpp"

namespace amn::pixel_loss {
namespace {

// Pixels in a tile. Wide enough that a strided channel row is worth its page, small enough that 81 channels of it
// (41 kB) stay in the second-level cache.
constexpr std::int64_t kTile = 128;

// Where the tiles lie. An image whose rows follow each other in memory is one row.
struct Grid {
    std::int64_t rows, columns, tiles_per_row, tiles;

    Grid(const Problem& p, const std::array<std::int64_t, 4>& other_strides) {
        const auto [batch, channels, height, width] = p.shape;
        const bool joined = p.strides[2] == width * p.strides[3] && other_strides[2] == width * other_strides[3];
        rows = joined ? 1 : height;
        columns = joined ? height * width : width;
        tiles_per_row = (columns + kTile - 1) / kTile;
        tiles = batch * rows * tiles_per_row;
    }
};

struct Tile {
    std::int64_t image, row, column, size;
    Tile(const Grid& grid, std::int64_t number) {
        column = number % grid.tiles_per_row * kTile;
        row = number / grid.tiles_per_row % grid.rows;
        image = number / grid.tiles_per_row / grid.rows;
        size = std::min(kTile, grid.columns - column);
    }
};

// Buffers of one tile. F is the type of the arithmetic.
template <class F>
struct Buffers {
    std::unique_ptr<F[]> values;  // [channel][kTile]
    std::array<F, kTile> highest, sum, total;
    std::array<int, kTile> label;
    explicit Buffers(std::int64_t channels) : values(new F[static_cast<std::size_t>(channels * kTile)]()) {}
};

template <class T, class F>
AMN_INLINE void load(const T* source, std::int64_t channels, std::int64_t size, std::int64_t channel_stride,
                     std::int64_t pixel_stride, F* values) {
    if (pixel_stride == 1) {
        for (std::int64_t c = 0; c < channels; ++c)
            for (std::int64_t i = 0; i < size; ++i) values[c * kTile + i] = widen(source[c * channel_stride + i]);
        return;
    }
    for (std::int64_t first = 0; first < channels; first += 16)  // blocks keep both sides of the transposition near
        for (std::int64_t i = 0; i < size; ++i)
            for (std::int64_t c = first; c < std::min(first + 16, channels); ++c)
                values[c * kTile + i] = widen(source[c * channel_stride + i * pixel_stride]);
}

template <class T, class F>
AMN_INLINE void store(const F* values, std::int64_t channels, std::int64_t size, std::int64_t channel_stride,
                      std::int64_t pixel_stride, T* target) {
    if (pixel_stride == 1) {
        for (std::int64_t c = 0; c < channels; ++c)
            for (std::int64_t i = 0; i < size; ++i) target[c * channel_stride + i] = narrow<T>(values[c * kTile + i]);
        return;
    }
    for (std::int64_t first = 0; first < channels; first += 16)
        for (std::int64_t i = 0; i < size; ++i)
            for (std::int64_t c = first; c < std::min(first + 16, channels); ++c)
                target[c * channel_stride + i * pixel_stride] = narrow<T>(values[c * kTile + i]);
}

// highest, sum of exp(x - highest), and total of (x - highest), over the channels of each pixel.
template <class F>
AMN_INLINE void softmax_sums(const F* values, std::int64_t channels, F* highest, F* sum, F* total) {
    for (std::int64_t i = 0; i < kTile; ++i) highest[i] = values[i], sum[i] = 0, total[i] = 0;
    for (std::int64_t c = 1; c < channels; ++c)
        for (std::int64_t i = 0; i < kTile; ++i)
            highest[i] = values[c * kTile + i] > highest[i] ? values[c * kTile + i] : highest[i];
    for (std::int64_t c = 0; c < channels; ++c)
        for (std::int64_t i = 0; i < kTile; ++i) {
            const F shifted = values[c * kTile + i] - highest[i];
            sum[i] += exp_nonpositive(shifted);
            total[i] += shifted;
        }
}

// values = weight * (softmax - other), 0 where the weight is 0.
template <class F>
AMN_INLINE void softmax_gradient(F* values, std::int64_t channels, const F* highest, const F* log_sum, const F* weight,
                                 F other) {
    for (std::int64_t c = 0; c < channels; ++c)
        for (std::int64_t i = 0; i < kTile; ++i) {
            const F p = exp_nonpositive(values[c * kTile + i] - highest[i] - log_sum[i]);
            const F g = weight[i] * (p - other);
            values[c * kTile + i] = weight[i] == 0 ? F(0) : g;
        }
}

// The functions that the machine's instruction set chooses: one tile each.
#define AMN_TILE_FUNCTIONS(T, F)                                                                                   \
    AMN_CLONES void forward_tile(const T* source, std::int64_t channels, std::int64_t size, std::int64_t cs,       \
                                 std::int64_t ps, F* values, F* highest, F* sum, F* total) {                       \
        load(source, channels, size, cs, ps, values);                                                              \
        softmax_sums(values, channels, highest, sum, total);                                                       \
    }                                                                                                              \
    AMN_CLONES void backward_tile(const T* source, std::int64_t channels, std::int64_t size, std::int64_t cs,      \
                                  std::int64_t ps, F* values, const F* highest, const F* log_sum, const F* weight, \
                                  F other) {                                                                       \
        load(source, channels, size, cs, ps, values);                                                              \
        softmax_gradient(values, channels, highest, log_sum, weight, other);                                       \
    }                                                                                                              \
    AMN_CLONES void store_tile(const F* values, std::int64_t channels, std::int64_t size, std::int64_t cs,         \
                               std::int64_t ps, T* target) {                                                       \
        store(values, channels, size, cs, ps, target);                                                             \
    }
AMN_TILE_FUNCTIONS(float, float)
AMN_TILE_FUNCTIONS(double, double)
AMN_TILE_FUNCTIONS(Half, float)
AMN_TILE_FUNCTIONS(BFloat16, float)
#undef AMN_TILE_FUNCTIONS

// The labels of a tile's pixels, -1 for those that count nowhere. Returns the highest, -1 where none counts.
class Labels {
public:
    explicit Labels(const Problem& p)
        : problem_(p), rows_(nearest_index(p.label_size[0], p.shape[2])),
          columns_(nearest_index(p.label_size[1], p.shape[3])) {}

    int read(const Tile& tile, int* label) const {
        const auto [batch_stride, row_stride, column_stride] = problem_.label_strides;
        const std::uint8_t* image = problem_.labels + tile.image * batch_stride;
        std::int64_t y = tile.row + tile.column / problem_.shape[3], x = tile.column % problem_.shape[3];
        int highest = -1;
        for (std::int64_t i = 0; i < tile.size; ++i) {
            const int k = image[rows_[static_cast<std::size_t>(y)] * row_stride +
                                columns_[static_cast<std::size_t>(x)] * column_stride];
            label[i] = k == problem_.ignore_index ? -1 : k;
            highest = std::max(highest, label[i]);
            if (++x == problem_.shape[3]) x = 0, ++y;
        }
        return highest;
    }

private:
    const Problem& problem_;
    std::vector<std::int64_t> rows_, columns_;
};

struct Side {
    double loss = 0;
    std::int64_t pixels = 0;
};

struct TileSums {
    std::array<Side, 2> sides;
    int highest = -1;
};

template <class F, class OneTile>
void on_tiles(const Grid& grid, const Problem& p, const OneTile& one_tile) {
    parallel_for(grid.tiles, p.threads, [&] {
        return
            [&one_tile, buffers = Buffers<F>(p.shape[1])](std::int64_t number) mutable { one_tile(number, buffers); };
    });
}

template <class T, class F>
Sums forward_typed(const Problem& p, F* normaliser) {
    const auto [batch, channels, height, width] = p.shape;
    const Grid grid(p, p.strides);
    const Labels labels(p);
    const F on = static_cast<F>(1 - p.eps), off = static_cast<F>(p.eps / static_cast<double>(channels - 1));
    std::vector<TileSums> sums(static_cast<std::size_t>(grid.tiles));
    F* log_sums = normaliser + batch * height * width;
    const auto one_tile = [&](std::int64_t number, Buffers<F>& b) {
        const Tile tile(grid, number);
        const std::int64_t first = (tile.image * height + tile.row) * width + tile.column;
        auto& tile_sums = sums[static_cast<std::size_t>(number)];
        tile_sums.highest = labels.read(tile, b.label.data());
        if (tile_sums.highest < 0 || tile_sums.highest >= channels) {  // nothing counts, or nothing can be computed
            std::fill_n(normaliser + first, tile.size, F(0));
            std::fill_n(log_sums + first, tile.size, F(0));
            return;
        }
        const T* source = static_cast<const T*>(p.logits) + tile.image * p.strides[0] + tile.row * p.strides[2] +
                          tile.column * p.strides[3];
        forward_tile(source, channels, tile.size, p.strides[1], p.strides[3], b.values.get(), b.highest.data(),
                     b.sum.data(), b.total.data());
        for (std::int64_t i = 0; i < tile.size; ++i) {
            const auto at = static_cast<std::size_t>(i);
            const F log_sum = std::log(b.sum[at]);
            normaliser[first + i] = b.highest[at];
            log_sums[first + i] = log_sum;
            if (b.label[at] < 0) continue;
            const F own = b.values[static_cast<std::size_t>(b.label[at] * kTile + i)] - b.highest[at];
            auto& side = tile_sums.sides[b.label[at] != 0];
            side.loss += log_sum - on * own - off * (b.total[at] - own);
            side.pixels += 1;
        }
    };
    on_tiles<F>(grid, p, one_tile);
    Sums result;
    for (const auto& tile_sums : sums) {
        result.highest_label = std::max(result.highest_label, tile_sums.highest);
        for (std::size_t k = 0; k < 2; ++k) {
            result.losses[k] += tile_sums.sides[k].loss;
            result.pixels[k] += static_cast<double>(tile_sums.sides[k].pixels);
        }
    }
    return result;
}

// Labels are checked again: since the forward pass they may have changed. Each tile's labels are read once.
template <class T, class F>
int backward_typed(const Problem& p, const F* normaliser, std::array<double, 2> weights, T* gradient,
                   const std::array<std::int64_t, 4>& gs) {
    const auto [batch, channels, height, width] = p.shape;
    const Grid grid(p, gs);
    const Labels labels(p);
    const F off = static_cast<F>(p.eps / static_cast<double>(channels - 1));
    const F step = static_cast<F>(1 - p.eps) - off;
    const F* log_sums = normaliser + batch * height * width;
    advise_huge_pages(gradient, static_cast<std::size_t>(batch * channels * height * width) * sizeof(T));
    std::vector<int> highest(static_cast<std::size_t>(grid.tiles));
    const auto one_tile = [&](std::int64_t number, Buffers<F>& b) {
        const Tile tile(grid, number);
        auto& weight = b.sum;
        weight.fill(0);
        T* target = gradient + tile.image * gs[0] + tile.row * gs[2] + tile.column * gs[3];
        const int most = labels.read(tile, b.label.data());
        highest[static_cast<std::size_t>(number)] = most;
        if (most < 0 || most >= channels) {  // nothing counts, or nothing can be computed
            std::fill_n(b.values.get(), channels * kTile, F(0));
        } else {
            const std::int64_t first = (tile.image * height + tile.row) * width + tile.column;
            b.highest.fill(0);
            b.total.fill(0);
            for (std::int64_t i = 0; i < tile.size; ++i) {
                const auto at = static_cast<std::size_t>(i);
                b.highest[at] = normaliser[first + i];
                b.total[at] = log_sums[first + i];
                if (b.label[at] >= 0) weight[at] = static_cast<F>(weights[b.label[at] != 0]);
            }
            const T* source = static_cast<const T*>(p.logits) + tile.image * p.strides[0] + tile.row * p.strides[2] +
                              tile.column * p.strides[3];
            backward_tile(source, channels, tile.size, p.strides[1], p.strides[3], b.values.get(), b.highest.data(),
                          b.total.data(), weight.data(), off);
            for (std::int64_t i = 0; i < tile.size; ++i) {
                const auto at = static_cast<std::size_t>(i);
                if (b.label[at] >= 0) b.values[static_cast<std::size_t>(b.label[at] * kTile + i)] -= weight[at] * step;
            }
        }
        store_tile(b.values.get(), channels, tile.size, gs[1], gs[3], target);
    };
    on_tiles<F>(grid, p, one_tile);
    return highest.empty() ? -1 : *std::max_element(highest.begin(), highest.end());
}

}  // namespace

Sums forward(const Problem& p, void* normaliser) {
    switch (p.type) {
        case Type::f32: return forward_typed<float>(p, static_cast<float*>(normaliser));
        case Type::f64: return forward_typed<double>(p, static_cast<double*>(normaliser));
        case Type::f16: return forward_typed<Half>(p, static_cast<float*>(normaliser));
        case Type::bf16: return forward_typed<BFloat16>(p, static_cast<float*>(normaliser));
    }
    return {};
}

int backward(const Problem& p, const void* normaliser, std::array<double, 2> weights, void* gradient,
             const std::array<std::int64_t, 4>& strides) {
    const auto* single = static_cast<const float*>(normaliser);
    switch (p.type) {
        case Type::f32: return backward_typed(p, single, weights, static_cast<float*>(gradient), strides);
        case Type::f64:
            return backward_typed(p, static_cast<const double*>(normaliser), weights, static_cast<double*>(gradient),
                                  strides);
        case Type::f16: return backward_typed(p, single, weights, static_cast<Half*>(gradient), strides);
        case Type::bf16: return backward_typed(p, single, weights, static_cast<BFloat16*>(gradient), strides);
    }
    return -1;
}

}  // namespace amn::pixel_loss
