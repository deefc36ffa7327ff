"""Launching the dense CRF's GPU kernels: the launcher's interface, and batches of images.

Every launch goes through a `Launcher`, so that the same driver runs the kernels on a GPU and, in the tests, as loops on
the CPU.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

Tensor = torch.Tensor

SOURCE = '#include "dense_crf/lattice.cu"\n#include "dense_crf/filter.cu"\n#include "dense_crf/mean_field.cu"\n'
THREADS = 256  # in a block, as in device.hpp
PADDING = 4  # pydensecrf embeds points in fours and fills the last group with zero features


class Launcher(Protocol):
    """Runs kernels on tensors of `device`, in order: tensors and None become pointers, ints 64-bit numbers."""

    device: torch.device

    def launch(self, kernel: str, blocks: int, *arguments: Any, shared: int = 0) -> None: ...


def over(items: int) -> int:
    """Blocks for one thread an item."""
    return -(-items // THREADS)


class Batch:
    """Images whose points lie one after the other, each padded to a multiple of four."""

    def __init__(self, launcher: Launcher, points: Sequence[int], widths: Sequence[int]) -> None:
        self.launcher = launcher
        self.points, self.widths = list(points), list(widths)
        self.padded = [-(-n // PADDING) * PADDING for n in points]
        self.firsts = [0, *np.cumsum(self.padded).tolist()][:-1]
        self.total = sum(self.padded)
        counts = [over(n) for n in self.padded]
        self.tile_count = sum(counts)
        image = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(self.tile_count) - np.repeat(np.cumsum(counts) - counts, counts)
        tiles = np.stack([image, np.asarray(self.firsts)[image] + THREADS * within], axis=1).astype(np.int32)
        self.tiles = torch.from_numpy(tiles).to(launcher.device)
        self.plain = self.images([0] * len(points), [(0, 0)] * len(points))

    def images(self, sources: Sequence[int], tables: Sequence[tuple[int, int]]) -> Tensor:
        """The table of images: see `Field` in device.hpp."""
        rows = zip(self.firsts, self.points, self.padded, self.widths, sources, *zip(*tables, strict=True), strict=True)
        return torch.tensor(list(rows), dtype=torch.int64, device=self.launcher.device)

    def tables(self, most: int) -> tuple[list[tuple[int, int]], int]:
        """A region of the hash table for each image, (first, mask), at most half filled by `most` keys a point."""
        sizes = [1 << max(64, 2 * most * n - 1).bit_length() for n in self.padded]
        firsts = [0, *np.cumsum(sizes).tolist()]
        return [(first, size - 1) for first, size in zip(firsts, sizes, strict=False)], firsts[-1]
