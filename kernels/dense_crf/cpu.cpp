#include "dense_crf/cpu.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <unordered_map>

#include "dense_crf/lattice.hpp"

namespace amn::dense_crf {
namespace {

struct KeyHash {
    size_t operator()(const std::vector<int32_t>& key) const {
        uint64_t hash = 0;
        for (int32_t k : key) hash = (hash ^ static_cast<uint32_t>(k)) * 0x9E3779B97F4A7C15ull;
        return hash ^ (hash >> 29);
    }
};

}  // namespace

Lattice::Lattice(const float* features, int dimension, int64_t points) : d_(dimension), n_(points), m_(0) {
    const int d = d_;
    std::vector<float> scale(d), feature(d), base(d + 1), rank(d + 1), weight(d + 1);
    const float deviation = static_cast<float>(std::sqrt(2.0 / 3.0) * (d + 1));
    for (int j = 0; j < d; ++j) scale[j] = static_cast<float>(1.0 / std::sqrt((j + 2.0) * (j + 1.0)) * deviation);

    std::unordered_map<std::vector<int32_t>, uint32_t, KeyHash> table;
    std::vector<const std::vector<int32_t>*> keys;
    offset_.resize(n_ * (d + 1));
    weight_.resize(n_ * (d + 1));
    std::vector<int32_t> key(d);
    const int64_t padded = (n_ + 3) / 4 * 4;  // the published code embeds points in fours, the last filled with zeros
    for (int64_t p = 0; p < padded; ++p) {
        for (int j = 0; j < d; ++j) feature[j] = p < n_ ? features[j * n_ + p] : 0.0f;
        lattice::embed<0>(d, scale.data(), feature.data(), base.data(), rank.data(), weight.data());
        for (int r = 0; r <= d; ++r) {
            for (int i = 0; i < d; ++i) {
                const int wrap = static_cast<int>(rank[i]) > d - r ? d + 1 : 0;
                key[i] = static_cast<int32_t>(base[i]) + r - wrap;
            }
            const auto [entry, fresh] = table.try_emplace(key, static_cast<uint32_t>(keys.size()));
            if (fresh) keys.push_back(&entry->first);
            if (p < n_) {
                offset_[p * (d + 1) + r] = entry->second;
                weight_[p * (d + 1) + r] = weight[r];
            }
        }
    }
    m_ = static_cast<int64_t>(keys.size());
    neighbours_.resize(2 * m_ * (d + 1));
    for (int j = 0; j <= d; ++j) {
        for (int64_t v = 0; v < m_; ++v) {
            for (int side = 0; side < 2; ++side) {
                const int step = side ? 1 : -1;
                for (int i = 0; i < d; ++i) key[i] = (*keys[v])[i] + (i == j ? -step * d : step);
                const auto entry = table.find(key);
                neighbours_[2 * (j * m_ + v) + side] = entry == table.end() ? m_ : entry->second;
            }
        }
    }
}

void Lattice::filter(const float* values, float* out, int64_t channels) const {
    const int d = d_;
    std::vector<float> vertices(m_ + 1), blurred(m_ + 1);
    const float alpha = 1.0f / (1.0f + std::pow(2.0f, static_cast<float>(-d)));
    for (int64_t c = 0; c < channels; ++c) {
        std::fill(vertices.begin(), vertices.end(), 0.0f);
        for (int64_t i = 0; i < n_ * (d + 1); ++i) vertices[offset_[i]] += weight_[i] * values[c * n_ + i / (d + 1)];
        for (int j = 0; j <= d; ++j) {
            const uint32_t* pair = neighbours_.data() + 2 * j * m_;
            for (int64_t v = 0; v < m_; ++v, pair += 2)
                blurred[v] = vertices[v] + 0.5f * (vertices[pair[0]] + vertices[pair[1]]);
            std::swap(vertices, blurred);
        }
        for (int64_t p = 0; p < n_; ++p) {
            float sum = 0;
            for (int r = 0; r <= d; ++r)
                sum += (weight_[p * (d + 1) + r] * alpha) * vertices[offset_[p * (d + 1) + r]];
            out[c * n_ + p] = sum;
        }
    }
}

void Lattice::norm(Normalization normalization, float* before, float* after) const {
    std::fill(before, before + n_, 1.0f);
    std::fill(after, after + n_, 1.0f);
    if (normalization == Normalization::none) return;
    std::vector<float> mass(n_, 1.0f);
    filter(mass.data(), mass.data(), 1);
    for (int64_t p = 0; p < n_; ++p) {
        const double sum = static_cast<double>(mass[p]) + 1e-20;
        const float factor = static_cast<float>(normalization == Normalization::symmetric ? 1 / std::sqrt(sum) : 1 / sum);
        if (normalization != Normalization::after) before[p] = factor;
        if (normalization != Normalization::before) after[p] = factor;
    }
}

void mean_field(const float* unary, int64_t labels, int64_t n, const std::vector<Kernel>& kernels, int iterations,
                const float* start, float* q) {
    const auto softmax = [&](float* z) {
        for (int64_t p = 0; p < n; ++p) {
            float top = z[p];
            double sum = 0;
            for (int64_t l = 1; l < labels; ++l) top = std::max(top, z[l * n + p]);
            for (int64_t l = 0; l < labels; ++l) sum += z[l * n + p] = std::exp(z[l * n + p] - top);
            for (int64_t l = 0; l < labels; ++l) z[l * n + p] = static_cast<float>(z[l * n + p] / sum);
        }
    };
    const int64_t size = labels * n;
    if (start) {
        std::copy(start, start + size, q);
    } else {
        for (int64_t i = 0; i < size; ++i) q[i] = -unary[i];
        softmax(q);
    }
    std::vector<float> norms(2 * n * kernels.size()), filtered(size), logits(size);
    for (size_t k = 0; k < kernels.size(); ++k)
        kernels[k].lattice->norm(kernels[k].normalization, &norms[2 * n * k], &norms[2 * n * k + n]);
    for (int it = 0; it < iterations; ++it) {
        for (int64_t i = 0; i < size; ++i) logits[i] = -unary[i];
        for (size_t k = 0; k < kernels.size(); ++k) {
            const float *before = &norms[2 * n * k], *after = before + n;
            for (int64_t i = 0; i < size; ++i) filtered[i] = q[i] * before[i % n];
            kernels[k].lattice->filter(filtered.data(), filtered.data(), labels);
            for (int64_t i = 0; i < size; ++i) filtered[i] *= after[i % n];
            const float* compat = kernels[k].compat;
            for (int64_t l = 0; l < labels; ++l) {
                for (int64_t o = 0; o < labels; ++o) {
                    const float c = kernels[k].compat_size == 1        ? (o == l ? -compat[0] : 0.0f)
                                    : kernels[k].compat_size == labels ? (o == l ? compat[l] : 0.0f)
                                                                       : compat[l * labels + o];
                    if (c == 0.0f) continue;
                    for (int64_t p = 0; p < n; ++p) logits[l * n + p] -= c * filtered[o * n + p];
                }
            }
        }
        softmax(logits.data());
        std::copy(logits.begin(), logits.end(), q);
    }
}

}  // namespace amn::dense_crf
