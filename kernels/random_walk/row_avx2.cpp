// AVX2 and FMA, for machines that have it. The target holds to the end of the file, where the templates are instantiated.
#include "random_walk/rows.hpp"

#ifdef AMN_X86_DISPATCH
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

namespace amn::random_walk {
namespace {

struct Vec {
    static constexpr int64_t width = 8;
    static constexpr bool picks = false;
    __m256 v;
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec fill(float x) { return {_mm256_set1_ps(x)}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    Vec operator*(Vec b) const { return {_mm256_mul_ps(v, b.v)}; }
    Vec operator+(Vec b) const { return {_mm256_add_ps(v, b.v)}; }
    Vec operator-(Vec b) const { return {_mm256_sub_ps(v, b.v)}; }
    static Vec add_product(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
};

}  // namespace
}  // namespace amn::random_walk

#include "random_walk/row_body.hpp"

namespace amn::random_walk {
void row_avx2(const Row& row) { whole_row(row); }
}  // namespace amn::random_walk

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
