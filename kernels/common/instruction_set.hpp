// Which instruction sets a kernel that is compiled once for each of them may choose at run time.
#pragma once

#include <string>

#if defined(__x86_64__) && defined(__GNUC__)
#define AMN_X86_DISPATCH 1
#endif

namespace amn {

// Whether this machine runs code compiled for "avx512" (F, DQ, BW, VL), "avx2" (with FMA and BMI2) or "baseline".
inline bool supports(const std::string& instruction_set) {
#ifdef AMN_X86_DISPATCH
    __builtin_cpu_init();
    if (instruction_set == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (instruction_set == "avx2")
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
    return instruction_set == "baseline";
}

inline const char* best_instruction_set() {
    for (const char* name : {"avx512", "avx2"})
        if (supports(name)) return name;
    return "baseline";
}

}  // namespace amn
