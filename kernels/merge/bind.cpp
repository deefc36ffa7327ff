// Python sees addresses as integers: the caller (amn_fast/ops/merge.py) keeps the tensors alive and has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/gil.hpp"
#include "merge/cpu.hpp"

namespace py = pybind11;

namespace {

using Size = std::array<std::int64_t, 2>;
using Maps = std::vector<std::tuple<std::uintptr_t, std::int64_t, std::int64_t>>;  // address, height, width

template <class F>
std::vector<amn::merge::Scale<F>> scales(const Maps& maps) {
    std::vector<amn::merge::Scale<F>> result;
    for (const auto& [address, height, width] : maps)
        result.push_back({reinterpret_cast<const F*>(address), height, width});
    return result;
}

template <class F>
void bind(py::module_& m, const char* cam_name, const char* amn_name) {
    m.def(
        cam_name,
        [](const Maps& maps, const std::vector<std::int64_t>& kept, std::uintptr_t out, Size size, Size extent,
           int threads) {
            amn::merge::cam<F>(scales<F>(maps), kept, {reinterpret_cast<F*>(out), size, extent}, threads);
        },
        py::kw_only(), py::arg("maps"), py::arg("kept"), py::arg("out"), py::arg("size"), py::arg("extent"),
        py::arg("threads"), py::call_guard<amn::GilRelease>());
    m.def(
        amn_name,
        [](const Maps& maps, std::int64_t channels, const std::vector<std::int64_t>& kept, std::uintptr_t seed,
           Size seed_size, std::uintptr_t out, Size size, int threads) {
            amn::merge::amn<F>(scales<F>(maps), channels, kept, reinterpret_cast<const std::uint8_t*>(seed), seed_size,
                               {reinterpret_cast<F*>(out), size, size}, threads);
        },
        py::kw_only(), py::arg("maps"), py::arg("channels"), py::arg("kept"), py::arg("seed"), py::arg("seed_size"),
        py::arg("out"), py::arg("size"), py::arg("threads"), py::call_guard<amn::GilRelease>());
}

}  // namespace

void bind_merge(py::module_& m) {
    bind<float>(m, "merge_cam32", "merge_amn32");
    bind<double>(m, "merge_cam64", "merge_amn64");
}
