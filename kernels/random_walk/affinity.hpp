// The affinities of one image, one number per pair of neighbours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "common/paths.hpp"

namespace amn::random_walk {

// Numbers that begin on a cache line: a vector of 64 bytes then lies in one line, not two.
template <class T>
struct CacheLineAllocator {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};
    CacheLineAllocator() = default;
    template <class U>
    CacheLineAllocator(const CacheLineAllocator<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
    void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
    bool operator==(const CacheLineAllocator&) const { return true; }
};
using Numbers = std::vector<float, CacheLineAllocator<float>>;

// A holds the affinities to the power beta, A_ii = 1; c its column sums.
//
// Layout: row by row; in a row plane by plane; planes 0..P-1 hold A_ij for j = i + offset, plane P holds 2 / c_i.
// `left` zeros stand before each plane's pixels, `reach` rows of zeros above the first row, so that no loop asks where
// the image ends: what lies outside has affinity 0. The pixels are padded to whole vectors, also with zeros.
struct Affinities {
    Affinities(const float* edge, int64_t height, int64_t width, int64_t radius, double beta);

    int64_t height, width, reach;
    std::vector<Offset> offsets;
    int64_t left;              // zeros before the first pixel of a row, at least reach
    int64_t columns;           // pixels of a row, padded
    int64_t stride;            // left + columns
    int64_t row_size;          // numbers in a row of all planes
    std::vector<double> open;  // (height, width): 1 - edge
    Numbers values;

    const float* row(int64_t y) const { return values.data() + (reach + y) * row_size + left; }
};

}  // namespace amn::random_walk
