// The body of rows.hpp's functions for the instruction set whose `Vec` the including file defines before this line.
// No standard header with inline functions here: their code would be compiled for that instruction set and, merged by
// the linker, run on machines without it.

namespace amn::random_walk {
namespace {

// M maps, V vectors of each: M·V independent sums, so that the multiply-adds' latency is hidden. A coefficient is loaded
// once for all maps. Each pixel's sum is formed in the same order whatever M, V and the vector's width: bits do not depend
// on them.
template <int M, int V>
inline void block(const Row& r, int64_t x) {
    constexpr int64_t W = Vec::width;
    Vec here[M][V], ahead[M][V], behind[M][V];
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) {
            here[m][v] = Vec::load(r.now + m * r.map_size + x + v * W);
            ahead[m][v] = behind[m][v] = Vec::fill(0.0F);
        }
    }
    for (int64_t p = 0; p < r.planes; ++p) {
        const float* affinity = r.coefficients + p * r.stride + x;
        const float* affinity_behind = affinity + r.back[p];
        const int64_t shift = r.shift[p];
        for (int v = 0; v < V; ++v) {
            const Vec a = Vec::load(affinity + v * W);
            const Vec b = Vec::load(affinity_behind + v * W);
            for (int m = 0; m < M; ++m) {
                const float* pixel = r.now + m * r.map_size + x + v * W;
                ahead[m][v] = Vec::add_product(a, Vec::load(pixel + shift) - here[m][v], ahead[m][v]);
                behind[m][v] = Vec::add_product(b, Vec::load(pixel - shift) - here[m][v], behind[m][v]);
            }
        }
    }
    const float* scale = r.coefficients + r.planes * r.stride + x;
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) {
            const int64_t at = m * r.map_size + x + v * W;
            Vec change = Vec::load(scale + v * W) * (ahead[m][v] + behind[m][v]);
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

template <int M, int V>
inline int64_t blocks(const Row& r, int64_t x) {
    for (; x + V * Vec::width <= r.columns; x += V * Vec::width) block<M, V>(r, x);
    return x;
}

inline void whole_row(const Row& r) {
    switch (r.maps) {
        case 1: blocks<1, 1>(r, blocks<1, 2>(r, blocks<1, 4>(r, 0))); break;
        case 2: blocks<2, 1>(r, blocks<2, 2>(r, 0)); break;
        case 3: blocks<3, 1>(r, 0); break;
        default: blocks<4, 1>(r, 0); break;
    }
}

}  // namespace
}  // namespace amn::random_walk
