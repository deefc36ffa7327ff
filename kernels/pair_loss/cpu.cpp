// IRN's affinity and displacement losses: the definition is in reference.py.
//
// Two facts make the pair maps unnecessary. The affinity of a pair is decided by one pixel, the one with the highest edge
// logit on the path, and the loss of the pair is a function of that logit alone; so all that the affinity losses and their
// gradients need is how many pairs of each kind each pixel decides. And |D - offset| is its sign times (d_i - d_j - offset);
// so all that the displacement losses need is the sum of those signs at each pixel. The walk over the offsets therefore
// fills seven integers per pixel, the losses are sums over pixels, and the backward pass loops over pixels only.
// Sums of integers do not depend on the order: the result is bit-identical for any number of threads.
#include "pair_loss/cpu.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "common/parallel.hpp"
#include "common/paths.hpp"
#include "common/simd.hpp"

namespace amn::pair_loss {
namespace {

constexpr double kTiny = 1e-5;
constexpr std::int64_t kChunk = 128;  // columns at a time: what is kept per pair stays in the first-level cache

template <class F>
using Key = std::conditional_t<sizeof(F) == 4, std::int32_t, std::int64_t>;

// An integer that orders as the logit does; both zeros are one, and NaN is above all, so that a NaN on a path decides
// the pair and shows in the loss.
template <class F>
AMN_INLINE Key<F> ordered(F x) {
    using K = Key<F>;
    const K bits = std::bit_cast<K>(x + F(0));
    const K key = bits ^ ((bits >> (8 * sizeof(K) - 1)) & std::numeric_limits<K>::max());
    return x != x ? std::numeric_limits<K>::max() : key;
}

// A row of sources and one offset. Pointers point at the first source pixel.
template <class F>
struct Row {
    const Key<F>* key;
    const std::int32_t* label;  // negative: ignored
    const F* displacement;      // y; x lies one plane further
    std::int32_t* tally;        // plane 0; plane `planes` takes the pairs that count nowhere
    std::int64_t plane;         // pixels in a map
    std::int64_t columns;
    std::int64_t offset;  // from a source to its other end, in pixels of the map
    const std::int32_t* path;
    std::int64_t path_size;
    F dy, dx;
};

struct Pairs {
    std::int64_t background = 0, foreground = 0, negative = 0;
    std::int64_t sign_y = 0, sign_x = 0;  // sums of the signs of foreground errors
};

enum Kind : std::int32_t { kBackground, kForeground, kNegative, kNone };

template <class F>
AMN_INLINE void displacement_signs(const Row<F>& row, std::int64_t first, std::int64_t n, const std::int32_t* kind,
                                   int component, std::int64_t& total) {
    std::int32_t fore[kChunk], back[kChunk];
    const F* d = row.displacement + component * row.plane + first;
    const F along = component == 0 ? row.dy : row.dx;
    std::int32_t sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        const F difference = d[i] - d[i + row.offset];
        const F away = difference - along;
        const std::int32_t away_sign = (away > 0 ? 1 : 0) - (away < 0 ? 1 : 0);
        const std::int32_t sign = (difference > 0 ? 1 : 0) - (difference < 0 ? 1 : 0);
        fore[i] = kind[i] == kForeground ? away_sign : 0;
        back[i] = kind[i] == kBackground ? sign : 0;
        sum += fore[i];
    }
    total += sum;
    std::int32_t* fore_tally = row.tally + (foreground_y + component) * row.plane + first;
    std::int32_t* back_tally = row.tally + (background_y + component) * row.plane + first;
    for (std::int64_t i = 0; i < n; ++i) fore_tally[i] += fore[i];
    for (std::int64_t i = 0; i < n; ++i) back_tally[i] += back[i];
    for (std::int64_t i = 0; i < n; ++i) fore_tally[i + row.offset] -= fore[i];
    for (std::int64_t i = 0; i < n; ++i) back_tally[i + row.offset] -= back[i];
}

template <class F>
AMN_INLINE void count_pairs(const Row<F>& row, Pairs& pairs) {
    Key<F> highest[kChunk];
    std::int32_t where[kChunk], kind[kChunk];
    for (std::int64_t first = 0; first < row.columns; first += kChunk) {
        const std::int64_t n = std::min(kChunk, row.columns - first);
        const std::int32_t* label = row.label + first;
        std::int32_t background_pairs = 0, foreground_pairs = 0, negative_pairs = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int32_t one = label[i], other = label[i + row.offset];
            const std::int32_t same = one == 0 ? kBackground : kForeground;
            const std::int32_t differing = one == other ? same : std::int32_t{kNegative};
            kind[i] = (one | other) < 0 ? std::int32_t{kNone} : differing;
            background_pairs += kind[i] == kBackground;
            foreground_pairs += kind[i] == kForeground;
            negative_pairs += kind[i] == kNegative;
        }
        if (background_pairs + foreground_pairs + negative_pairs == 0) continue;
        pairs.background += background_pairs;
        pairs.foreground += foreground_pairs;
        pairs.negative += negative_pairs;

        for (std::int64_t i = 0; i < n; ++i) {
            highest[i] = row.key[first + i + row.path[0]];
            where[i] = row.path[0];
        }
        for (std::int64_t q = 1; q < row.path_size; ++q) {
            const Key<F>* key = row.key + first + row.path[q];
            const std::int32_t step = row.path[q];
            for (std::int64_t i = 0; i < n; ++i) {
                const bool higher = key[i] > highest[i];
                highest[i] = higher ? key[i] : highest[i];
                where[i] = higher ? step : where[i];
            }
        }
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t plane = kind[i] == kNone ? std::int64_t{planes} : std::int64_t{kind[i]};
            ++row.tally[plane * row.plane + first + i + where[i]];
        }
        if (background_pairs + foreground_pairs == 0) continue;
        displacement_signs(row, first, n, kind, 0, pairs.sign_y);
        displacement_signs(row, first, n, kind, 1, pairs.sign_x);
    }
}

AMN_CLONES void count_row(const Row<float>& row, Pairs& pairs) { count_pairs(row, pairs); }
AMN_CLONES void count_row(const Row<double>& row, Pairs& pairs) { count_pairs(row, pairs); }

struct FlatOffset {
    std::int64_t shift;
    std::vector<std::int32_t> path;
};

// The paths in pixels of this map's width.
std::vector<FlatOffset> flatten(const std::vector<Offset>& offsets, std::int64_t width) {
    std::vector<FlatOffset> flat;
    for (const auto& o : offsets) {
        FlatOffset f{o.dy * width + o.dx, {}};
        for (const auto& [y, x] : path(o)) f.path.push_back(static_cast<std::int32_t>(y * width + x));
        flat.push_back(std::move(f));
    }
    return flat;
}

// Keys and labels of one image as the rows want them, and one tally (with the plane for pairs that count nowhere).
template <class F>
struct Image {
    std::vector<Key<F>> key;
    std::vector<std::int32_t> label, tally;
    explicit Image(std::int64_t pixels)
        : key(static_cast<std::size_t>(pixels)), label(static_cast<std::size_t>(pixels)),
          tally(static_cast<std::size_t>((planes + 1) * pixels)) {}

    void read(const Problem<F>& p, std::int64_t b) {
        const std::int64_t pixels = p.height * p.width;
        for (std::int64_t i = 0; i < pixels; ++i) {
            const auto at = static_cast<std::size_t>(i);
            key[at] = ordered(p.edge[b * pixels + i]);
            const int k = p.labels[b * pixels + i];
            label[at] = k == p.ignore_index ? -1 : k;
        }
        std::fill(tally.begin(), tally.end(), 0);
    }
};

// The losses of a pair that a pixel of this logit decides, when its ends belong together and when they do not.
template <class F>
struct Decided {
    F affinity, free, together, apart;
    explicit Decided(F logit)
        : affinity(1 / (1 + std::exp(logit))), free(1 / (1 + std::exp(-logit))),
          together(-std::log(affinity + F(kTiny))), apart(-std::log(free + F(kTiny))) {}
};

// 0 without pairs, also where the value is NaN.
AMN_INLINE double times(std::int32_t pairs, double value) { return pairs == 0 ? 0 : pairs * value; }

// The displacement errors of the pairs that a pixel with an infinite or NaN displacement has: signs cannot state them,
// since the sum of signs is also 0 where no pair counts.
template <class F>
void add_infinite(const Problem<F>& p, const std::vector<Offset>& offsets, std::int64_t b, std::int64_t pixel,
                  std::array<double, 5>& sum) {
    const std::int64_t reach = p.radius - 1, pixels = p.height * p.width;
    const std::uint8_t* labels = p.labels + b * pixels;
    const F* moved = p.displacement + 2 * b * pixels;
    const auto add = [&](std::int64_t y, std::int64_t x, Offset o) {
        if (y < 0 || y >= p.height - reach || x < reach || x >= p.width - reach) return;
        const std::int64_t one = y * p.width + x, other = (y + o.dy) * p.width + x + o.dx;
        if (labels[one] == p.ignore_index || labels[one] != labels[other]) return;
        for (int c = 0; c < 2; ++c)
            sum[labels[one] == 0 ? 4 : 3] +=
                std::abs(static_cast<double>(moved[c * pixels + one]) - static_cast<double>(moved[c * pixels + other]));
    };
    for (const auto& o : offsets) {
        add(pixel / p.width, pixel % p.width, o);
        add(pixel / p.width - o.dy, pixel % p.width - o.dx, o);
    }
}

}  // namespace

template <class F>
Sums forward(const Problem<F>& p, std::int32_t* tallies) {
    const std::int64_t reach = p.radius - 1, pixels = p.height * p.width;
    if (p.radius * p.width > std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("the maps are too wide for this radius");
    const auto offsets = half_plane(p.radius);
    const auto flat = flatten(offsets, p.width);
    const std::int64_t rows = p.height - reach, columns = p.width - 2 * reach;
    // Images first; an image is cut into bands of rows only where there are more threads than images.
    const std::int64_t bands = p.batch > 0 ? std::min(rows, (p.threads + p.batch - 1) / p.batch) : 1;
    std::vector<Pairs> counted(static_cast<std::size_t>(p.batch));
    std::mutex adding;
    std::fill_n(tallies, p.batch * planes * pixels, 0);

    const auto one_band = [&](std::int64_t piece, Image<F>& image) {
        const std::int64_t b = piece / bands, band = piece % bands;
        image.read(p, b);
        Pairs totals;
        for (std::int64_t y = rows * band / bands; y < rows * (band + 1) / bands; ++y)
            for (std::size_t o = 0; o < flat.size(); ++o) {
                const std::int64_t start = y * p.width + reach;
                Pairs found;
                count_row(Row<F>{image.key.data() + start, image.label.data() + start,
                                 p.displacement + 2 * b * pixels + start, image.tally.data() + start, pixels, columns,
                                 flat[o].shift, flat[o].path.data(), static_cast<std::int64_t>(flat[o].path.size()),
                                 static_cast<F>(offsets[o].dy), static_cast<F>(offsets[o].dx)},
                          found);
                totals.background += found.background;
                totals.foreground += found.foreground;
                totals.negative += found.negative;
                totals.sign_y += found.sign_y * offsets[o].dy;
                totals.sign_x += found.sign_x * offsets[o].dx;
            }
        const std::lock_guard<std::mutex> lock(adding);
        std::int32_t* target = tallies + b * planes * pixels;
        for (std::int64_t i = 0; i < planes * pixels; ++i) target[i] += image.tally[static_cast<std::size_t>(i)];
        auto& all = counted[static_cast<std::size_t>(b)];
        all.background += totals.background;
        all.foreground += totals.foreground;
        all.negative += totals.negative;
        all.sign_y += totals.sign_y;
        all.sign_x += totals.sign_x;
    };
    parallel_for(p.batch * bands, p.threads, [&] {
        return [&one_band, image = Image<F>(pixels)](std::int64_t piece) mutable { one_band(piece, image); };
    });

    std::vector<std::array<double, 5>> losses(static_cast<std::size_t>(p.batch));
    const auto one_image = [&](std::int64_t b) {
        const std::int32_t* tally = tallies + b * planes * pixels;
        const F* moved = p.displacement + 2 * b * pixels;
        std::array<double, 5> sum{};
        for (std::int64_t i = 0; i < pixels; ++i) {
            const Decided<F> d(p.edge[b * pixels + i]);
            sum[0] += times(tally[background * pixels + i], static_cast<double>(d.together));
            sum[1] += times(tally[foreground * pixels + i], static_cast<double>(d.together));
            sum[2] += times(tally[negative * pixels + i], static_cast<double>(d.apart));
            if (!std::isfinite(moved[i]) || !std::isfinite(moved[pixels + i])) add_infinite(p, offsets, b, i, sum);
            for (int c = 0; c < 2; ++c) {
                if (!std::isfinite(moved[c * pixels + i])) continue;
                sum[3] += tally[(foreground_y + c) * pixels + i] * static_cast<double>(moved[c * pixels + i]);
                sum[4] += tally[(background_y + c) * pixels + i] * static_cast<double>(moved[c * pixels + i]);
            }
        }
        const auto& pairs = counted[static_cast<std::size_t>(b)];
        sum[3] -= static_cast<double>(pairs.sign_y + pairs.sign_x);  // already times the offsets
        losses[static_cast<std::size_t>(b)] = sum;
    };
    parallel_for(p.batch, p.threads, [&] { return one_image; });

    Sums result{};
    for (std::int64_t b = 0; b < p.batch; ++b) {
        const auto at = static_cast<std::size_t>(b);
        for (std::size_t k = 0; k < 5; ++k) result.losses[k] += losses[at][k];
        result.pairs[0] += counted[at].background;
        result.pairs[1] += counted[at].foreground;
        result.pairs[2] += counted[at].negative;
    }
    return result;
}

template <class F>
void backward(const Problem<F>& p, const std::int32_t* tallies, const std::array<double, 5>& weights, F* edge_gradient,
              F* displacement_gradient) {
    const std::int64_t pixels = p.height * p.width;
    const auto one_image = [&](std::int64_t b) {
        const std::int32_t* tally = tallies + b * planes * pixels;
        for (std::int64_t i = 0; i < pixels; ++i) {
            const Decided<F> d(p.edge[b * pixels + i]);
            const F slope = d.affinity * d.free;
            const double together = slope / (d.affinity + F(kTiny)), apart = slope / (d.free + F(kTiny));
            edge_gradient[b * pixels + i] =
                static_cast<F>(times(tally[background * pixels + i], weights[0] * together) +
                               times(tally[foreground * pixels + i], weights[1] * together) -
                               times(tally[negative * pixels + i], weights[2] * apart));
            for (int c = 0; c < 2; ++c)
                displacement_gradient[(2 * b + c) * pixels + i] =
                    static_cast<F>(weights[3] * tally[(foreground_y + c) * pixels + i] +
                                   weights[4] * tally[(background_y + c) * pixels + i]);
        }
    };
    parallel_for(p.batch, p.threads, [&] { return one_image; });
}

template Sums forward(const Problem<float>&, std::int32_t*);
template Sums forward(const Problem<double>&, std::int32_t*);
template void backward(const Problem<float>&, const std::int32_t*, const std::array<double, 5>&, float*, float*);
template void backward(const Problem<double>&, const std::int32_t*, const std::array<double, 5>&, double*, double*);

}  // namespace amn::pair_loss
