// The table of hot loops that one instruction set fills; `best_passes` picks the table when the program runs.
#pragma once

#include <cstdint>

namespace amn::dense_crf {

constexpr int tile_points = 64;  // points whose logits stay in the first-level cache from slice to splat
constexpr int width_count = 5;   // rows of 1, 2, 4, 8 or 16 channels: widths 1 << 0 .. 1 << 4

// How the channels of one point lie in its tile: blocks of `width[b]` channels, block b at tile + 64 * first[b].
struct Blocks {
    int count;
    const int* width;
    const int* first;
};

// The layout of a lattice key of one word (see table.hpp).
struct KeyFields {
    int d;
    const int* shift;         // (d) of the quotients' fields
    uint64_t bias;            // what the fields start from
    uint64_t remainder_mask;  // the lowest bits
};

// How points spread over a lattice's rows: offset, weight (points, vertices); rows of the width at hand. For several
// blocks at once, `rows` is the first block of 16, the next one is `block_stride` floats on, and `tail` has the rest.
struct Spread {
    const uint32_t* offset;
    const float* weight;
    float* rows;
    int vertices;
    float* tail = nullptr;
    int64_t block_stride = 0;
};

// What the shares of the lattices are added to, for several blocks at once: a tile (points in blocks of 64), or, where
// `labels` has a label for each point, the label's row of `lanes` floats.
struct Base {
    const float* rows;
    const uint8_t* labels = nullptr;
    int lanes = 0;
};

struct Passes {
    const char* name;
    // Simplices of 64 points. In: features (d, 64). Out: quotient (d, 64), the remainder-0 vertex divided by d + 1;
    // rank (d + 1, 64); weight (64, d + 1).
    void (*embed)(int d, const float* scale, const float* features, int32_t* quotient, int32_t* rank, float* weight);
    // Keys (d + 1, 64) of these simplices' vertices, and where their search starts in a table: the top bits of the hash.
    void (*keys)(const KeyFields& fields, const int32_t* quotient, const int32_t* rank, int hash_shift, uint64_t* keys,
                 uint32_t* starts);
    // The keys of 64 vertices' neighbours along an axis, and where their search starts.
    void (*follow)(const uint64_t* from, const KeyFields& fields, uint64_t step, uint64_t wrap, int hash_shift,
                   uint64_t* keys, uint32_t* starts);
    // out[p] = add[p] + sum over the point's vertices, in each of one or two lattices, of weight · row.
    void (*slice[width_count])(const Spread* lattices, int count, int64_t points, const float* add, float* out);
    // row += weight · values[p] for each of the point's vertices.
    void (*splat[width_count])(const Spread* lattices, int count, int64_t points, const float* values);
    // The same for `blocks` (1, 2 or 4) blocks of 16 channels and a tail of 0, 4 or 8: offsets and weights are read once.
    void (*slice_blocks)(const Spread* lattices, int count, int64_t points, int blocks, int tail, const Base& add,
                         float* out);
    void (*splat_blocks)(const Spread* lattices, int count, int64_t points, int blocks, int tail, const float* values);
    // (½, 1, ½) along chains of neighbours, in place; half[k] is ½ where index[k + 1] is index[k]'s neighbour, else 0.
    void (*blur[width_count])(const uint32_t* index, const float* half, int64_t count, float* rows);
    // The same for a block of 16 channels and a tail of 4 or 8: the chains are read once.
    void (*blur_blocks)(const uint32_t* index, const float* half, int64_t count, float* rows, int tail,
                        float* tail_rows);
    // Logits to marginals, in place. `group` channels per label map and point in one block (1, 2 or 4), `count` floats.
    // `copies` more labels have logit 0 (0: there is none); the marginal of one of them goes to every lane of its group
    // in `last`, if given, else the marginals are lessened by it.
    void (*softmax_groups)(int group, float copies, int64_t count, float* tile, float* last);
    // The same for one label map in several blocks (those of 16 channels first, then at most one of 8 and one of 4);
    // `last` has one float for each point.
    void (*softmax_blocks)(const Blocks& blocks, float copies, int64_t points, float* tile, float* last);
};

const Passes& best_passes();        // the fastest for this machine, or the ones in use
bool use_passes(const char* name);  // "baseline", "avx2", "avx512"; false: unknown, or not for this machine

}  // namespace amn::dense_crf
