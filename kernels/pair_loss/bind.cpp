// Python sees addresses as integers: the caller (amn_fast/ops/pair_loss.py) keeps the tensors alive and has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/gil.hpp"
#include "pair_loss/cpu.hpp"

namespace py = pybind11;
using amn::pair_loss::Problem;

namespace {

template <class F>
void bind(py::module_& m, const char* name) {
    const auto make = [](std::uintptr_t edge, std::uintptr_t displacement, std::uintptr_t labels,
                         std::array<std::int64_t, 3> shape, std::int64_t radius, int ignore_index, int threads) {
        return Problem<F>{reinterpret_cast<const F*>(edge),
                          reinterpret_cast<const F*>(displacement),
                          reinterpret_cast<const std::uint8_t*>(labels),
                          shape[0],
                          shape[1],
                          shape[2],
                          radius,
                          ignore_index,
                          threads};
    };
    const auto forward = [](const Problem<F>& p, std::uintptr_t tallies) {
        const auto sums = amn::pair_loss::forward(p, reinterpret_cast<std::int32_t*>(tallies));
        return std::pair(sums.losses, sums.pairs);
    };
    const auto backward = [](const Problem<F>& p, std::uintptr_t tallies, const std::array<double, 5>& weights,
                             std::uintptr_t edge_gradient, std::uintptr_t displacement_gradient) {
        amn::pair_loss::backward(p, reinterpret_cast<const std::int32_t*>(tallies), weights,
                                 reinterpret_cast<F*>(edge_gradient), reinterpret_cast<F*>(displacement_gradient));
    };
    py::class_<Problem<F>>(m, name)
        .def(py::init(make), py::kw_only(), py::arg("edge"), py::arg("displacement"), py::arg("labels"),
             py::arg("shape"), py::arg("radius"), py::arg("ignore_index"), py::arg("threads"))
        .def("forward", forward, py::call_guard<amn::GilRelease>())
        .def("backward", backward, py::call_guard<amn::GilRelease>());
}

}  // namespace

void bind_pair_loss(py::module_& m) {
    bind<float>(m, "PairLoss32");
    bind<double>(m, "PairLoss64");
}
