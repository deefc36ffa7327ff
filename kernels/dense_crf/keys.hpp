// Keys of lattice vertices, shared by the CPU and the GPU: no standard header.
//
// The coordinates of a vertex all leave the same remainder r modulo d + 1. Its key packs r, in the lowest bits of word 0,
// and the quotients of the first d coordinates (all sum to 0), each in as many bits as the range of the features asks
// for: a step along an axis is one addition, and nothing can wrap. Who lays out the fields is `pack` in lattice_build.cpp
// and in cuda/lattice.py.
#pragma once

#include "dense_crf/embed.hpp"

namespace amn::lattice {

constexpr unsigned long long hash_factor = 0x9E3779B97F4A7C15ull;

// The hash of a key of `words` <= Most words; a table starts its search at the top bits. Of constant loops, so that a GPU
// keeps the words in registers.
template <int Most, class Word>
AMN_LATTICE_FN Word hash_of(const Word* key, int words) {
    Word mixed = key[0];
    for (int w = 1; w < Most; ++w)
        if (w < words) mixed = (mixed ^ (mixed >> 32)) * static_cast<Word>(0xD6E8FEB86659FD93ull) + key[w];
    return mixed * static_cast<Word>(hash_factor);
}

// The bits of the remainder, which is at most d.
AMN_LATTICE_FN int remainder_bits(int d) {
    int bits = 1;
    while ((d >> bits) != 0) ++bits;
    return bits;
}

}  // namespace amn::lattice
