"""Merging the maps of four scales: as published, the same compiled, and ours.

    python benchmarks/bench_merge.py --output benchmarks/results/merge.json

The published form resizes every channel of every scale to the picture's size and chooses the kept channels last. Each
case first compares the answers.
"""

import torch
import torch.nn.functional as F
from side_by_side import HEAD, compare, options, report
from torch import Tensor

from amn_fast.kernels.merge.reference import strided_size
from amn_fast.kernels.pixel_loss.reference import sample_labels
from amn_fast.ops.merge import merge_amn, merge_cam

TINY = 1e-5


def resized(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    return torch.stack([F.interpolate(m[None], size, mode="bilinear", align_corners=False)[0] for m in maps])


def published_cam(maps: list[Tensor], size: tuple[int, int], valid: list[int]) -> tuple[Tensor, Tensor]:
    padded = ((size[0] - 1) // 16 + 1) * 16, ((size[1] - 1) // 16 + 1) * 16
    strided = resized(maps, strided_size(*size)).sum(0)[valid]
    full = resized(maps, padded).sum(0)[valid, : size[0], : size[1]]
    return strided / (strided.amax((1, 2), True) + TINY), full / (full.amax((1, 2), True) + TINY)


def published_amn(
    maps: list[Tensor], size: tuple[int, int], valid: list[int], small: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    answers = []
    for grid, labels in ((strided_size(*size), small), (size, seed)):
        p = resized(maps, grid).mean(0).softmax(0)[[0] + [k + 1 for k in valid]]
        low, high = p.amin((1, 2), True), p.amax((1, 2), True)
        answers.append(torch.where(labels != 0, (p - low) / (high - low + TINY), p))
    return answers[0], answers[1]


def main() -> None:
    chosen = options(__doc__)
    compiled_cam = torch.compile(published_cam, dynamic=False)
    compiled_amn = torch.compile(published_amn, dynamic=False)
    rows = []
    print(HEAD)
    cases = [(20, (375, 500), [7, 14]), (80, (480, 640), [2, 16, 59])]
    for classes, size, valid in cases[:1] if chosen.quick else cases:
        generator = torch.Generator().manual_seed(0)
        sides = [[-(-int(side * scale) // 16) for side in size] for scale in (1, 0.5, 1.5, 2)]
        maps = [(3 * torch.randn(classes + 1, *s, generator=generator)).to(chosen.device) for s in sides]
        cams = [m[1:].relu() for m in maps]
        seed = torch.randint(0, 3, size, generator=generator).to(torch.uint8).to(chosen.device)
        small = sample_labels(seed[None], *strided_size(*size))[0]

        amn = {
            "published": lambda m=maps, n=size, v=valid, t=small, s=seed: published_amn(m, n, v, t, s),
            "ours": lambda m=maps, n=size, v=valid, s=seed: merge_amn(m, n, v, s),
        }
        cam = {
            "published": lambda m=cams, n=size, v=valid: published_cam(m, n, v),
            "ours": lambda m=cams, n=size, v=valid: merge_cam(m, n, v),
        }
        if not chosen.quick:
            amn["published, torch.compile"] = lambda m=maps, n=size, v=valid, t=small, s=seed: compiled_amn(
                m, n, v, t, s
            )
            cam["published, torch.compile"] = lambda m=cams, n=size, v=valid: compiled_cam(m, n, v)
        for name, methods in (("merge_amn", amn), ("merge_cam", cam)):
            for ours, theirs in zip(methods["ours"](), methods["published"](), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
            channels = classes + (name == "merge_amn")
            label = f"{name}, {channels} channels, {size[0]} x {size[1]}, 4 scales"
            rows += compare(label, methods, "ours", chosen.rounds, chosen.device)
    report(rows, chosen)


if __name__ == "__main__":
    main()
