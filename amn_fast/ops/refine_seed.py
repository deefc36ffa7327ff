"""The refined seed of an image: IRN's and AMN's use of the dense CRF."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from amn_fast.errors import InputError
from amn_fast.ops import _arrays, _detour
from amn_fast.ops.dense_crf import Bilateral, DenseCRF, Gaussian, Settings, each_image, settings_of
from amn_fast.ops.lattice import check_image, crf_backend, gpu
from amn_fast.ops.mean_field import check_compat, solve_labels

Array = np.ndarray[Any, np.dtype[Any]]


def refine_seed(
    image: Any,
    activations: Any,
    keys: Any,
    *,
    fg: float,
    bg: float,
    gt_prob: float = 0.7,
    gaussian: Gaussian | None = (3, 3),
    bilateral: Bilateral | None = (50, 5, 10),
    iterations: int = 10,
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """The refined seed of an image: confident foreground, confident background, and 255 between them.

    The CRF runs on the label maps argmax([t, activations]) with t = `fg`, then t = `bg`; an activation that only equals
    t is background. A pixel is foreground where the first run says so, 0 where both say background, else 255. Both runs
    share the image's lattices. Lists of images, activations and keys give a list of seeds, as with `dense_crf`.

    Args:
        image: (H, W, 3) uint8.
        activations: (K, H, W) finite numbers, the foreground classes alone, usually 0..1. K = 0 gives background
            everywhere.
        keys: (K,) labels of the channels, integers in 1..254.
        fg, bg: thresholds, finite numbers: .30 and .05 for CAMs, .45 and .15 for AMN's activations.
        gt_prob: label confidence, in (0, 1): the probability that a label map is right at a pixel.
        gaussian, bilateral, backend, threads: see `DenseCRF`.
        iterations: mean-field updates.

    Returns:
        (H, W) uint8 with the labels of `keys`, 0 and 255; a tensor where the activations are on a GPU.

    Raises:
        InputError: an argument is not as above.
        BackendError: the backend asked for cannot run here.

    Examples:
        >>> import numpy as np
        >>> image, activations = np.zeros((20, 30, 3), np.uint8), np.full((1, 20, 30), 0.9)
        >>> refine_seed(image, activations, [7], fg=0.3, bg=0.05)[0, 0]
        np.uint8(7)

    Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR 2019); Lee et
    al., "Threshold Matters in WSSS" (CVPR 2022).
    """
    if _detour.needed("refine_seed", backend, image, activations):
        on_host = refine_seed(
            *map(_detour.to_host, (image, activations, keys)),
            fg=fg,
            bg=bg,
            gt_prob=gt_prob,
            gaussian=gaussian,
            bilateral=bilateral,
            iterations=iterations,
            threads=threads,
        )
        return _detour.to_origin(on_host, activations)
    several = isinstance(image, list | tuple)
    if several:
        for name, values in (("activations", activations), ("keys", keys)):
            if not isinstance(values, list | tuple) or len(values) != len(image):
                raise InputError(f"{name} are not a list of {len(image)}, expected one for each image")
    cases = list(zip(image, activations, keys, strict=True)) if several else [(image, activations, keys)]
    settings = settings_of(gaussian, bilateral, "symmetric")
    thresholds = _arrays.number("fg", fg), _arrays.number("bg", bg)
    gt_prob = _arrays.number("gt_prob", gt_prob, "(0, 1)")
    iterations, threads = _arrays.integer("iterations", iterations), _arrays.thread_count(threads)
    if crf_backend(backend, *(value for case in cases for value in case[:2])) == "cuda":
        refined = _on_gpu(cases, thresholds, gt_prob, settings, iterations)
        return refined if several else refined[0]

    def one_image(image: Any, activations: Any, keys: Any, threads: int) -> Array:
        sure, possible = crf_labels(
            image, activations, keys, thresholds, gt_prob=gt_prob, gaussian=gaussian, bilateral=bilateral,
            iterations=iterations, backend=backend, threads=threads,
        )  # fmt: skip
        return combine(sure, possible)

    seeds = each_image(one_image, threads, *zip(*cases, strict=True)) if cases else []
    return seeds if several else seeds[0]


def crf_labels(
    image: Any,
    activations: Any,
    keys: Any,
    thresholds: Sequence[float],
    *,
    gt_prob: float = 0.7,
    gaussian: Gaussian | None = (3, 3),
    bilateral: Bilateral | None = (50, 5, 10),
    iterations: int = 10,
    backend: str = "auto",
    threads: int | None = None,
) -> Array:
    """The CRF's labels for each of several thresholds; they share the image's lattices. Runs on the CPU.

    Args:
        thresholds: any number of them; the CRF of threshold t runs on argmax([t, activations]).
        image, activations, keys, gt_prob, gaussian, bilateral, iterations, backend, threads: see `refine_seed`.

    Returns:
        (T, H, W) uint8: 0 and the labels of `keys`.
    """
    pixels, scores, names = _check(image, activations, keys)
    size = pixels.shape[:2]
    if len(scores) == 0:
        return np.zeros((len(thresholds), *size), np.uint8)
    crf = DenseCRF(pixels, gaussian=gaussian, bilateral=bilateral, backend=backend, threads=threads)
    best, score = scores.argmax(axis=0) + 1, scores.max(axis=0)
    maps = [np.where(score > threshold, best, 0).ravel() for threshold in thresholds]
    options: dict[str, Any] = {"backend": crf.backend, "threads": threads}
    solved = solve_labels(maps, len(scores) + 1, gt_prob, crf.pairwise, iterations, **options)
    named = np.concatenate([[0], names]).astype(np.uint8)
    return np.stack([named[one].reshape(size) for one in solved])


def combine(sure: Array, possible: Array) -> Array:
    """The seed from the CRF's labels at the thresholds fg and bg, (..., H, W) uint8 each."""
    return np.where(sure > 0, sure, np.where(possible > 0, 255, 0)).astype(np.uint8)


def _on_gpu(
    cases: Sequence[tuple[Any, Any, Any]],
    thresholds: tuple[float, float],
    gt_prob: float,
    settings: Settings,
    iterations: int,
) -> list[Any]:
    """`refine_seed` for a batch on a GPU; both label maps of an image run together."""
    device = gpu().device_of(*(value for case in cases for value in case[:2]))
    checked = [_check(*case) for case in cases]
    problems = []
    for pixels, scores, _ in checked:
        flat = gpu().on_device(scores, device, None).flatten(1)
        if len(scores):
            problems.append(gpu().problem(pixels, gpu().label_unaries(flat, thresholds, gt_prob), device))
    maps = iter(gpu().infer(problems, gpu().Call(settings, check_compat, max(0, iterations), best=True)))
    return [
        gpu().like(given, gpu().seeds(next(maps) if len(scores) else None, names, tuple(pixels.shape[:2]), device))
        for (_, given, _), (pixels, scores, names) in zip(cases, checked, strict=True)
    ]


def _check(image: Any, activations: Any, keys: Any) -> tuple[Any, Any, Array]:
    pixels = check_image(image)
    on_gpu = _arrays.on_gpu(activations)
    scores: Any = activations.detach() if on_gpu else _arrays.as_array("activations", activations)
    if scores.ndim != 3 or tuple(scores.shape[1:]) != tuple(pixels.shape[:2]):
        raise InputError(
            f"activations have shape {tuple(scores.shape)}, expected (K, {pixels.shape[0]}, {pixels.shape[1]})"
        )
    names = np.atleast_1d(_arrays.as_array("keys", keys.cpu().numpy() if _arrays.on_gpu(keys) else keys))
    if names.shape != (len(scores),) or (len(names) and names.dtype.kind not in "iu"):
        raise InputError(f"keys are {names.dtype} of shape {names.shape}, expected {len(scores)} integers")
    if len(names) and not 1 <= names.min() <= names.max() <= 254:
        raise InputError(f"keys run from {names.min()} to {names.max()}, expected labels in 1..254")
    if not (scores.isfinite() if on_gpu else np.isfinite(scores)).all():
        raise InputError("activations hold NaN or infinity, expected finite numbers")
    return pixels, scores, names
