// Python sees addresses as integers: the caller (amn_fast/ops/local_affinity.py) keeps the tensors alive and has checked
// them. Each call does a batch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "common/gil.hpp"
#include "local_refinement/cpu.hpp"

namespace py = pybind11;
using namespace amn::local_refinement;

namespace {

using Shape = std::array<std::int64_t, 4>;  // images, channels, height, width

Size size_of(const Shape& shape) { return {shape[0], shape[1], shape[2], shape[3]}; }

Rule rule_of(const std::string& kind, std::vector<double> position, double scale) {
    return {kind == "par" ? Kind::par : Kind::pamr, std::move(position), scale};
}

template <class F>
const F* input(std::uintptr_t address) {
    return reinterpret_cast<const F*>(address);
}

template <class F>
void bind(py::module_& m, const std::string& bits) {
    const py::call_guard<amn::GilRelease> unlocked;
    m.def(("local_affinity" + bits).c_str(),
          [](std::uintptr_t image, const Shape& shape, const Dilations& dilations, const std::string& kind,
             const std::vector<double>& position, double scale, std::uintptr_t out, int threads) {
              affinity(input<F>(image), size_of(shape), dilations, rule_of(kind, position, scale),
                       reinterpret_cast<F*>(out), threads);
          },
          py::kw_only(), py::arg("image"), py::arg("shape"), py::arg("dilations"), py::arg("kind"), py::arg("position"),
          py::arg("scale"), py::arg("out"), py::arg("threads"), unlocked);
    m.def(("local_propagate" + bits).c_str(),
          [](std::uintptr_t affinity, std::uintptr_t mask, const Shape& shape, const Dilations& dilations,
             std::int64_t iterations, bool transpose, std::uintptr_t out, int threads) {
              propagate(input<F>(affinity), input<F>(mask), size_of(shape), dilations, {iterations, transpose},
                        reinterpret_cast<F*>(out), threads);
          },
          py::kw_only(), py::arg("affinity"), py::arg("mask"), py::arg("shape"), py::arg("dilations"),
          py::arg("iterations"), py::arg("transpose"), py::arg("out"), py::arg("threads"), unlocked);
    m.def(("local_refine" + bits).c_str(),
          [](std::uintptr_t image, std::int64_t image_channels, std::uintptr_t mask, const Shape& shape,
             const Dilations& dilations, const std::string& kind, const std::vector<double>& position, double scale,
             std::int64_t iterations, bool transpose, std::uintptr_t out, int threads) {
              refine(input<F>(image), image_channels, input<F>(mask), size_of(shape), dilations,
                     rule_of(kind, position, scale), {iterations, transpose}, reinterpret_cast<F*>(out), threads);
          },
          py::kw_only(), py::arg("image"), py::arg("image_channels"), py::arg("mask"), py::arg("shape"),
          py::arg("dilations"), py::arg("kind"), py::arg("position"), py::arg("scale"), py::arg("iterations"),
          py::arg("transpose"), py::arg("out"), py::arg("threads"), unlocked);
}

}  // namespace

void bind_local_refinement(py::module_& m) {
    bind<float>(m, "32");
    bind<double>(m, "64");
}
