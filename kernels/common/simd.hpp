// Portable vector code: plain loops that the compiler vectorises, compiled once per instruction set and chosen when the
// program runs. No multiply-add is contracted and no sum is reordered, so every instruction set gives the same bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// Marks a function to be compiled for the x86-64 baseline, AVX2 and AVX-512. What it calls must be AMN_INLINE.
// Elsewhere (arm64, musl, Windows) the baseline has the vectors that the compiler knows: on arm64 that is NEON.
// Not under ThreadSanitizer: the choice would run before the sanitizer has started.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__) && \
    (defined(__clang__) ? __clang_major__ >= 18 : __GNUC__ >= 12)
#define AMN_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#define AMN_HAS_CLONES 1
#else
#define AMN_CLONES
#endif

#if defined(__GNUC__)
#define AMN_INLINE inline __attribute__((always_inline))
#else
#define AMN_INLINE __forceinline
#endif

namespace amn {

// exp(x) for x <= 0 (up to rounding), within 2 units in the last place; 0 below -87; NaN stays NaN. std::exp does not
// vectorise.
AMN_INLINE float exp_nonpositive(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const float shifted = clamped * 1.44269504088896341f + magic;
    const float n = shifted - magic;
    const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) + 127u) << 23;
    const float result = p * std::bit_cast<float>(exponent);
    return x < -87.0f ? 0.0f : result;
}
inline double exp_nonpositive(double x) { return std::exp(x); }

struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

AMN_INLINE float widen(float x) { return x; }
AMN_INLINE double widen(double x) { return x; }
AMN_INLINE float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
AMN_INLINE float widen(Half x) {
    const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fff) << 13;
    const float value = std::bit_cast<float>(magnitude) * std::bit_cast<float>(0x77800000u);  // 2^112 rebiases
    const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;                // infinity and NaN
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | special | sign);
}

// Rounding to nearest, ties to even, as PyTorch rounds.
template <class T>
AMN_INLINE T narrow(float x);
template <>
AMN_INLINE float narrow<float>(float x) {
    return x;
}
template <>
AMN_INLINE BFloat16 narrow<BFloat16>(float x) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<std::uint16_t>(x != x ? 0x7fc0u : rounded)};
}
template <>
AMN_INLINE Half narrow<Half>(float x) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the float adder does the rounding: adding 0.5 leaves the subnormal half in the low bits.
    const float small = std::bit_cast<float>(magnitude) + 0.5f;
    const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(small) - 0x3f000000u;
    const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    std::uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x47800000u ? 0x7c00u : result;
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    return {static_cast<std::uint16_t>(result | ((bits >> 16) & 0x8000u))};
}
template <class T>
AMN_INLINE T narrow(double x) {
    static_assert(sizeof(T) == sizeof(double));
    return x;
}

}  // namespace amn
