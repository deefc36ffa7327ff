"""pydensecrf.eigen's converters. Results here are NumPy arrays already, so these only copy."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amn_fast.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


def matrixXf(values: ArrayLike) -> Array:
    """A float32 copy of a matrix."""
    return _copy(values, 2)


def vectorXf(values: ArrayLike) -> Array:
    """A float32 copy of a vector."""
    return _copy(values, 1)


def _copy(values: ArrayLike, dimensions: int) -> Array:
    array = np.array(values, np.float32)
    if array.ndim != dimensions:
        raise InputError(f"values have shape {array.shape}, expected {dimensions} dimensions")
    return array
