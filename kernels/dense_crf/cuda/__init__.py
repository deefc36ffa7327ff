"""The dense CRF on a GPU: batches, lattices and mean field; `host` is what `amn_fast.ops` calls."""

from amn_fast.kernels.dense_crf.cuda.batch import PADDING, SOURCE, THREADS, Batch, Launcher, over
from amn_fast.kernels.dense_crf.cuda.lattice import (
    CHUNK,
    MAX_DIMENSION,
    MAX_ENTRIES,
    MOST_WORDS,
    Features,
    Lattices,
    build,
    grid_features,
    image_features,
    matrix_features,
    pack,
)
from amn_fast.kernels.dense_crf.cuda.mean_field import (
    SHARED_BYTES,
    MeanField,
    Term,
    channel_stride,
    estimated_bytes,
    examine,
)

__all__ = [
    "CHUNK",
    "MAX_DIMENSION",
    "MAX_ENTRIES",
    "MOST_WORDS",
    "PADDING",
    "SHARED_BYTES",
    "SOURCE",
    "THREADS",
    "Batch",
    "Features",
    "Lattices",
    "Launcher",
    "MeanField",
    "Term",
    "build",
    "channel_stride",
    "estimated_bytes",
    "examine",
    "grid_features",
    "image_features",
    "matrix_features",
    "over",
    "pack",
]
