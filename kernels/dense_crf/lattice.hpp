// The permutohedral lattice on the CPU.
//
// Points are cut into a fixed number of bands, each with rows of its own in the lattice's value arrays, so that threads
// can splat without meeting. A vertex that a later band shares with an earlier one has a second row, a ghost, which is
// added to the first before the blur and copied from it afterwards. The bands depend on the number of points alone:
// results are bit-identical for any thread count.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/memory.hpp"
#include "common/parallel.hpp"
#include "dense_crf/features.hpp"
#include "dense_crf/passes.hpp"

namespace amn::dense_crf {

struct Band {
    int64_t first_tile, last_tile;  // tiles of 64 points, the last one excluded
    int64_t first_row, rows;        // its part of the value arrays
};

class Bits {
public:
    explicit Bits(int64_t count, int hash_shift = 0) : words_(count / 64 + 1), hash_shift_(hash_shift) {
        for (int64_t i = 0; i <= count / 64; ++i) words_[i] = 0;
    }
    void set(int64_t i) { words_[i / 64] |= uint64_t{1} << (i % 64); }
    bool get(int64_t i) const { return words_[i / 64] >> (i % 64) & 1; }
    int hash_shift() const { return hash_shift_; }

private:
    Buffer<uint64_t> words_;
    int hash_shift_;
};

struct Axis {
    Buffer<uint32_t> index;  // rows along chains of neighbours, chain after chain
    Buffer<float> half;      // ½ where the next row is a neighbour, 0 at the end of a chain
    int64_t count = 0;
};

// A row of `width` channels for each vertex.
struct RowBlock {
    float* rows = nullptr;
    int width = 0;
};

class Lattice {
public:
    // Throws std::invalid_argument where the features leave the range of the lattice's coordinates.
    Lattice(const Features& features, int threads);

    int dimension() const { return d_; }
    int64_t points() const { return n_; }
    int64_t vertices() const { return rows_ - static_cast<int64_t>(ghosts_.size()); }
    int64_t rows() const { return rows_; }
    size_t bytes() const;  // of memory held
    float alpha() const { return alpha_; }
    const std::vector<Band>& bands() const { return bands_; }
    // (points, d + 1): rows, counted from the band's first one; and barycentric weights.
    const uint32_t* offset() const { return offset_.data(); }
    const float* weight() const { return weight_.data(); }

    // Zeroes the rows that the tile is the first of its band to touch.
    void clear_rows(const Band& band, int64_t tile, int width, float* rows) const;
    // Fetches these rows, to be read soon.
    void fetch_rows(const Band& band, int64_t tile, int width, const float* rows) const;
    // All axes of a block and the tail behind it, ghosts included; in reverse order for the transposed kernel. Only a block
    // of 16 channels has a tail, of 4 or 8. All members of a team call it.
    void blur(const Passes& passes, const RowBlock& block, const RowBlock& tail, const Member& me,
              bool reversed = false) const;
    // K · 1, (n), without normalisation; computed at the first call.
    const float* mass(int threads) const;
    // out (channels, n) = K · values (channels, n), or Kᵀ · values: K = slice · blurs · splat, the splat is the slice's
    // transpose and each axis' blur its own, so Kᵀ blurs the axes in reverse order. out may be values.
    void filter(const float* values, float* out, int64_t channels, int threads, bool transpose = false) const;

private:
    template <class Table>
    void build(const Features& features, const typename Table::Packing& packing, int threads);
    template <class Table>
    void build_band(const Features& features, const typename Table::Packing& packing, Band& band, Table& table);
    template <class Table>
    void build_axis(const Table& table, const typename Table::Packing& packing, int axis, const Buffer<uint8_t>& ghost,
                    const Bits& occupied);

    int d_;
    int64_t n_, rows_ = 0;
    float alpha_;
    std::vector<float> scale_;
    std::vector<Band> bands_;
    Buffer<uint32_t> offset_, tile_rows_;
    Buffer<float> weight_;
    std::vector<Axis> axes_;
    std::vector<std::pair<uint32_t, uint32_t>> ghosts_;  // (ghost's row, first row)
    mutable std::atomic<float*> mass_{nullptr};          // no lock, which a fork could leave taken
    mutable Buffer<float> mass_owner_;
};

}  // namespace amn::dense_crf
