#include "dense_crf/channels.hpp"

#include <algorithm>

namespace amn::dense_crf {

Alike merge_absent(Unary& problem, int64_t labels, int64_t n, Buffer<uint8_t>& map) {
    Alike alike(labels);
    if (!problem.labels || problem.start || labels <= 5 || labels > 255) return alike;
    bool present[256] = {};
    for (int64_t p = 0; p < n; ++p) present[problem.labels[p]] = true;
    present[labels] = false;  // points of no label
    if (std::none_of(present, present + labels, [](bool is) { return is; })) present[0] = true;
    const int count = static_cast<int>(std::count(present, present + labels, true));
    if (labels - count < 2) return alike;
    uint8_t renumbered[256] = {};
    int next = 0;
    for (int64_t l = 0; l < labels; ++l) {
        alike.channel[l] = present[l] ? next++ : count;
        renumbered[l] = static_cast<uint8_t>(alike.channel[l]);
    }
    alike.labels = count + 1;
    alike.copies = static_cast<float>(labels - count);
    renumbered[labels] = static_cast<uint8_t>(alike.labels);
    map = Buffer<uint8_t>(n);
    for (int64_t p = 0; p < n; ++p) map[p] = renumbered[problem.labels[p]];
    problem.labels = map.data();
    return alike;
}

}  // namespace amn::dense_crf
