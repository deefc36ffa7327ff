"""A run's outputs in the layout of IRN's and AMN's code: what their steps read, and what comes back from there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.legacy import read_legacy
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.models import CamNet, load_published
from amn_fast.pipeline import run_stage
from amn_fast.pipeline.exporting import export
from amn_fast.pipeline.importing import import_before
from command_line import command

from .conftest import configure

RESNET = ("backbone=resnet50", "weights=null", "train_cam.epochs=1", "train_cam.crop=64")


def test_the_published_steps_find_files_that_they_can_read(finished, tmp_path):
    outcome = export(finished, tmp_path)
    dataset = open_dataset(finished.data.kind, finished.data.root, **finished.data.options)
    for id in dataset.ids:
        ours = read_activations(finished.run / "amn" / f"{id}.npz")
        theirs = np.load(tmp_path / "result" / "amn_cam" / f"{id}.npy", allow_pickle=True).item()
        assert theirs["keys"].tolist() == [key - 1 for key in ours.keys]
        if len(ours.keys):
            assert isinstance(theirs["cam"], torch.Tensor)
            assert len(theirs["cam"]) == len(ours.keys) + 1
            assert (theirs["high_res"][1:] == ours.full).all()
        for place, kind in (("ir_label", "cam_seed"), ("amn_ir_label", "amn_seed"), ("sem_seg", "masks")):
            with Image.open(tmp_path / "result" / place / f"{id}.png") as image:
                assert image.mode == "L"
                assert (np.asarray(image) == read_mask(finished.run / kind / f"{id}.png")).all()
    assert {place for place, said in outcome.items() if said == "written"} == {
        f"result/{name}" for name in ("cam", "ir_label", "amn_cam", "amn_ir_label", "sem_seg")
    }
    assert outcome["sess/res50_cam.pth"] == "the published networks are resnet50, and this is efficientnet_lite0"
    assert "'demo_000' is no number" in outcome["cls_labels.npy"]


@pytest.fixture
def numbered(images, tmp_path):
    """Two of the images under ids as VOC has them, and their label rows."""
    header, *rows = (images / "labels.csv").read_text().splitlines()
    labels = {f"2007_00000{n}": row.split(",", 1)[1] for n, row in enumerate(rows[:2])}
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for old, new in zip(rows, labels, strict=False):
            (found,) = (images / kind).glob(f"{old.split(',')[0]}.*")
            (tmp_path / "set" / kind / f"{new}{found.suffix}").write_bytes(found.read_bytes())
    (tmp_path / "set" / "ids.txt").write_text("\n".join(labels))
    (tmp_path / "set" / "labels.csv").write_text("\n".join([header, *(f"{id},{row}" for id, row in labels.items())]))
    (tmp_path / "set" / "classes.txt").write_text((images / "classes.txt").read_text())
    return tmp_path / "set", labels


def test_weights_and_labels_go_out_and_come_back(numbered, tmp_path):
    root, rows = numbered
    config = configure(tmp_path / "tiny.yaml", root, tmp_path / "run", *RESNET)
    run_stage(config, "train-cam")
    run_stage(config, "make-cam")
    options = [part for setting in RESNET for part in ("--set", setting)]
    status, output, errors = command("export-published", tmp_path / "tiny.yaml", tmp_path / "out", *options)
    assert status == 0, errors
    assert "sess/res50_cam.pth: written" in output
    assert "result/ir_label: refine-seed is not done" in output

    net = CamNet(3)
    load_published(tmp_path / "out" / "sess" / "res50_cam.pth", net)
    labels = read_legacy(tmp_path / "out" / "cls_labels.npy")
    assert {id: vector.tolist() for id, vector in labels.items()} == {
        int(id.replace("_", "")): [float(value) for value in row.split(",")] for id, row in rows.items()
    }

    back = configure(tmp_path / "back.yaml", root, tmp_path / "back", *RESNET)
    import_before(back, tmp_path / "out", "make-cam")
    assert (back.run / "weights" / "cam.safetensors").read_bytes() == (
        config.run / "weights" / "cam.safetensors"
    ).read_bytes()
    assert json.loads((back.run / "stages" / "train-cam.json").read_text())["measured"]["from"] == str(tmp_path / "out")
    run_stage(back, "make-cam")
    for id in rows:
        assert (back.run / "cam" / f"{id}.npz").read_bytes() == (config.run / "cam" / f"{id}.npz").read_bytes()


def test_a_run_without_outputs(images, tmp_path):
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "run")
    with pytest.raises(InputError, match="holds no finished stage under this configuration, nothing to export"):
        export(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_the_reference_code_are_not_replaced(finished, tmp_path):
    (tmp_path / "result" / "cam").mkdir(parents=True)
    (tmp_path / "result" / "cam" / "demo_000.npy").write_bytes(b"theirs")
    with pytest.raises(InputError, match="holds result/cam that no export wrote, expected another folder"):
        export(finished, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["demo_000.npy"]
    assert export(finished, tmp_path / "mine") == export(finished, tmp_path / "mine")
