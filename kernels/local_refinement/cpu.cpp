// Pixel-adaptive refinement: the definition is in reference.py.
//
// One image at a time. Its weights lie in the order in which a step reads them: for each block of kLanes pixels of a row
// all neighbours' weights, kLanes numbers each. A step therefore reads one stream of weights once, for all channels of
// the mask, and a mask's rows from the cache. Masks and image have margins, filled with the edge's value, so that no load
// asks where the image ends; rows outside are the first or the last row. No sum is reordered and no multiply-add
// contracted: the bits depend neither on threads nor on the instruction set.
//
// The weights are kept, not made again in each step: making them takes 1.3 times as long as a step of 21 channels
// (512 x 512) and 5 times as long as one of 3 channels (224 x 224).
#include "local_refinement/cpu.hpp"

#include <algorithm>
#include <cmath>

#include "common/memory.hpp"
#include "common/parallel.hpp"
#include "common/simd.hpp"
#include "local_refinement/planes.hpp"

namespace amn::local_refinement {
namespace {

constexpr std::int64_t kBand = 8;  // rows per piece of work
constexpr int kTogether = 4;       // channels that share a load of the weights
constexpr double kTiny = 1e-8, kColourScale = 0.3, kPamrScale = 0.1;

template <class Work>
void over_rows(std::int64_t height, int threads, const Work& make_work) {
    parallel_for((height + kBand - 1) / kBand, threads, [&] {
        return [&, work = make_work()](std::int64_t band) mutable {
            for (std::int64_t y = band * kBand; y < std::min(height, (band + 1) * kBand); ++y) work(y);
        };
    });
}

template <class F>
struct LanesOf {
    typedef F type __attribute__((vector_size(kLanes * sizeof(F))));
};
template <class F>
using Lanes = typename LanesOf<F>::type;

// By reference: a vector as an argument would depend on the instruction set of the caller.
template <class F>
AMN_INLINE void load(const F* p, Lanes<F>& v) {
    __builtin_memcpy(&v, p, sizeof v);
}
template <class F>
AMN_INLINE void store(const Lanes<F>& v, F* p) {
    __builtin_memcpy(p, &v, sizeof v);
}

// What `block_affinity` reads and writes: kLanes pixels of one row.
template <class F>
struct Block {
    const F* const* rows;  // the neighbours' rows
    const F* centre;
    std::int64_t column, plane, channels, neighbours;
    std::int64_t centres;  // how often the centre counts in the standard deviation
    const F* position;
    F scale;
    F* differences;  // (neighbours, kLanes), to work in
    F* out;          // (neighbours, kLanes)
};

template <class F>
AMN_INLINE void block_affinity(const Block<F>& b, bool par) {
    const F inverse_channels = F(-1) / static_cast<F>(b.channels);
    const F samples = static_cast<F>(b.neighbours + b.centres), centres = static_cast<F>(b.centres);
    Lanes<F> highest;
    for (std::int64_t c = 0; c < b.channels; ++c) {
        // Differences from the centre: what rounds is small where the image is nearly flat.
        Lanes<F> centre, there, difference, mean = {};
        load(b.centre + c * b.plane + b.column, centre);
        for (std::int64_t p = 0; p < b.neighbours; ++p) {
            load(b.rows[p] + c * b.plane + b.column, there);
            difference = there - centre;
            mean += difference;
            store(difference, b.differences + p * kLanes);
        }
        mean /= samples;
        Lanes<F> squares = mean * mean * centres;
        for (std::int64_t p = 0; p < b.neighbours; ++p) {
            load(b.differences + p * kLanes, difference);
            difference -= mean;
            squares += difference * difference;
        }
        Lanes<F> sigma, factor;
        for (std::int64_t i = 0; i < kLanes; ++i) sigma[i] = std::sqrt(squares[i] / (samples - 1));
        if (par) {
            factor = 1 / ((sigma + F(kTiny)) * F(kColourScale));
        } else {
            factor = 1 / (F(kTiny) + F(kPamrScale) * sigma);
        }
        for (std::int64_t p = 0; p < b.neighbours; ++p) {
            load(b.differences + p * kLanes, difference);
            difference *= factor;
            if (par) {
                difference *= difference;
            } else {
                difference = difference < 0 ? -difference : difference;
            }
            difference *= inverse_channels;
            if (c > 0) {
                load(b.out + p * kLanes, there);
                difference += there;
            }
            store(difference, b.out + p * kLanes);
            highest = p > 0 ? (difference > highest ? difference : highest) : difference;
        }
    }
    F total[kLanes] = {}, raised[kLanes], top[kLanes];
    store(highest, top);
    for (std::int64_t p = 0; p < b.neighbours; ++p) {
        for (std::int64_t i = 0; i < kLanes; ++i) raised[i] = exp_nonpositive(b.out[p * kLanes + i] - top[i]);
        for (std::int64_t i = 0; i < kLanes; ++i) total[i] += raised[i];
        for (std::int64_t i = 0; i < kLanes; ++i) b.out[p * kLanes + i] = raised[i];
    }
    Lanes<F> sum, weight;
    load(total, sum);
    const Lanes<F> factor = b.scale / sum;
    for (std::int64_t p = 0; p < b.neighbours; ++p) {
        load(b.out + p * kLanes, weight);
        weight = weight * factor + b.position[p];
        store(weight, b.out + p * kLanes);
    }
}

// One block of M channels: out = sum over the neighbours of weight * value.
template <class F, int M>
AMN_INLINE void sum_block(const F* weights, const F* const* rows, std::int64_t neighbours, std::int64_t from,
                          std::int64_t plane, F* out) {
    Lanes<F> total[M] = {};
    for (std::int64_t p = 0; p < neighbours; ++p) {
        Lanes<F> weight, value;
        load(weights + p * kLanes, weight);
        for (int m = 0; m < M; ++m) {
            load(rows[p] + from + m * plane, value);
            total[m] += weight * value;
        }
    }
    for (int m = 0; m < M; ++m) store(total[m], out + m * plane);
}

// One row of a step, all channels. weights: the row's; out: the row in channel 0.
template <class F>
struct RowStep {
    const F* weights;
    const F* const* rows;
    std::int64_t neighbours, blocks, channels, plane;
    F* out;
};

template <class F>
AMN_INLINE void step_row(const RowStep<F>& s) {
    const std::int64_t groups = (s.channels + kTogether - 1) / kTogether;
    for (std::int64_t block = 0; block < s.blocks; ++block) {
        const F* weights = s.weights + block * s.neighbours * kLanes;
        std::int64_t channel = 0;
        for (std::int64_t left = groups; left > 0; --left) {  // groups of nearly one size
            const std::int64_t size = (s.channels - channel + left - 1) / left;
            const std::int64_t from = channel * s.plane + block * kLanes;
            if (size == 4) sum_block<F, 4>(weights, s.rows, s.neighbours, from, s.plane, s.out + from);
            if (size == 3) sum_block<F, 3>(weights, s.rows, s.neighbours, from, s.plane, s.out + from);
            if (size == 2) sum_block<F, 2>(weights, s.rows, s.neighbours, from, s.plane, s.out + from);
            if (size == 1) sum_block<F, 1>(weights, s.rows, s.neighbours, from, s.plane, s.out + from);
            channel += size;
        }
    }
}

// What one row gives to one neighbour's row: out[x + dx] += weight * value.
template <class F>
AMN_INLINE void scatter_row(const F* weights, std::int64_t weight_stride, const F* values, std::int64_t blocks,
                            F* out) {
    for (std::int64_t block = 0; block < blocks; ++block)
        for (std::int64_t i = 0; i < kLanes; ++i)
            out[block * kLanes + i] += weights[block * weight_stride + i] * values[block * kLanes + i];
}

#define AMN_ROW_FUNCTIONS(F)                                                                                 \
    AMN_CLONES void par_block(const Block<F>& b) { block_affinity(b, true); }                                \
    AMN_CLONES void pamr_block(const Block<F>& b) { block_affinity(b, false); }                              \
    AMN_CLONES void gather(const RowStep<F>& s) { step_row(s); }                                             \
    AMN_CLONES void scatter(const F* w, std::int64_t stride, const F* values, std::int64_t blocks, F* out) { \
        scatter_row(w, stride, values, blocks, out);                                                         \
    }
AMN_ROW_FUNCTIONS(float)
AMN_ROW_FUNCTIONS(double)
#undef AMN_ROW_FUNCTIONS

template <class F>
void image_weights(const Planes<F>& planes, const Rule& rule, int threads, Weights<F>& weights) {
    const Size size = planes.size;
    const std::int64_t neighbours = weights.count;
    const std::vector<F> position(rule.position.begin(), rule.position.end());
    over_rows(size.height, threads, [&] {
        return [&, rows = std::vector<const F*>(weights.neighbours.size()),
                differences = std::vector<F>(weights.neighbours.size() * kLanes)](std::int64_t y) mutable {
            neighbour_rows(planes, weights.neighbours, y, rows.data());
            const std::int64_t centres = rule.kind == Kind::pamr ? neighbours / 8 : 0;
            for (std::int64_t block = 0; block < weights.blocks; ++block) {
                const Block<F> b{rows.data(),
                                 planes.row(0, y),
                                 block * kLanes,
                                 planes.plane,
                                 size.channels,
                                 neighbours,
                                 centres,
                                 position.data(),
                                 static_cast<F>(rule.scale),
                                 differences.data(),
                                 weights.at(y, block)};
                rule.kind == Kind::par ? par_block(b) : pamr_block(b);
            }
            F* last = weights.at(y, weights.blocks - 1);
            for (std::int64_t p = 0; p < neighbours; ++p)
                std::fill(last + p * kLanes + (size.width - (weights.blocks - 1) * kLanes), last + (p + 1) * kLanes,
                          F(0));
        };
    });
}

// Between the weights' own order and planes (neighbours, H, W): copy(weights' lanes, plane's pixels, how many).
template <class F, class Copy>
void each_run(const Weights<F>& weights, Size size, int threads, const Copy& copy) {
    over_rows(size.height, threads, [&] {
        return [&](std::int64_t y) {
            for (std::int64_t block = 0; block < weights.blocks; ++block)
                for (std::int64_t p = 0; p < weights.count; ++p)
                    copy(weights.at(y, block) + p * kLanes, p * size.pixels() + y * size.width + block * kLanes,
                         std::min(kLanes, size.width - block * kLanes));
        };
    });
}

template <class F>
void step(const Weights<F>& weights, const Planes<F>& from, Planes<F>& to, int threads) {
    const Size size = from.size;
    over_rows(size.height, threads, [&] {
        return [&, rows = std::vector<const F*>(weights.neighbours.size())](std::int64_t y) mutable {
            neighbour_rows(from, weights.neighbours, y, rows.data());
            gather(RowStep<F>{weights.at(y, 0), rows.data(), weights.count, weights.blocks, size.channels, from.plane,
                              to.row(0, y)});
            for (std::int64_t c = 0; c < size.channels; ++c) to.fill_margins(c, y);
        };
    });
}

// The margins of `from` hold zeros. What falls into a margin belongs to the pixel at the edge.
template <class F>
void step_transposed(const Weights<F>& weights, const Planes<F>& from, Planes<F>& to, int threads) {
    const std::int64_t channels = from.size.channels, height = from.size.height, width = from.size.width;
    over_rows(height, threads, [&] {
        return [&](std::int64_t y) {
            for (std::int64_t c = 0; c < channels; ++c) std::fill_n(to.row(c, y) - to.margin, to.stride, F(0));
            for (std::int64_t p = 0; p < weights.count; ++p) {
                const auto [dy, dx] = weights.neighbours[static_cast<std::size_t>(p)];
                const std::int64_t first = y == 0 ? 0 : std::max<std::int64_t>(y - dy, 0);
                const std::int64_t last = y == height - 1 ? height - 1 : std::min(y - dy, height - 1);
                for (std::int64_t source = first; source <= last; ++source)
                    for (std::int64_t c = 0; c < channels; ++c)
                        scatter(weights.at(source, 0) + p * kLanes, weights.count * kLanes, from.row(c, source),
                                weights.blocks, to.row(c, y) + dx);
            }
            for (std::int64_t c = 0; c < channels; ++c) {
                F* row = to.row(c, y);
                for (std::int64_t x = 1; x <= to.margin; ++x) {
                    row[0] += row[-x];
                    row[width - 1] += row[width - 1 + x];
                    row[-x] = row[width - 1 + x] = 0;
                }
            }
        };
    });
}

// The masks of a batch through the weights that load(image) makes.
template <class F, class Load>
void run(const Weights<F>& weights, const F* mask, Size size, Steps steps, F* out, int threads, const Load& load) {
    const std::int64_t margin = widest(weights.neighbours), per_image = size.channels * size.pixels();
    Planes<F> from(size, margin), to(size, margin);
    for (std::int64_t image = 0; image < size.images; ++image) {
        load(image);
        from.read(mask + image * per_image, !steps.transpose, threads);
        for (std::int64_t i = 0; i < steps.iterations; ++i) {
            steps.transpose ? step_transposed(weights, from, to, threads) : step(weights, from, to, threads);
            std::swap(from, to);
        }
        from.write(out + image * per_image, threads);
    }
}

}  // namespace

template <class F>
void affinity(const F* image, Size size, const Dilations& dilations, const Rule& rule, F* out, int threads) {
    Weights<F> weights(dilations, size);
    Planes<F> planes(size, widest(weights.neighbours));
    for (std::int64_t i = 0; i < size.images; ++i) {
        planes.read(image + i * size.channels * size.pixels(), true, threads);
        image_weights(planes, rule, threads, weights);
        F* to = out + i * weights.count * size.pixels();
        each_run(weights, size, threads,
                 [&](const F* lanes, std::int64_t at, std::int64_t n) { std::copy_n(lanes, n, to + at); });
    }
}

template <class F>
void propagate(const F* given, const F* mask, Size size, const Dilations& dilations, Steps steps, F* out, int threads) {
    const Weights<F> weights(dilations, size);
    run(weights, mask, size, steps, out, threads, [&](std::int64_t image) {
        const F* from = given + image * weights.count * size.pixels();
        each_run(weights, size, threads, [&](F* lanes, std::int64_t at, std::int64_t n) {
            std::copy_n(from + at, n, lanes);
            std::fill(lanes + n, lanes + kLanes, F(0));
        });
    });
}

template <class F>
void refine(const F* image, std::int64_t image_channels, const F* mask, Size size, const Dilations& dilations,
            const Rule& rule, Steps steps, F* out, int threads) {
    Weights<F> weights(dilations, size);
    Planes<F> planes({size.images, image_channels, size.height, size.width}, widest(weights.neighbours));
    run(weights, mask, size, steps, out, threads, [&](std::int64_t i) {
        planes.read(image + i * image_channels * size.pixels(), true, threads);
        image_weights(planes, rule, threads, weights);
    });
}

#define AMN_INSTANTIATE(F)                                                               \
    template void affinity(const F*, Size, const Dilations&, const Rule&, F*, int);      \
    template void propagate(const F*, const F*, Size, const Dilations&, Steps, F*, int); \
    template void refine(const F*, std::int64_t, const F*, Size, const Dilations&, const Rule&, Steps, F*, int);
AMN_INSTANTIATE(float)
AMN_INSTANTIATE(double)
#undef AMN_INSTANTIATE

}  // namespace amn::local_refinement
