"""The demo set: exact masks, the same bytes from the same seed, whole or not there."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("skimage")

from amn_fast.data import demo, open_dataset, require_complete
from amn_fast.data.masks import check_masks, write_mask
from amn_fast.errors import InputError, MissingExtra


def digest(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    return open_dataset("demo", tmp_path_factory.mktemp("demo") / "set")


def test_a_hundred_images_complete_and_checked(hundred):
    assert len(hundred.ids) == 100
    assert hundred.classes == ("cat", "cup", "person")
    require_complete(hundred)
    sizes = [hundred.image(id).shape for id in hundred.ids]
    assert all(176 <= side <= 224 for size in sizes for side in size[:2])
    assert len(set(sizes)) > 50


def test_truth_labels_and_masks_agree(hundred, tmp_path):
    for id in hundred.ids:
        write_mask(tmp_path / f"{id}.png", hundred.ground_truth(id))
    check_masks(tmp_path, hundred)
    for id in hundred.ids:
        ground_truth = hundred.ground_truth(id)
        assert set(np.unique(ground_truth)) <= {0, 1, 2, 3}
        np.testing.assert_array_equal(np.isin([1, 2, 3], ground_truth), hundred.labels(id))


def test_each_class_is_frequent_and_a_few_images_are_empty(hundred):
    labels = np.stack([hundred.labels(id) for id in hundred.ids])
    assert (labels.sum(0) >= 35).all()
    assert (labels.sum(1) == 0).sum() == 3
    assert 20 <= (labels.sum(1) == 2).sum() <= 35
    shares = [np.mean(hundred.ground_truth(id) > 0) for id in hundred.ids if hundred.labels(id).any()]
    assert min(shares) > 0.04
    assert 0.15 < np.mean(shares) < 0.35


def test_every_labelled_object_is_clearly_visible(hundred):
    for id in hundred.ids:
        ground_truth = hundred.ground_truth(id)
        for label in np.flatnonzero(hundred.labels(id)) + 1:
            assert np.mean(ground_truth == label) > 0.02


def test_the_mask_is_where_the_image_differs_from_its_background():
    # The same image with and without its objects differs inside the mask and nowhere far from it.
    import cv2

    for index in range(3):
        image, mask = demo.compose(index)
        rng = np.random.default_rng([0, index])
        height, width = (int(side) for side in rng.integers(176, 225, 2))
        background = demo._background(rng, height, width)
        changed = np.abs(image.astype(float) - background).max(2) > 12
        near = cv2.dilate((mask > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert changed[mask > 0].mean() > 0.9
        assert changed[~near].mean() < 1e-3


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, second, other = (
        demo.make_demo(tmp_path / name, 6, seed) for name, seed in zip("abc", (3, 3, 4), strict=True)
    )
    assert digest(first) == digest(second)
    assert digest(first)["images/demo_000.jpg"] != digest(other)["images/demo_000.jpg"]
    larger = digest(demo.make_demo(tmp_path / "d", 8, 3))
    assert all(larger[name] == value for name, value in digest(first).items() if name.endswith(("jpg", "png")))


def test_a_set_that_is_there_stays_as_it_is(tmp_path):
    path = demo.make_demo(tmp_path / "set", 2)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    demo.make_demo(path, 2)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    for arguments in ((3, 0), (2, 1)):
        with pytest.raises(InputError, match="set: holds something other than the demo set with n="):
            demo.make_demo(path, *arguments)


def test_a_image_taken_away_is_missed(tmp_path):
    path = demo.make_demo(tmp_path / "set", 3)
    (path / "images" / "demo_001.jpg").unlink()
    with pytest.raises(InputError, match=r"1 id \('demo_001'\) of 3 have no image"):
        require_complete(open_dataset("demo", path, n=3))


def test_other_files_are_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other"):
        demo.make_demo(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_broken_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "write_mask", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        demo.make_demo(tmp_path / "set", 2)
    assert not list(tmp_path.iterdir())


def test_a_number_of_images_out_of_range(tmp_path):
    for n in [0, -1, 1001]:
        with pytest.raises(InputError, match=f"n is {n}, expected 1 to 1000"):
            demo.make_demo(tmp_path / "set", n)


def test_a_negative_seed(tmp_path):
    with pytest.raises(InputError, match="seed is -1"):
        demo.make_demo(tmp_path / "set", 2, -1)


def test_without_scikit_image_the_extra_is_named(tmp_path, monkeypatch):
    demo._photo.cache_clear()
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"amn-fast\[demo\]"):
        demo.make_demo(tmp_path / "set", 1)
    assert not list(tmp_path.iterdir())
