// The instruction set that every machine of the architecture has: SSE2 on x86-64, NEON on arm64, else plain C++.
#include "random_walk/rows.hpp"

#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#elif defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#endif

namespace amn::random_walk {
namespace {

#if defined(__aarch64__) || defined(_M_ARM64)
struct Vec {
    static constexpr int64_t width = 4;
    static constexpr bool picks = false;
    float32x4_t v;
    static Vec load(const float* p) { return {vld1q_f32(p)}; }
    static Vec fill(float x) { return {vdupq_n_f32(x)}; }
    void store(float* p) const { vst1q_f32(p, v); }
    Vec operator*(Vec b) const { return {vmulq_f32(v, b.v)}; }
    Vec operator+(Vec b) const { return {vaddq_f32(v, b.v)}; }
    Vec operator-(Vec b) const { return {vsubq_f32(v, b.v)}; }
    static Vec add_product(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
};
#elif defined(__x86_64__) || defined(_M_X64)
struct Vec {
    static constexpr int64_t width = 4;
    static constexpr bool picks = false;
    __m128 v;
    static Vec load(const float* p) { return {_mm_loadu_ps(p)}; }
    static Vec fill(float x) { return {_mm_set1_ps(x)}; }
    void store(float* p) const { _mm_storeu_ps(p, v); }
    Vec operator*(Vec b) const { return {_mm_mul_ps(v, b.v)}; }
    Vec operator+(Vec b) const { return {_mm_add_ps(v, b.v)}; }
    Vec operator-(Vec b) const { return {_mm_sub_ps(v, b.v)}; }
    static Vec add_product(Vec a, Vec b, Vec c) { return {_mm_add_ps(_mm_mul_ps(a.v, b.v), c.v)}; }
};
#else
struct Vec {
    static constexpr int64_t width = 1;
    static constexpr bool picks = false;
    float v;
    static Vec load(const float* p) { return {*p}; }
    static Vec fill(float x) { return {x}; }
    void store(float* p) const { *p = v; }
    Vec operator*(Vec b) const { return {v * b.v}; }
    Vec operator+(Vec b) const { return {v + b.v}; }
    Vec operator-(Vec b) const { return {v - b.v}; }
    static Vec add_product(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
};
#endif

}  // namespace
}  // namespace amn::random_walk

#include "random_walk/row_body.hpp"

namespace amn::random_walk {
void row_baseline(const Row& row) { whole_row(row); }
}  // namespace amn::random_walk
