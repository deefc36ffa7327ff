"""Trusted masks: in the place of seeds and masks, part of what results depend on, checked before anything runs."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from amn_fast import pipeline
from amn_fast.config import read_config, to_yaml
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.pipeline.dependencies import stages_of
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.runner import plan, status_of
from amn_fast.pipeline.table import stage_named
from amn_fast.pipeline.trainings import _read_seed
from amn_fast.steps.items import SeedDataset

from .conftest import configure


def due(config):
    work = Workspace(config)
    return [stage.name for stage in plan(work, stages_of(config))[0]]


def reasons(config, name):
    return status_of(Workspace(config), stage_named(name)).changed


@pytest.fixture
def trusted(images, tmp_path):
    """A full mask (with some 255), a scribble and a point of three images."""
    folder = tmp_path / "trusted"
    full, scribble, point = sorted(path.stem for path in (images / "masks").glob("demo_*.png"))[:3]
    ground_truth = {id: read_mask(images / "masks" / f"{id}.png") for id in (full, scribble, point)}
    ground_truth[full][:5] = 255
    line = np.full_like(ground_truth[scribble], 255)
    line[::7] = ground_truth[scribble][::7]
    dot = np.full_like(ground_truth[point], 255)
    at = tuple(np.argwhere(ground_truth[point] > 0)[30])
    dot[at] = ground_truth[point][at]
    for id, mask in {full: ground_truth[full], scribble: line, point: dot}.items():
        write_mask(folder / f"{id}.png", mask)
    return folder


def test_trusted_masks_replace_seeds_and_masks(copy_of_run, finished, images, trusted, tmp_path):
    plain, _ = copy_of_run("run")
    assert due(plain) == []
    config = configure(tmp_path / "trusted.yaml", images, plain.run, f"trusted={json.dumps(str(trusted))}")
    later = ["train-amn", "make-amn-cam", "refine-amn-seed", "train-irn", "make-mask", "check-run", "evaluate"]
    assert due(config) == later
    ids = sorted(path.stem for path in trusted.iterdir())
    for name in ("train-amn", "train-irn", "make-mask"):
        assert reasons(config, name) == [f"3 trusted masks added ({', '.join(ids)})"]
    with pytest.raises(InputError, match=r"trusted masks added .* pass --overwrite"):
        pipeline.run(config)
    pipeline.run(config, overwrite=True)
    assert due(config) == []
    for path in (config.run / "masks").iterdir():
        mask = read_mask(path)
        if path.stem in ids:
            np.testing.assert_array_equal(mask, read_mask(trusted / path.name))
        else:
            assert (mask != 255).all()
    weights = "weights/amn.safetensors"
    assert (config.run / weights).read_bytes() != (finished.run / weights).read_bytes()
    kept = read_config(config.run / "config.yaml")
    assert kept.trusted == trusted
    assert "trusted" in to_yaml(config)

    mask = read_mask(trusted / f"{ids[0]}.png")
    mask[6, 6] = 255
    write_mask(trusted / f"{ids[0]}.png", mask)
    assert reasons(config, "train-irn") == [f"1 trusted mask changed ({ids[0]})"]
    assert status_of(Workspace(config), stage_named("make-mask")).due == [ids[0]]
    (trusted / f"{ids[0]}.png").unlink()
    assert reasons(config, "make-mask") == [f"1 trusted mask removed ({ids[0]})"]


def test_training_sees_the_trusted_pixels_alone(finished, trusted):
    """The crops of an image with a scribble hold its labels and 255; those of the others hold their seed."""
    work = Workspace(finished)
    ids = work.dataset.ids

    def tensor(image):
        return torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))

    def seen(folder):
        seeds = partial(_read_seed, work.root / "cam_seed", folder)
        items = SeedDataset(work.dataset, seeds, tensor, 64, (1, 1), 0)
        return {id: np.asarray(items[0, index][1]) for index, id in enumerate(ids)}

    plain, mixed = seen(None), seen(trusted)
    scribbled = sorted(path.stem for path in trusted.iterdir())[1:]
    for id in ids:
        if id in scribbled:
            assert (mixed[id] == 255).mean() > 0.8 > (plain[id] == 255).mean()
        elif not (trusted / f"{id}.png").exists():
            np.testing.assert_array_equal(mixed[id], plain[id])


def test_bad_trusted_masks_are_refused_before_anything_runs(images, trusted, tmp_path):
    config = configure(tmp_path / "a.yaml", images, tmp_path / "run", f"trusted={json.dumps(str(trusted))}")
    path = sorted(trusted.iterdir())[0]
    good = path.read_bytes()
    size = read_mask(path).shape
    absent = Workspace(config).dataset.labels(path.stem).argmin() + 1
    cases = {
        "but its": lambda: write_mask(path, np.zeros((3, 4), np.uint8)),
        "unknown ids 9": lambda: write_mask(path, np.full(size, 9, np.uint8)),
        r"every pixel is 255": lambda: write_mask(path, np.full(size, 255, np.uint8)),
        "but the label of image": lambda: write_mask(path, np.full(size, absent, np.uint8)),
        "mask has to be a palette or grey PNG": lambda: Image.new("RGB", size[::-1]).save(path),
        "1 id .'nobody'. of 4 trusted masks belong to no image": lambda: (trusted / "nobody.png").write_bytes(good),
    }
    for reason, damage in cases.items():
        damage()
        with pytest.raises(InputError, match=reason):
            pipeline.run(config)
        path.write_bytes(good)
    (tmp_path / "empty").mkdir()
    for folder, reason in (
        (tmp_path / "none", "expected a folder of masks"),
        (tmp_path / "empty", "holds no trusted masks"),
    ):
        with pytest.raises(InputError, match=reason):
            pipeline.run(configure(tmp_path / "a.yaml", images, tmp_path / "run", f"trusted={json.dumps(str(folder))}"))
    with pytest.raises(InputError, match="apart from all that is read"):
        pipeline.run(configure(tmp_path / "a.yaml", images, trusted / "run", f"trusted={json.dumps(str(trusted))}"))
    assert not (tmp_path / "run").exists()
