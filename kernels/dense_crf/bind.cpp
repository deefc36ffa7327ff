#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dense_crf/cpu.hpp"

namespace py = pybind11;
using namespace amn::dense_crf;
using Floats = py::array_t<float, py::array::c_style>;

namespace {

Floats filter(const Lattice& lattice, const Floats& values) {
    if (values.ndim() != 2 || values.shape(1) != lattice.points()) throw py::value_error("values must be (channels, n)");
    Floats out({values.shape(0), values.shape(1)});
    const float* in = values.data();
    float* result = out.mutable_data();
    {
        py::gil_scoped_release release;
        lattice.filter(in, result, values.shape(0));
    }
    return out;
}

Floats mean_field_arrays(const Floats& unary, const std::vector<const Lattice*>& lattices,
                         const std::vector<Normalization>& normalizations, const std::vector<Floats>& compats,
                         int iterations, const std::optional<Floats>& start) {
    if (unary.ndim() != 2) throw py::value_error("unary must be (labels, n)");
    const int64_t labels = unary.shape(0), n = unary.shape(1);
    std::vector<Kernel> kernels;
    for (size_t k = 0; k < lattices.size(); ++k) {
        if (lattices[k]->points() != n) throw py::value_error("a lattice has another number of points than the unary");
        const int64_t size = compats[k].size();
        if (size != 1 && size != labels && size != labels * labels) throw py::value_error("compat has the wrong size");
        kernels.push_back({lattices[k], normalizations[k], compats[k].data(), size});
    }
    if (start && (start->ndim() != 2 || start->shape(0) != labels || start->shape(1) != n))
        throw py::value_error("start must have the unary's shape");
    Floats q({labels, n});
    const float *u = unary.data(), *s = start ? start->data() : nullptr;
    float* out = q.mutable_data();
    {
        py::gil_scoped_release release;
        mean_field(u, labels, n, kernels, iterations, s, out);
    }
    return q;
}

}  // namespace

void bind_dense_crf(py::module_& m) {
    py::enum_<Normalization>(m, "CrfNormalization")
        .value("symmetric", Normalization::symmetric)
        .value("before", Normalization::before)
        .value("after", Normalization::after)
        .value("none", Normalization::none);
    py::class_<Lattice>(m, "CrfLattice")
        .def(py::init([](const Floats& features) {
                 if (features.ndim() != 2) throw py::value_error("features must be (d, n)");
                 const float* data = features.data();
                 const int d = static_cast<int>(features.shape(0));
                 const int64_t n = features.shape(1);
                 py::gil_scoped_release release;
                 return std::make_unique<Lattice>(data, d, n);
             }),
             py::arg("features").noconvert())
        .def_property_readonly("dimension", &Lattice::dimension)
        .def_property_readonly("points", &Lattice::points)
        .def_property_readonly("vertices", &Lattice::vertices)
        .def("filter", &filter, py::arg("values").noconvert());
    m.def("crf_mean_field", &mean_field_arrays, py::arg("unary").noconvert(), py::arg("lattices"),
          py::arg("normalizations"), py::arg("compats"), py::arg("iterations"), py::arg("start") = py::none());
}
