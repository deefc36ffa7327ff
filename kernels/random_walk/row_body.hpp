// The body of rows.hpp's functions for the instruction set whose `Vec` the including file defines before this line.
// No standard header with inline functions here: their code would be compiled for that instruction set and, merged by
// the linker, run on machines without it.

namespace amn::random_walk {
namespace {

// M maps, V vectors of each: 2·M·V independent sums, so that the multiply-adds' latency is hidden. A coefficient is loaded
// once for all maps. Each pixel's sum is formed in the same order whatever M, V and the vector's width: bits do not depend
// on them.
//
// What limits the loop is loading neighbours, most of them from unaligned addresses, each of which costs two accesses to
// the cache when a vector is as wide as a cache line. Where one instruction picks a vector out of two registers
// (Vec::picks), a line's three aligned vectors are loaded once and its neighbours picked from them: on 94 x 125 with two
// maps AVX-512 then takes 0.65 of AVX2's time; with unaligned loads it took as long.
template <class Vec, int M, int V, bool kPick>
inline void block(const Row& r, int64_t x) {
    constexpr int64_t W = Vec::width;
    Vec here[M][V], left[M][V], right[M][V];
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) {
            here[m][v] = Vec::load(r.now + m * r.map_size + x + v * W);
            left[m][v] = right[m][v] = Vec::fill(0.0F);
        }
    }
    for (const Line* line = r.lines; line < r.lines + r.line_count; ++line) {
        const float* map = r.now + line->shift + x;
        if constexpr (kPick) {
            Vec before[M][V], middle[M][V], after[M][V];
            for (int m = 0; m < M; ++m) {
                for (int v = 0; v < V; ++v) {
                    const float* at = map + m * r.map_size + v * W;
                    before[m][v] = Vec::load(at - W);
                    middle[m][v] = Vec::load(at);
                    after[m][v] = Vec::load(at + W);
                }
            }
            for (const Neighbour* n = line->left; n < line->right; ++n) {
                const auto choice = Vec::choice(W + n->dx);
                for (int v = 0; v < V; ++v) {
                    const Vec a = Vec::load(r.affinities + n->affinity + x + v * W);
                    for (int m = 0; m < M; ++m) {
                        const Vec there = Vec::pick(before[m][v], middle[m][v], choice);
                        left[m][v] = Vec::add_product(a, there - here[m][v], left[m][v]);
                    }
                }
            }
            for (const Neighbour* n = line->right; n < line->end; ++n) {
                const auto choice = Vec::choice(n->dx);
                for (int v = 0; v < V; ++v) {
                    const Vec a = Vec::load(r.affinities + n->affinity + x + v * W);
                    for (int m = 0; m < M; ++m) {
                        const Vec there = Vec::pick(middle[m][v], after[m][v], choice);
                        right[m][v] = Vec::add_product(a, there - here[m][v], right[m][v]);
                    }
                }
            }
        } else {
            const auto add = [&](const Neighbour* from, const Neighbour* to, Vec(&sum)[M][V]) {
                for (const Neighbour* n = from; n < to; ++n) {
                    for (int v = 0; v < V; ++v) {
                        const Vec a = Vec::load(r.affinities + n->affinity + x + v * W);
                        for (int m = 0; m < M; ++m) {
                            const Vec there = Vec::load(map + m * r.map_size + v * W + n->dx);
                            sum[m][v] = Vec::add_product(a, there - here[m][v], sum[m][v]);
                        }
                    }
                }
            };
            add(line->left, line->right, left);
            add(line->right, line->end, right);
        }
    }
    const float* scale = r.scale + x;
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) {
            const int64_t at = m * r.map_size + x + v * W;
            Vec change = Vec::load(scale + v * W) * (left[m][v] + right[m][v]);
            if (r.fresh) {
                change = change * Vec::fill(0.5F);
            } else {
                change = change + Vec::load(r.change + at);
            }
            change.store(r.change + at);
            const Vec next = here[m][v] + change;
            next.store(r.next + at);
            for (int64_t e = 0; e < r.results; ++e) {
                if (r.weight[e] == 0.0F) continue;
                float* result = r.result + e * r.result_size + at;
                Vec::add_product(Vec::fill(r.weight[e]), next, Vec::load(result)).store(result);
            }
        }
    }
}

template <class Vec, int M, int V, bool kPick>
inline int64_t blocks(const Row& r, int64_t x) {
    for (; x + V * Vec::width <= r.columns; x += V * Vec::width) block<Vec, M, V, kPick>(r, x);
    return x;
}

template <class Vec, bool kPick>
inline void all_blocks(const Row& r) {
    switch (r.maps) {
        case 1: blocks<Vec, 1, 1, kPick>(r, blocks<Vec, 1, 2, kPick>(r, blocks<Vec, 1, 4, kPick>(r, 0))); break;
        case 2: blocks<Vec, 2, 1, kPick>(r, blocks<Vec, 2, 2, kPick>(r, 0)); break;
        case 3: blocks<Vec, 3, 1, kPick>(r, 0); break;
        default: blocks<Vec, 4, 1, kPick>(r, 0); break;
    }
}

inline void whole_row(const Row& r) {
    if (r.reach <= Vec::width) {
        all_blocks<Vec, Vec::picks>(r);
    } else {
        all_blocks<Vec, false>(r);
    }
}

}  // namespace
}  // namespace amn::random_walk
