// What every machine of the architecture has: SSE2 on x86-64, NEON on arm64.
#define AMN_ISA_NAME "baseline"
#define AMN_LANES 4
#include "dense_crf/passes_impl.hpp"

namespace amn::dense_crf {
const Passes& passes_baseline() { return table; }
}  // namespace amn::dense_crf
