"""Regions of an image that follow its edges: the units in which a choice of thresholds is judged."""

import numpy as np
from numpy.typing import NDArray

from amn_fast._extras import require

SCALE, SIGMA = 100, 0.8
FEWEST_PIXELS, PARTS = 20, 1500
"""A region has at least max(20, H W / 1500) pixels."""


def find_regions(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Regions of an image by the method of Felzenszwalb and Huttenlocher.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) region of each pixel, 0..n - 1. Deterministic.

    Raises:
        MissingExtra: scikit-image is not installed.

    Examples:
        >>> import numpy as np
        >>> image = np.zeros((40, 60, 3), np.uint8)
        >>> image[:, 30:] = 255
        >>> regions = find_regions(image)
        >>> bool(regions[20, 5] == regions[20, 55])
        False

    Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation" (IJCV 2004), as in scikit-image.
    """
    require("skimage", "pipeline")
    from skimage.segmentation import felzenszwalb

    fewest = max(FEWEST_PIXELS, image.shape[0] * image.shape[1] // PARTS)
    return np.asarray(felzenszwalb(image, scale=SCALE, sigma=SIGMA, min_size=fewest), np.int64)
