// Merging activation maps over scales: the definition is in reference.py.
//
// An image's full-size maps of one scale take 100 MB at 81 channels; here none exists. The maps are stored with the
// channels innermost. For a row of the result each scale's two rows are blended into one; then each pixel blends two cells
// of each scale, over the channels side by side, and sums, softmax and choice of the kept channels happen at once. Only the
// kept channels are written. Each pixel's sums run in one fixed order, so the bits do not depend on threads or vectors.
#include "merge/cpu.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/nearest.hpp"
#include "common/parallel.hpp"
#include "common/simd.hpp"

namespace amn::merge {
namespace {

constexpr double kTiny = 1e-5;
constexpr std::int64_t kLanes = 16;  // channels side by side; the channels are padded to a multiple
constexpr std::int64_t kBand = 8;    // rows of the result per piece of work

// Where each of `count` samples lies between the cells of a side: bilinear, align_corners=False.
template <class F>
struct Between {
    std::vector<std::int64_t> low, high;
    std::vector<F> weight;  // of `high`

    Between(std::int64_t cells, std::int64_t extent, std::int64_t count) {
        const double step = static_cast<double>(cells) / static_cast<double>(extent);
        for (std::int64_t i = 0; i < count; ++i) {
            const double position = std::max((static_cast<double>(i) + 0.5) * step - 0.5, 0.0);
            const std::int64_t cell = std::min(static_cast<std::int64_t>(position), cells - 1);
            low.push_back(cell);
            high.push_back(std::min(cell + 1, cells - 1));
            weight.push_back(static_cast<F>(position - static_cast<double>(cell)));
        }
    }
};

// One scale, channels innermost and padded to `padded`, with its places in the target.
template <class F>
struct Layer {
    std::vector<F> cells;  // [height][width][padded]
    std::int64_t width;
    Between<F> rows, columns;
};

template <class F>
std::vector<Layer<F>> layers_of(const std::vector<Scale<F>>& scales, const std::vector<std::int64_t>& channels,
                                std::int64_t padded, F padding, const Target<F>& target) {
    std::vector<Layer<F>> layers;
    for (const auto& s : scales) {
        Layer<F> layer{std::vector<F>(static_cast<std::size_t>(s.height * s.width * padded), padding), s.width,
                       Between<F>(s.height, target.extent[0], target.size[0]),
                       Between<F>(s.width, target.extent[1], target.size[1])};
        for (std::size_t c = 0; c < channels.size(); ++c)
            for (std::int64_t i = 0; i < s.height * s.width; ++i)
                layer.cells[static_cast<std::size_t>(i * padded) + c] = s.map[channels[c] * s.height * s.width + i];
        layers.push_back(std::move(layer));
    }
    return layers;
}

// One scale's part in one row of the result.
template <class F>
struct RowSource {
    const F* cells;  // [width][padded], blended from two rows
    const std::int64_t *low, *high;
    const F* weight;
};

template <class F>
AMN_INLINE void blend(const F* a, const F* b, F weight, F scale, std::int64_t n, F* out) {
    const F for_a = (1 - weight) * scale, for_b = weight * scale;
    for (std::int64_t i = 0; i < n; ++i) out[i] = a[i] * for_a + b[i] * for_b;
}

// Halves the lanes until one is left: a fixed order that vectors of any width follow.
template <class F, class Join>
AMN_INLINE F join_lanes(F* lanes, const Join& join) {
    for (std::int64_t i = 0; i < 8; ++i) lanes[i] = join(lanes[i], lanes[i + 8]);
    for (std::int64_t i = 0; i < 4; ++i) lanes[i] = join(lanes[i], lanes[i + 4]);
    for (std::int64_t i = 0; i < 2; ++i) lanes[i] = join(lanes[i], lanes[i + 2]);
    return join(lanes[0], lanes[1]);
}

template <class F>
AMN_INLINE void sum_scales(const RowSource<F>* sources, std::int64_t scales, std::int64_t x, std::int64_t padded,
                           F* sum) {
    for (std::int64_t first = 0; first < padded; first += kLanes) {
        F lanes[kLanes] = {};
        for (std::int64_t s = 0; s < scales; ++s) {
            const F* a = sources[s].cells + sources[s].low[x] * padded + first;
            const F* b = sources[s].cells + sources[s].high[x] * padded + first;
            const F for_b = sources[s].weight[x], for_a = 1 - for_b;
            for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] += a[i] * for_a + b[i] * for_b;
        }
        for (std::int64_t i = 0; i < kLanes; ++i) sum[first + i] = lanes[i];
    }
}

// values = exp(values - maximum); returns their sum.
template <class F>
AMN_INLINE F exponentials(F* values, std::int64_t padded) {
    F lanes[kLanes];
    for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] = values[i];
    for (std::int64_t first = kLanes; first < padded; first += kLanes)
        for (std::int64_t i = 0; i < kLanes; ++i)
            lanes[i] = values[first + i] > lanes[i] ? values[first + i] : lanes[i];
    const F highest = join_lanes(lanes, [](F a, F b) { return a > b ? a : b; });
    for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] = 0;
    for (std::int64_t first = 0; first < padded; first += kLanes)
        for (std::int64_t i = 0; i < kLanes; ++i) {
            values[first + i] = exp_nonpositive(values[first + i] - highest);
            lanes[i] += values[first + i];
        }
    return join_lanes(lanes, [](F a, F b) { return a + b; });
}

// A row of the result: the channels `kept` at out + k * plane. `values` holds `padded` numbers.
template <class F>
struct RowTarget {
    F* out;
    std::int64_t plane, columns;
    const std::int64_t* kept;
    std::int64_t kept_size;
    F* values;
};

template <class F>
AMN_INLINE void sum_row(const RowSource<F>* sources, std::int64_t scales, std::int64_t padded, const RowTarget<F>& t) {
    for (std::int64_t x = 0; x < t.columns; ++x) {
        sum_scales(sources, scales, x, padded, t.values);
        for (std::int64_t k = 0; k < t.kept_size; ++k) t.out[k * t.plane + x] = t.values[t.kept[k]];
    }
}

template <class F>
AMN_INLINE void softmax_row(const RowSource<F>* sources, std::int64_t scales, std::int64_t padded,
                            const RowTarget<F>& t) {
    for (std::int64_t x = 0; x < t.columns; ++x) {
        sum_scales(sources, scales, x, padded, t.values);
        const F inverse = 1 / exponentials(t.values, padded);
        for (std::int64_t k = 0; k < t.kept_size; ++k) t.out[k * t.plane + x] = t.values[t.kept[k]] * inverse;
    }
}

#define AMN_ROW_FUNCTIONS(F)                                                                                           \
    AMN_CLONES void blend_rows(const F* a, const F* b, F weight, F scale, std::int64_t n, F* out) {                    \
        blend(a, b, weight, scale, n, out);                                                                            \
    }                                                                                                                  \
    AMN_CLONES void write_sums(const RowSource<F>* s, std::int64_t n, std::int64_t padded, const RowTarget<F>& t) {    \
        sum_row(s, n, padded, t);                                                                                      \
    }                                                                                                                  \
    AMN_CLONES void write_softmax(const RowSource<F>* s, std::int64_t n, std::int64_t padded, const RowTarget<F>& t) { \
        softmax_row(s, n, padded, t);                                                                                  \
    }
AMN_ROW_FUNCTIONS(float)
AMN_ROW_FUNCTIONS(double)
#undef AMN_ROW_FUNCTIONS

template <class F>
struct Extremes {
    std::vector<F> low, high;  // per kept channel
    explicit Extremes(std::size_t kept)
        : low(kept, std::numeric_limits<F>::infinity()), high(kept, -std::numeric_limits<F>::infinity()) {}
    void add(std::size_t k, const F* values, std::int64_t n) {
        const auto [least, most] = std::minmax_element(values, values + n);
        low[k] = std::min(low[k], *least);
        high[k] = std::max(high[k], *most);
    }
};

// Writes all rows of the target with `write` and returns the extremes of each kept channel. Each scale counts `scale`.
template <class F, class Write>
Extremes<F> all_rows(const std::vector<Layer<F>>& layers, std::int64_t padded, F scale,
                     const std::vector<std::int64_t>& kept, const Target<F>& target, int threads, const Write& write) {
    const auto [height, width] = target.size;
    const std::int64_t bands = (height + kBand - 1) / kBand;
    std::vector<Extremes<F>> found(static_cast<std::size_t>(bands), Extremes<F>(kept.size()));
    const auto make_work = [&] {
        std::vector<std::vector<F>> rows;
        std::vector<RowSource<F>> sources;
        for (const auto& layer : layers) rows.emplace_back(static_cast<std::size_t>(layer.width * padded));
        for (std::size_t s = 0; s < layers.size(); ++s) {
            const auto& columns = layers[s].columns;
            sources.push_back({rows[s].data(), columns.low.data(), columns.high.data(), columns.weight.data()});
        }
        return [&, rows = std::move(rows), sources = std::move(sources),
                values = std::vector<F>(static_cast<std::size_t>(padded))](std::int64_t band) mutable {
            for (std::int64_t y = band * kBand; y < std::min(height, (band + 1) * kBand); ++y) {
                for (std::size_t s = 0; s < layers.size(); ++s) {
                    const auto& places = layers[s].rows;
                    const std::int64_t n = layers[s].width * padded;
                    const auto at = static_cast<std::size_t>(y);
                    blend_rows(layers[s].cells.data() + places.low[at] * n,
                               layers[s].cells.data() + places.high[at] * n, places.weight[at], scale, n,
                               rows[s].data());
                }
                F* out = target.out + y * width;
                write(sources.data(), static_cast<std::int64_t>(sources.size()), padded,
                      RowTarget<F>{out, height * width, width, kept.data(), static_cast<std::int64_t>(kept.size()),
                                   values.data()});
                for (std::size_t k = 0; k < kept.size(); ++k)
                    found[static_cast<std::size_t>(band)].add(k, out + static_cast<std::int64_t>(k) * height * width,
                                                              width);
            }
        };
    };
    parallel_for(bands, threads, make_work);
    Extremes<F> all(kept.size());
    for (const auto& band : found)
        for (std::size_t k = 0; k < kept.size(); ++k) {
            all.low[k] = std::min(all.low[k], band.low[k]);
            all.high[k] = std::max(all.high[k], band.high[k]);
        }
    return all;
}

std::int64_t pad(std::size_t channels) {
    return std::max<std::int64_t>((static_cast<std::int64_t>(channels) + kLanes - 1) / kLanes * kLanes, kLanes);
}

std::vector<std::int64_t> count_up(std::size_t n) {
    std::vector<std::int64_t> numbers(n);
    for (std::size_t i = 0; i < n; ++i) numbers[i] = static_cast<std::int64_t>(i);
    return numbers;
}

}  // namespace

template <class F>
void cam(const std::vector<Scale<F>>& scales, const std::vector<std::int64_t>& kept, const Target<F>& target,
         int threads) {
    if (kept.empty()) return;
    const std::int64_t padded = pad(kept.size());
    const auto layers = layers_of(scales, kept, padded, F(0), target);
    const auto extremes = all_rows(layers, padded, F(1), count_up(kept.size()), target, threads,
                                   [](const auto* s, auto n, auto p, const auto& t) { write_sums(s, n, p, t); });
    const auto [height, width] = target.size;
    const auto one_row = [&](std::int64_t row) {
        const auto k = static_cast<std::size_t>(row / height);
        const F divisor = extremes.high[k] + F(kTiny);
        F* out = target.out + row * width;
        for (std::int64_t x = 0; x < width; ++x) out[x] /= divisor;
    };
    parallel_for(static_cast<std::int64_t>(kept.size()) * height, threads, [&] { return one_row; });
}

template <class F>
void amn(const std::vector<Scale<F>>& scales, std::int64_t channels, const std::vector<std::int64_t>& kept,
         const std::uint8_t* seed, std::array<std::int64_t, 2> seed_size, const Target<F>& target, int threads) {
    const std::int64_t padded = pad(static_cast<std::size_t>(channels));
    const F nothing = F(-1e30);  // a padding channel's logit: its exponential is 0
    const auto layers = layers_of(scales, count_up(static_cast<std::size_t>(channels)), padded, nothing, target);
    const auto extremes = all_rows(layers, padded, F(1) / static_cast<F>(scales.size()), kept, target, threads,
                                   [](const auto* s, auto n, auto p, const auto& t) { write_softmax(s, n, p, t); });
    const auto [height, width] = target.size;
    const auto rows = nearest_index(seed_size[0], height), columns = nearest_index(seed_size[1], width);
    const auto one_row = [&](std::int64_t row) {
        const auto k = static_cast<std::size_t>(row / height);
        const std::uint8_t* labels = seed + rows[static_cast<std::size_t>(row % height)] * seed_size[1];
        const F low = extremes.low[k], range = extremes.high[k] - low + F(kTiny);
        F* out = target.out + row * width;
        for (std::int64_t x = 0; x < width; ++x)
            if (labels[columns[static_cast<std::size_t>(x)]] != 0) out[x] = (out[x] - low) / range;
    };
    parallel_for(static_cast<std::int64_t>(kept.size()) * height, threads, [&] { return one_row; });
}

#define AMN_INSTANTIATE(F)                                                                                    \
    template void cam(const std::vector<Scale<F>>&, const std::vector<std::int64_t>&, const Target<F>&, int); \
    template void amn(const std::vector<Scale<F>>&, std::int64_t, const std::vector<std::int64_t>&,           \
                      const std::uint8_t*, std::array<std::int64_t, 2>, const Target<F>&, int);
AMN_INSTANTIATE(float)
AMN_INSTANTIATE(double)
#undef AMN_INSTANTIATE

}  // namespace amn::merge
