"""Bad images, labels and files of earlier stages are named in one sentence."""

import io
import shutil

import numpy as np
import pytest
import torch

from amn_fast import pipeline
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.models import CamNet
from amn_fast.pipeline import runner, training
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.records import read_record, write_record
from command_line import refusal

from .conftest import configure


def test_bad_input_is_one_sentence_that_names_it(my_images, tmp_path, finished):
    root = my_images

    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    for spoil_it, words, sentence in (
        (lambda: cut(root / "images/demo_004.jpg"), [], "demo_004.jpg: is "),
        (lambda: cut(root / "images/demo_004.jpg"), ["workers=2"], "demo_004.jpg: is "),
        (
            lambda: (root / "labels.csv").write_text(
                (root / "labels.csv").read_text().replace("id,cat,cup,person", "id,cat,cup,unicorn")
            ),
            [],
            "unicorn",
        ),
        (lambda: (root / "ids.txt").open("a").write("ghost\n"), [], "1 id ('ghost') of 12 have no image"),
        (lambda: None, ["data.options.split=train"], "has no option 'split', expected images, labels"),
        (
            lambda: None,
            ["train_cam.lr=1e30", "train_cam.new_lr=1e30"],
            "cam: loss is NaN or infinite",
        ),
    ):
        shutil.rmtree(root)
        shutil.copytree(finished.data.root, root)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        config = configure(tmp_path / "a.yaml", root, tmp_path / "run", *words)
        spoil_it()
        with pytest.raises(InputError) as caught:
            pipeline.run_stage(config, "train-cam")
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run" / "weights").exists()


def replace(work, path, change):
    """Change an output as if its stage had made it so: a bad file that no record tells of."""
    change(path)
    stage = next(s for s in pipeline.STAGES if any(o.startswith(f"{path.parent.name}/") for o in s.outputs))
    stage = next((s for s in pipeline.STAGES if str(path.relative_to(work.root)) in s.outputs), stage)
    record = read_record(work.root, stage)
    for item in record.items.values():
        if str(path.relative_to(work.root)) in item.outputs:
            item.outputs[str(path.relative_to(work.root))] = work.contents.hash(path)
    write_record(work.root, stage, record)


def test_bad_files_of_earlier_stages_are_named(copy_of_run, monkeypatch):
    monkeypatch.setattr(runner, "require_upstream", lambda work, stage: None)

    def shorter(path):
        path.write_bytes(path.read_bytes()[:-30])

    def cut(path):
        path.write_bytes(path.read_bytes()[:100])

    def larger(path):
        height, width = read_mask(path).shape
        write_mask(path, np.zeros((height + 1, width), np.uint8))

    def unknown(path):
        write_mask(path, np.full(read_mask(path).shape, 4, np.uint8))

    def other_image(path):
        shutil.copyfile(path.parent / "nothing.npz", path)

    def other_network(path):
        shutil.copyfile(path.parent / "irn.safetensors", path)

    for number, (stage, name, change, sentence) in enumerate(
        (
            ("train-amn", "cam_seed/demo_002.png", larger, "seed of image 'demo_002': found"),
            ("train-amn", "cam_seed/demo_002.png", unknown, "'demo_002': holds label 4, expected 0..3 or 255"),
            ("refine-seed", "cam/demo_005.npz", shorter, "cam/demo_005.npz cannot be read: "),
            ("make-mask", "amn/demo_005.npz", shorter, "amn/demo_005.npz cannot be read: "),
            ("make-mask", "amn/demo_002.npz", other_image, "amn/demo_002.npz: found activations of (90, 111)"),
            ("evaluate", "edge/demo_005.npz", shorter, "edge/demo_005.npz cannot be read: "),
            ("evaluate", "masks/demo_002.png", larger, "but the ground truth of demo_002 is"),
            ("make-cam", "weights/cam.safetensors", other_network, "weights/cam.safetensors do not fit: "),
            ("make-cam", "weights/cam.safetensors", cut, "weights/cam.safetensors do not fit: "),
        )
    ):
        config, _ = copy_of_run(f"run{number}", (stage,))
        replace(Workspace(config), config.run / name, change)
        with pytest.raises(InputError) as caught:
            pipeline.run_stage(config, stage)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_that_does_not_fit(copy_of_run, monkeypatch):
    config, _ = copy_of_run("run", ("train-amn",))
    save = training._save

    def stop(path, net, *arguments):
        save(path, net, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_stage(config, "train-amn")
    monkeypatch.undo()
    (checkpoint,) = config.run.rglob("*.checkpoint.pt")
    data, other = checkpoint.read_bytes(), io.BytesIO()
    torch.save({"net": CamNet(3, "efficientnet_lite0").state_dict(), "optimizer": {}, "epochs": 1}, other)
    for damaged in (b"not a checkpoint", data[:-1000], other.getvalue()):  # cut; another network's
        checkpoint.write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            pipeline.run_stage(config, "train-amn")
        assert str(caught.value).startswith(f"checkpoint {checkpoint} does not fit: ")
        assert str(caught.value).endswith("; remove it to train from the start")
    checkpoint.unlink()
    assert pipeline.run_stage(config, "train-amn")


def test_a_damaged_record_is_named(copy_of_run):
    config, file = copy_of_run("run")
    record = config.run / "stages" / "make-cam.json"
    for text in ('{"done": tr', "[]", '{"items": 3}', '{"items": {"a": 1}, "settings": {}, "measured": {}}', "\xff"):
        record.write_text(text, encoding="latin-1")
        assert refusal("run", file) == f"{record} is no record of a stage, remove it to run make-cam again"
