#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "common/gil.hpp"
#include "common/instruction_set.hpp"
#include "random_walk/affinity.hpp"
#include "random_walk/cpu.hpp"

namespace py = pybind11;
using namespace amn::random_walk;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

Affinities affinities(const Array<float>& edge, int64_t radius, double beta) {
    if (edge.ndim() != 2 || edge.size() == 0) throw std::invalid_argument("edge must be a non-empty (h, w) array");
    if (radius < 1 || radius > 64) throw std::invalid_argument("radius must lie in 1..64");
    const float* data = edge.data();
    const int64_t height = edge.shape(0);
    const int64_t width = edge.shape(1);
    const amn::GilRelease unlocked;
    return {data, height, width, radius, beta};
}

// Set by Python to end the walks of other threads.
struct Stop {
    std::atomic<bool> flag{false};
};

py::array_t<float> propagated(const Affinities& self, const Array<float>& x, const Array<double>& coefficients,
                              bool chebyshev, int64_t threads, const std::string& instructions, Stop* stop) {
    if (x.ndim() != 3 || x.shape(1) != self.height || x.shape(2) != self.width) {
        throw std::invalid_argument("x must be (K, h, w) with the edge map's h and w");
    }
    if (coefficients.ndim() != 2 || coefficients.size() == 0) {
        throw std::invalid_argument("coefficients must be a non-empty (polynomials, degree + 1) array");
    }
    const Polynomials polynomials{coefficients.data(), coefficients.shape(0), coefficients.shape(1) - 1, chebyshev};
    py::array_t<float> out({coefficients.shape(0), x.shape(0), x.shape(1), x.shape(2)});
    const float* from = x.data();
    float* to = out.mutable_data();
    const int64_t maps = x.shape(0);
    const amn::GilRelease unlocked;
    Stop none;
    std::atomic<bool>& flag = stop ? stop->flag : none.flag;
    walk(self, from, maps, polynomials, threads < 1 ? 1 : threads, instructions, flag, to);
    if (flag) throw std::runtime_error("the walk was stopped");
    return out;
}

int64_t bytes(const Affinities& a) {
    return static_cast<int64_t>(a.values.size() * sizeof(float) + a.open.size() * sizeof(double));
}

}  // namespace

void bind_random_walk(py::module_& m) {
    py::class_<Stop>(m, "WalkStop", "Ends the walks that were given it.").def(py::init<>()).def("set", [](Stop& s) {
        s.flag = true;
    });
    py::class_<Affinities>(m, "WalkAffinities", "Affinities of one edge map, for any number of walks.")
        .def(py::init(&affinities), py::arg("edge"), py::arg("radius"), py::arg("beta"))
        .def("walk", &propagated, py::arg("x"), py::arg("coefficients"), py::arg("chebyshev"), py::arg("threads"),
             py::arg("instructions") = "", py::arg("stop") = nullptr,
             "x (K, h, w) times (1 - edge) and each polynomial of the transition matrix: (polynomials, K, h, w).")
        .def_property_readonly("nbytes", &bytes);
    m.def("walk_instructions", &amn::best_instruction_set, "The instruction set that the walk uses on this machine.");
}
