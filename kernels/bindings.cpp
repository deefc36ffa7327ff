// The extension module: each operation binds itself in its own folder (kernels/<operation>/bind.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "common/gil.hpp"
#include "common/instruction_set.hpp"
#include "common/simd.hpp"

namespace py = pybind11;

void bind_bilateral(py::module_&);
void bind_dense_crf(py::module_&);
void bind_local_refinement(py::module_&);
void bind_merge(py::module_&);
void bind_pair_loss(py::module_&);
void bind_pixel_loss(py::module_&);
void bind_random_walk(py::module_&);

// The instruction sets in this build, whichever machine runs it: of the kernels that are chosen by name, and of those
// that the loader chooses among (AMN_CLONES).
static std::map<std::string, std::vector<std::string>> compiled_instruction_sets() {
#if defined(__aarch64__)
    const std::vector<std::string> named{"neon"}, cloned{"neon"};
#else
    std::vector<std::string> named{"baseline"}, cloned{"baseline"};
#ifdef AMN_X86_DISPATCH
    named.insert(named.end(), {"avx2", "avx512"});
#endif
#ifdef AMN_HAS_CLONES
    cloned.insert(cloned.end(), {"avx2", "avx512"});
#endif
#endif
    return {
        {"dense_crf", named}, {"random_walk", named}, {"pixel_loss", cloned}, {"pair_loss", cloned}, {"merge", cloned}};
}

PYBIND11_MODULE(_native, m) {
    m.doc() = "amn_fast's CPU kernels: NumPy buffers in and out, the GIL released while they run.";
    amn::GilRelease::remember_main_thread();
    bind_bilateral(m);
    bind_dense_crf(m);
    bind_local_refinement(m);
    bind_merge(m);
    bind_pair_loss(m);
    bind_pixel_loss(m);
    bind_random_walk(m);
    m.def("compiled_instruction_sets", &compiled_instruction_sets, "Operation -> the instruction sets in this build.");
}
