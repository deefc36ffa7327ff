// The GPU kernels as a library for the CPU. `prepare` says how the next launch of this thread is made.
#include "dense_crf/lattice.cu"
#include "dense_crf/filter.cu"
#include "dense_crf/mean_field.cu"

extern "C" void prepare(long long blocks, long long shared_bytes, int workers) {
    simt::blocks = blocks;
    simt::shared_bytes = shared_bytes;
    simt::workers = workers;
}
