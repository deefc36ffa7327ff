"""Merging the maps of four scales: ours, the reference implementations' arrangement in eager PyTorch, and compiled.

AMN's code resizes every channel of every scale to the size of the image and chooses the kept channels last.
"""

import pytest
import torch
from problems import COCO, VOC, name_of
from published_steps import published_amn, published_cam
from racing import Method

from amn_fast.kernels.merge.reference import strided_size
from amn_fast.kernels.pixel_loss.reference import sample_labels
from amn_fast.ops.merge import merge_amn, merge_cam

CASES = [(20, VOC, [7, 14]), pytest.param(80, COCO, [2, 16, 59], marks=pytest.mark.full)]


@pytest.mark.parametrize("kind", ["merge_cam", "merge_amn"])
@pytest.mark.parametrize(("classes", "size", "valid"), CASES)
def test_merge(race, profile, device, kind, classes, size, valid):
    size = (45, 61) if profile == "quick" else size
    generator = torch.Generator().manual_seed(0)
    sides = [[-(-int(side * scale) // 16) for side in size] for scale in (1, 0.5, 1.5, 2)]
    maps = [(3 * torch.randn(classes + 1, *side, generator=generator)).to(device) for side in sides]
    if kind == "merge_cam":
        maps = [m[1:].relu() for m in maps]
        run, form = lambda m, **how: merge_cam(m, size, valid, **how), published_cam
        arguments = (maps, size, valid)
    else:
        seed = torch.randint(0, 3, size, generator=generator).to(torch.uint8).to(device)
        run, form = lambda m, **how: merge_amn(m, size, valid, seed, **how), published_amn
        arguments = (maps, size, valid, sample_labels(seed[None], *strided_size(*size))[0], seed)
    expected = run([m.double() for m in maps], backend="reference")
    race.parity(expected, run(maps), 1e-5)
    race.same_task(expected, form(*arguments), 1e-4)
    threads = torch.get_num_threads()
    peers = [Method("eager PyTorch", lambda: form(*arguments), threads)]
    if profile == "full":
        compiled = torch.compile(form, dynamic=False)
        peers.append(Method("torch.compile", lambda: compiled(*arguments), threads))
    case = f"{name_of(size)}, {len(maps[0])} channels, 4 scales"
    written = (len(valid) + (kind == "merge_amn")) * size[0] * size[1] * 4
    race.run(kind, case, Method("ours", lambda: run(maps), threads), *peers, moved=written)
