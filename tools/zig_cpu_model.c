// What `__builtin_cpu_supports` and `target_clones` ask on x86-64. In zig's runtime library (0.17) they are stubs that
// know no feature, so that every kernel would take its slowest path. Names, layout and feature numbers are those of
// GCC's and LLVM's runtime libraries.
#include <cpuid.h>

#define HIDDEN __attribute__((visibility("hidden")))

struct {
    unsigned vendor, type, subtype, features;
} __cpu_model HIDDEN;
unsigned __cpu_features2[3] HIDDEN;

static void set(unsigned feature, int there) {
    unsigned* word = feature < 32 ? &__cpu_model.features : &__cpu_features2[feature / 32 - 1];
    if (there) *word |= 1u << feature % 32;
}

HIDDEN __attribute__((constructor(101))) int __cpu_indicator_init(void) {
    unsigned eax, ebx, ecx, edx, saved = 0, high;
    if (__cpu_model.vendor || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 0;
    if (ecx & bit_OSXSAVE) __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const int ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6;  // registers that the system saves
    const unsigned needed2 = bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_CMPXCHG16B;
    const unsigned needed3 = bit_AVX | bit_FMA | bit_F16C | bit_MOVBE | bit_OSXSAVE;
    const int fma = ymm && (ecx & bit_FMA), avx = ymm && (ecx & bit_AVX);
    const int level2 = (ecx & needed2) == needed2, level3 = level2 && ymm && (ecx & needed3) == needed3;

    unsigned seven = 0, extended = 0;
    if (!__get_cpuid_count(7, 0, &eax, &seven, &ecx, &edx)) seven = 0;
    if (!__get_cpuid(0x80000001, &eax, &ebx, &extended, &edx)) extended = 0;
    const unsigned also3 = bit_AVX2 | bit_BMI | bit_BMI2;
    const unsigned needed4 = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
    const int v3 = level3 && (seven & also3) == also3 && (extended & bit_LZCNT);

    set(9, avx), set(14, fma), set(10, ymm && (seven & bit_AVX2));
    set(16, seven & bit_BMI), set(17, seven & bit_BMI2);
    set(15, zmm && (seven & bit_AVX512F)), set(20, zmm && (seven & bit_AVX512VL));
    set(21, zmm && (seven & bit_AVX512BW)), set(22, zmm && (seven & bit_AVX512DQ));
    set(23, zmm && (seven & bit_AVX512CD));
    set(95, 1), set(96, level2), set(97, v3),
        set(98, v3 && zmm && (seven & needed4) == needed4);  // x86-64, -v2, -v3, -v4
    __cpu_model.vendor = 3;                                  // "other": this function has run
    return 0;
}
