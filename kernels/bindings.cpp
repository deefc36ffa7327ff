// The extension module: each operation binds itself in its own folder (kernels/<operation>/bind.cpp).
#include <pybind11/pybind11.h>

#include "common/gil.hpp"

namespace py = pybind11;

void bind_dense_crf(py::module_&);
void bind_merge(py::module_&);
void bind_pair_loss(py::module_&);
void bind_pixel_loss(py::module_&);
void bind_random_walk(py::module_&);

PYBIND11_MODULE(_native, m) {
    m.doc() = "amn_fast's CPU kernels: NumPy buffers in and out, the GIL released while they run.";
    amn::GilRelease::remember_main_thread();
    bind_dense_crf(m);
    bind_merge(m);
    bind_pair_loss(m);
    bind_pixel_loss(m);
    bind_random_walk(m);
}
