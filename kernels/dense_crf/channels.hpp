// How labels become channels: which labels have one, and where it lies in the rows that the passes work on.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "dense_crf/mean_field.hpp"

namespace amn::dense_crf {

// How the problems' channels share rows: small label sets side by side in one block, large ones in blocks of 16 down.
struct Channels {
    int64_t labels;
    bool implicit;  // the last label has no channel
    int own;        // channels of one problem
    int group = 0;  // lanes of one problem in the only block; 0: one problem, several blocks
    int lanes = 0;
    std::vector<int> width, first, log_width;

    Channels(int64_t labels, bool implicit, int problems)
        : labels(labels), implicit(implicit), own(static_cast<int>(implicit ? labels - 1 : labels)) {
        if (own <= 4) {
            group = static_cast<int>(std::bit_ceil(static_cast<unsigned>(own)));
            add(static_cast<int>(std::bit_ceil(static_cast<unsigned>(group * problems))));
            return;
        }
        int left = own;
        for (; left >= 16; left -= 16) add(16);
        if (left > 12) {
            add(16);
        } else if (left > 8) {
            add(8);
            add(4);
        } else if (left) {
            add(left > 4 ? 8 : 4);
        }
    }
    static int together(int64_t labels, bool implicit, int problems) {  // problems that fit one block
        const int64_t own = implicit ? labels - 1 : labels;
        if (own > 4) return 1;
        return std::min<int>(problems, 16 / static_cast<int>(std::bit_ceil(static_cast<unsigned>(own))));
    }
    // Blocks to be passed over together, from block `first` on: up to four of 16 channels, and the tail behind them.
    struct Piece {
        size_t first;
        int blocks, tail;  // blocks = 0: one block alone, of whatever width
    };
    std::vector<Piece> pieces() const {
        std::vector<Piece> all;
        size_t k = 0;
        while (k < width.size()) {
            size_t wide = 0;
            while (k + wide < width.size() && width[k + wide] == 16) ++wide;
            if (!wide) {
                all.push_back({k++, 0, 0});
                continue;
            }
            const int blocks = wide >= 4 ? 4 : wide >= 2 ? 2 : 1;
            const size_t next = k + blocks;
            const bool ends = static_cast<size_t>(blocks) == wide && next < width.size();
            all.push_back({k, blocks, ends ? width[next] : 0});
            k = next + ends;
        }
        return all;
    }
    Blocks blocks() const { return {static_cast<int>(width.size()), width.data(), first.data()}; }
    // Where problem m's channel c of a tile's first point is, and how far the next point's.
    std::pair<int, int> place(int problem, int c) const {
        if (group) return {problem * group + c, width[0]};
        size_t b = 0;
        while (b + 1 < first.size() && first[b + 1] <= c) ++b;
        return {tile_points * first[b] + c - first[b], width[b]};
    }

private:
    void add(int w) {
        width.push_back(w);
        first.push_back(lanes);
        log_width.push_back(std::countr_zero(static_cast<unsigned>(w)));
        lanes += w;
    }
};

// Labels that nothing tells apart share a channel: those that no point of a label map has keep one marginal among them
// in every iteration. They become the implicit label, which then stands for several.
struct Alike {
    std::vector<int> channel;  // of each label
    int64_t labels;            // channels, the implicit one included
    float copies = 1;          // labels that the last channel stands for

    explicit Alike(int64_t count) : channel(count), labels(count) {
        for (int64_t l = 0; l < count; ++l) channel[l] = static_cast<int>(l);
    }
};

// Looks for such labels in a label map and renumbers it, into `map`. Up to five labels fit the smallest block anyway.
Alike merge_absent(Unary& problem, int64_t labels, int64_t n, Buffer<uint8_t>& map);

}  // namespace amn::dense_crf
