"""`Labeler`: the masks of the stages, in memory."""

import json
import shutil

import numpy as np
import pytest
import torch

import amn_fast
from amn_fast.config import read_config
from amn_fast.data.image import ImageBytes, read_image, read_mask
from amn_fast.errors import InputError
from amn_fast.label.finished import identity_of
from amn_fast.pipeline.folder import Workspace
from amn_fast.pipeline.table import STAGES

CLASSES = ("cat", "cup", "dog")


def stage_masks(run, images, tmp_path):
    """The masks that the stages write for the images, with the run's weights."""
    folder = shutil.copytree(run, tmp_path / "stages")
    data = {"kind": "folder", "root": str(images.parent), "options": {"labels": "labels.json"}}
    config = read_config(folder / "config.yaml", [f"run={json.dumps(str(folder))}", f"data={json.dumps(data)}"])
    work = Workspace(config)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for stage in STAGES:
        if stage.per_image:
            function = stage.load()(work, lambda path: path.parent.mkdir(exist_ok=True) or path)
            for id in work.dataset.ids:
                function(id)
    torch.set_num_threads(before)
    return {id: (folder / "masks" / f"{id}.png", work.dataset.labels(id)) for id in work.dataset.ids}


def test_the_masks_are_those_of_the_stages(run, images, tmp_path):
    labeler = amn_fast.Labeler(run)
    shown, shares = 0, []
    for id, (path, vector) in stage_masks(run, images, tmp_path).items():
        names = [name for name, on in zip(CLASSES, vector, strict=True) if on]
        found = labeler.label(images / f"{id}.png", names)
        expected = read_mask(path)
        np.testing.assert_array_equal(found.mask, expected, err_msg=id)
        assert found.labels == tuple(names)
        assert found.areas == tuple(int((expected == key).sum()) for key in found.keys)
        assert not found.predicted
        assert found.scores.shape == (len(names), *expected.shape)
        assert 0 <= found.doubt <= 1
        shown += bool(names)
        shares.append((expected > 0).mean())
    assert shown > 20
    assert 0.05 < np.mean(shares) < 0.95  # masks of one colour would all be equal


def test_forms_of_image_and_labels(run, images):
    labeler = amn_fast.Labeler(run, thresholds={"cat": 0.0, "cup": 1.0, "dog": 0.0})
    path = images / "image_00000.png"
    first = labeler.label(path, ["dog", "cat"])
    for image in (str(path), read_image(path), ImageBytes("a.png", path.read_bytes())):
        for labels in (("cat", "dog"), np.array([True, False, True]), None):
            found = labeler.label(image, labels)
            np.testing.assert_array_equal(found.mask, first.mask)
            assert found.predicted == (labels is None)
    assert labeler.probabilities(path).shape == (3,)
    np.testing.assert_array_equal(labeler.label(path, []).mask, np.zeros_like(first.mask))


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (None, ["cow"], "labels: 'the image' has the unknown class 'cow'; the classes are cat, cup, dog"),
        (None, "cat", "labels are the text 'cat', expected a list of class names"),
        (None, np.array([True]), r"labels have shape \(1,\), expected \(3,\), one for each class"),
        (np.zeros((4, 4)), [], r"image has shape \(4, 4\) and type float64, expected \(H, W, 3\) uint8"),
        (ImageBytes("a.tar/b.png", b"\x89PNG"), [], "a.tar/b.png: is a PNG image that is truncated or damaged"),
    ],
)
def test_wrong_input(run, images, image, labels, message):
    with pytest.raises(InputError, match=message):
        amn_fast.Labeler(run).label(images / "image_00000.png" if image is None else image, labels)


def test_thresholds_that_the_run_has_chosen(run, images, tmp_path):
    copy = shutil.copytree(run, tmp_path / "auto")
    text = (run / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("{fg: 0.6, bg: 0.3}", "auto"))
    with pytest.raises(InputError, match=r"cam_seed.json does not exist, expected the thresholds that the run has"):
        amn_fast.Labeler(copy)
    (copy / "thresholds").mkdir()
    masks, identities = [], []
    for pair in ([0.6, 0.3], [0.9, 0.85]):
        (copy / "thresholds" / "cam_seed.json").write_text(json.dumps({"pair": pair}))
        masks.append(amn_fast.Labeler(copy).label(images / "image_00000.png", ["cat", "dog"]).mask)
        identities.append(identity_of(copy))
    expected = amn_fast.Labeler(run).label(images / "image_00000.png", ["cat", "dog"]).mask
    np.testing.assert_array_equal(masks[0], expected)
    assert identities[0] == identity_of(run) != identities[1]


def test_an_unfinished_run(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "weights" / "irn.safetensors").unlink()
    with pytest.raises(InputError, match=r"copy: has no weights/irn.safetensors, expected the folder of a finished"):
        amn_fast.Labeler(copy)
    with pytest.raises(InputError, match="thresholds: 'cow' is no class of"):
        amn_fast.Labeler(run, thresholds={"cow": 0.3})
