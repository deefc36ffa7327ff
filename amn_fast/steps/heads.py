"""Linear heads on frozen features: fitted for many seeds at once, in seconds, in place of training AMN for each.

The features of an image are those of `amn_fast.models.HeadsNet`. In order: `level_maps` of some images,
`fit_projections`, `level_maps` and `project` of all images, `sample_cells`, `fit`, `logits`. Everything but the
backbone's forward pass is computed on the CPU; `one_thread` makes results bit-identical for any thread count.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from amn_fast.data.augment import resize_image
from amn_fast.data.store import Activations, strided_size
from amn_fast.models.heads import HeadsNet

SCALE = 1.5
"""Scale of the image whose features the heads see; small objects need the finer grid."""
LONGEST = 640
"""Largest long side of the scaled image, in pixels: of a larger image the scale is smaller, which bounds memory."""
CELLS_PER_IMAGE = 400
"""Cells of an image that the projections are fitted on."""
MOST_CELLS = 200_000
"""Cells that the heads are fitted on."""
EPS, STEPS, BATCH, LR, WEIGHT_DECAY, POWER = 0.1, 150, 3072, 0.02, 1e-4, 0.9
MOST_LOGITS = 16_000_000
"""Logits of one step that are in memory at a time."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: matrix products over several add in another order.

    Threads that are started inside use one each.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scale_of(size: tuple[int, ...], scale: float = SCALE) -> float:
    """The factor by which an image of (height, width) is resized before its features are computed."""
    return min(scale, LONGEST / max(size[:2]))


@torch.no_grad()
def level_maps(
    net: HeadsNet, image: NDArray[np.uint8], device: torch.device, *, scale: float = SCALE, flip: bool = False
) -> list[Tensor]:
    """Features of an image on the last three levels, each (c, h, w) float32 on the CPU.

    Args:
        net: the network, on `device`.
        image: (H, W, 3) uint8 RGB.
        device: where the backbone runs.
        scale: of the image; see `scale_of`.
        flip: whether to see the image flipped horizontally. The maps are flipped back.
    """
    factor = scale_of(image.shape, scale)
    x = net.backbone.normalize(resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor))))
    maps = net.levels((x.flip(-1) if flip else x)[None].to(device))
    return [(m.flip(-1) if flip else m)[0].float().cpu() for m in maps]


@torch.no_grad()
def fit_projections(net: HeadsNet, images: Sequence[Sequence[Tensor]], rng: np.random.Generator) -> None:
    """Set the projections of `net` from the level maps of some images: principal components, standardised.

    Args:
        net: its projections are replaced.
        images: level maps of each image; 50 images are enough.
        rng: draws the cells.
    """
    for level, projection in enumerate(net.projections):
        assert isinstance(projection, torch.nn.Conv2d)
        drawn = []
        for maps in images:
            cells = maps[level].flatten(1)
            chosen = rng.permutation(cells.shape[1])[:CELLS_PER_IMAGE]
            drawn.append(cells[:, torch.from_numpy(np.sort(chosen))].T.double())
        x = torch.cat(drawn)
        mean = x.mean(0)
        x -= mean
        kept, channels = projection.weight.shape[:2]
        if kept < channels:
            variance, vectors = torch.linalg.eigh(x.T @ x / len(x))
            # The sign of an eigenvector is arbitrary: its largest entry is positive here.
            vectors = vectors[:, -kept:].flip(1)
            vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
            basis, sigma = vectors.T, variance[-kept:].flip(0).clamp(min=0).sqrt()
        else:
            basis, sigma = torch.eye(channels, dtype=torch.float64), x.square().mean(0).sqrt()
        weight = basis / sigma.clamp(min=max(1e-3 * float(sigma.max()), 1e-12))[:, None]
        projection.weight.copy_(weight[:, :, None, None])
        projection.bias.copy_(-(weight @ mean))  # type: ignore[union-attr]


@torch.no_grad()
def project(net: HeadsNet, maps: Sequence[Tensor]) -> list[Tensor]:
    """Level maps of an image -> their projections, half precision: what is kept of an image in memory."""
    device = next(net.projections.parameters()).device
    return [p[0].half().cpu() for p in net.project([m[None].to(device) for m in maps])]


def grid_features(projected: Sequence[Tensor]) -> Tensor:
    """Projections of an image -> its features on the grid of the heads, (width, h, w) float32."""
    return HeadsNet.join([p.float()[None] for p in projected])[0]


def grid_labels(labels: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Label maps (..., H, W) -> (..., h, w), the nearest pixel of each cell."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * side / n).astype(np.int64), side - 1)
        for n, side in zip(grid, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]


def cells_of_image(cells: int, images: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The cells of an image that the heads are fitted on: all, or a random share of `MOST_CELLS`."""
    share = max(1, MOST_CELLS // images)
    return np.arange(cells) if cells <= share else np.sort(rng.permutation(cells)[:share])


def fit(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    random_seed: int = 0,
    eps: float = EPS,
    steps: int = STEPS,
) -> Tensor:
    """Fit a linear softmax head for each of several labellings of the same cells, all at once.

    The loss is AMN's balanced per-pixel loss, minimised by Adam on random cells; a head does not depend on the others.

    Args:
        features: (N, D) float32.
        labels: (P, N) uint8: 0 background, 1..n_classes, 255 unknown.
        n_classes: number of classes C.
        random_seed: of the cells of each step.
        eps: label smoothing, in [0, 1).
        steps: of the optimizer; 1 or more.

    Returns:
        (P, C + 1, D + 1) float32: weights, the bias last. Call it under `one_thread`: it is then bit-identical for any
        thread count.

    Examples:
        >>> x = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
        >>> y = torch.tensor([[0, 1]], dtype=torch.uint8).repeat(1, 50)
        >>> head = fit(x, y, 1)
        >>> (head[0, :, 0] > 0).tolist()
        [False, True]

    Loss: Lee et al., "Threshold Matters in WSSS" (CVPR 2022), section 3.2.
    """
    each = max(1, MOST_LOGITS // (min(BATCH, len(features)) * (n_classes + 1)))
    ones = features.new_ones(len(features), 1)
    x = torch.cat([features, ones], 1)
    groups = [labels[start : start + each] for start in range(0, len(labels), each)]
    return torch.cat([_fit_group(x, group, n_classes + 1, random_seed, eps, steps) for group in groups])


def _fit_group(x: Tensor, labels: Tensor, channels: int, random_seed: int, eps: float, steps: int) -> Tensor:
    heads = torch.zeros(x.shape[1], len(labels) * channels, requires_grad=True)
    optimizer = torch.optim.Adam([heads], lr=LR, weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        rng = np.random.default_rng([random_seed, step])
        chosen = torch.from_numpy(rng.integers(len(x), size=min(BATCH, len(x))))
        heads.grad = gradient(x[chosen], labels[:, chosen], heads.detach(), channels, eps)
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps) ** POWER
        optimizer.step()
    return heads.detach().T.reshape(len(labels), channels, -1)


def gradient(x: Tensor, labels: Tensor, heads: Tensor, channels: int, eps: float) -> Tensor:
    """Gradient of the sum over the heads of `amn_fast.pixel_loss`, (D + 1, P * channels).

    Args:
        x: (n, D + 1) features, the last one 1.
        labels: (P, n) uint8.
        heads: (D + 1, P * channels).
    """
    p = (x @ heads).view(len(x), len(labels), channels).softmax(2)
    target = labels.T.long()
    known = target != 255
    sides = torch.stack([known & (target == 0), known & (target > 0)]).float()
    weight = (0.5 * sides / sides.sum(1, keepdim=True).clamp(min=1)).sum(0)
    p -= eps / (channels - 1)
    place = target.masked_fill(~known, 0)[:, :, None]
    p.scatter_add_(2, place, p.new_full((1, 1, 1), eps / (channels - 1) - (1 - eps)).expand(place.shape))
    p *= weight[:, :, None]
    return x.T @ p.view(len(x), -1)


def logits(heads: Tensor, features: Tensor, keys: Sequence[int]) -> Tensor:
    """Logits of each head for background and the classes `keys` of an image: (P, K + 1, h, w).

    Args:
        heads: (P, C + 1, D + 1), from `fit`.
        features: (D, h, w), from `grid_features`.
        keys: labels of the image's own classes, 1..C.
    """
    own = heads[:, [0, *keys]]
    flat = own[:, :, :-1] @ features.flatten(1) + own[:, :, -1:]
    return flat.view(*own.shape[:2], *features.shape[1:])


def foreground(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The highest foreground probability of each pixel, and whose it is.

    Args:
        logits: (P, K + 1, h, w), background first.
        size: of the result.

    Returns:
        (P, *size) float32 in [0, 1], and the place of the class, (P, *size) int64 in 1..K.
    """
    full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    best, place = full.softmax(1)[:, 1:].max(1)
    return best, place + 1


def activations(head: Tensor, features: Tensor, keys: Sequence[int], size: tuple[int, int]) -> Activations:
    """Foreground probabilities of one head on an image, the softmax over background and the image's own classes.

    Args:
        head: (1, C + 1, D + 1), from `fit`.
        features: (D, h, w), from `grid_features`.
        keys: labels of the image's own classes, 1..C.
        size: height and width of the image.
    """
    found = logits(head, features, keys)
    strided, full = (
        F.interpolate(found, shape, mode="bilinear", align_corners=False).softmax(1)[0, 1:].numpy()
        for shape in (strided_size(*size), size)
    )
    return Activations(np.array(keys, np.uint8), strided, full)


def install(net: HeadsNet, head: Tensor) -> None:
    """Put one head, (C + 1, D + 1), into the network."""
    with torch.no_grad():
        net.linear.weight.copy_(head[:, :-1, None, None])
        net.linear.bias.copy_(head[:, -1])  # type: ignore[union-attr]
