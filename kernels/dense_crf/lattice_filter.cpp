// Filtering with lattices.
#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "dense_crf/lattice.hpp"

namespace amn::dense_crf {
namespace {

// Calls f(width) with a constant.
template <class F>
void with_width(int width, F f) {
    if (width == 1) return f(std::integral_constant<int, 1>{});
    if (width == 2) return f(std::integral_constant<int, 2>{});
    if (width == 4) return f(std::integral_constant<int, 4>{});
    if (width == 8) return f(std::integral_constant<int, 8>{});
    f(std::integral_constant<int, 16>{});
}

}  // namespace

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

void Lattice::blur(const Passes& passes, const RowBlock& block, const RowBlock& tail, const Member& me,
                   bool reversed) const {
    const auto visit_ghosts = [&](float* rows, auto width, auto visit) {
        for (size_t i = 0; i < ghosts_.size(); ++i) {
            if constexpr (width >= 8) {  // 4 % of a call with 21 or 81 labels
                const auto& [coming_ghost, coming_first] = ghosts_[std::min(i + 32, ghosts_.size() - 1)];
                __builtin_prefetch(rows + int64_t{coming_ghost} * width, 1);
                __builtin_prefetch(rows + int64_t{coming_first} * width, 1);
            }
            const auto& [ghost, first] = ghosts_[i];
            if (me.count == 1 || static_cast<int>(first % static_cast<uint32_t>(me.count)) == me.index)
                visit(rows + int64_t{ghost} * width, rows + int64_t{first} * width, width);
        }
    };
    const auto each_ghost = [&](auto visit) {
        for (const RowBlock& at : {block, tail})
            if (at.rows) with_width(at.width, [&](auto width) { visit_ghosts(at.rows, width, visit); });
        me.sync();
    };
    each_ghost([](const float* ghost, float* first, auto width) {
        for (int c = 0; c < width; ++c) first[c] += ghost[c];
    });
    for (size_t a = 0; a < axes_.size(); ++a) {
        const Axis& axis = axes_[reversed ? axes_.size() - 1 - a : a];
        const auto cut = [&](int part) {  // the first chain that starts at or after this share
            int64_t k = axis.count * part / me.count;
            while (k > 0 && k < axis.count && axis.half[k - 1] != 0.0f) ++k;
            return k;
        };
        const int64_t from = cut(me.index), count = cut(me.index + 1) - from;
        const uint32_t* index = axis.index.data() + from;
        const float* half = axis.half.data() + from;
        if (tail.rows)
            passes.blur_blocks(index, half, count, block.rows, tail.width, tail.rows);
        else
            passes.blur[std::countr_zero(static_cast<unsigned>(block.width))](index, half, count, block.rows);
        me.sync();
    }
    each_ghost([](float* ghost, const float* first, auto width) { std::memcpy(ghost, first, width * sizeof(float)); });
}

size_t Lattice::bytes() const {
    size_t sum = offset_.bytes() + weight_.bytes() + tile_rows_.bytes() + ghosts_.size() * 8;
    if (mass_.load()) sum += n_ * sizeof(float);
    for (const Axis& axis : axes_) sum += axis.index.bytes() + axis.half.bytes();
    return sum;
}

const float* Lattice::mass(int threads) const {
    if (const float* known = mass_.load(std::memory_order_acquire)) return known;
    Buffer<float> mass(n_);
    std::fill_n(mass.data(), n_, 1.0f);
    filter(mass.data(), mass.data(), 1, threads);
    float* none = nullptr;  // two threads may both have computed it, to the same bits: the first one's is kept
    if (mass_.compare_exchange_strong(none, mass.data(), std::memory_order_acq_rel)) mass_owner_ = std::move(mass);
    return mass_.load(std::memory_order_acquire);
}

void Lattice::filter(const float* values, float* out, int64_t channels, int threads, bool transpose) const {
    const Passes& passes = best_passes();
    const Buffer<float> rows(rows_ * std::min<int64_t>(16, std::bit_floor(static_cast<uint64_t>(channels | 1))));
    // Blocks of 16 channels, then of 8, 4, 2, 1: a channel's result does not depend on its block.
    const auto filter_block = [&](const Member& me, int64_t channel, int log_width) {
        const int width = 1 << log_width;
        alignas(64) float tile[tile_points * 16], zero[tile_points * 16] = {};
        const auto each_tile = [&](auto visit) {
            for (size_t b = me.index; b < bands_.size(); b += me.count) {
                const Band& band = bands_[b];
                for (int64_t t = band.first_tile; t < band.last_tile; ++t) {
                    if (t % 64 == 0 && me.stopped()) break;
                    const int64_t first = t * tile_points, count = std::min<int64_t>(tile_points, n_ - first);
                    const Spread spread{offset_.data() + first * (d_ + 1), weight_.data() + first * (d_ + 1),
                                        rows.data() + band.first_row * width, d_ + 1};
                    visit(band, t, first, count, spread);
                }
            }
        };
        each_tile([&](const Band& band, int64_t t, int64_t first, int64_t count, const Spread& spread) {
            clear_rows(band, t, width, rows.data());
            for (int c = 0; c < width; ++c)
                for (int64_t p = 0; p < count; ++p) tile[p * width + c] = values[(channel + c) * n_ + first + p];
            passes.splat[log_width](&spread, 1, count, tile);
        });
        me.sync();
        if (me.left()) return false;
        blur(passes, {rows.data(), width}, {}, me, transpose);
        each_tile([&](const Band&, int64_t, int64_t first, int64_t count, const Spread& spread) {
            passes.slice[log_width](&spread, 1, count, zero, tile);
            for (int c = 0; c < width; ++c)
                for (int64_t p = 0; p < count; ++p) out[(channel + c) * n_ + first + p] = tile[p * width + c] * alpha_;
        });
        me.sync();
        return true;
    };
    run_team(std::min<int>(threads, static_cast<int>(bands_.size())), [&](const Member& me) {
        for (int64_t channel = 0; channel < channels;) {
            const int log_width =
                std::min(4, static_cast<int>(std::bit_width(static_cast<uint64_t>(channels - channel))) - 1);
            if (!filter_block(me, channel, log_width)) return;
            channel += int64_t{1} << log_width;
        }
    });
}

}  // namespace amn::dense_crf
