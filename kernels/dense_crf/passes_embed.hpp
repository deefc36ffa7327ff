// Simplices of points and keys of their vertices. Part of passes_impl.hpp.
#pragma once

#include "common/vectors.hpp"
#include "dense_crf/embed.hpp"
#include "dense_crf/keys.hpp"
#include "dense_crf/passes.hpp"

namespace {

using amn::dense_crf::KeyFields;
using amn::dense_crf::tile_points;

template <int D>
void embed_tile(int dimension, const float* scale, const float* features, int32_t* quotient, int32_t* rank,
                float* weight) {
    using F = Vec<native_lanes>;
    constexpr int slots = (D ? D : 32) + 1;
    const int d = D ? D : dimension;
    F feature[slots], base[slots], ranks[slots], weights[slots];
    float lanes[slots][native_lanes];
    const float inverse = 1.0f / static_cast<float>(d + 1);
    for (int p = 0; p < tile_points; p += native_lanes) {
        for (int j = 0; j < d; ++j) feature[j] = load<F>(features + j * tile_points + p);
        amn::lattice::embed<D, F>(d, scale, feature, base, ranks, weights);
        for (int j = 0; j < d; ++j) {
            const auto whole = __builtin_convertvector(amn::lattice::round_even(base[j] * inverse), Ints<native_lanes>);
            __builtin_memcpy(quotient + j * tile_points + p, &whole, sizeof whole);
        }
        for (int j = 0; j <= d; ++j) {
            store(lanes[j], weights[j]);
            const auto whole = __builtin_convertvector(ranks[j], Ints<native_lanes>);
            __builtin_memcpy(rank + j * tile_points + p, &whole, sizeof whole);
        }
        for (int i = 0; i < native_lanes; ++i)
            for (int j = 0; j <= d; ++j) weight[(p + i) * (d + 1) + j] = lanes[j][i];
    }
}

void embed(int d, const float* scale, const float* features, int32_t* quotient, int32_t* rank, float* weight) {
    if (d == 2) return embed_tile<2>(d, scale, features, quotient, rank, weight);
    if (d == 5) return embed_tile<5>(d, scale, features, quotient, rank, weight);
    embed_tile<0>(d, scale, features, quotient, rank, weight);
}

constexpr int wide_lanes = native_lanes / 2;
typedef int64_t Wide __attribute__((vector_size(wide_lanes * 8)));
typedef uint64_t Words __attribute__((vector_size(wide_lanes * 8)));
typedef int32_t Narrow __attribute__((vector_size(wide_lanes * 4)));
typedef uint32_t Places __attribute__((vector_size(wide_lanes * 4)));

inline Wide widen(const int32_t* p) {
    Narrow v;
    __builtin_memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Wide);
}

inline void put_key(Words key, int hash_shift, uint64_t* keys, uint32_t* starts) {
    __builtin_memcpy(keys, &key, sizeof key);
    const Places start = __builtin_convertvector((key * amn::lattice::hash_factor) >> hash_shift, Places);
    __builtin_memcpy(starts, &start, sizeof start);
}

template <int D>
void keys_tile(const KeyFields& fields, const int32_t* quotient, const int32_t* rank, int hash_shift, uint64_t* keys,
               uint32_t* starts) {
    const int d = D ? D : fields.d;
    for (int p = 0; p < tile_points; p += wide_lanes) {
        Words key = Words{} + fields.bias;
        Wide place[D ? D : 32];
        for (int j = 0; j < d; ++j) {
            key += (Words)widen(quotient + j * tile_points + p) << fields.shift[j];
            place[j] = widen(rank + j * tile_points + p);
        }
        put_key(key, hash_shift, keys + p, starts + p);
        for (int r = 1; r <= d; ++r) {  // one step along the axis whose rank is next
            key += 1;
            for (int j = 0; j < d; ++j)
                key -= (Words)(place[j] == Wide{} + (d - r + 1)) & (Words{} + (uint64_t{1} << fields.shift[j]));
            put_key(key, hash_shift, keys + r * tile_points + p, starts + r * tile_points + p);
        }
    }
}

void keys(const KeyFields& fields, const int32_t* quotient, const int32_t* rank, int hash_shift, uint64_t* keys,
          uint32_t* starts) {
    if (fields.d == 5) return keys_tile<5>(fields, quotient, rank, hash_shift, keys, starts);
    keys_tile<0>(fields, quotient, rank, hash_shift, keys, starts);
}

void follow(const uint64_t* from, const KeyFields& fields, uint64_t step, uint64_t wrap, int hash_shift, uint64_t* keys,
            uint32_t* starts) {
    for (int i = 0; i < tile_points; i += wide_lanes) {
        Words key;
        __builtin_memcpy(&key, from + i, sizeof key);
        const Words last = (Words)((key & fields.remainder_mask) == Words{} + static_cast<uint64_t>(fields.d));
        key += step + (last & (wrap - step));
        put_key(key, hash_shift, keys + i, starts + i);
    }
}

}  // namespace
