"""The dense CRF over random problems, against its reference: images, features, every kind of kernel and energy.

Marginals are held to the reference in double precision. A problem may amplify rounding (strong weights without
normalisation, say): then the tolerance follows what single precision costs the reference itself.
"""

from pathlib import Path
from typing import Any

import numpy as np

from amn_fast import _native
from amn_fast.errors import InputError
from amn_fast.kernels.dense_crf import reference
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.ops.lattice import Lattice
from amn_fast.ops.mean_field import NORMALIZATIONS, Pairwise, check_compat, mean_field

BACKENDS = ("reference", "cpu") if _native.native is not None else ("reference",)
Array = np.ndarray[Any, np.dtype[Any]]


def one(rng: np.random.Generator, folder: Path) -> None:
    height, width, labels = int(rng.integers(1, 25)), int(rng.integers(1, 25)), int(rng.choice([1, 2, 3, 5, 8, 21]))
    unary = energies(rng, labels, height * width)
    iterations = int(rng.integers(0, 8))
    image = random_image(rng, height, width)
    terms = [term(rng, image, labels) for _ in range(rng.integers(0, 3))]
    answers = [answer(backend, unary, terms, iterations, 1 + int(rng.integers(3))) for backend in BACKENDS]
    for other in answers[1:]:
        if isinstance(answers[0], str) or isinstance(other, str):
            assert answers[0] == other, (answers[0], other)
            continue
        exact, rounded = definitions(unary, terms, iterations)
        tolerance = 1e-4 + 4 * np.abs(rounded - exact).max()
        assert np.isfinite(other).all()
        assert np.abs(other.sum(axis=0, dtype=np.float64) - 1).max() <= 1e-5
        assert np.abs(other - exact).max() <= tolerance, (np.abs(other - exact).max(), tolerance)
    if rng.random() < 0.3:
        transposed(rng)
    if rng.random() < 0.2 and labels > 1:
        crf = DenseCRF(image, threads=1)
        cube = np.where(np.isfinite(unary), unary, 9).reshape(labels, height, width)
        if np.isfinite(cube).all() and np.abs(cube).max() < 1e3:
            assert (crf.labels(cube, 2) == crf.marginals(cube, 2).argmax(0)).all()


def energies(rng: np.random.Generator, labels: int, points: int) -> Array:
    kind = rng.integers(0, 6)
    unary = rng.random((labels, points)) * float(rng.choice([0.1, 1, 10, 50]))
    if kind == 0:  # of a label map
        unary = np.full((labels, points), 2.5)
        unary[rng.integers(0, labels, points), np.arange(points)] = 0.4
    elif kind == 1:
        unary *= 10.0 ** rng.uniform(2, 40)
    elif kind == 2:
        unary[rng.integers(0, labels), rng.integers(0, points)] = rng.choice([np.inf, np.nan, -np.inf])
    return unary if kind == 3 else unary.astype(np.float64).astype(np.float32, copy=False) if kind != 1 else unary


def random_image(rng: np.random.Generator, height: int, width: int) -> Array:
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if rng.random() < 0.3:
        pixels[:] = pixels[0, 0]
    elif rng.random() < 0.5:
        pixels = np.repeat(pixels[:, :1], width, axis=1)
    return pixels


def term(rng: np.random.Generator, image: Array, labels: int) -> tuple[str, tuple[Any, ...], Any, str]:
    sigma = 10.0 ** rng.uniform(-1, 2.5, 3)
    if rng.random() < 0.1:
        sigma[rng.integers(0, 3)] = rng.choice([0, -1, np.nan, np.inf, 1e-9])
    compat = [float(rng.normal() * 5), rng.normal(size=labels), rng.normal(size=(labels, labels))][rng.integers(0, 3)]
    normalization = str(rng.choice(NORMALIZATIONS))
    if normalization == "none":
        compat = compat * 0.05
    kind = ("grid", "image", "features")[rng.integers(0, 3)]
    if kind == "grid":
        return kind, (*image.shape[:2], *map(float, sigma[:2])), compat, normalization
    if kind == "image":
        return kind, (image, *map(float, sigma[:2]), [float(sigma[2])] * 3), compat, normalization
    features = rng.normal(size=(int(rng.integers(1, 9)), image[..., 0].size)) * float(rng.choice([0.1, 1, 20, 1e5]))
    return kind, (features,), compat, normalization


def lattice(kind: str, arguments: tuple[Any, ...], backend: str, threads: int) -> Lattice:
    make = {"grid": Lattice.of_grid, "image": Lattice.of_image, "features": Lattice}[kind]
    return make(*arguments, backend=backend, threads=threads)  # type: ignore[operator, no-any-return]


def answer(backend: str, unary: Array, terms: list[Any], iterations: int, threads: int) -> Array | str:
    try:
        pairs = [Pairwise(lattice(kind, arguments, backend, threads), *rest) for kind, arguments, *rest in terms]
        result: Array = mean_field(unary, pairs, iterations, threads=threads) if pairs else np.empty(0)
    except InputError as error:
        return str(error)
    if not pairs:
        return "no terms"
    return result


def definitions(unary: Array, terms: list[Any], iterations: int) -> tuple[Array, Array]:
    """Marginals by the definition, and with the marginals and the filtered values rounded to single precision."""
    kernels = [
        reference.Kernel(
            lattice(kind, arguments, "reference", 1).handle, check_compat(compat, len(unary)), normalization
        )
        for kind, arguments, compat, normalization in terms
    ]
    largest = np.finfo(np.float32).max
    given = np.where(np.isfinite(unary), np.clip(unary, -largest, largest), unary).astype(np.float32)
    exact = reference.mean_field(given, kernels, iterations)
    rounded = reference.mean_field(given, kernels, 0).astype(np.float32)
    base = (given - given.min(axis=0)).astype(np.float32)
    for _ in range(iterations):
        logits = -base
        for kernel in kernels:
            logits = logits - kernel.energy(rounded).astype(np.float32)
        rounded = reference.softmax(logits).astype(np.float32)
    return exact, rounded


def transposed(rng: np.random.Generator) -> None:
    features = rng.normal(size=(int(rng.integers(1, 7)), int(rng.integers(1, 200)))) * 3
    values = rng.normal(size=(int(rng.integers(1, 40)), features.shape[1]))
    by_definition = Lattice(features, backend="reference")
    for backend, transpose in [(backend, transpose) for backend in BACKENDS for transpose in (False, True)]:
        found = Lattice(features, backend=backend).filter(values, transpose)
        expected = by_definition.handle.filter(values, transpose)
        assert np.abs(found - expected).max() <= 1e-4 * (1 + np.abs(expected).max())
