"""The balanced per-pixel loss, forward and backward: as published, the same compiled, and ours.

    python benchmarks/bench_pixel_loss.py --output benchmarks/results/pixel_loss.json

The published form takes each step's labels through the host and Pillow, builds a one-hot target and multiplies it with
a log-softmax; its label trip is part of every time. Each case first compares values and gradients.
"""

import numpy as np
import torch
from PIL import Image
from side_by_side import HEAD, compare, options, report
from torch import Tensor

from amn_fast.ops.pixel_loss import pixel_loss

EPS = 0.4


def case(batch: int, channels: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, channels, size, size, generator=generator)
    labels = torch.randint(0, channels, (batch, 8, 8), generator=generator)
    labels[:, ::2] = 0
    labels = labels.repeat_interleave(64, 1).repeat_interleave(64, 2).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.to(device), labels.to(device)


def sampled(labels: Tensor, size: int) -> Tensor:
    small = [
        np.asarray(Image.fromarray(k).resize((size, size), Image.Resampling.NEAREST)) for k in labels.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(small)).long().to(labels.device)


def published(logits: Tensor, small: Tensor) -> Tensor:
    background, foreground = small == 0, (small > 0) & (small != 255)
    one_hot = torch.nn.functional.one_hot(small.where(small != 255, 0), logits.shape[1]).movedim(3, 1)
    target = (1 - EPS) * one_hot + EPS / (logits.shape[1] - 1) * (1 - one_hot)
    loss = -(target * logits.log_softmax(1)).sum(1)
    return (loss * background).sum() / background.sum() / 2 + (loss * foreground).sum() / foreground.sum() / 2


def main() -> None:
    chosen = options(__doc__)
    compiled = torch.compile(published, dynamic=False)
    cases = [(16, 21, 32), (16, 81, 32), (16, 21, 128), (16, 81, 128), (2, 21, 512), (2, 81, 512)]
    rows = []
    print(HEAD)
    for batch, channels, size in cases[:1] if chosen.quick else cases:
        logits, labels = case(batch, channels, size, chosen.device)

        def step(loss, x=logits):
            x = x.detach().requires_grad_()
            value = loss(x)
            value.backward()
            return value.detach(), x.grad

        def run_published(form, step=step, labels=labels, size=size):
            return step(lambda x: form(x, sampled(labels, size)))

        def ours(x=logits, step=step, labels=labels):
            return step(lambda x: pixel_loss(x, labels, eps=EPS), x)

        last, half = logits.contiguous(memory_format=torch.channels_last), logits.bfloat16()
        methods = {
            "published": lambda run=run_published: run(published),
            "ours": ours,
            "ours, channels_last": lambda ours=ours, x=last: ours(x),
            "ours, bfloat16": lambda ours=ours, x=half: ours(x),
        }
        if not chosen.quick:
            methods["published, torch.compile"] = lambda run=run_published: run(compiled)
        (value, gradient), (true_value, true_gradient) = ours(), run_published(published)
        torch.testing.assert_close(value, true_value, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, true_gradient, rtol=1e-3, atol=1e-5 * float(true_gradient.abs().max()))
        name = f"{batch} x {channels} x {size} x {size}"
        rows += compare(name, methods, "ours", chosen.rounds, chosen.device)
    report(rows, chosen)


if __name__ == "__main__":
    main()
