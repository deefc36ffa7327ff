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

struct Passes {
    const char* name;
    // Simplices of 64 points. In: features (d, 64). Out: quotient (d, 64), the remainder-0 vertex divided by d + 1;
    // rank (64, d + 1); weight (64, d + 1).
    void (*embed)(int d, const float* scale, const float* features, int32_t* quotient, int32_t* rank, float* weight);
    // out[p] = add[p] + sum over the point's vertices of weight · row. offset, weight: (points, vertices).
    void (*slice[width_count])(const uint32_t* offset, const float* weight, int vertices, int64_t points,
                               const float* rows, const float* add, float* out);
    // row += weight · values[p] for each of the point's vertices.
    void (*splat[width_count])(const uint32_t* offset, const float* weight, int vertices, int64_t points,
                               const float* values, float* rows);
    // (½, 1, ½) along chains of neighbours, in place; half[k] is ½ where index[k + 1] is index[k]'s neighbour, else 0.
    void (*blur[width_count])(const uint32_t* index, const float* half, int64_t count, float* rows);
    // Logits to marginals, in place. `group` channels per label map and point in one block (1, 2 or 4), `count` floats.
    // `implicit`: one more label has logit 0; its marginal goes to every lane of its group in `last`, if given, else
    // the marginals are lessened by it.
    void (*softmax_groups)(int group, bool implicit, int64_t count, float* tile, float* last);
    // The same for one label map in several blocks; `last` has one float for each point.
    void (*softmax_blocks)(const Blocks& blocks, bool implicit, int64_t points, float* tile, float* last);
};

const Passes& best_passes();
const Passes* find_passes(const char* name);  // nullptr: unknown, or not for this machine

}  // namespace amn::dense_crf
