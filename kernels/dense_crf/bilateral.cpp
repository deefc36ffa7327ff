#include "dense_crf/bilateral.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "common/huge_pages.hpp"
#include "common/memory.hpp"
#include "common/parallel.hpp"
#include "common/simd.hpp"
#include "dense_crf/lattice.hpp"

namespace amn::dense_crf {
namespace {

// Sums lane by lane: the compiler may not reorder one sum.
AMN_CLONES bool all_finite(const float* values, int64_t count) {
    float suspicion[32] = {};
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int64_t lane = 0; lane < 32; ++lane) suspicion[lane] += values[i + lane] * 0.0f;
    for (; i < count; ++i) suspicion[0] += values[i] * 0.0f;
    float sum = 0;
    for (const float lane : suspicion) sum += lane;
    return sum == 0.0f;
}

void require_finite(const char* name, const float* values, int64_t count) {
    if (!all_finite(values, count))
        throw std::invalid_argument(std::string(name) + " hold NaN or infinity, expected finite numbers");
}

// Sources of `count` targets by PyTorch's nearest rule, in single precision as there.
std::vector<int64_t> nearest_sources(int64_t count, int64_t full, float step) {
    std::vector<int64_t> sources(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
        sources[static_cast<size_t>(i)] =
            std::min(static_cast<int64_t>(std::floor(static_cast<float>(i) * step)), full - 1);
    return sources;
}

// The two sources of each target and the weight of the second, align_corners=False.
struct Pairs {
    std::vector<int64_t> low, high;
    std::vector<float> weight;

    Pairs(int64_t count, int64_t full, float step) {
        for (int64_t i = 0; i < count; ++i) {
            const float at = std::max(step * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
            const int64_t first = std::min(static_cast<int64_t>(at), full - 1);
            low.push_back(first);
            high.push_back(std::min(first + 1, full - 1));
            weight.push_back(std::clamp(at - static_cast<float>(first), 0.0f, 1.0f));
        }
    }
};

// The features x / sigma_xy, y / sigma_xy, r, g, b / sigma_rgb of one image, sampled at rows and columns: (5, n).
Buffer<float> features(const float* pixels, int64_t full_height, int64_t full_width, const std::vector<int64_t>& rows,
                       const std::vector<int64_t>& columns, double sigma_rgb, double sigma_xy) {
    const auto height = static_cast<int64_t>(rows.size()), width = static_cast<int64_t>(columns.size()),
               n = height * width;
    const auto xy = static_cast<float>(sigma_xy), rgb = static_cast<float>(sigma_rgb);
    if (!(xy > 0) || !(rgb > 0)) throw std::invalid_argument("a sigma is not greater than 0 in single precision");
    Buffer<float> result(static_cast<size_t>(5 * n));
    for (int64_t y = 0; y < height; ++y) {
        float* at = result.data() + y * width;
        for (int64_t x = 0; x < width; ++x) at[x] = static_cast<float>(x) / xy;
        std::fill_n(at + n, width, static_cast<float>(y) / xy);
        for (int c = 0; c < 3; ++c) {
            const float* from = pixels + (c * full_height + rows[static_cast<size_t>(y)]) * full_width;
            for (int64_t x = 0; x < width; ++x) at[(2 + c) * n + x] = from[columns[static_cast<size_t>(x)]] / rgb;
        }
    }
    return result;
}

Lattice lattice_of(const Buffer<float>& matrix, int64_t points, int threads) {
    return {Features(matrix.data(), 5, points), threads};
}

// Work on images in parallel; threads that are left over work on each image's lattice.
template <class Work>
void over_images(int64_t images, int threads, const Work& work) {
    const int inside = std::max<int>(1, threads / static_cast<int>(std::max<int64_t>(images, 1)));
    parallel_for(images, threads, [&] { return [&](int64_t image) { work(image, inside); }; });
}

// out (width) = the sampled row y of a plane; `blended` holds full_width numbers.
AMN_CLONES void blend(const float* a, const float* b, float weight, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = (1 - weight) * a[i] + weight * b[i];
}

void sample_row(const float* plane, const Grid& grid, const Pairs& rows, const Pairs& columns, int64_t y,
                float* blended, float* out) {
    const auto at = static_cast<size_t>(y);
    blend(plane + rows.low[at] * grid.full_width, plane + rows.high[at] * grid.full_width, rows.weight[at],
          grid.full_width, blended);
    const int64_t *low = columns.low.data(), *high = columns.high.data();
    const float* weight = columns.weight.data();
    for (int64_t x = 0; x < grid.width; ++x) out[x] = (1 - weight[x]) * blended[low[x]] + weight[x] * blended[high[x]];
}

AMN_CLONES void raise_to(const float* values, int64_t count, float* highest) {
    for (int64_t i = 0; i < count; ++i) highest[i] = values[i] > highest[i] ? values[i] : highest[i];
}

AMN_CLONES void multiply(const float* by, int64_t count, float* values) {
    for (int64_t i = 0; i < count; ++i) values[i] *= by[i];
}

AMN_CLONES void add_and_multiply(const float* add, const float* by, int64_t count, float* values) {
    for (int64_t i = 0; i < count; ++i) values[i] = (values[i] + add[i]) * by[i];
}

AMN_CLONES double dot(const float* a, const float* b, int64_t count) {
    double lanes[16] = {};
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int64_t lane = 0; lane < 16; ++lane)
            lanes[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
    for (; i < count; ++i) lanes[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

AMN_CLONES void add_scaled(const float* values, float by, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] += values[i] * by;
}

// One image's sampled maps.
struct Sampled {
    Buffer<float> values;  // S (channels, n)
    Buffer<float> region;  // (n)
    Buffer<float> gate;    // (n), where there is one
};

Sampled sample(const Energy& e, int64_t image, const std::vector<int64_t>& near_rows,
               const std::vector<int64_t>& near_columns, const Pairs& rows, const Pairs& columns) {
    const Grid& g = e.grid;
    const int64_t n = g.height * g.width, full = g.full_height * g.full_width;
    Sampled s{Buffer<float>(static_cast<size_t>(e.channels * n)), Buffer<float>(static_cast<size_t>(n)), {}};
    if (e.labels) s.gate = Buffer<float>(static_cast<size_t>(n));
    std::vector<float> blended(static_cast<size_t>(g.full_width)), highest(static_cast<size_t>(g.width));
    for (int64_t y = 0; y < g.height; ++y) {
        const int64_t source = image * full + near_rows[static_cast<size_t>(y)] * g.full_width;
        float* region = s.region.data() + y * g.width;
        for (int64_t x = 0; x < g.width; ++x) region[x] = e.regions[source + near_columns[static_cast<size_t>(x)]];
        for (int64_t c = 0; c < e.channels; ++c) {
            float* row = s.values.data() + c * n + y * g.width;
            sample_row(e.probabilities + (image * e.channels + c) * full, g, rows, columns, y, blended.data(), row);
            if (!e.labels) continue;
            if (c == 0) std::copy_n(row, g.width, highest.data());
            raise_to(row, g.width, highest.data());
        }
        for (int64_t c = 0; c < e.channels; ++c) multiply(region, g.width, s.values.data() + c * n + y * g.width);
        if (!e.labels) continue;
        for (int64_t x = 0; x < g.width; ++x) {
            const bool free = e.labels[source + near_columns[static_cast<size_t>(x)]] == 255;
            s.gate[static_cast<size_t>(y * g.width + x)] =
                free ? 1.0f : std::max(0.0f, region[x] - highest[static_cast<size_t>(x)]);
        }
    }
    return s;
}

}  // namespace

void bilateral_filter(const Guides& g, const float* values, int64_t channels, bool transpose, float* out, int threads) {
    const int64_t n = g.height * g.width;
    const auto rows = nearest_sources(g.height, g.height, 1), columns = nearest_sources(g.width, g.width, 1);
    over_images(g.images, threads, [&](int64_t image, int inside) {
        const float* mine = values + image * channels * n;
        require_finite("images", g.pixels + image * 3 * n, 3 * n);
        require_finite("values", mine, channels * n);
        const auto matrix =
            features(g.pixels + image * 3 * n, g.height, g.width, rows, columns, g.sigma_rgb, g.sigma_xy);
        lattice_of(matrix, n, inside).filter(mine, out + image * channels * n, channels, inside, transpose);
    });
}

std::vector<double> energies(const Energy& e, float* field, int threads) {
    const Grid& g = e.grid;
    const int64_t n = g.height * g.width, full = g.full_height * g.full_width;
    const auto near_rows = nearest_sources(g.height, g.full_height, g.step_y);
    const auto near_columns = nearest_sources(g.width, g.full_width, g.step_x);
    const Pairs rows(g.height, g.full_height, g.step_y), columns(g.width, g.full_width, g.step_x);
    std::vector<double> sums(static_cast<size_t>(e.guides.images), 0.0);
    over_images(e.guides.images, threads, [&](int64_t image, int inside) {
        const Sampled s = sample(e, image, near_rows, near_columns, rows, columns);
        const float* pixels = e.guides.pixels + image * 3 * full;
        require_finite("images", pixels, 3 * full);
        require_finite("segmentations or ROIs", s.values.data(), e.channels * n);
        const auto matrix = features(pixels, g.full_height, g.full_width, near_rows, near_columns, e.guides.sigma_rgb,
                                     e.guides.sigma_xy);
        const Lattice lattice = lattice_of(matrix, n, inside);
        float* filtered = field + image * e.channels * n;
        lattice.filter(s.values.data(), filtered, e.channels, inside, false);
        double sum = 0;
        for (int64_t c = 0; c < e.channels; ++c) {
            if (e.labels) multiply(s.gate.data(), n, filtered + c * n);
            sum += dot(s.values.data() + c * n, filtered + c * n, n);
        }
        sums[static_cast<size_t>(image)] = sum;
        if (e.gradient == Gradient::exact) {
            for (int64_t c = 0; c < e.channels && e.labels; ++c) multiply(s.gate.data(), n, s.values.data() + c * n);
            lattice.filter(s.values.data(), s.values.data(), e.channels, inside, true);
        }
        for (int64_t c = 0; c < e.channels && e.gradient != Gradient::none; ++c) {
            const float* other = e.gradient == Gradient::exact ? s.values.data() + c * n : filtered + c * n;
            add_and_multiply(other, s.region.data(), n, filtered + c * n);
        }
    });
    return sums;
}

void spread(const float* field, const Grid& g, int64_t planes, float factor, float* gradient, int threads) {
    const Pairs rows(g.height, g.full_height, g.step_y), columns(g.width, g.full_width, g.step_x);
    advise_huge_pages(gradient, static_cast<size_t>(planes * g.full_height * g.full_width) * sizeof(float));
    parallel_for(planes, threads, [&] {
        return [&, row = std::vector<float>(static_cast<size_t>(g.full_width))](int64_t plane) mutable {
            float* out = gradient + plane * g.full_height * g.full_width;
            std::fill_n(out, g.full_height * g.full_width, 0.0f);
            for (int64_t y = 0; y < g.height; ++y) {
                const float* from = field + (plane * g.height + y) * g.width;
                std::fill(row.begin(), row.end(), 0.0f);
                for (int64_t x = 0; x < g.width; ++x) {
                    const auto at = static_cast<size_t>(x);
                    const float value = from[x] * factor;
                    row[static_cast<size_t>(columns.low[at])] += value * (1 - columns.weight[at]);
                    row[static_cast<size_t>(columns.high[at])] += value * columns.weight[at];
                }
                const auto at = static_cast<size_t>(y);
                add_scaled(row.data(), 1 - rows.weight[at], g.full_width, out + rows.low[at] * g.full_width);
                add_scaled(row.data(), rows.weight[at], g.full_width, out + rows.high[at] * g.full_width);
            }
        };
    });
}

}  // namespace amn::dense_crf
