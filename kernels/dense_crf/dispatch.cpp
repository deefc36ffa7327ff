#include <atomic>
#include <cstring>
#include <initializer_list>

#include "dense_crf/passes.hpp"

namespace amn::dense_crf {

const Passes& passes_baseline();
#if defined(__x86_64__) && defined(__GNUC__)
const Passes& passes_avx2();
const Passes& passes_avx512();

static const Passes* supported(const char* name) {
    __builtin_cpu_init();
    if (!std::strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                   ? &passes_avx512()
                   : nullptr;
    if (!std::strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")
                   ? &passes_avx2()
                   : nullptr;
    return std::strcmp(name, "baseline") ? nullptr : &passes_baseline();
}
#else
static const Passes* supported(const char* name) {
    return std::strcmp(name, "baseline") ? nullptr : &passes_baseline();
}
#endif

static const Passes& fastest() {
    for (const char* name : {"avx512", "avx2"})
        if (const Passes* passes = supported(name)) return *passes;
    return passes_baseline();
}

static std::atomic<const Passes*> chosen{nullptr};

const Passes& best_passes() {
    const Passes* passes = chosen.load(std::memory_order_acquire);
    if (!passes) chosen.store(passes = &fastest(), std::memory_order_release);
    return *passes;
}

bool use_passes(const char* name) {
    const Passes* passes = supported(name);
    if (passes) chosen.store(passes, std::memory_order_release);
    return passes != nullptr;
}

}  // namespace amn::dense_crf
