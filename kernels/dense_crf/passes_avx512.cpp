#if defined(__x86_64__) && defined(__GNUC__)
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2,avx512f,avx512dq,avx512bw,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi2,avx512f,avx512dq,avx512bw,avx512vl")
#endif
#define AMN_ISA_NAME "avx512"
#define AMN_LANES 16
#include "dense_crf/passes_impl.hpp"

namespace amn::dense_crf {
const Passes& passes_avx512() { return table; }
}  // namespace amn::dense_crf
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
