// Lattice arithmetic for one point, shared by every kernel: plain functions without a standard header, so that a GPU
// compiler can include them too. F is float, or a SIMD vector of floats (GCC and clang vector extensions): one source.
//
// The arithmetic is single precision, without fused multiply-add, in pydensecrf's order of operations: another
// rounding puts points into other simplices. Build with -ffp-contract=off (nvcc and NVRTC: --fmad=false).
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define AMN_LATTICE_FN static __host__ __device__ inline
#else
#define AMN_LATTICE_FN static inline
#endif

namespace amn::lattice {

// Nearest integer, ties to even, for |v| < 2^22: the sum has no bits left for a fraction.
template <class F>
AMN_LATTICE_FN F round_even(F v) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    return (v + magic) - magic;
}

// Elevated coordinates beyond this lose the fractions that barycentric weights are made of (float has 24 bits).
constexpr float max_coordinate = 2097152.0f;  // 2^21

// Where a point lies. `scale[j]` is the elevation's factor of coordinate j < d, sqrt(2/3) (d+1) / sqrt((j+1)(j+2)).
// Out, d + 1 each: `base`, the remainder-0 vertex of the enclosing simplex; `rank`, the coordinates' ranks;
// `weight`, the barycentric weights of the vertices of remainder 0..d. D is the dimension, or 0 to take `dimension`.
template <int D, class F>
AMN_LATTICE_FN void embed(int dimension, const float* scale, const F* feature, F* base, F* rank, F* weight) {
    const int d = D ? D : dimension;
    const float inverse = 1.0f / static_cast<float>(d + 1);
    const float side = static_cast<float>(d + 1);
    const F zero = F{} + 0.0f, one = F{} + 1.0f;
    F* elevated = weight;  // takes the weights' place until they are known
    F total = zero;
    for (int j = d; j > 0; --j) {
        const F scaled = feature[j - 1] * scale[j - 1];
        elevated[j] = total - static_cast<float>(j) * scaled;
        total = total + scaled;
    }
    elevated[0] = total;

    F excess = zero;
    for (int i = 0; i <= d; ++i) {
        const F rounded = round_even(inverse * elevated[i]);
        base[i] = rounded * side;
        excess = excess + rounded;
        rank[i] = zero;
    }
    for (int i = 0; i < d; ++i) {
        const F distance = elevated[i] - base[i];
        for (int j = i + 1; j <= d; ++j) {
            const F less = distance < (elevated[j] - base[j]) ? one : zero;  // of equals the later one ranks up
            rank[i] = rank[i] + less;
            rank[j] = rank[j] + (one - less);
        }
    }
    for (int i = 0; i <= d; ++i) {  // back onto the plane where the coordinates sum to 0
        rank[i] = rank[i] + excess;
        const F add = rank[i] < zero ? zero + side : zero;
        const F sub = rank[i] >= zero + side ? zero + side : zero;
        rank[i] = rank[i] + (add - sub);
        base[i] = base[i] + (add - sub);
    }

    // Distances in the order of their ranks; neighbouring differences are the weights.
    F ordered[(D ? D : 64) + 1];
    for (F& distance : ordered) distance = zero;
    for (int i = 0; i <= d; ++i) {
        const F distance = (elevated[i] - base[i]) * inverse;
        for (int p = 0; p <= d; ++p) ordered[p] = rank[i] == zero + static_cast<float>(d - p) ? distance : ordered[p];
    }
    weight[0] = ordered[0] + (one - ordered[d]);
    for (int p = 1; p <= d; ++p) weight[p] = ordered[p] - ordered[p - 1];
}

}  // namespace amn::lattice
