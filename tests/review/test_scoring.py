"""`score`: figures against a direct computation, and what is said of images that could not be compared."""

import json

import numpy as np
import pytest

pytest.importorskip("typer")
from PIL import Image
from typer.testing import CliRunner

from amn_fast.cli import app
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.review import export_masks, open_masks, score
from amn_fast.review.scoring import boundary_f


def slow_boundary_f(mask, true, label, radius):
    """From all pairs of boundary pixels."""

    def boundary(region):
        padded = np.pad(region, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(region & ~inner)

    own, other = (boundary((one == label) & (true != 255)) for one in (mask, true))
    if not len(own) or not len(other):
        return 0.0
    near = ((own[:, None] - other[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_boundary_f(seed):
    random = np.random.RandomState(seed)
    true = np.kron(random.choice([0, 1, 2, 255], (5, 6)), np.ones((7, 7))).astype(np.uint8)
    mask = np.roll(true, seed, 1)
    mask[mask == 255] = 2
    for tolerance in (None, 0, 3):
        found = boundary_f(mask, true, tolerance)
        assert set(found) == ({*mask[true != 255].tolist()} | {*true.ravel().tolist()}) - {0, 255}
        for label, value in found.items():
            assert value == pytest.approx(slow_boundary_f(mask, true, label, 1 if tolerance is None else tolerance))
    assert set(boundary_f(true, true).values()) == {1.0}


@pytest.fixture
def folders(tmp_path):
    random = np.random.RandomState(0)
    for id in ("a", "b", "c", "only true", "small"):
        true = np.kron(random.choice([0, 1, 2, 255], (4, 5), p=[0.4, 0.3, 0.2, 0.1]), np.ones((9, 8))).astype(np.uint8)
        write_mask(tmp_path / "true" / f"{id}.png", true, palette=False)
        mask = np.where(random.rand(*true.shape) < 0.2, random.choice([0, 1, 2, 255], true.shape), true % 255)
        if id != "only true":
            write_mask(tmp_path / "masks" / f"{id}.png", mask[: 9 if id == "small" else None])
    write_mask(tmp_path / "masks" / "only mask.png", np.zeros((3, 3), np.uint8))
    (tmp_path / "masks" / "d.png").write_bytes(b"damaged")
    write_mask(tmp_path / "true" / "d.png", np.ones((3, 3), np.uint8))
    (tmp_path / "classes.txt").write_text("[red]one\ntwo words\n")
    return tmp_path


def test_score(folders):
    found = score(folders / "masks", folders / "true")
    assert (found.images, found.scored) == (6, 3)
    assert (found.without_mask, found.without_ground_truth) == (["only true"], ["only mask"])
    assert set(found.failures) == {"small", "d"}
    counts = np.zeros((3, 4), int)
    for id in "abc":
        mask, true = (np.array(Image.open(folders / kind / f"{id}.png")) for kind in ("masks", "true"))
        for t, m in zip(true.ravel(), mask.ravel(), strict=True):
            if t != 255:
                counts[t, min(m, 3)] += 1
    assert found.confusion == counts.tolist()
    iou = [counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(3)]
    assert found.scores["iou"] == pytest.approx(iou, abs=1e-6)
    assert found.scores["miou"] == pytest.approx(np.mean(iou), abs=1e-6)
    assert found.scores["coverage"] == pytest.approx(counts[:, :3].sum() / counts.sum(), abs=1e-6)
    assert [id for id, _ in found.worst] == sorted("abc", key=dict(found.worst).get)
    assert found.boundary_f_by_class[0] is None
    assert found.boundary_f == pytest.approx(np.mean(found.boundary_f_by_class[1:]))


def test_score_of_coco_and_the_command(folders):
    """A COCO file of the ground truth gives the figures of the PNGs, as arguments of the command in either place."""
    (folders / "true" / "d.png").unlink()
    (folders / "masks" / "d.png").unlink()
    ground_truth = open_masks(folders / "true", classes=folders / "classes.txt")
    export_masks(ground_truth, folders / "coco", "coco")
    value = json.loads((folders / "coco" / "annotations.json").read_text())
    assert value["categories"][-1] == {"id": 255, "name": "unknown", "supercategory": ""}
    (folders / "masks" / "small.png").unlink()
    plain = score(folders / "masks", folders / "true", ("[red]one", "two words"))
    assert score(folders / "masks", folders / "coco/annotations.json", ("[red]one", "two words")) == plain
    by_itself = score(folders / "coco/annotations.json", folders / "coco/annotations.json")
    assert by_itself.classes == ["background", "[red]one", "two words", "unknown"]
    assert (by_itself.scores["miou"], by_itself.scored) == (1, 5)
    out = folders / "scores.json"
    arguments = ["score", str(folders / "masks"), str(folders / "true"), "--classes", str(folders / "classes.txt")]
    shown = CliRunner().invoke(app, [*arguments, "--output", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "3 of 5 images with ground truth scored; 2 have no mask" in shown.output
    assert "[red]one" in shown.output
    assert json.loads(out.read_text())["scores"] == plain.scores


def test_refusals(folders, tmp_path):
    (tmp_path / "none").mkdir()
    write_mask(tmp_path / "binary" / "a.png", np.array([[0, 255]]))
    for arguments, reason in (
        ((folders / "masks", tmp_path / "binary"), r"hold only 0 and 255, .*; store the foreground as a class id"),
        ((folders / "no", folders / "true"), "no such folder"),
        ((tmp_path / "none", folders / "true"), "holds no masks"),
        ((folders / "masks", folders / "true", ("one",)), "expected 0..1 or 255"),
    ):
        if len(arguments) == 3:
            assert all(reason in text for id, text in score(*arguments).failures.items() if id in "abc")
            continue
        with pytest.raises(InputError, match=reason):
            score(*arguments)
