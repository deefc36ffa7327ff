// Mean field: one pass over the points for each iteration slices every kernel, adds the unary, takes the softmax and
// splats the next iteration's values, so that the marginals are written once, at the end.
//
// With Potts terms alone the last label has no channel: the softmax does not change when one number is taken from all
// logits, so the filters run on Q_l - Q_last and the last logit is 0. Normalisation, alpha and the Potts weight are
// multiplied into the weights beforehand.
#include "dense_crf/mean_field.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "dense_crf/channels.hpp"
#include "dense_crf/energies.hpp"
#include "dense_crf/terms.hpp"

namespace amn::dense_crf {
namespace {

constexpr float far_below = -1.0e30f;  // the logit of a lane that stands for no label

class Run {
public:
    Run(const Unary* problems, int count, const Channels& channels, const Alike& alike, int64_t n,
        std::vector<Term>& terms, const std::vector<Band>& bands, int iterations, int threads)
        : problems_(problems), count_(count), channels_(channels), alike_(alike), n_(n), terms_(terms), bands_(bands),
          iterations_(iterations), passes_(best_passes()) {
        const int64_t padded = (n + tile_points - 1) / tile_points * tile_points;
        if (problems[0].energies || channels.lanes <= 4) unary_ = Buffer<float>(padded * channels.lanes);
        for (Term& term : terms_)
            for (auto& rows : term.rows) rows = Buffer<float>(term.lattice->rows() * channels.lanes);
        if (!problems[0].energies) {
            fill_label_rows();
            const bool blocks =
                std::all_of(pieces_.begin(), pieces_.end(), [](const auto& piece) { return piece.blocks; });
            adds_label_rows_ = !channels_.group && blocks && !terms_.empty();
        }
        for (int t = 0; t < threads; ++t) scratch_.emplace_back(size_t{tile_points} * 3 * channels.lanes);
    }

    void work(const Member& me) {
        const int lanes = channels_.lanes;
        float* scratch = scratch_[me.index].data();
        const Tile tile{scratch, scratch + tile_points * lanes, scratch + 2 * tile_points * lanes};
        for (int it = 0; it <= iterations_; ++it) {
            for (size_t b = me.index; b < bands_.size(); b += me.count)
                for (int64_t t = bands_[b].first_tile; t < bands_[b].last_tile; ++t) {
                    if (t % 64 == 0 && me.stopped()) break;
                    visit(it, b, t, tile);
                }
            if (it == iterations_) break;
            me.sync();
            if (me.left()) return;
            for (const Term& term : terms_) {
                const auto block = [&](size_t b) { return RowBlock{block_rows(term, 1, b), channels_.width[b]}; };
                for (const Channels::Piece& piece : pieces_) {
                    const size_t last = piece.first + std::max(piece.blocks, 1) - 1;
                    for (size_t b = piece.first; b < last; ++b) term.lattice->blur(passes_, block(b), {}, me);
                    term.lattice->blur(passes_, block(last), piece.tail ? block(last + 1) : RowBlock{}, me);
                }
            }
            if (me.index == 0)
                for (Term& term : terms_) std::swap(term.rows[0], term.rows[1]);
            me.sync();
        }
    }

private:
    struct Tile {
        float *logits, *unary, *other;
    };

    float* block_rows(const Term& term, int which, size_t b) const {
        return term.rows[which].data() + term.lattice->rows() * channels_.first[b];
    }

    // -unary of label maps: one row of channels for each label, and one of zeros for points of no label.
    void fill_label_rows() {
        const int64_t labels = channels_.labels;
        label_lanes_ = channels_.group ? channels_.own : channels_.lanes;
        label_rows_.assign(count_ * (labels + 1) * label_lanes_, channels_.group ? 0.0f : far_below);
        for (int m = 0; m < count_; ++m) {
            const float right = problems_[m].energy_right, wrong = problems_[m].energy_wrong;
            float* none = &label_rows_[(m * (labels + 1) + labels) * label_lanes_];
            std::fill(none, none + channels_.own, 0.0f);
            for (int64_t given = 0; given < labels; ++given) {
                float* row = &label_rows_[(m * (labels + 1) + given) * label_lanes_];
                for (int c = 0; c < channels_.own; ++c) {
                    const float energy = c == given ? right : wrong;
                    const float last = given == labels - 1 ? right : wrong;
                    row[c] = channels_.implicit ? last - energy : -energy;
                }
            }
        }
    }

    // Planes to tile: value(problem, channel, last channel's or nullptr) for each point.
    template <class Plane, class Value>
    void gather(int64_t first, int64_t count, float* tile, float pad, Plane plane, Value value) const {
        if (channels_.lanes != channels_.own * count_ || count < tile_points)
            std::fill(tile, tile + tile_points * channels_.lanes, pad);
        for (int m = 0; m < count_; ++m) {
            const float* planes = plane(problems_[m]);
            const float* last = planes + (channels_.labels - 1) * n_ + first;
            for (int c = 0; c < channels_.own; ++c) {
                const float* from = planes + c * n_ + first;
                const auto [at, stride] = channels_.place(m, c);
                float* to = tile + at;
                if (stride == 1) {
                    for (int64_t p = 0; p < count; ++p) to[p] = value(from[p], last[p]);
                } else {
                    for (int64_t p = 0; p < count; ++p) to[p * stride] = value(from[p], last[p]);
                }
            }
        }
    }

    // -unary of a tile, as it stands before the kernels' shares are added.
    void fill_unary(int64_t first, int64_t count, float* tile) const {
        if (problems_[0].energies) {
            if (channels_.implicit)
                gather(
                    first, count, tile, far_below, [](const Unary& u) { return u.energies; },
                    [](float energy, float last) { return last - energy; });
            else
                gather(
                    first, count, tile, far_below, [](const Unary& u) { return u.energies; },
                    [](float energy, float) { return std::isinf(energy) ? far_below : -energy; });
            return;
        }
        if (channels_.lanes != channels_.own * count_ || count < tile_points)
            std::fill(tile, tile + tile_points * channels_.lanes, far_below);
        for (int m = 0; m < count_; ++m) {
            const uint8_t* labels = problems_[m].labels + first;
            const float* rows = &label_rows_[m * (channels_.labels + 1) * label_lanes_];
            if (channels_.group) {
                const int width = channels_.width[0];
                float* to = tile + m * channels_.group;
                for (int64_t p = 0; p < count; ++p)
                    for (int c = 0; c < channels_.own; ++c) to[p * width + c] = rows[labels[p] * channels_.own + c];
            } else {
                for (size_t b = 0; b < channels_.width.size(); ++b) {
                    float* to = tile + tile_points * channels_.first[b];
                    const float* from = rows + channels_.first[b];
                    const auto copy = [&](auto width) {  // a constant: no call for a few floats
                        for (int64_t p = 0; p < count; ++p)
                            std::memcpy(to + p * width, from + labels[p] * label_lanes_, width * sizeof(float));
                    };
                    if (channels_.width[b] == 16)
                        copy(std::integral_constant<size_t, 16>{});
                    else if (channels_.width[b] == 8)
                        copy(std::integral_constant<size_t, 8>{});
                    else
                        copy(std::integral_constant<size_t, 4>{});
                }
            }
        }
    }

    // One tile of one iteration: logits, softmax, and either the next splat or the answer.
    void visit(int it, size_t b, int64_t t, const Tile& tile) {
        const int64_t first = t * tile_points, count = std::min<int64_t>(tile_points, n_ - first);
        const int64_t lanes = channels_.lanes;
        const bool last = it == iterations_;
        float* unary = tile.unary;
        if (unary_) {
            unary = unary_.data() + first * lanes;
            if (it == 0) fill_unary(first, count, unary);
        } else if (it == 0 || !adds_label_rows_) {
            fill_unary(first, count, unary);
        }
        if (it > 0) fetch_rows(b, t + 2);
        const float* from = unary;
        if (it == 0 && problems_[0].start) {
            start(first, count, tile, last);
        } else {
            for (size_t i = 0; it > 0 && i < terms_.size();) {
                const int together = i + 1 < terms_.size() && !terms_[i].compat && !terms_[i + 1].compat ? 2 : 1;
                from = slice(i, together, b, first, count, from, tile);
                i += together;
            }
            if (from == unary) std::memcpy(tile.logits, unary, tile_points * lanes * sizeof(float));
            softmax(count, tile.logits, last ? tile.other : nullptr);
        }
        if (last) return answer(first, count, tile);
        for (const Term& term : terms_)
            for (size_t k = 0; k < channels_.width.size(); ++k)
                term.lattice->clear_rows(term.lattice->bands()[b], t, channels_.width[k], block_rows(term, 1, k));
        for (const Channels::Piece& piece : pieces_) {
            const float* values = tile.logits + tile_points * channels_.first[piece.first];
            for (size_t i = 0; i < terms_.size(); i += 2) {
                const int together = static_cast<int>(std::min<size_t>(2, terms_.size() - i));
                Spread spread[2];
                for (int j = 0; j < together; ++j)
                    spread[j] = spread_of(terms_[i + j], 1, piece, b, first, terms_[i + j].splat.data());
                if (piece.blocks)
                    passes_.splat_blocks(spread, together, count, piece.blocks, piece.tail, values);
                else
                    passes_.splat[channels_.log_width[piece.first]](spread, together, count, values);
            }
        }
    }

    Spread spread_of(const Term& term, int which, const Channels::Piece& piece, size_t b, int64_t first,
                     const float* weight) const {
        const int vertices = term.lattice->dimension() + 1;
        const int64_t first_row = term.lattice->bands()[b].first_row;
        const size_t k = piece.first, tail = k + piece.blocks;
        Spread spread{term.offset + first * vertices, weight + first * vertices,
                      block_rows(term, which, k) + first_row * channels_.width[k], vertices};
        spread.block_stride = term.lattice->rows() * 16;
        if (piece.tail) spread.tail = block_rows(term, which, tail) + first_row * piece.tail;
        return spread;
    }

    // Rows are numbered in the order in which the tiles first touch them: those that a coming tile is the first to read
    // lie side by side, and fetching them early saves the wait for main memory where the rows outgrow the caches.
    void fetch_rows(size_t b, int64_t t) const {
        if (channels_.lanes < 8) return;
        for (const Term& term : terms_)
            for (size_t k = 0; k < channels_.width.size(); ++k)
                term.lattice->fetch_rows(term.lattice->bands()[b], t, channels_.width[k], block_rows(term, 0, k));
    }

    // Adds the share of terms i .. i + together (two Potts terms, or one of any kind) to `from`, into the tile's logits.
    const float* slice(size_t i, int together, size_t b, int64_t first, int64_t count, const float* from,
                       const Tile& tile) {
        const std::vector<float>* compat = terms_[i].compat;
        float* to = compat ? tile.other : tile.logits;
        if (compat) std::fill(to, to + tile_points * channels_.lanes, 0.0f);
        for (const Channels::Piece& piece : pieces_) {
            const int at = tile_points * channels_.first[piece.first];
            Spread spread[2];
            for (int j = 0; j < together; ++j)
                spread[j] = spread_of(terms_[i + j], 0, piece, b, first, terms_[i + j].slice);
            const float* add = (compat ? to : from) + at;
            if (!piece.blocks) {
                passes_.slice[channels_.log_width[piece.first]](spread, together, count, add, to + at);
                continue;
            }
            Base base{add};
            if (adds_label_rows_ && i == 0)
                base = {&label_rows_[channels_.first[piece.first]], problems_[0].labels + first, label_lanes_};
            passes_.slice_blocks(spread, together, count, piece.blocks, piece.tail, base, to + at);
        }
        if (compat) apply_compat(*compat, count, from, tile);
        return tile.logits;
    }

    void apply_compat(const std::vector<float>& compat, int64_t count, const float* from, const Tile& tile) const {
        if (from != tile.logits) std::memcpy(tile.logits, from, tile_points * channels_.lanes * sizeof(float));
        const int labels = channels_.own;
        const bool diagonal = static_cast<int>(compat.size()) == labels;
        for (int m = 0; m < count_; ++m) {
            for (int l = 0; l < labels; ++l) {
                const auto [at, stride] = channels_.place(m, l);
                for (int o = diagonal ? l : 0; o < (diagonal ? l + 1 : labels); ++o) {
                    const float c = diagonal ? compat[l] : compat[static_cast<size_t>(l) * labels + o];
                    const auto [other_at, other_stride] = channels_.place(m, o);
                    for (int64_t p = 0; p < count; ++p)
                        tile.logits[at + p * stride] -= c * tile.other[other_at + p * other_stride];
                }
            }
        }
    }

    void softmax(int64_t count, float* logits, float* last) const {
        const float copies = channels_.implicit ? alike_.copies : 0;
        if (channels_.group)
            passes_.softmax_groups(channels_.group, copies, int64_t{tile_points} * channels_.lanes, logits, last);
        else
            passes_.softmax_blocks(channels_.blocks(), copies, count, logits, last);
    }

    // The marginals to start from, as the softmax would leave them.
    void start(int64_t first, int64_t count, const Tile& tile, bool last) const {
        const auto plane = [](const Unary& u) { return u.start; };
        if (channels_.implicit && !last) {
            gather(first, count, tile.logits, 0.0f, plane, [](float q, float rest) { return q - rest; });
            return;
        }
        gather(first, count, tile.logits, 0.0f, plane, [](float q, float) { return q; });
        if (channels_.implicit) {
            for (int m = 0; m < count_; ++m)
                for (int64_t p = 0; p < count; ++p)
                    tile.other[last_place(m, p)] = problems_[m].start[(channels_.labels - 1) * n_ + first + p];
        }
    }

    int64_t last_place(int problem, int64_t p) const {  // of the last label's marginal in tile.other
        return channels_.group ? p * channels_.width[0] + problem * channels_.group : p;
    }

    void answer(int64_t first, int64_t count, const Tile& tile) const {
        for (int m = 0; m < count_; ++m) {
            const Unary& problem = problems_[m];
            float highest[tile_points];
            std::fill(highest, highest + tile_points, -1.0f);
            for (int l = 0; l < static_cast<int>(alike_.channel.size()); ++l) {
                const int c = alike_.channel[l];
                const bool implied = c == channels_.own;
                const auto [at, stride] = implied ? std::pair<int, int>(static_cast<int>(last_place(m, 0)),
                                                                        channels_.group ? channels_.width[0] : 1)
                                                  : channels_.place(m, c);
                const float* q = (implied ? tile.other : tile.logits) + at;
                if (problem.marginals) {
                    float* out = problem.marginals + l * n_ + first;
                    for (int64_t p = 0; p < count; ++p) out[p] = q[p * stride];
                }
                if (problem.best) {
                    int32_t* out = problem.best + first;
                    for (int64_t p = 0; p < count; ++p) {
                        const float value = q[p * stride];
                        const bool better = value > highest[p];
                        out[p] = better ? l : out[p];
                        highest[p] = better ? value : highest[p];
                    }
                }
            }
        }
    }

    const Unary* problems_;
    int count_;
    const Channels& channels_;
    const Alike& alike_;
    int64_t n_;
    std::vector<Term>& terms_;
    const std::vector<Band>& bands_;
    int iterations_;
    const Passes& passes_;
    Buffer<float> unary_;
    std::vector<Channels::Piece> pieces_ = channels_.pieces();
    std::vector<float> label_rows_;
    int label_lanes_ = 0;                 // of one of these rows
    bool adds_label_rows_ = false;        // in the slice itself, from the second iteration on
    std::vector<Buffer<float>> scratch_;  // one for each thread
};

}  // namespace

void mean_field(std::vector<Unary> problems, int64_t labels, int64_t n, const std::vector<Kernel>& kernels,
                int iterations, int threads) {
    // More threads than bands would have nothing to do.
    threads = std::clamp(threads, 1, kernels.empty() ? 1 : static_cast<int>(kernels[0].lattice->bands().size()));
    const bool potts = std::all_of(kernels.begin(), kernels.end(), [](const Kernel& kernel) { return kernel.potts; });
    bool forbids = false, dense = false;
    std::vector<Buffer<uint8_t>> maps;
    std::vector<Buffer<float>> replaced;
    for (Unary& problem : problems) {
        if (!problem.energies) continue;
        maps.emplace_back(n);
        const Examined found = examine(problem.energies, labels, n, threads, maps.back().data());
        problem.energy_right = found.right, problem.energy_wrong = found.wrong;
        forbids |= found.forbid || found.large;
        dense |= !found.of_labels || found.large;
        if (found.large) {
            replaced.push_back(bounded(problem.energies, labels, n));
            problem.energies = replaced.back().data();
        }
    }
    const bool implicit = potts && !forbids && labels > 1;
    if (implicit && !dense) {  // a byte for each point to read in each iteration, instead of a float for each label
        for (size_t m = 0; m < maps.size(); ++m) {
            problems[m].labels = maps[m].data();
            problems[m].energies = nullptr;
        }
    }

    std::vector<Term> terms;
    for (const Kernel& kernel : kernels)
        if (!kernel.potts || kernel.compat[0] != 0.0f) terms.push_back(prepare(kernel, kernel.potts, threads));
    std::vector<Band> whole{{0, (n + tile_points - 1) / tile_points, 0, 0}};
    const std::vector<Band>& bands = terms.empty() ? whole : terms[0].lattice->bands();
    const int together = Channels::together(labels, implicit, static_cast<int>(problems.size()));
    for (size_t first = 0; first < problems.size(); first += together) {
        const int count = std::min<int>(together, static_cast<int>(problems.size() - first));
        Buffer<uint8_t> map;
        const Alike alike = implicit ? merge_absent(problems[first], labels, n, map) : Alike(labels);
        const Channels channels(alike.labels, implicit, count);
        const int members = std::min<int>(threads, static_cast<int>(bands.size()));
        Run run(&problems[first], count, channels, alike, n, terms, bands, iterations, members);
        run_team(members, [&](const Member& me) { run.work(me); });
    }
}

}  // namespace amn::dense_crf
