#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "common/gil.hpp"
#include "dense_crf/mean_field.hpp"

namespace py = pybind11;
using namespace amn::dense_crf;
using amn::Buffer;
using amn::Pool;
using Floats = py::array_t<float, py::array::c_style>;
using LatticePtr = std::shared_ptr<Lattice>;

namespace {

// A new array in memory from the pool, which it goes back to.
template <class T>
py::array_t<T> pooled(std::vector<py::ssize_t> shape) {
    size_t count = 1;
    for (py::ssize_t extent : shape) count *= static_cast<size_t>(extent);
    auto* buffer = new Buffer<T>(count);
    py::capsule owner(buffer, [](void* p) { delete static_cast<Buffer<T>*>(p); });
    return py::array_t<T>(shape, buffer->data(), owner);
}

LatticePtr lattice_of_matrix(const Floats& features, int threads) {
    if (features.ndim() != 2 || features.shape(0) < 1 || features.shape(0) > max_dimension || features.shape(1) < 1)
        throw py::value_error("features must be (d, n)");
    const float* data = features.data();
    const int d = static_cast<int>(features.shape(0));
    const int64_t n = features.shape(1);
    const amn::GilRelease release;
    return std::make_shared<Lattice>(Features(data, d, n), threads);
}

LatticePtr lattice_of_grid(int64_t height, int64_t width, double sx, double sy, int threads) {
    if (height < 1 || width < 1 || height > INT32_MAX || width > INT32_MAX)
        throw py::value_error("the grid must have sides of 1 to 2^31 - 1 pixels");
    const amn::GilRelease release;
    return std::make_shared<Lattice>(Features(height, width, sx, sy), threads);
}

LatticePtr lattice_of_image(const py::array_t<uint8_t>& image, double sx, double sy, std::array<double, 3> colours,
                            int threads) {
    if (image.ndim() != 3 || image.shape(2) != 3 || image.size() == 0) throw py::value_error("image must be (H, W, 3)");
    const int64_t strides[3] = {image.strides(0), image.strides(1), image.strides(2)};
    const int64_t height = image.shape(0), width = image.shape(1);
    const uint8_t* data = image.data();
    const amn::GilRelease release;
    return std::make_shared<Lattice>(Features(data, height, width, strides, sx, sy, colours.data()), threads);
}

Floats filter(const Lattice& lattice, const Floats& values, bool transpose, int threads) {
    if (values.ndim() != 2 || values.shape(1) != lattice.points())
        throw py::value_error("values must be (channels, n)");
    auto out = pooled<float>({values.shape(0), values.shape(1)});
    const float* in = values.data();
    float* result = out.mutable_data();
    {
        const amn::GilRelease release;
        lattice.filter(in, result, values.shape(0), threads, transpose);
    }
    return out;
}

using KernelTuple = std::tuple<LatticePtr, Normalization, Floats>;

std::vector<Kernel> kernels_of(const std::vector<KernelTuple>& terms, int64_t labels, int64_t n) {
    std::vector<Kernel> kernels;
    for (const auto& [lattice, normalization, compat] : terms) {
        if (lattice->points() != n) throw py::value_error("a lattice has another number of points than the unary");
        const int64_t size = compat.size();
        const bool potts = compat.ndim() == 0;
        if (!potts && size != labels && size != labels * labels) throw py::value_error("compat has the wrong size");
        kernels.push_back({lattice, normalization, {compat.data(), compat.data() + size}, potts});
    }
    return kernels;
}

// What is asked for, for each of the problems: marginals (labels, n), or the best labels (n).
py::list solve(std::vector<Unary>& problems, int64_t labels, int64_t n, const std::vector<KernelTuple>& terms,
               int iterations, bool best, int threads) {
    const auto kernels = kernels_of(terms, labels, n);
    py::list answers;
    for (Unary& problem : problems) {
        if (best) {
            auto out = pooled<int32_t>({n});
            problem.best = out.mutable_data();
            answers.append(out);
        } else {
            auto out = pooled<float>({labels, n});
            problem.marginals = out.mutable_data();
            answers.append(out);
        }
    }
    {
        const amn::GilRelease release;
        mean_field(problems, labels, n, kernels, iterations, threads);
    }
    return answers;
}

py::list mean_field_energies(const std::vector<Floats>& unaries, const std::vector<KernelTuple>& terms, int iterations,
                             const std::optional<Floats>& start, bool best, int threads) {
    if (unaries.empty() || unaries[0].ndim() != 2) throw py::value_error("unaries must be (labels, n)");
    const int64_t labels = unaries[0].shape(0), n = unaries[0].shape(1);
    std::vector<Unary> problems;
    for (const Floats& unary : unaries) {
        if (unary.ndim() != 2 || unary.shape(0) != labels || unary.shape(1) != n)
            throw py::value_error("unaries must have one shape");
        problems.push_back({.energies = unary.data()});
    }
    if (start) {
        if (unaries.size() != 1 || start->ndim() != 2 || start->shape(0) != labels || start->shape(1) != n)
            throw py::value_error("start must have the unary's shape");
        problems[0].start = start->data();
    }
    return solve(problems, labels, n, terms, iterations, best, threads);
}

py::list mean_field_labels(const std::vector<py::array_t<uint8_t, py::array::c_style>>& maps, int64_t labels,
                           float energy_right, float energy_wrong, const std::vector<KernelTuple>& terms,
                           int iterations, bool best, int threads) {
    if (maps.empty() || labels < 2 || labels > 256) throw py::value_error("labels must be 2..256");
    const int64_t n = maps[0].size();
    std::vector<Unary> problems;
    std::vector<Buffer<uint8_t>> copies;
    for (const auto& map : maps) {
        if (map.size() != n) throw py::value_error("label maps must have one size");
        uint8_t* values = copies.emplace_back(n).data();  // which no other thread can change after the check
        std::copy_n(map.data(), n, values);
        if (std::any_of(values, values + n, [labels](uint8_t label) { return label >= labels; }))
            throw py::value_error("a label is out of range");
        problems.push_back({.labels = values, .energy_right = energy_right, .energy_wrong = energy_wrong});
    }
    return solve(problems, labels, n, terms, iterations, best, threads);
}

}  // namespace

void bind_dense_crf(py::module_& m) {
    Pool::shared();  // made before any thread that a fork could catch making it
    py::enum_<Normalization>(m, "CrfNormalization")
        .value("symmetric", Normalization::symmetric)
        .value("before", Normalization::before)
        .value("after", Normalization::after)
        .value("none", Normalization::none);
    py::class_<Lattice, LatticePtr>(m, "CrfLattice")
        .def_static("of_matrix", &lattice_of_matrix, py::arg("features").noconvert(), py::arg("threads") = 1)
        .def_static("of_grid", &lattice_of_grid, py::arg("height"), py::arg("width"), py::arg("sx"), py::arg("sy"),
                    py::arg("threads") = 1)
        .def_static("of_image", &lattice_of_image, py::arg("image").noconvert(), py::arg("sx"), py::arg("sy"),
                    py::arg("colours"), py::arg("threads") = 1)
        .def_property_readonly("dimension", &Lattice::dimension)
        .def_property_readonly("points", &Lattice::points)
        .def_property_readonly("vertices", &Lattice::vertices)
        .def_property_readonly("nbytes", &Lattice::bytes)
        .def("filter", &filter, py::arg("values").noconvert(), py::arg("transpose") = false, py::arg("threads") = 1);
    m.def("crf_mean_field", &mean_field_energies, py::arg("unaries"), py::arg("terms"), py::arg("iterations"),
          py::arg("start") = py::none(), py::arg("best") = false, py::arg("threads") = 1);
    m.def("crf_mean_field_labels", &mean_field_labels, py::arg("maps"), py::arg("labels"), py::arg("energy_right"),
          py::arg("energy_wrong"), py::arg("terms"), py::arg("iterations"), py::arg("best") = false,
          py::arg("threads") = 1);
    m.def("crf_release_memory", [] { Pool::shared().clear(); });
    m.def("crf_use_instruction_set", &use_passes, py::arg("name"));
    m.def("crf_instruction_set", [] { return best_passes().name; });
}
