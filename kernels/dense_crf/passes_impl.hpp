// The hot loops, once for each instruction set: a unit sets its target, then includes this.
#include "dense_crf/passes_embed.hpp"
#include "dense_crf/passes_filter.hpp"
#include "dense_crf/passes_softmax.hpp"

namespace {

const amn::dense_crf::Passes table = {
    AMN_ISA_NAME,
    embed,
    keys,
    follow,
    {slice<1>, slice<2>, slice<4>, slice<8>, slice<16>},
    {splat<1>, splat<2>, splat<4>, splat<8>, splat<16>},
    slice_blocks,
    splat_blocks,
    {blur<1>, blur<2>, blur<4>, blur<8>, blur<16>},
    blur_blocks,
    softmax_groups,
    softmax_blocks,
};

}  // namespace
