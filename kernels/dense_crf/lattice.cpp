// Building lattices, and filtering with them.
#include "dense_crf/lattice.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "dense_crf/cpu.hpp"
#include "dense_crf/table.hpp"

namespace amn::dense_crf {
namespace {

int64_t tiles_of(int64_t points) { return (points + tile_points - 1) / tile_points; }

std::vector<float> quotients(int64_t count, double deviation) {
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(i) / static_cast<float>(deviation);
    return values;
}

// Enough for two threads on a photograph and eight on a large one; each further band adds ghosts.
int band_count(int64_t points) { return points < 32768 ? 1 : points < (1 << 20) ? 4 : 8; }

// Lays out keys for the features' range. Fills one word after another; false if there are not enough.
template <int Words>
bool pack(const Features& features, const std::vector<float>& scale, PackingOf<Words>& packing) {
    const int d = features.dimension();
    const int remainder_bits = std::bit_width(static_cast<unsigned>(d));
    packing.remainder_mask = (uint64_t{1} << remainder_bits) - 1;
    int word = 0, used = remainder_bits;
    // Elevated coordinate j is the sum of the later scaled features less j times its own (coordinate 0: the sum).
    double low = 0, high = 0;
    for (int j = d; j >= 0; --j) {
        double least = low, most = high;
        if (j > 0) {
            const double a = static_cast<double>(features.lowest(j - 1)) * scale[j - 1];
            const double b = static_cast<double>(features.highest(j - 1)) * scale[j - 1];
            least -= j * b, most -= j * a;
            low += a, high += b;
        }
        if (!(std::abs(least) < lattice::max_coordinate && std::abs(most) < lattice::max_coordinate))
            throw std::invalid_argument(
                "the features' range is too wide for their deviations: lattice coordinates reach " +
                std::to_string(std::max(std::abs(least), std::abs(most))) +
                ", expected less than 2097152 (single precision); use larger deviations (sxy, srgb, ...)");
        if (j == d) continue;  // the last coordinate is not in the key: they sum to 0
        // Rounding, the return to the plane and a neighbour's step move a quotient by less than 4; float error by less.
        const int64_t from = static_cast<int64_t>(std::floor(least / (d + 1))) - 5;
        const int64_t to = static_cast<int64_t>(std::ceil(most / (d + 1))) + 5;
        const int bits = std::bit_width(static_cast<uint64_t>(to - from));
        if (used + bits > 63) {
            if (++word == Words) return false;
            used = 0;
        }
        packing.word[j] = word;
        packing.shift[j] = used;
        packing.bias[j] = static_cast<int32_t>(-from);
        used += bits;
    }
    // The margin is for coordinate d too, which was only checked above.
    packing.bits = word == 0 ? used : 64;
    for (int axis = 0; axis <= d; ++axis) {
        auto& step = packing.step[axis];
        auto& wrap = packing.wrap[axis];
        step.word[0] += 1;
        wrap.word[0] -= static_cast<uint64_t>(d);
        for (int j = 0; j < d; ++j) wrap.word[packing.word[j]] += uint64_t{1} << packing.shift[j];
        if (axis < d) {
            step.word[packing.word[axis]] -= uint64_t{1} << packing.shift[axis];
            wrap.word[packing.word[axis]] -= uint64_t{1} << packing.shift[axis];
        }
    }
    return true;
}

template <int Words>
KeyFields fields_of(int d, const PackingOf<Words>& packing) {
    KeyFields fields{d, packing.shift.data(), 0, packing.remainder_mask};
    for (int j = 0; j < d; ++j) fields.bias += static_cast<uint64_t>(packing.bias[j]) << packing.shift[j];
    return fields;
}

// One bit for each value of the hash's top bits, set where a key of the table has it.
template <class Table>
Bits hashes_of(const Table& table) {
    if constexpr (!Table::packed) {
        return Bits(1);
    } else {
    const int log_bits = std::max(static_cast<int>(std::bit_width(16 * table.size())), 64 - table.hash_shift());
    Bits bits(int64_t{1} << log_bits, 64 - log_bits);
    for (size_t i = 0; i < table.size(); ++i) bits.set(table.key(i).hash() >> bits.hash_shift());
    return bits;
    }
}

}  // namespace

Features::Features(const float* matrix, int dimension, int64_t points)
    : d_(dimension), n_(points), matrix_(matrix), lowest_(dimension), highest_(dimension) {
    for (int j = 0; j < d_; ++j) {
        const auto [low, high] = std::minmax_element(matrix + j * n_, matrix + (j + 1) * n_);
        // The zeros that fill the last group of points count as well.
        lowest_[j] = std::min(*low, 0.0f), highest_[j] = std::max(*high, 0.0f);
    }
}

Features::Features(int64_t height, int64_t width, double sx, double sy)
    : d_(2), n_(height * width), width_(width), x_(quotients(width, sx)), y_(quotients(height, sy)) {
    lowest_ = {0, 0};
    highest_ = {x_.back(), y_.back()};
}

Features::Features(const uint8_t* image, int64_t height, int64_t width, const int64_t strides[3], double sx, double sy,
                   const double colours[3])
    : Features(height, width, sx, sy) {
    d_ = 5;
    image_ = image;
    std::copy(strides, strides + 3, strides_);
    for (int c = 0; c < 3; ++c) {
        const auto levels = quotients(256, colours[c]);
        colour_.insert(colour_.end(), levels.begin(), levels.end());
        lowest_.push_back(0);
        highest_.push_back(levels.back());
    }
}

void Features::fill(int64_t first, float* tile) const {
    const int64_t count = std::min<int64_t>(tile_points, n_ - first);
    if (count < tile_points) std::fill(tile, tile + d_ * tile_points, 0.0f);
    if (matrix_) {
        for (int j = 0; j < d_; ++j) std::copy_n(matrix_ + j * n_ + first, count, tile + j * tile_points);
        return;
    }
    int64_t x = first % width_, y = first / width_;
    const uint8_t* pixel = image_ ? image_ + y * strides_[0] + x * strides_[1] : nullptr;
    for (int64_t p = 0; p < count; ++p) {
        tile[p] = x_[x];
        tile[tile_points + p] = y_[y];
        if (image_) {
            for (int c = 0; c < 3; ++c) tile[(2 + c) * tile_points + p] = colour_[256 * c + pixel[c * strides_[2]]];
            pixel += strides_[1];
        }
        if (++x == width_) {
            x = 0, ++y;
            if (image_) pixel = image_ + y * strides_[0];
        }
    }
}

Lattice::Lattice(const Features& features, int threads) : d_(features.dimension()), n_(features.points()) {
    alpha_ = 1.0f / (1.0f + std::pow(2.0f, static_cast<float>(-d_)));
    const float deviation = static_cast<float>(std::sqrt(2.0 / 3.0) * (d_ + 1));
    scale_.resize(d_);
    for (int j = 0; j < d_; ++j) scale_[j] = static_cast<float>(1.0 / std::sqrt((j + 2.0) * (j + 1.0)) * deviation);

    const int64_t tiles = tiles_of(n_);
    const int64_t most_rows = (tiles * tile_points) * (d_ + 1);
    if (most_rows >= no_row)
        throw std::invalid_argument("there are " + std::to_string(n_) + " points, expected at most " +
                                    std::to_string(no_row / (d_ + 1) - tile_points));
    const int bands = band_count(n_);
    for (int b = 0; b < bands; ++b) bands_.push_back({tiles * b / bands, tiles * (b + 1) / bands, 0, 0});
    offset_ = Buffer<uint32_t>(most_rows);
    weight_ = Buffer<float>(most_rows);
    tile_rows_ = Buffer<uint32_t>(tiles);
    axes_.resize(d_ + 1);

    PackingOf<1> narrow;
    PackingOf<2> wide;
    PackingOf<16> widest;
    if (pack(features, scale_, narrow)) {
        narrow.id_bits = std::bit_width(static_cast<uint64_t>(most_rows));
        if (narrow.bits + narrow.id_bits <= 63)
            build<PackedTable>(features, narrow, threads);
        else
            build<WideTable<1>>(features, narrow, threads);
    } else if (pack(features, scale_, wide = {})) {
        build<WideTable<2>>(features, wide, threads);
    } else if (pack(features, scale_, widest = {})) {  // 32 quotients of at most 22 bits: always enough
        build<WideTable<16>>(features, widest, threads);
    } else {
        throw std::invalid_argument("the features' range is too wide for lattice keys");
    }
}

template <class Table>
void Lattice::build(const Features& features, const typename Table::Packing& packing, int threads) {
    const int bands = static_cast<int>(bands_.size());
    std::vector<Table> tables;
    tables.reserve(bands + 1);
    for (const Band& band : bands_)
        tables.emplace_back(packing, std::max<size_t>(64, (band.last_tile - band.first_tile) * tile_points));
    const auto embed_band = [&](int64_t b) { build_band(features, packing, bands_[b], tables[b]); };
    parallel_for(bands, threads, [&] { return embed_band; });
    for (Band& band : bands_) {
        band.first_row = rows_;
        rows_ += band.rows;
    }
    Buffer<uint8_t> ghost(rows_);
    std::memset(ghost.data(), 0, rows_);
    if (bands > 1) {  // one table for all rows: it finds ghosts, and neighbours across bands
        tables.emplace_back(packing, rows_);
        Table& all = tables.back();
        for (int b = 0; b < bands; ++b) {
            constexpr int64_t ahead = 16;
            for (int64_t i = 0; i < bands_[b].rows; ++i) {
                if (i + ahead < bands_[b].rows) all.fetch(all.start(tables[b].key(i + ahead)));
                const auto row = static_cast<uint32_t>(all.size());
                const auto& key = tables[b].key(i);
                const uint32_t first = all.insert(key, all.start(key));
                if (first == row) continue;
                all.skip(key);
                ghost[row] = 1;
                ghosts_.emplace_back(row, first);
            }
        }
    }
    Bits occupied = hashes_of(tables.back());
    const auto link_axis = [&](int64_t axis) {
        build_axis(tables.back(), packing, static_cast<int>(axis), ghost, occupied);
    };
    parallel_for(d_ + 1, threads, [&] { return link_axis; });
}

template <class Table>
void Lattice::build_band(const Features& features, const typename Table::Packing& packing, Band& band, Table& table) {
    using KeyType = typename Table::KeyType;
    const Passes& passes = best_passes();
    const int d = d_;
    const int64_t padded = (n_ + 3) / 4 * 4;  // the published code embeds points in fours, the last filled with zeros
    float feature[max_dimension * tile_points];
    int32_t quotient[max_dimension * tile_points], rank[(max_dimension + 1) * tile_points];
    KeyType step[max_dimension + 1];
    const Buffer<KeyType> keys(tile_points * (d + 1));
    const Buffer<uint32_t> starts(tile_points * (d + 1));
    const KeyFields fields = fields_of(d, packing);
    for (int64_t tile = band.first_tile; tile < band.last_tile; ++tile) {
        const int64_t first = tile * tile_points;
        const int64_t count = std::min<int64_t>(tile_points, padded - first);
        features.fill(first, feature);
        passes.embed(d, scale_.data(), feature, quotient, rank, weight_.data() + first * (d + 1));
        uint32_t* offset = offset_.data() + first * (d + 1);
        table.reserve(tile_points * (d + 1));
        if constexpr (Table::packed) {
            uint64_t* words = &keys.data()->word[0];
            passes.keys(fields, quotient, rank, table.hash_shift(), words, starts.data());
            const auto view = table.view();
            for (int64_t i = 0; i < tile_points * (d + 1); ++i) view.fetch(starts[i]);
            for (int64_t p = 0; p < count; ++p) {
                for (int r = 0; r <= d; ++r) {
                    const int64_t i = r * tile_points + p;
                    uint32_t row;
                    if (!view.at_once(words[i], starts[i], row)) [[unlikely]]
                        row = table.insert(keys[i], starts[i]);
                    *offset++ = row;
                }
            }
        } else {
            for (int64_t p = 0; p < count; ++p) {
                KeyType key{};
                for (int j = 0; j < d; ++j)
                    key.word[packing.word[j]] += static_cast<uint64_t>(quotient[j * tile_points + p] + packing.bias[j])
                                                 << packing.shift[j];
                for (int j = 0; j <= d; ++j) step[d - rank[j * tile_points + p]] = packing.step[j];
                for (int r = 0; r <= d; ++r) {
                    *offset++ = table.insert(key, table.start(key));
                    key += step[r];
                }
            }
        }
        std::fill(offset, offset_.data() + (first + tile_points) * (d + 1), 0);
        tile_rows_[tile] = static_cast<uint32_t>(table.size());
    }
    band.rows = static_cast<int64_t>(table.size());
}

template <class Table>
void Lattice::build_axis(const Table& table, const typename Table::Packing& packing, int number,
                         const Buffer<uint8_t>& ghost, const Bits& occupied) {
    Axis& axis = axes_[number];
    Buffer<uint32_t> next(rows_), heads(rows_ + 1);
    Bits follows(rows_);  // is someone's next
    if constexpr (Table::packed) {
        // Half of the neighbours do not exist, and no branch predictor guesses which. A bit for each hash value, in a
        // near cache, rules out most; the others are compacted without a branch, fetched together, and looked up.
        std::memset(next.data(), 0xff, rows_ * sizeof(uint32_t));
        const Passes& passes = best_passes();
        const KeyFields fields = fields_of(d_, packing);
        const auto view = table.view();
        const int coarser = table.hash_shift() - occupied.hash_shift();
        uint64_t keys[tile_points];
        uint32_t starts[tile_points];
        int likely[tile_points];
        for (int64_t first = 0; first < rows_; first += tile_points) {
            const int count = static_cast<int>(std::min<int64_t>(tile_points, rows_ - first));
            passes.follow(&table.key(first).word[0], fields, packing.step[number].word[0], packing.wrap[number].word[0],
                          occupied.hash_shift(), keys, starts);
            int found = 0;
            for (int i = 0; i < count; ++i) {
                likely[found] = i;
                found += occupied.get(starts[i]) & !ghost[first + i];
            }
            for (int k = 0; k < found; ++k) view.fetch(starts[likely[k]] >> coarser);
            for (int k = 0; k < found; ++k) {
                const uint32_t row = view.find(keys[likely[k]], starts[likely[k]] >> coarser);
                next[first + likely[k]] = row;
                follows.set(std::min<int64_t>(row, rows_));
            }
        }
    } else {
        for (int64_t v = 0; v < rows_; ++v) {
            auto key = table.key(v);
            key += (key.word[0] & packing.remainder_mask) == static_cast<uint64_t>(d_) ? packing.wrap[number]
                                                                                        : packing.step[number];
            next[v] = ghost[v] ? no_row : table.find(key, table.start(key));
            follows.set(std::min<int64_t>(next[v], rows_));
        }
    }
    int64_t head_count = 0;
    for (int64_t v = 0; v < rows_; ++v) {  // without a branch as well
        heads[head_count] = static_cast<uint32_t>(v);
        head_count += (next[v] != no_row) & !follows.get(v);
    }
    axis.index = Buffer<uint32_t>(rows_);
    axis.half = Buffer<float>(rows_);
    int64_t k = 0;
    for (int64_t h = 0; h < head_count; ++h) {
        uint32_t at = heads[h];
        for (; next[at] != no_row; at = next[at]) {
            axis.index[k] = at;
            axis.half[k++] = 0.5f;
        }
        axis.index[k] = at;
        axis.half[k++] = 0.0f;
    }
    axis.count = k;
}

void Lattice::clear_rows(const Band& band, int64_t tile, int width, float* rows) const {
    const int64_t from = tile == band.first_tile ? 0 : tile_rows_[tile - 1], to = tile_rows_[tile];
    std::memset(rows + (band.first_row + from) * width, 0, (to - from) * width * sizeof(float));
}

void Lattice::fetch_rows(const Band& band, int64_t tile, int width, const float* rows) const {
    if (tile >= band.last_tile) return;
    const int64_t from = tile == band.first_tile ? 0 : tile_rows_[tile - 1], to = tile_rows_[tile];
    const float* last = rows + (band.first_row + to) * width;
    for (const float* line = rows + (band.first_row + from) * width; line < last; line += 16) __builtin_prefetch(line);
}

void Lattice::blur(const Passes& passes, int log_width, float* rows, const Member& me) const {
    const int width = 1 << log_width;
    const auto mine = [&](uint32_t row) {
        return me.count == 1 || static_cast<int>(row % static_cast<uint32_t>(me.count)) == me.index;
    };
    for (const auto& [ghost, first] : ghosts_)
        if (mine(first))
            for (int c = 0; c < width; ++c) rows[int64_t{first} * width + c] += rows[int64_t{ghost} * width + c];
    me.sync();
    for (const Axis& axis : axes_) {
        const auto cut = [&](int part) {  // the first chain that starts at or after this share
            int64_t k = axis.count * part / me.count;
            while (k > 0 && k < axis.count && axis.half[k - 1] != 0.0f) ++k;
            return k;
        };
        const int64_t from = cut(me.index), to = cut(me.index + 1);
        passes.blur[log_width](axis.index.data() + from, axis.half.data() + from, to - from, rows);
        me.sync();
    }
    for (const auto& [ghost, first] : ghosts_)
        if (mine(first))
            std::memcpy(rows + int64_t{ghost} * width, rows + int64_t{first} * width, width * sizeof(float));
    me.sync();
}

size_t Lattice::bytes() const {
    size_t sum = offset_.bytes() + weight_.bytes() + tile_rows_.bytes() + mass_.bytes() + ghosts_.size() * 8;
    for (const Axis& axis : axes_) sum += axis.index.bytes() + axis.half.bytes();
    return sum;
}

const float* Lattice::mass(int threads) const {
    const std::lock_guard lock(mass_mutex_);
    if (mass_) return mass_.data();
    Buffer<float> mass(tiles_of(n_) * tile_points);
    std::fill_n(mass.data(), n_, 1.0f);
    filter(mass.data(), mass.data(), 1, threads);
    mass_ = std::move(mass);
    return mass_.data();
}

void Lattice::filter(const float* values, float* out, int64_t channels, int threads) const {
    const Passes& passes = best_passes();
    Buffer<float> rows(rows_);
    run_team(std::min<int>(threads, static_cast<int>(bands_.size())), [&](const Member& me) {
        float tile[tile_points], zero[tile_points] = {};
        for (int64_t c = 0; c < channels; ++c) {
            for (int phase = 0; phase < 2; ++phase) {
                for (size_t b = me.index; b < bands_.size(); b += me.count) {
                    const Band& band = bands_[b];
                    float* own = rows.data() + band.first_row;
                    for (int64_t t = band.first_tile; t < band.last_tile; ++t) {
                        const int64_t first = t * tile_points, count = std::min<int64_t>(tile_points, n_ - first);
                        const uint32_t* offset = offset_.data() + first * (d_ + 1);
                        const float* weight = weight_.data() + first * (d_ + 1);
                        if (phase == 0) {
                            clear_rows(band, t, 1, rows.data());
                            const Spread spread{offset, weight, own, d_ + 1};
                            passes.splat[0](&spread, 1, count, values + c * n_ + first);
                        } else {
                            const Spread spread{offset, weight, own, d_ + 1};
                            passes.slice[0](&spread, 1, count, zero, tile);
                            for (int64_t p = 0; p < count; ++p) out[c * n_ + first + p] = tile[p] * alpha_;
                        }
                    }
                }
                me.sync();
                if (phase == 0) blur(passes, 0, rows.data(), me);
            }
        }
    });
}

}  // namespace amn::dense_crf
