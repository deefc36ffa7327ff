#include <atomic>
#include <string>

#include "common/instruction_set.hpp"
#include "dense_crf/passes.hpp"

namespace amn::dense_crf {

const Passes& passes_baseline();
const Passes& passes_avx2();
const Passes& passes_avx512();

static const Passes& passes_of(const std::string& instruction_set) {
#ifdef AMN_X86_DISPATCH
    if (instruction_set == "avx512") return passes_avx512();
    if (instruction_set == "avx2") return passes_avx2();
#endif
    return passes_baseline();
}

static std::atomic<const Passes*> chosen{nullptr};

const Passes& best_passes() {
    const Passes* passes = chosen.load(std::memory_order_acquire);
    if (!passes) chosen.store(passes = &passes_of(best_instruction_set()), std::memory_order_release);
    return *passes;
}

bool use_passes(const char* name) {
    if (!supports(name)) return false;
    chosen.store(&passes_of(name), std::memory_order_release);
    return true;
}

}  // namespace amn::dense_crf
