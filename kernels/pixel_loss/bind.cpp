// Python sees addresses as integers: the caller (amn_fast/ops/pixel_loss.py) keeps the tensors alive and has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/gil.hpp"
#include "pixel_loss/cpu.hpp"

namespace py = pybind11;
using amn::pixel_loss::Problem;
using amn::pixel_loss::Sums;
using amn::pixel_loss::Type;

namespace {

Problem problem(std::uintptr_t logits, int type, std::array<std::int64_t, 4> shape, std::array<std::int64_t, 4> strides,
                std::uintptr_t labels, std::array<std::int64_t, 2> label_size,
                std::array<std::int64_t, 3> label_strides, double eps, int ignore_index, int threads) {
    return {reinterpret_cast<const void*>(logits),
            static_cast<Type>(type),
            shape,
            strides,
            reinterpret_cast<const std::uint8_t*>(labels),
            label_size,
            label_strides,
            eps,
            ignore_index,
            threads};
}

}  // namespace

void bind_pixel_loss(py::module_& m) {
    py::class_<Sums>(m, "PixelLossSums")
        .def_readonly("losses", &Sums::losses)
        .def_readonly("pixels", &Sums::pixels)
        .def_readonly("highest_label", &Sums::highest_label);
    py::class_<Problem>(m, "PixelLoss")
        .def(py::init(&problem), py::kw_only(), py::arg("logits"), py::arg("type"), py::arg("shape"),
             py::arg("strides"), py::arg("labels"), py::arg("label_size"), py::arg("label_strides"), py::arg("eps"),
             py::arg("ignore_index"), py::arg("threads"))
        .def(
            "forward",
            [](const Problem& p, std::uintptr_t normaliser) {
                return amn::pixel_loss::forward(p, reinterpret_cast<void*>(normaliser));
            },
            py::call_guard<amn::GilRelease>())
        .def(
            "backward",
            [](const Problem& p, std::uintptr_t normaliser, std::array<double, 2> weights, std::uintptr_t gradient,
               std::array<std::int64_t, 4> strides) {
                return amn::pixel_loss::backward(p, reinterpret_cast<const void*>(normaliser), weights,
                                                 reinterpret_cast<void*>(gradient), strides);
            },
            py::call_guard<amn::GilRelease>());
}
