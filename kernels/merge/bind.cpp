#include <pybind11/pybind11.h>
void bind_merge(pybind11::module_&) {}
