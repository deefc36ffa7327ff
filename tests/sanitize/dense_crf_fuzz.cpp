// Random problems for the dense CRF's kernels, to be run under sanitizers, and recorded ones if files are given.
// Usage: dense_crf_fuzz ROUNDS SEED [RECORDED...]; a recorded file comes from tests/sanitize/run_dense_crf.py.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dense_crf/mean_field.hpp"

using namespace amn::dense_crf;
using Random = std::mt19937_64;

namespace {

int64_t between(Random& random, int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
}
double deviation(Random& random) { return std::pow(10.0, std::uniform_real_distribution<double>(-4, 3.5)(random)); }

void fail(const char* what, uint64_t seed) {
    std::fprintf(stderr, "%s (seed %llu)\n", what, static_cast<unsigned long long>(seed));
    std::exit(1);
}

void check(const std::vector<float>& q, int64_t labels, int64_t n, uint64_t seed) {
    for (int64_t p = 0; p < n; ++p) {
        double sum = 0;
        for (int64_t l = 0; l < labels; ++l) {
            if (!(q[l * n + p] >= 0)) fail("a marginal is negative or NaN", seed);
            sum += q[l * n + p];
        }
        if (std::abs(sum - 1) > 1e-5) fail("marginals do not sum to 1", seed);
    }
}

// One problem of random shape, features, kernels and energies. Returns false where the features were refused.
bool problem(uint64_t seed) {
    Random random(seed);
    const bool large = between(random, 0, 99) == 0;  // enough points for several bands
    const int64_t height = large ? between(random, 170, 200) : between(random, 1, 40);
    const int64_t width = large ? between(random, 195, 220) : between(random, 1, 40);
    const int64_t n = height * width;
    const int64_t labels = large                   ? between(random, 1, 6)
                           : between(random, 0, 9) ? between(random, 1, 30)
                                                   : between(random, 31, 99);
    const int threads = static_cast<int>(between(random, 1, 4));
    std::normal_distribution<float> normal;

    std::vector<uint8_t> image(n * 3);
    const int64_t spread = between(random, 0, 255);
    for (uint8_t& value : image) value = static_cast<uint8_t>(between(random, 0, spread));
    std::vector<Kernel> kernels;
    try {
        for (int64_t k = between(random, 0, 3); k > 0; --k) {
            std::shared_ptr<const Lattice> lattice;
            const int64_t kind = between(random, 0, 2);
            if (kind == 0) {
                lattice =
                    std::make_shared<Lattice>(Features(height, width, deviation(random), deviation(random)), threads);
            } else if (kind == 1) {
                const int64_t strides[3] = {width * 3, 3, 1};
                const double colours[3] = {deviation(random), deviation(random), deviation(random)};
                lattice = std::make_shared<Lattice>(
                    Features(image.data(), height, width, strides, deviation(random), deviation(random), colours),
                    threads);
            } else {
                const int d = static_cast<int>(between(random, 1, between(random, 0, 5) ? 8 : 32));
                std::vector<float> matrix(d * n);
                const float scale = static_cast<float>(deviation(random));
                for (float& value : matrix) value = scale * normal(random);
                lattice = std::make_shared<Lattice>(Features(matrix.data(), d, n), threads);
            }
            Kernel kernel{lattice, static_cast<Normalization>(between(random, 0, 3)), {}, between(random, 0, 3) > 0};
            const float strength = kernel.normalization == Normalization::none ? 0.01f : 5.0f;
            kernel.compat.resize(kernel.potts ? 1 : between(random, 0, 1) ? labels : labels * labels);
            for (float& value : kernel.compat) value = strength * normal(random);
            kernels.push_back(kernel);
        }
    } catch (const std::invalid_argument&) {
        return false;
    }

    std::vector<std::vector<float>> energies(between(random, 1, 3)), q(energies.size()), single(energies.size());
    std::vector<std::vector<int32_t>> best(energies.size());
    std::vector<Unary> problems;
    const int64_t sort = between(random, 0, 3);  // any, from label maps, with unsure points, with forbidden labels
    for (size_t m = 0; m < energies.size(); ++m) {
        energies[m].resize(labels * n);
        for (float& value : energies[m]) value = sort == 1 || sort == 2 ? 1.5f : 4.0f * normal(random);
        for (int64_t p = 0; p < n; ++p) {
            const int64_t l = between(random, 0, labels - 1);
            if (sort == 1 || (sort == 2 && l % 3)) energies[m][l * n + p] = 0.25f;
            if (sort == 3 && labels > 1 && l % 4 == 0) energies[m][l * n + p] = INFINITY;
        }
        q[m].resize(labels * n), single[m].resize(labels * n), best[m].resize(n);
        problems.push_back({.energies = energies[m].data(), .marginals = q[m].data(), .best = best[m].data()});
    }
    const int iterations = static_cast<int>(between(random, 0, 3));
    mean_field(problems, labels, n, kernels, iterations, threads);
    for (size_t m = 0; m < problems.size(); ++m) problems[m].marginals = single[m].data();
    mean_field(problems, labels, n, kernels, iterations, 1);
    if (q != single) fail("the number of threads changes the result", seed);
    for (const auto& one : q) check(one, labels, n, seed);
    if (iterations > 0) {  // a step at a time
        Unary step = problems[0];
        std::vector<float> now = q[0];
        step.start = nullptr, step.marginals = now.data();
        mean_field({step}, labels, n, kernels, 0, threads);
        for (int i = 0; i < iterations; ++i) {
            const std::vector<float> before = now;
            step.start = before.data();
            mean_field({step}, labels, n, kernels, 1, threads);
        }
        check(now, labels, n, seed);
    }
    if (!kernels.empty()) {
        std::vector<float> values(2 * n), out(2 * n);
        for (float& value : values) value = normal(random);
        kernels[0].lattice->filter(values.data(), out.data(), 2, threads);
        for (float value : out)
            if (!std::isfinite(value)) fail("a filtered value is not finite", seed);
    }
    return true;
}

// height, width, labels, iterations (int32), gaussian sx, sy, compat, bilateral sx, sy, sr, sg, sb, compat (float64),
// image, energies, marginals.
void recorded(const char* path) {
    std::ifstream file(path, std::ios::binary);
    int32_t shape[4];
    double numbers[9];
    file.read(reinterpret_cast<char*>(shape), sizeof shape).read(reinterpret_cast<char*>(numbers), sizeof numbers);
    const int64_t height = shape[0], width = shape[1], labels = shape[2], n = height * width;
    std::vector<uint8_t> image(n * 3);
    std::vector<float> energies(labels * n), expected(labels * n), q(labels * n);
    file.read(reinterpret_cast<char*>(image.data()), static_cast<std::streamsize>(image.size()));
    file.read(reinterpret_cast<char*>(energies.data()), static_cast<std::streamsize>(energies.size() * 4));
    file.read(reinterpret_cast<char*>(expected.data()), static_cast<std::streamsize>(expected.size() * 4));
    if (!file) fail(path, 0);
    const int64_t strides[3] = {width * 3, 3, 1};
    for (const int threads : {1, 2, 3}) {
        std::vector<Kernel> kernels{
            {std::make_shared<Lattice>(Features(height, width, numbers[0], numbers[1]), threads),
             Normalization::symmetric,
             {static_cast<float>(numbers[2])},
             true},
            {std::make_shared<Lattice>(
                 Features(image.data(), height, width, strides, numbers[3], numbers[4], numbers + 5), threads),
             Normalization::symmetric,
             {static_cast<float>(numbers[8])},
             true}};
        mean_field({{.energies = energies.data(), .marginals = q.data()}}, labels, n, kernels, shape[3], threads);
        for (size_t i = 0; i < q.size(); ++i)
            if (!(std::abs(q[i] - expected[i]) <= 1e-4f)) fail(path, 0);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) return 2;
    const uint64_t rounds = std::strtoull(arguments[1], nullptr, 10), first = std::strtoull(arguments[2], nullptr, 10);
    for (const char* name : {"avx512", "avx2", "baseline"}) {
        if (!use_passes(name)) continue;
        for (int i = 3; i < count; ++i) recorded(arguments[i]);
        uint64_t refused = 0;
        for (uint64_t i = 0; i < rounds; ++i) refused += !problem(first + i);
        std::vector<std::jthread> callers;  // several callers at once share the pool
        for (uint64_t t = 0; t < 3; ++t)
            callers.emplace_back([=] {
                for (uint64_t i = 0; i < rounds / 50; ++i) problem(first + t * rounds / 3 + i);
            });
        callers.clear();
        std::printf("%s: %d recorded cases, %llu random problems, %llu of them refused for their range\n", name,
                    count - 3, static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(refused));
    }
}
