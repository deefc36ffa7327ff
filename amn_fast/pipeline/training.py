"""The training loop of all networks: seeded, resumable after each epoch, in one process or several."""

import copy
import functools
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, default_collate

from amn_fast.config import CamTraining, SegTraining, Training
from amn_fast.errors import InputError
from amn_fast.files import write_atomically
from amn_fast.models.amn import ShareDropout
from amn_fast.models.backbone import why_unreadable
from amn_fast.pipeline.engine import console, progress
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.processes import Processes
from amn_fast.steps.convergence import CLIP, FACTOR, RESTARTS, learns_nothing
from amn_fast.steps.items import ItemDataset

Batch = Any


class Epoch(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), in an order that depends on seed and epoch alone; a last partial batch is left out."""

    def __init__(self, images: int, batch: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.images // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images).tolist()
        for i in range(len(self)):
            yield [(self.epoch, index) for index in order[i * self.batch : (i + 1) * self.batch]]


class Rounds(Epoch):
    """Epochs of `batches` batches, whatever the number of images; passes follow each other without a gap.

    A batch may hold the end of one pass and the start of the next; an image comes with the number of its pass.
    """

    def __init__(self, images: int, batch: int, seed: int, batches: int) -> None:
        super().__init__(images, batch, seed)
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        @functools.lru_cache(2)
        def order(turn: int) -> list[int]:
            return np.random.default_rng([self.seed, turn]).permutation(self.images).tolist()

        for i in range(self.epoch * len(self), (self.epoch + 1) * len(self)):
            places = (divmod(i * self.batch + k, self.images) for k in range(self.batch))
            yield [(turn, order(turn)[place]) for turn, place in places]


class Shares(Sampler[list[tuple[int, int]]]):
    """One process's parts of the batches of `batches`."""

    def __init__(self, batches: Epoch, processes: Processes) -> None:
        self.batches, self.processes = batches, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.processes.share, self.batches)


class RunningMean:
    """The mean of values that stay on the device until it is taken."""

    def __init__(self, device: torch.device, processes: Processes | None = None) -> None:
        self._total, self._count, self._processes = torch.zeros((), device=device), 0, processes or Processes()

    def add(self, values: Tensor) -> None:
        """Count the entries of `values`."""
        self._total += values.detach().float().sum()
        self._count += values.numel()

    def take(self) -> float:
        """The mean so far, over all processes; counting begins anew."""
        total, count = self._processes.total(self._total, self._count)
        mean = total / max(1, count)
        self._total.zero_()
        self._count = 0
        return mean


def poly(step: int, steps: int, power: float, every: int = 1) -> float:
    """Factor of the learning rates at `step` of 0..steps-1: (1 - step / steps) ** power, in stairs of `every` steps."""
    return (1 - step // every * every / steps) ** power


def train(
    work: Workspace,
    new: Callable[[Path], Path],
    name: str,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    items: ItemDataset,
    settings: Training | SegTraining,
    loss_of: Callable[[Batch], Tensor],
    origin: str = "",
    figures: "Mapping[str, RunningMean] | None" = None,
    guess: float | None = None,
) -> None:
    """Train `net` and write its weights to weights/NAME.safetensors.

    Learning rates of all groups are their base value times `poly`. After each epoch — for the segmentation network,
    after each round of `checkpoint_every` iterations — the state goes to a checkpoint beside the weights. A killed run
    resumes from it; the weights are bit-identical to those of an uninterrupted run.

    Args:
        new: where to write a file of the run folder.
        items: takes (epoch, index), gives one image's part of a batch.
        loss_of: loss of one batch; of the global one, where several processes have a share of it each.
        origin: kept in the file of weights, see `save_weights`.
        figures: means that `loss_of` adds to; they are logged with each epoch's loss.
        guess: loss of a network that has learned nothing. Where the loss stays there, training starts anew, at most
            `RESTARTS` times, each time at a third of the rates and with clipped gradients.
    """
    weights = new(work.weights(name))
    checkpoint = weights.with_name(f"{name}.checkpoint.pt")
    if weights.exists():  # killed after the training, before the stage was done
        checkpoint.unlink(missing_ok=True)
        return
    first_process = work.processes.rank == 0
    run = _Run(work, name, net, optimizer, items, settings, loss_of, guess)
    run.losses, run.restarts = _restore(checkpoint, net, optimizer)
    net.train()
    batches = len(run.batches)
    with progress(shown=first_process) as bar:
        task = bar.add_task(name, total=batches * settings.epochs, completed=len(run.losses) * batches, note="")
        while (epoch := len(run.losses) + 1) <= settings.epochs:
            start = time.monotonic()
            mean = run.epoch(lambda: bar.advance(task))
            speed = batches * run.batches.batch / (time.monotonic() - start)
            means = {figure: running.take() for figure, running in (figures or {}).items()}
            if run.learns_nothing and run.restarts < RESTARTS:
                run.start_again(first_process)
                bar.update(task, completed=0)
            elif not math.isfinite(mean):
                raise InputError(f"{name}: loss is NaN or infinite in epoch {epoch}; try a lower learning rate")
            else:
                bar.update(task, note=f"epoch {epoch}/{settings.epochs} loss {mean:.4f} {speed:.1f} images/s")
                if first_process:
                    work.log("epoch", network=name, epoch=epoch, loss=mean, **means, images_per_second=speed)
            if first_process:
                _save(checkpoint, net, optimizer, run.losses, run.restarts)
    if first_process:
        save_weights(weights, net, origin)
        checkpoint.unlink(missing_ok=True)


class _Run:
    """A training run: its batches and its progress.

    Attributes:
        batches: of all processes together.
        losses: mean loss of each epoch so far.
        restarts: how often it has started anew.
    """

    def __init__(
        self,
        work: Workspace,
        name: str,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        items: ItemDataset,
        settings: Training | SegTraining,
        loss_of: Callable[[Batch], Tensor],
        guess: float | None,
    ) -> None:
        self.work, self.name, self.net, self.optimizer = work, name, net, optimizer
        self.settings, self.loss_of, self.guess = settings, loss_of, guess
        self.losses: list[float] = []
        self.restarts = 0
        count, seed = len(items.dataset.ids), work.config.seed
        self.accumulate, self.lr_step = 1, 1
        self.batches: Epoch
        if isinstance(settings, SegTraining):
            self.accumulate, self.lr_step = settings.accumulate, settings.lr_step
            self.batches = Rounds(count, settings.batch, seed, settings.checkpoint_every * settings.accumulate)
        else:
            self.batches = Epoch(count, min(settings.batch, count), seed)
        _share(name, net, self.batches.batch, work.processes)
        self.loader = _loader(work, items, Shares(self.batches, work.processes))
        net.to(memory_format=torch.channels_last)
        precision = work.config.training_precision
        self.mixed = precision == "bfloat16" or (precision == "auto" and work.device.type == "cuda")
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.initial: Any = copy.deepcopy((net.state_dict(), optimizer.state_dict())) if guess is not None else None

    def epoch(self, advance: Callable[[], None]) -> float:
        """Train for an epoch and note its mean loss; `advance` is called after each batch."""
        epoch = len(self.losses)
        torch.manual_seed(self.work.config.seed * 1000 + epoch)  # dropout: the same after a restart
        self.batches.epoch = epoch
        total = torch.zeros((), device=self.work.device)
        for i, batch in enumerate(self.loader):
            if isinstance(batch, InputError):
                raise batch
            if i % self.accumulate == 0:
                self._set_rates(epoch * len(self.batches) + i)
                self.optimizer.zero_grad()
            with torch.autocast(self.work.device.type, torch.bfloat16, enabled=self.mixed):
                loss = self.loss_of(batch)
            (loss / self.accumulate).backward()
            if i % self.accumulate == self.accumulate - 1:
                self._step()
            total += loss.detach()
            advance()
        # The epoch's only wait for the device.
        mean = np.divide(*self.work.processes.total(total, len(self.batches))).item()
        self.losses.append(mean)
        return mean

    def _set_rates(self, batch: int) -> None:
        """The learning rates of the step that begins with `batch`, counted from the first epoch's first one."""
        steps = len(self.batches) // self.accumulate * self.settings.epochs
        factor = poly(batch // self.accumulate, steps, self.settings.power, self.lr_step)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor / FACTOR**self.restarts

    def _step(self) -> None:
        clip = CLIP if self.restarts else self.settings.clip if isinstance(self.settings, CamTraining) else None
        self.work.processes.average(self.net.parameters())
        if clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        self.optimizer.step()

    @property
    def learns_nothing(self) -> bool:
        """Whether the loss stays at that of guessing."""
        epochs, batches = self.settings.epochs, len(self.batches)
        return self.guess is not None and learns_nothing(self.losses, self.guess, epochs, batches)

    def start_again(self, say: bool) -> None:
        """Back to the initial weights, at lower learning rates."""
        self.restarts += 1
        epoch, loss, divisor = len(self.losses), self.losses[-1], FACTOR**self.restarts
        if say:
            console.print(
                f"{self.name}: loss is {loss:.3f} in epoch {epoch}, that of guessing is {self.guess:.3f};"
                f" starts again at 1/{divisor} of the learning rates"
            )
            self.work.log("restart", network=self.name, epoch=epoch, loss=loss, guess=self.guess, divisor=divisor)
        self.net.load_state_dict(self.initial[0])
        self.optimizer.load_state_dict(copy.deepcopy(self.initial[1]))
        self.losses = []


def _share(name: str, net: nn.Module, batch: int, processes: Processes) -> None:
    """Let `net` know which part of a batch it sees.

    Raises:
        InputError: a batch is too small for all processes.
    """
    if batch < processes.count:
        raise InputError(f"{name}: a batch of {batch} does not give {processes.count} processes an image each")
    for module in net.modules():
        if isinstance(module, ShareDropout) and processes.count > 1:
            module.share = (*processes.part(batch), batch)


def _loader(work: Workspace, items: ItemDataset, shares: Shares) -> "DataLoader[Batch]":
    return DataLoader(
        items,
        batch_sampler=shares,
        num_workers=work.config.workers,
        persistent_workers=work.config.workers > 0,
        # Children of this process end with it. Those of a fork server, Python 3.14's default, would outlive a kill.
        multiprocessing_context="fork" if work.config.workers and sys.platform == "linux" else None,
        pin_memory=work.device.type == "cuda",
        collate_fn=_collate,
    )


def _collate(items: list[Any]) -> Batch:
    """One batch, or the error of an image that cannot be used."""
    return next((item for item in items if isinstance(item, InputError)), None) or default_collate(items)


def save_weights(path: Path, net: nn.Module, origin: str = "") -> None:
    """Write a network's state as safetensors, atomically; `origin`, a text, says in the file where it comes from."""
    state = {key: value.contiguous().cpu() for key, value in net.state_dict().items()}
    # One entry: safetensors keeps no order among several, and the same weights would not be the same bytes.
    metadata = {"origin": origin} if origin else None
    write_atomically(path, lambda file: file.write(save(state, metadata)))


def read_origin(path: Path) -> str:
    """The text that `save_weights` kept in the file; empty where there is none."""
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("origin", "")


def read_losses(work: Workspace, name: str, figure: str = "loss") -> list[float]:
    """The mean loss, or another figure, of each epoch of network `name`'s last training; empty if the log has none."""
    epochs: dict[int, float | None] = {}
    for event in _events(work):
        started = event["event"] == "start" and event["stage"] == f"train-{name}" and not event["resumed"]
        if started or (event["event"] == "restart" and event["network"] == name):
            epochs = {}
        if event["event"] == "epoch" and event["network"] == name:
            epochs[event["epoch"]] = event.get(figure)  # an epoch that a kill cut off from its checkpoint comes again
    values = [value for _, value in sorted(epochs.items()) if value is not None]
    return values if len(values) == len(epochs) else []


def read_divisor(work: Workspace, name: str) -> int:
    """What the learning rates of network `name`'s last training were divided by at its restarts; 1 without any."""
    divisor = 1
    for event in _events(work):
        if event["event"] == "start" and event["stage"] == f"train-{name}" and not event["resumed"]:
            divisor = 1
        if event["event"] == "restart" and event["network"] == name:
            divisor = event["divisor"]
    return divisor


def _events(work: Workspace) -> Iterator[dict[str, Any]]:
    """The lines of log.jsonl."""
    path = work.root / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:  # a line that a kill cut short
            continue


def load_weights(path: Path, net: nn.Module) -> None:
    """Read what `save_weights` wrote.

    Raises:
        InputError: the file is damaged or belongs to another network.
    """
    try:
        net.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and PyTorch have an error class each
        raise InputError(f"weights {path} do not fit: {' '.join(str(error).split())[:300]}") from error


def _save(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float], restarts: int) -> None:
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses, "restarts": restarts}
    # By way of memory: torch.save buries the reason when a write fails, such as a full disk.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def _restore(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[float], int]:
    """The loss of each epoch so far, and how often training has started anew."""
    if not path.exists():
        return [], 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        return list(state["losses"]), int(state["restarts"])
    except Exception as error:  # a damaged file and another network's have an error class each
        raise InputError(
            f"checkpoint {path} does not fit: {why_unreadable(error)}; remove it to train from the start"
        ) from error
