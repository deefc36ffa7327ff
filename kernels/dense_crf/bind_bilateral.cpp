// Python sees addresses as integers: the caller (amn_fast/ops) keeps the tensors alive and has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "common/gil.hpp"
#include "dense_crf/bilateral.hpp"

namespace py = pybind11;
using namespace amn::dense_crf;

namespace {

using Shape = std::array<int64_t, 4>;  // images, channels, height, width
using Sizes = std::array<int64_t, 4>;  // full height and width, low-resolution height and width

const float* floats(std::uintptr_t address) { return reinterpret_cast<const float*>(address); }

Grid grid_of(const Sizes& sizes, const std::array<float, 2>& steps) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], steps[0], steps[1]};
}

Gradient gradient_of(const std::string& name) {
    return name == "exact" ? Gradient::exact : name == "published" ? Gradient::published : Gradient::none;
}

}  // namespace

void bind_bilateral(py::module_& m) {
    const py::call_guard<amn::GilRelease> unlocked;
    m.def(
        "bilateral_filter",
        [](std::uintptr_t images, std::uintptr_t values, const Shape& shape, double sigma_rgb, double sigma_xy,
           bool transpose, std::uintptr_t out, int threads) {
            const Guides guides{floats(images), shape[0], shape[2], shape[3], sigma_rgb, sigma_xy};
            bilateral_filter(guides, floats(values), shape[1], transpose, reinterpret_cast<float*>(out), threads);
        },
        py::kw_only(), py::arg("images"), py::arg("values"), py::arg("shape"), py::arg("sigma_rgb"),
        py::arg("sigma_xy"), py::arg("transpose"), py::arg("out"), py::arg("threads"), unlocked);
    m.def(
        "bilateral_energies",
        [](std::uintptr_t images, std::uintptr_t probabilities, std::uintptr_t regions, std::uintptr_t labels,
           int64_t count, int64_t channels, const Sizes& sizes, const std::array<float, 2>& steps, double sigma_rgb,
           double sigma_xy, const std::string& gradient, std::uintptr_t field, int threads) {
            const Energy energy{{floats(images), count, sizes[0], sizes[1], sigma_rgb, sigma_xy},
                                grid_of(sizes, steps),
                                floats(probabilities),
                                floats(regions),
                                reinterpret_cast<const uint8_t*>(labels),
                                channels,
                                gradient_of(gradient)};
            return energies(energy, reinterpret_cast<float*>(field), threads);
        },
        py::kw_only(), py::arg("images"), py::arg("probabilities"), py::arg("regions"), py::arg("labels"),
        py::arg("count"), py::arg("channels"), py::arg("sizes"), py::arg("steps"), py::arg("sigma_rgb"),
        py::arg("sigma_xy"), py::arg("gradient"), py::arg("field"), py::arg("threads"), unlocked);
    m.def(
        "bilateral_spread",
        [](std::uintptr_t field, int64_t planes, const Sizes& sizes, const std::array<float, 2>& steps, float factor,
           std::uintptr_t out, int threads) {
            spread(floats(field), grid_of(sizes, steps), planes, factor, reinterpret_cast<float*>(out), threads);
        },
        py::kw_only(), py::arg("field"), py::arg("planes"), py::arg("sizes"), py::arg("steps"), py::arg("factor"),
        py::arg("out"), py::arg("threads"), unlocked);
}
