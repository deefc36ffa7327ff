// What the GPU kernels are written in: functions of a thread's place, made kernels by the macros below. Without a GPU
// compiler the same functions run on the CPU under a stand-in, `simt.hpp`, that the tests bring.
//
// Kernels take 64-bit integers, floats and pointers. No standard header: NVRTC has none.
#pragma once

#define AMN_EXPAND(...) __VA_ARGS__

namespace amn::gpu {

using u8 = unsigned char;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr i32 block_threads = 256;

struct Place {
    u32 block, thread;
    // clang-format off: it takes the two sides of #if for one line
#if defined(__CUDACC__)
    __device__
#endif
    i64 index() const { return static_cast<i64>(block) * block_threads + thread; }
    // clang-format on
};

}  // namespace amn::gpu

#if defined(__CUDACC__)

#define AMN_DEVICE static __device__ __forceinline__
#define AMN_UNROLL _Pragma("unroll")

// A kernel of one call, which sees its place as `at`.
#define AMN_KERNEL(name, parameters, call)                                                     \
    extern "C" __global__ void __launch_bounds__(amn::gpu::block_threads, 1) name parameters { \
        const amn::gpu::Place at{blockIdx.x, threadIdx.x};                                     \
        AMN_EXPAND call;                                                                       \
    }

// A kernel of three calls, each begun when all threads of the block have ended the one before; they share the block's
// memory, `shared`.
#define AMN_KERNEL_IN_STEPS(name, parameters, first, second, third)                            \
    extern "C" __global__ void __launch_bounds__(amn::gpu::block_threads, 1) name parameters { \
        extern __shared__ float4 amn_shared[];                                                 \
        float* const shared = reinterpret_cast<float*>(amn_shared);                            \
        const amn::gpu::Place at{blockIdx.x, threadIdx.x};                                     \
        AMN_EXPAND first;                                                                      \
        __syncthreads();                                                                       \
        AMN_EXPAND second;                                                                     \
        __syncthreads();                                                                       \
        AMN_EXPAND third;                                                                      \
    }

namespace amn::gpu {

AMN_DEVICE u32 load_shared_word(const u32* at) { return *static_cast<const volatile u32*>(at); }
AMN_DEVICE u32 compare_and_swap(u32* at, u32 expected, u32 wanted) { return atomicCAS(at, expected, wanted); }
AMN_DEVICE void keep_lowest(u32* at, u32 value) { atomicMin(at, value); }
AMN_DEVICE void set_bits(u32* at, u32 bits) { atomicOr(at, bits); }
AMN_DEVICE float exponential(float v) { return expf(v); }

// Two and four floats in one store: left to itself the compiler stores what it has just computed one by one.
AMN_DEVICE void store(float* to, float a, float b) {
    asm volatile("st.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(a), "f"(b) : "memory");
}
AMN_DEVICE void store(float* to, float a, float b, float c, float d) {
    asm volatile("st.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

}  // namespace amn::gpu

#else
#include "simt.hpp"
#endif

namespace amn::gpu {

constexpr float far_below = -1.0e30f;  // the logit of a channel that stands for no label

// item = i / of, part = i % of: 64-bit divisions take many times longer, and few launches need them.
AMN_DEVICE void split(i64 i, i64 of, i64& item, i64& part) {
    if (static_cast<u64>(i | of) >> 32 == 0) {
        const u32 quotient = static_cast<u32>(i) / static_cast<u32>(of);
        item = quotient;
        part = static_cast<u32>(i) - quotient * static_cast<u32>(of);
    } else {
        item = i / of;
        part = i - item * of;
    }
}

// V floats, which travel in one load or store.
template <int V>
struct Lanes {
    float lane[V];
};

template <int V>
AMN_DEVICE Lanes<V> zero() {
    Lanes<V> out;
    AMN_UNROLL
    for (int v = 0; v < V; ++v) out.lane[v] = 0.0f;
    return out;
}

template <int V>
AMN_DEVICE Lanes<V> fetch(const float* from) {
    if constexpr (V == 4) {
        const float4 all = *reinterpret_cast<const float4*>(from);
        return {{all.x, all.y, all.z, all.w}};
    } else if constexpr (V == 2) {
        const float2 both = *reinterpret_cast<const float2*>(from);
        return {{both.x, both.y}};
    } else {
        return {{*from}};
    }
}

template <int V>
AMN_DEVICE void put(float* to, const Lanes<V>& value) {
    const float* lane = value.lane;
    if constexpr (V == 4)
        store(to, lane[0], lane[1], lane[2], lane[3]);
    else if constexpr (V == 2)
        store(to, lane[0], lane[1]);
    else
        *to = lane[0];
}

// to += weight * from
template <int V>
AMN_DEVICE void add(Lanes<V>& to, float weight, const Lanes<V>& from) {
    AMN_UNROLL
    for (int v = 0; v < V; ++v) to.lane[v] = to.lane[v] + weight * from.lane[v];
}

// An image's row in the table of images. The points of a batch lie one image after the other, each padded to a
// multiple of four as pydensecrf does, the padding being points of zero features and zero weight.
enum Field {
    first_point,  // of the batch
    points,
    padded,
    width,
    source,  // a pointer: the image (points, 3) uint8, or features (d, points) float32; 0: the grid alone
    table_first,
    table_mask,
    image_fields
};

// The point of a thread in a launch of one block for each tile; tiles are rows (image, first point).
struct Pixel {
    const i64* image;
    i64 number;  // which image
    i64 point;   // in the batch
    i64 own;     // in the image
    bool there, real;
};

AMN_DEVICE Pixel pixel_of(u32 tile, u32 thread, const i32* tiles, const i64* images) {
    Pixel pixel;
    pixel.number = tiles[2 * static_cast<i64>(tile)];
    pixel.image = images + image_fields * pixel.number;
    pixel.point = static_cast<i64>(tiles[2 * static_cast<i64>(tile) + 1]) + thread;
    pixel.own = pixel.point - pixel.image[first_point];
    pixel.there = pixel.own < pixel.image[padded];
    pixel.real = pixel.own < pixel.image[points];
    return pixel;
}

}  // namespace amn::gpu
