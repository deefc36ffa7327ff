"""IRN's pair losses, forward and backward: as published, the same compiled, and ours, at crop 512 and radius 10.

    python benchmarks/bench_pair_loss.py --output benchmarks/results/pair_loss.json

The published form gathers the edge along every path of every pair, and multiplies with three maps of pair labels which
its data loader builds; building them is not part of its time, while ours derives them. Each case first compares values
and gradients.
"""

import numpy as np
import torch
from side_by_side import HEAD, compare, options, report
from torch import Tensor

from amn_fast.kernels.pair_loss.paths import half_plane, path
from amn_fast.ops.pair_loss import PairLossTerms, pair_loss

SIZE, RADIUS, TINY = 128, 10, 1e-5


class Published(torch.nn.Module):
    """The published arrangement: index tables of all pairs and of all their paths."""

    def __init__(self) -> None:
        super().__init__()
        reach = RADIUS - 1
        y, x = np.mgrid[: SIZE - reach, reach : SIZE - reach]
        source = (y * SIZE + x).ravel()
        by_length: dict[int, list] = {}
        for offset in half_plane(RADIUS):
            by_length.setdefault(len(path(offset)), []).append(offset)
        self.paths = [
            torch.from_numpy(np.stack([[source + y * SIZE + x for y, x in path(o)] for o in offsets]))
            for offsets in by_length.values()
        ]
        offsets = [o for group in by_length.values() for o in group]
        self.source = torch.from_numpy(source)
        self.target = torch.from_numpy(np.stack([source + y * SIZE + x for y, x in offsets]))
        self.offsets = torch.tensor(offsets, dtype=torch.float32).T[None, :, :, None]

    def pair_labels(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = labels.flatten(1).long()
        one, other = flat[:, None, self.source], flat[:, self.target]
        valid, same = (one != 255) & (other != 255), one == other
        kinds = (valid & same & (one == 0)), (valid & same & (one > 0)), (valid & ~same)
        return tuple(kind.float() for kind in kinds)  # type: ignore[return-value]

    def forward(self, edge: Tensor, displacement: Tensor, kinds: tuple[Tensor, Tensor, Tensor]) -> PairLossTerms:
        background, foreground, negative = kinds
        flat = torch.sigmoid(edge).flatten(1)
        affinity = 1 - torch.cat([flat[:, table].amax(2) for table in self.paths], 1)
        together, apart = -torch.log(affinity + TINY), -torch.log(1 + TINY - affinity)
        moved = displacement.flatten(2)
        difference = moved[:, :, None, self.source] - moved[:, :, self.target]
        n_background, n_foreground, n_negative = (kind.sum() + TINY for kind in kinds)
        return PairLossTerms(
            (background * together).sum() / n_background,
            (foreground * together).sum() / n_foreground,
            (negative * apart).sum() / n_negative,
            (foreground[:, None] * (difference - self.offsets).abs()).sum() / (2 * n_foreground),
            (background[:, None] * difference.abs()).sum() / (2 * n_background),
        )


def main() -> None:
    chosen = options(__doc__)
    form = Published()
    for name in ("source", "target", "offsets"):
        setattr(form, name, getattr(form, name).to(chosen.device))
    form.paths = [table.to(chosen.device) for table in form.paths]
    compiled = torch.compile(form, dynamic=False)
    rows = []
    print(HEAD)
    for batch in (1,) if chosen.quick else (1, 8):
        generator = torch.Generator().manual_seed(0)
        edge = torch.randn(batch, 1, SIZE, SIZE, generator=generator).to(chosen.device)
        displacement = 3 * torch.randn(batch, 2, SIZE, SIZE, generator=generator).to(chosen.device)
        labels = torch.randint(0, 3, (batch, 8, 8), generator=generator).to(torch.uint8)
        labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        labels = labels.to(chosen.device)
        kinds = form.pair_labels(labels)

        def step(loss, third, edge=edge, displacement=displacement):
            e, d = edge.detach().requires_grad_(), displacement.detach().requires_grad_()
            total = loss(e, d, third).total
            total.backward()
            return total.detach(), e.grad, d.grad

        for ours, theirs in zip(step(pair_loss, labels), step(form, kinds), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
        methods = {
            "published": lambda step=step, kinds=kinds: step(form, kinds),
            "ours": lambda step=step, labels=labels: step(pair_loss, labels),
        }
        if not chosen.quick:
            methods["published, torch.compile"] = lambda step=step, kinds=kinds: step(compiled, kinds)
        rows += compare(f"batch {batch}, crop 512", methods, "ours", chosen.rounds, chosen.device)
    report(rows, chosen)


if __name__ == "__main__":
    main()
