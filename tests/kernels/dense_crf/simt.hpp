// A stand-in for a GPU: kernels become loops over blocks and threads. With several workers, host threads take blocks as
// they come, and blocks and threads run in another order at each launch: what depends on an order shows.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <string>
#include <thread>
#include <vector>

#define AMN_DEVICE static inline
#define AMN_UNROLL

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};

namespace amn::gpu {

AMN_DEVICE u32 load_shared_word(const u32* at) {
    return std::atomic_ref<u32>(*const_cast<u32*>(at)).load(std::memory_order_relaxed);
}
AMN_DEVICE u32 compare_and_swap(u32* at, u32 expected, u32 wanted) {
    std::atomic_ref<u32>(*at).compare_exchange_strong(expected, wanted);
    return expected;
}
AMN_DEVICE void keep_lowest(u32* at, u32 value) {
    std::atomic_ref<u32> word(*at);
    for (u32 found = word; value < found && !word.compare_exchange_weak(found, value);) {
    }
}
AMN_DEVICE void set_bits(u32* at, u32 bits) { std::atomic_ref<u32>(*at).fetch_or(bits); }
AMN_DEVICE float exponential(float v) { return std::exp(v); }
AMN_DEVICE void store(float* to, float a, float b) { *reinterpret_cast<float2*>(to) = {a, b}; }
AMN_DEVICE void store(float* to, float a, float b, float c, float d) { *reinterpret_cast<float4*>(to) = {a, b, c, d}; }

}  // namespace amn::gpu

namespace simt {

inline thread_local long long blocks = 0, shared_bytes = 0;  // of the next launch
inline thread_local int workers = 1;

struct Turn {
    amn::gpu::u32 block;
    bool backwards;  // the block's threads
};

inline std::atomic<unsigned> launches{0};

template <class Block>
void over_blocks(const Block& block) {
    constexpr long long primes[] = {15485863, 32452843, 49979687, 67867967};
    std::atomic<long long> next{0};
    const unsigned launch = launches++;
    const long long count = blocks, bytes = shared_bytes;
    const long long stride = workers > 1 ? primes[launch % 4] : 1, start = workers > 1 ? launch : 0;
    const bool backwards = workers > 1 && launch % 2;
    const auto work = [&] {
        std::vector<float> shared((bytes + 15) / 4 + 4);
        float* aligned = shared.data();
        while (reinterpret_cast<unsigned long long>(aligned) % 16) ++aligned;
        for (long long b; (b = next.fetch_add(1)) < count;) {
            const long long mixed = count % stride ? (b * stride + start) % count : b;
            block(Turn{static_cast<amn::gpu::u32>(mixed), backwards}, aligned);
        }
    };
    std::vector<std::thread> team;
    for (int i = 1; i < workers; ++i) team.emplace_back(work);
    work();
    for (std::thread& one : team) one.join();
}

template <class Step>
void over_threads(Turn turn, const Step& step) {
    constexpr amn::gpu::u32 count = amn::gpu::block_threads;
    for (amn::gpu::u32 i = 0; i < count; ++i) step(amn::gpu::Place{turn.block, turn.backwards ? count - 1 - i : i});
}

// The kernels by name, each with the number of its parameters, all of eight bytes.
struct Kernel {
    void* function;
    int parameters;
};
inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}
struct Registered {
    template <class... Parameters>
    Registered(const char* name, void (*function)(Parameters...)) {
        static_assert(((sizeof(Parameters) == 8) && ...));
        kernels()[name] = {reinterpret_cast<void*>(function), sizeof...(Parameters)};
    }
};

}  // namespace simt

#define AMN_KERNEL(name, parameters, call)                                                                             \
    extern "C" void name parameters {                                                                                  \
        simt::over_blocks(                                                                                             \
            [&](simt::Turn turn, float*) { simt::over_threads(turn, [&](amn::gpu::Place at) { AMN_EXPAND call; }); }); \
    }                                                                                                                  \
    static const simt::Registered name##_registered(#name, name);

#define AMN_KERNEL_IN_STEPS(name, parameters, first, second, third)                   \
    extern "C" void name parameters {                                                 \
        simt::over_blocks([&](simt::Turn turn, float* shared) {                       \
            simt::over_threads(turn, [&](amn::gpu::Place at) { AMN_EXPAND first; });  \
            simt::over_threads(turn, [&](amn::gpu::Place at) { AMN_EXPAND second; }); \
            simt::over_threads(turn, [&](amn::gpu::Place at) { AMN_EXPAND third; });  \
        });                                                                           \
    }                                                                                 \
    static const simt::Registered name##_registered(#name, name);
