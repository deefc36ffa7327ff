"""train-seg: the loss, the order of images and the steps against ones written out; killed and resumed, same bytes."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from amn_fast import pipeline
from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.models import DeepLabV2, MultiScale
from amn_fast.pipeline import run_stage, runner
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.processes import Processes
from amn_fast.pipeline.training import Rounds, poly, read_losses, read_origin
from amn_fast.steps import seg
from amn_fast.steps.items import MaskDataset
from command_line import command

from .conftest import configure, start

SMALL = (
    "train_seg.recipe=small", "train_seg.backbone=test_resnet", "train_seg.weights=null", "train_seg.crop=64",
    "train_seg.batch=2", "train_seg.accumulate=2", "train_seg.iterations=4", "train_seg.checkpoint_every=2",
    "train_seg.lr_step=2", "train_seg.lr=0.001", "train_seg.rescale=[0.75, 1, 1.25, 1.5]",
)  # fmt: skip

CHECKPOINT = "stages/train-seg.new/weights/seg.checkpoint.pt"


@pytest.fixture
def settings(images, tmp_path):
    """Gives the configuration of a run in folder `name` on the true masks, and its file."""

    def make(name, *overrides):
        file = tmp_path / f"{name}.yaml"
        everything = (*SMALL, f"train_seg.masks={images / 'masks'}", *overrides)
        words = [word for override in everything for word in ("--set", override)]
        return configure(file, images, tmp_path / name, *everything), [str(file), *words]

    return make


def train(config, **options):
    return run_stage(config, "train-seg", **options)


def weights(config):
    return (config.run / "weights" / "seg.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [(0, 1.0), (9, 1.0), (10, 0.99954999), (19_989, 0.0019951), (19_999, 0.00106920)],
)
def test_the_published_schedule(iteration, factor):
    """(1 - k / 20000) ** .9, stepped every 10 iterations: at 19,999 it is that of 19,990, .0005 ** .9."""
    assert poly(iteration, 20_000, 0.9, 10) == pytest.approx(factor, rel=1e-4)


def test_without_steps_the_schedule_changes_each_iteration():
    assert [poly(k, 4, 1.0) for k in range(4)] == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("images", "batch"), [(7, 3), (2, 5), (6, 6), (1, 1)])
def test_passes_follow_each_other_whatever_the_rounds(images, batch):
    def keys(per_round, rounds):
        sampler, found = Rounds(images, batch, 5, per_round), []
        for sampler.epoch in range(rounds):
            batches = list(sampler)
            assert len(batches) == len(sampler) == per_round
            found += [key for keys in batches for key in keys]
        return found

    stream = keys(1, 12)
    assert keys(4, 3) == keys(12, 1) == stream
    for turn in range(12 * batch // images):
        assert sorted(stream[turn * images : (turn + 1) * images]) == [(turn, index) for index in range(images)]


def test_the_trained_weights_are_those_of_the_steps_written_out(settings):
    """Four iterations of two batches of two: SGD with momentum, decay, three learning rates and their schedule."""
    config, _ = settings("run")
    assert train(config)
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    torch.manual_seed(config.seed)
    base = DeepLabV2(3, "test_resnet")
    net = MultiScale(base, (0.5, 0.75)).train()
    items = MaskDataset(
        dataset,
        lambda id: read_mask(config.train_seg.masks / f"{id}.png"),
        base.normalize,
        64,
        (0.75, 1.0, 1.25, 1.5),
        config.seed,
    )
    stream = [key for k in range(2) for key in _round(k, len(dataset.ids), config.seed)]
    named = {n: p for n, p in net.named_parameters() if p.requires_grad}
    velocity = {name: torch.zeros_like(p) for name, p in named.items()}
    for iteration in range(4):
        lr = 0.001 * (1.0 if iteration < 2 else 0.5**0.9)
        net.zero_grad()
        for half in range(2):
            start = (iteration * 2 + half) * 2
            images, masks = (
                torch.stack(part) for part in zip(*map(items.__getitem__, stream[start : start + 2]), strict=True)
            )
            (seg.multi_scale_loss(net(images), masks) / 2).backward()
        with torch.no_grad():
            for name, p in named.items():
                times = 1 if "aspp" not in name else 10 if name.endswith("weight") else 20
                decay = 0 if times == 20 else 5e-4
                velocity[name] = 0.9 * velocity[name] + p.grad + decay * p
                p -= times * lr * velocity[name]
    trained = load_file(config.run / "weights" / "seg.safetensors")
    assert set(trained) == set(net.state_dict())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)
    assert not list(config.run.rglob("*.checkpoint.pt"))


def _round(number, images, seed):
    sampler = Rounds(images, 2, seed, 4)
    sampler.epoch = number
    return [key for batch in sampler for key in batch]


def test_a_second_run_is_skipped_and_other_settings_train_again(settings):
    config, _ = settings("run")
    assert train(config)
    before = weights(config)
    assert not train(config)
    again, _ = settings("run", "train_seg.momentum=0.5")
    with pytest.raises(InputError, match=r"train_seg\.momentum was 0\.9, now 0\.5; pass --overwrite"):
        train(again)
    assert weights(config) == before
    assert train(again, overwrite=True)
    assert weights(again) != before
    mask = again.train_seg.masks / "demo_000.png"
    data = mask.read_bytes()
    write_mask(mask, 0 * read_mask(mask))
    with pytest.raises(InputError, match=r"1 mask changed \(demo_000\)"):
        train(again)
    mask.write_bytes(data)
    assert not train(again)


def test_killed_and_started_again_gives_the_same_bytes(settings):
    longer = ("train_seg.iterations=24",)
    undisturbed, _ = settings("undisturbed", *longer)
    train(undisturbed)
    for attempt in range(10):
        config, arguments = settings(f"killed{attempt}", *longer, "workers=1")
        checkpoint = config.run / CHECKPOINT
        process = start("train-seg", *arguments)
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        if process.returncode == -9 and checkpoint.exists():
            break
    else:
        raise AssertionError("the kill came too late each time")
    status, _, errors = command("train-seg", *arguments)
    assert status == 0, errors
    assert "train-seg (resuming)" in errors
    assert weights(config) == weights(undisturbed)
    log = (config.run / "log.jsonl").read_text()
    assert 12 <= log.count('"network": "seg"') <= 13


def in_two_processes(jobs, folder):
    """Runs (epoch before which all stop, command) one after the other, as torchrun starts them; gives stderr."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(Path(__file__).with_name("in_turn.py")), str(folder), json.dumps(jobs)]
    command = [sys.executable, *launcher, *program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def uneven(images, tmp_path):
    """The true masks, but nothing is known of half of the images: shares of a batch differ in known pixels."""
    folder = tmp_path / "uneven"
    shutil.copytree(images / "masks", folder)
    for path in sorted(folder.iterdir())[::2]:
        mask = read_mask(path)
        mask[4:] = 255
        write_mask(path, mask)
    return folder


def test_two_processes_train_each_network_as_one_does(copy_of_run, finished, settings, uneven, tmp_path):
    """Batches of five and three images, so that shares differ; then the same, stopped and resumed: the same bytes."""
    # Adam divides a gradient by its size, also one that is rounding alone: AMN learns at its published, low rates.
    rates = {
        "cam": ("lr=0.001", "new_lr=0.01", "crop=64"),
        "amn": ("lr=5e-6", "new_lr=1e-4", "crop=64"),
        "irn": ("lr=0.001", "new_lr=0.01"),
    }
    of_seg = (
        f"train_seg.masks={uneven}", "train_seg.batch=3", "train_seg.iterations=20", "train_seg.checkpoint_every=4",
        "train_seg.lr=0.01",
    )  # fmt: skip
    names = [one.name for one in pipeline.STAGES if (finished.run / "stages" / f"{one.name}.json").exists()]
    runs, jobs = {}, []
    for name in (*rates, "seg"):
        stage, changes = (
            f"train-{name}",
            [f"train_{name}.{one}" for one in ("epochs=10", "batch=5", *rates.get(name, ()))],
        )

        def new(which, name=name, stage=stage, changes=changes):
            if name == "seg":
                return settings(which, *of_seg)
            config, file = copy_of_run(f"{name}-{which}", tuple(names[names.index(stage) :]), *changes)
            return config, [str(file), *(word for change in changes for word in ("--set", change))]

        one, two, again = new("one"), new("two"), new("again")
        assert run_stage(one[0], stage)
        runs[name] = [config for config, _ in (one, two, again)]
        jobs += [(stop, [stage, *words]) for (_, words), stop in ((two, None), (again, 3), (again, None))]
    errors = in_two_processes(jobs, tmp_path)
    assert [errors.count(f"train-{name} (resuming)") for name in runs] == [1] * 4
    for name, configs in runs.items():
        files = [config.run / "weights" / f"{name}.safetensors" for config in configs]
        alone, together = map(load_file, files[:2])
        assert set(alone) == set(together)
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=0, atol=1e-5)
        losses = [read_losses(Workspace(config), name) for config in configs]
        assert len(losses[0]) == (5 if name == "seg" else 10)  # 20 steps
        np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)
        assert losses[2] == losses[1]
        assert files[2].read_bytes() == files[1].read_bytes()
    torch.manual_seed(configs[0].seed)
    start = MultiScale(DeepLabV2(3, "test_resnet")).state_dict()
    assert max((alone[key] - start[key]).abs().max() for key in start if "conv" in key) > 1e-2  # it has moved
    log = (configs[1].run / "log.jsonl").read_text()
    assert log.count('"network": "seg"') == 5  # one of them writes
    assert log.count('"event": "start"') == 1
    assert json.loads(read_origin(files[1]))["processes"] == 2


class OneOf(Processes):
    """One of several processes that do not exist; keeps what it tells them."""

    group = None

    def __init__(self, rank, count):
        super().__init__(rank, count)
        self.words = []

    def _broadcast(self, begin):
        self.words.append(begin)
        return begin


def test_the_other_processes_begin_or_leave_with_the_first(settings, monkeypatch):
    config, _ = settings("run", "train_seg.iterations=2")

    def join(processes):
        monkeypatch.setattr(runner, "joined", lambda device: contextlib.nullcontext(processes))
        return processes

    for expected in (True, False):  # trained, and found up to date
        processes = join(OneOf(0, 2))
        assert train(config) is expected
        assert processes.words == [expected]
    (config.run / "stages" / "train-seg.json").unlink()
    refused, _ = settings("run", "train_seg.masks=null")
    processes = join(OneOf(0, 2))
    with pytest.raises(InputError):
        train(refused)
    assert processes.words == [False]
    join(OneOf(1, 2))
    before = sorted(config.run.rglob("*"))
    assert train(config) is False  # told to leave
    assert sorted(config.run.rglob("*")) == before
    join(OneOf(0, 3))
    with pytest.raises(InputError, match="seg: a batch of 2 does not give 3 processes an image each"):
        train(config, overwrite=True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="make-cam runs in one process, torchrun started 2; only the stages"):
        run_stage(config, "make-cam")


@pytest.mark.parametrize(("pictures_of_batch", "count"), [(10, 1), (10, 2), (5, 2), (7, 4), (4, 4)])
def test_shares_make_the_batch(pictures_of_batch, count):
    batch = [(0, k) for k in range(pictures_of_batch)]
    shares = [Processes(rank, count).share(batch) for rank in range(count)]
    assert [key for share in shares for key in share] == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_weights_say_where_they_come_from(settings, images):
    config, _ = settings("run")
    train(config)
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    found = json.loads(read_origin(config.run / "weights" / "seg.safetensors"))
    assert found["list_sha256"] == hashlib.sha256((images / "ids.txt").read_bytes()).hexdigest()
    digests = [hashlib.sha256((images / "masks" / f"{id}.png").read_bytes()).digest() for id in dataset.ids]
    assert found["masks_sha256"] == hashlib.sha256(b"".join(digests)).hexdigest()
    assert (found["images"], found["seed"], found["processes"], found["torch"]) == (
        11,
        0,
        1,
        torch.__version__.split("+")[0],
    )
    again, _ = settings("again", "train_seg.momentum=0.5")
    train(again)
    assert json.loads(read_origin(again.run / "weights" / "seg.safetensors")) == found
    other, _ = settings("other", "seed=1")
    train(other)
    other_origin = json.loads(read_origin(other.run / "weights" / "seg.safetensors"))
    assert {name for name in found if found[name] != other_origin[name]} == {"seed", "start_weights_sha256"}


def test_without_a_folder_the_masks_of_the_run_are_needed(settings):
    config, _ = settings("run", "train_seg.masks=null")
    with pytest.raises(InputError, match="train-seg needs the outputs of make-mask"):
        train(config)


def test_missing_and_wrong_masks_are_named(settings, tmp_path, images):
    folder = tmp_path / "mine"
    folder.mkdir()
    config, _ = settings("run", f"train_seg.masks={folder}")
    with pytest.raises(InputError, match=r"mine: 11 ids \('demo_000', .*\) of 11 have no mask"):
        train(config)
    for path in (images / "masks").iterdir():
        Image.fromarray(np.zeros((5, 6), np.uint8)).save(folder / path.name)
    with pytest.raises(InputError, match=r"mask of image '.*': found \(5, 6\), expected the size of the image"):
        train(config)


def test_losses_are_those_of_the_last_training(settings):
    config, _ = settings("run")
    work = Workspace(config)
    assert read_losses(work, "seg") == []
    config.run.mkdir()

    def start(stage, resumed):
        work.log("start", stage=stage, resumed=resumed)

    def epoch(network, number, loss):
        work.log("epoch", network=network, epoch=number, loss=loss)

    start("train-seg", False)
    epoch("seg", 1, 9.0)
    start("train-seg", False)  # other settings
    epoch("seg", 1, 3.0)
    epoch("amn", 1, 7.0)
    epoch("seg", 2, 2.5)  # killed before its checkpoint, and so trained again
    with (config.run / "log.jsonl").open("a") as file:
        file.write('{"time": "2026\n')
    start("train-seg", True)
    epoch("seg", 2, 2.0)
    start("eval-seg", False)
    assert read_losses(work, "seg") == [3.0, 2.0]
