// AVX-512, for machines that have it. The target holds to the end of the file, where the templates are instantiated.
#include "random_walk/rows.hpp"

#ifdef AMN_X86_DISPATCH
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif
#include <immintrin.h>

namespace amn::random_walk {
namespace {

struct Vec {
    static constexpr int64_t width = 16;
    static constexpr bool picks = true;
    __m512 v;
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec fill(float x) { return {_mm512_set1_ps(x)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    Vec operator*(Vec b) const { return {_mm512_mul_ps(v, b.v)}; }
    Vec operator+(Vec b) const { return {_mm512_add_ps(v, b.v)}; }
    Vec operator-(Vec b) const { return {_mm512_sub_ps(v, b.v)}; }
    // The 16 numbers from `first` on of the 32 in two vectors.
    static __m512i choice(int64_t first) {
        const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        return _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first)));
    }
    static Vec pick(Vec low, Vec high, __m512i choice) { return {_mm512_permutex2var_ps(low.v, choice, high.v)}; }
    static Vec add_product(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
};

}  // namespace
}  // namespace amn::random_walk

#include "random_walk/row_body.hpp"

namespace amn::random_walk {
void row_avx512(const Row& row) { whole_row(row); }
}  // namespace amn::random_walk

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
