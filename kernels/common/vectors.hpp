// Vectors for the hot loops: GCC and clang vector types, with intrinsics only where those have no operator for it.
// Included by one unit per instruction set, after its target pragma. AMN_LANES (4, 8 or 16) is the unit's vector; 8 and
// 16 mean AVX2 and AVX-512 with FMA. All is in an unnamed namespace: no unit's code can stand in for another's.
#pragma once

#include <cstdint>
#include <utility>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

template <int L>
struct VecOf {
    typedef float type __attribute__((vector_size(L * 4)));
    typedef int32_t ints __attribute__((vector_size(L * 4)));
};
template <int L>
using Vec = typename VecOf<L>::type;
template <int L>
using Ints = typename VecOf<L>::ints;

constexpr int native_lanes = AMN_LANES;

template <class T>
inline T load(const float* p) {
    T v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
template <class T>
inline void store(float* p, T v) {
    __builtin_memcpy(p, &v, sizeof v);
}

// a * b + c, fused where the instruction set fuses.
inline float fma(float a, float b, float c) {
#if AMN_LANES >= 8 || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
inline Vec<4> fma(Vec<4> a, Vec<4> b, Vec<4> c) {
#if AMN_LANES >= 8
    return (Vec<4>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__aarch64__)
    return (Vec<4>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
#if AMN_LANES >= 8
inline Vec<8> fma(Vec<8> a, Vec<8> b, Vec<8> c) { return (Vec<8>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#endif
#if AMN_LANES >= 16
inline Vec<16> fma(Vec<16> a, Vec<16> b, Vec<16> c) {
    return (Vec<16>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#endif

template <class T, int... I>
inline T splat(float v, std::integer_sequence<int, I...>) {
    return T{((void)I, v)...};
}
// v in every lane; one instruction, where T{} + v would keep the addition.
template <class T>
inline T splat(float v) {
    return splat<T>(v, std::make_integer_sequence<int, sizeof(T) / 4>());
}

template <class T>
inline T max(T a, T b) {
    return a > b ? a : b;
}

// exp(x), relative error below 2e-7, for x < 88; below -87 it is 0, never a denormal.
template <class T>
inline T exp(T given) {
    constexpr int L = sizeof(T) / 4;
    const T x = max(given, splat<T>(-87.0f));
    constexpr float magic = 12582912.0f;
    const T shifted = fma(x, splat<T>(1.44269504088896341f), splat<T>(magic));
    const T k = shifted - magic;
    T r = fma(k, splat<T>(-0.693359375f), x);
    r = fma(k, splat<T>(2.12194440e-4f), r);
    T p = splat<T>(1.9875691500e-4f);
    p = fma(p, r, splat<T>(1.3981999507e-3f));
    p = fma(p, r, splat<T>(8.3334519073e-3f));
    p = fma(p, r, splat<T>(4.1665795894e-2f));
    p = fma(p, r, splat<T>(1.6666665459e-1f));
    p = fma(p, r, splat<T>(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
    if constexpr (L == 1) {
        int32_t bits, scale;
        __builtin_memcpy(&scale, &shifted, 4);
        __builtin_memcpy(&bits, &p, 4);
        bits += static_cast<int32_t>(static_cast<uint32_t>(scale) << 23);
        __builtin_memcpy(&p, &bits, 4);
        return given < -87.0f ? 0.0f : p;
    } else {
        // The low bits of `shifted` hold k: moved to the exponent they multiply by 2^k.
        const Ints<L> bits = (Ints<L>)p + (Ints<L>)(__builtin_bit_cast(Ints<L>, shifted) << 23);
        return given < splat<T>(-87.0f) ? T{} : __builtin_bit_cast(T, bits);
    }
}

// Lane i takes lane i ^ X.
template <int X, class T, int... I>
inline T swap_lanes(T v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ X)...);
}
template <int X, class T>
inline T swap_lanes(T v) {
    return swap_lanes<X>(v, std::make_integer_sequence<int, sizeof(T) / 4>());
}

// W floats, in as many vectors as that takes.
template <int W>
struct Pack {
    static constexpr int lanes = W < native_lanes ? W : native_lanes;
    static constexpr int parts = W / lanes;
    using T = Vec<lanes>;
    T part[parts];
    static Pack load(const float* p) {
        Pack v;
        for (int i = 0; i < parts; ++i) v.part[i] = ::load<T>(p + i * lanes);
        return v;
    }
    void store(float* p) const {
        for (int i = 0; i < parts; ++i) ::store(p + i * lanes, part[i]);
    }
    static Pack broadcast(float x) {
        Pack v;
        for (int i = 0; i < parts; ++i) v.part[i] = ::splat<T>(x);
        return v;
    }
};
template <>
struct Pack<2> {  // two floats in the low half of four lanes, the others 0
    static constexpr int lanes = 4, parts = 1;
    using T = Vec<4>;
    T part[1];
    static Pack load(const float* p) {
#if defined(__SSE2__)
        double two;
        __builtin_memcpy(&two, p, 8);
        return {{(T)_mm_castpd_ps(_mm_set_sd(two)) }};
#else
        return {{ T{p[0], p[1], 0, 0} }};
#endif
    }
    void store(float* p) const {
#if defined(__SSE2__)
        _mm_storel_pi(reinterpret_cast<__m64*>(p), (__m128)part[0]);
#else
        p[0] = part[0][0], p[1] = part[0][1];
#endif
    }
    static Pack broadcast(float x) { return {{::splat<T>(x)}}; }
};
template <>
struct Pack<1> {
    static constexpr int lanes = 1, parts = 1;
    using T = float;
    T part[1];
    static Pack load(const float* p) { return {{*p}}; }
    void store(float* p) const { *p = part[0]; }
    static Pack broadcast(float x) { return {{x}}; }
};

template <int W>
inline Pack<W> fma(const Pack<W>& a, const Pack<W>& b, const Pack<W>& c) {
    Pack<W> v;
    for (int i = 0; i < Pack<W>::parts; ++i) v.part[i] = fma(a.part[i], b.part[i], c.part[i]);
    return v;
}

}  // namespace
