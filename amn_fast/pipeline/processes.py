"""Processes that train one network together on shares of each batch, as torchrun starts them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from amn_fast.errors import InputError


@dataclass
class Processes:
    """This process among those that train together; by default it is the only one.

    Attributes:
        rank: its number; number 0 alone writes files and shows progress; the others wait for it.
        count: how many there are.
        waiting: whether the others still wait.
    """

    rank: int = 0
    count: int = 1
    waiting: bool = True

    @property
    def group(self) -> dist.ProcessGroup | None:
        """For sums over all of them; None for a single process."""
        return dist.group.WORLD if self.count > 1 else None

    def share(self, batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """This process's part of a global batch: shares differ by one image at most."""
        first, end = self.part(len(batch))
        return batch[first:end]

    def part(self, images: int) -> tuple[int, int]:
        """The first image of this process's part of a batch, and the end of the part."""
        return self.rank * images // self.count, (self.rank + 1) * images // self.count

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their means over the processes.

        One sum over all gradients in the order of the parameters, not DistributedDataParallel's buckets, whose layout
        changes after the first iteration: the same sums, bit by bit, in a training that resumes from a checkpoint.
        """
        if self.group is None:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=self.group)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def total(self, value: Tensor, count: int) -> tuple[float, int]:
        """A sum and a count over all processes."""
        both = torch.stack([value.double(), value.new_tensor(count, dtype=torch.float64)])
        if self.group is not None:
            dist.all_reduce(both, group=self.group)
        total, images = both.tolist()
        return total, int(images)

    def tell(self, begin: bool) -> None:
        """Let the others begin the training that this process begins, or leave; only the first call counts."""
        if self.waiting:
            self._broadcast(begin)
        self.waiting = False

    def told(self) -> bool:
        """Wait for process 0: whether to begin."""
        self.waiting = False
        return self._broadcast(False)

    def _broadcast(self, begin: bool) -> bool:
        if self.group is None:
            return begin
        word = torch.tensor(int(begin), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(word, src=0, group=self.group)
        return bool(word)


def started() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def require_single(what: str) -> None:
    """Raise InputError in one of several processes that torchrun has started."""
    if started() > 1:
        raise InputError(
            f"{what} runs in one process, torchrun started {started()}; only the stages that train run in several"
        )


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun has started: gloo on CPUs, nccl on GPUs, a GPU of its own for each process.

    Raises:
        InputError: there are fewer GPUs than processes on this machine.
    """
    if started() == 1:
        yield Processes()
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise InputError(f"process {local} of this machine has no GPU, PyTorch sees {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
