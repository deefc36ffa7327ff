// Building lattices.
#include "dense_crf/lattice.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "dense_crf/embed.hpp"
#include "dense_crf/table.hpp"

namespace amn::dense_crf {
namespace {

int64_t tiles_of(int64_t points) { return (points + tile_points - 1) / tile_points; }

// Enough for two threads on a photograph and eight on a large one; each further band adds ghosts.
int band_count(int64_t points) { return points < 32768 ? 1 : points < (1 << 20) ? 4 : 8; }

// Lays out keys for the features' range. Fills one word after another; false if there are not enough.
template <int Words>
bool pack(const Features& features, const std::vector<float>& scale, PackingOf<Words>& packing) {
    const int d = features.dimension();
    const int remainder_bits = lattice::remainder_bits(d);
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
                "the features' range is too wide for their sigmas: lattice coordinates reach " +
                std::to_string(std::max(std::abs(least), std::abs(most))) +
                ", expected less than 2097152 (single precision); use larger sigmas (sxy, srgb, ...)");
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

Lattice::Lattice(const Features& features, int threads) : d_(features.dimension()), n_(features.points()) {
    alpha_ = 1.0f / (1.0f + std::pow(2.0f, static_cast<float>(-d_)));
    const float factor = static_cast<float>(std::sqrt(2.0 / 3.0) * (d_ + 1));
    scale_.resize(d_);
    for (int j = 0; j < d_; ++j) scale_[j] = static_cast<float>(1.0 / std::sqrt((j + 2.0) * (j + 1.0)) * factor);

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
    parallel_for(d_ + 1, bands > 1 ? threads : 1, [&] { return link_axis; });  // few points: a thread costs more
}

template <class Table>
void Lattice::build_band(const Features& features, const typename Table::Packing& packing, Band& band, Table& table) {
    using KeyType = typename Table::KeyType;
    const Passes& passes = best_passes();
    const int d = d_;
    const int64_t padded = (n_ + 3) / 4 * 4;  // pydensecrf embeds points in fours, the last filled with zeros
    float feature[max_dimension * tile_points];
    int32_t quotient[max_dimension * tile_points], rank[(max_dimension + 1) * tile_points];
    KeyType step[max_dimension + 1];
    const Buffer<KeyType> keys(tile_points * (d + 1));
    const Buffer<uint32_t> starts(tile_points * (d + 1));
    const KeyFields fields = fields_of(d, packing);
    for (int64_t tile = band.first_tile; tile < band.last_tile; ++tile) {
        if (tile % 64 == 0) check_interrupt();
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

}  // namespace amn::dense_crf
