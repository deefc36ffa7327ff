"""`amn-fast refine`: the files of other methods, their background rules, refiners, votes; one bad file, resuming."""

import json

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from amn_fast.crf_folder import PRESETS, Settings, find_pairs, refine_folder
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.ops.mask import make_mask
from amn_fast.ops.unary import unary_from_labels, unary_from_softmax
from amn_fast.refine import BGR_MEAN, RefineSettings, read_scores, refine, refine_outputs, upsample, vote
from command_line import command

SIZE = (24, 34)
RANDOM = np.random.default_rng(0)


def photo(seed=0):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    plain = np.stack([90 + 70 * (x > SIZE[1] // 2), 4 * y, 3 * x], -1) + np.random.default_rng(seed).normal(
        0, 2, (*SIZE, 3)
    )
    return np.clip(plain, 0, 255).astype(np.uint8)


MAPS = RANDOM.random((2, *SIZE)).astype(np.float16) * (np.arange(SIZE[1]) > 16)
LOGITS = RANDOM.normal(0, 2, (1, 4, 6, 9)).astype(np.float32)
PROBABILITIES = RANDOM.dirichlet(np.ones(3), SIZE).transpose(2, 0, 1).astype(np.float32)
FILES = {  # method: what its file holds
    "clip-es": {"keys": np.array([14, 2]), "attn_highres": MAPS},
    "irn": {"keys": np.array([14, 2]), "cam": MAPS[:, ::4, ::4], "high_res": MAPS.astype(np.float32)},
    "seco": {"msc_seg": LOGITS},
    "excel": {"msc_seg": LOGITS},
    "probabilities": PROBABILITIES,
}


@pytest.fixture
def folders(tmp_path):
    """Images a and b, and an empty folder for the method's files."""
    images, given = tmp_path / "images", tmp_path / "given"
    images.mkdir(), given.mkdir()
    for seed, id in enumerate("ab"):
        Image.fromarray(photo(seed)).save(images / f"{id}.png")
    return images, given, tmp_path / "out"


def expected_mask(method):
    """By hand, for image a."""
    import torch

    image = photo(0)
    gaussian, bilateral = PRESETS["irn" if method in ("irn", "probabilities") else "deeplab"]
    crf = DenseCRF(image, gaussian=gaussian, bilateral=bilateral)
    maps = MAPS.astype(np.float32)
    if method == "clip-es":
        q = crf.marginals(unary_from_softmax(np.concatenate([1 - maps.max(0, keepdims=True), maps])))
        return np.where(q.max(0) < 0.95, 255, np.array([0, 15, 3])[q.argmax(0)])
    if method == "irn":
        best = np.concatenate([np.full((1, *SIZE), 0.25, np.float32), maps]).argmax(0)
        return np.array([0, 15, 3])[crf.labels(unary_from_labels(best, 3, 0.7, zero_unsure=False))]
    if method == "probabilities":
        return crf.labels(unary_from_softmax(PROBABILITIES))
    up = torch.nn.functional.interpolate(torch.tensor(LOGITS), size=SIZE, mode="bilinear", align_corners=False)
    return crf.labels(unary_from_softmax(up.softmax(1)[0].numpy()))


@pytest.mark.parametrize("method", FILES)
def test_methods(method, folders):
    pytest.importorskip("torch")
    images, given, out = folders
    for id in "ab":
        np.save(given / f"{id}.npy", FILES[method])
    settings = RefineSettings.of_method(method)
    assert refine_outputs(given, out, settings, images=images) == 2
    found, expected = read_mask(out / "a.png"), expected_mask(method)
    assert (found != expected).mean() <= (0.01 if method in ("seco", "excel") else 0)  # OpenCV's and PyTorch's bilinear
    assert Image.open(out / "a.png").mode == "P"
    assert refine_outputs(given, out, settings, images=images, threads=3) == 0
    record = (out / "crf.jsonl").read_text().splitlines()
    assert json.loads(record[0])["settings"]["method"] == method


def test_probabilities_are_what_crf_does(folders):
    images, given, out = folders
    np.save(given / "a.npy", PROBABILITIES)
    labels = PROBABILITIES.argmax(0).astype(np.uint8) + np.uint8(1)
    labels[3:5] = 255
    write_mask(given / "b.png", labels)
    pairs, _ = find_pairs(images, given, out / "crf")
    refine_folder(pairs, out / "crf", Settings())
    refine_outputs(given, out / "refine", RefineSettings(), images=images)
    for id in "ab":
        assert (out / "crf" / f"{id}.png").read_bytes() == (out / "refine" / f"{id}.png").read_bytes()


def test_refiners(folders):
    torch = pytest.importorskip("torch")
    from amn_fast.ops.local_affinity import pixel_adaptive_refinement

    images, given, out = folders
    np.save(given / "a.npy", FILES["irn"])
    edge = RANDOM.random((1, 6, 9)).astype(np.float32)
    (out / "edges").mkdir(parents=True)
    np.save(out / "edges" / "a.npy", edge)
    scores = np.concatenate([np.full((1, *SIZE), 0.25), MAPS]).astype(np.float32)
    names = np.array([0, 15, 3], np.uint8)
    guide = torch.tensor(photo(0)).permute(2, 0, 1)[None].float() / 255
    refined = pixel_adaptive_refinement(guide, torch.tensor(scores)[None])[0]
    expected = {
        "none": names[scores.argmax(0)],
        "par": names[refined.argmax(0)],
        "walk": make_mask(upsample(MAPS.astype(np.float32), (6, 9)), edge, names, SIZE, threshold=0.25),
    }
    for refiner, mask in expected.items():
        settings = RefineSettings.of_method("irn", refiner=refiner)
        refine_outputs(given, out / refiner, settings, images=images, edges=out / "edges")
        np.testing.assert_array_equal(read_mask(out / refiner / "a.png"), mask, err_msg=refiner)
    # The edge map is an input like the others: a new one gives a new mask.
    np.save(out / "edges" / "a.npy", edge * 0.5)
    settings = RefineSettings.of_method("irn", refiner="walk")
    assert refine_outputs(given, out / "walk", settings, images=images, edges=out / "edges") == 1


def test_image_as_deeplab_pytorch_shows_it_to_the_crf(tmp_path):
    np.save(tmp_path / "a.npy", PROBABILITIES)
    settings = RefineSettings(bgr_minus_mean=True)
    image = photo(0)
    shown = np.empty_like(image)
    for y, x in np.ndindex(SIZE):
        shown[y, x] = [int(float(v) - m) % 256 for v, m in zip(image[y, x, ::-1], np.float32(BGR_MEAN), strict=True)]
    expected = DenseCRF(shown).labels(unary_from_softmax(PROBABILITIES))
    from amn_fast.refine import _shown

    np.testing.assert_array_equal(_shown(image, settings), shown)
    scores = read_scores(tmp_path / "a.npy", settings, SIZE)
    np.testing.assert_array_equal(refine(_shown(image, settings), scores, settings), expected)


def test_votes(folders):
    labels = np.zeros((6, 8), np.uint8)
    labels[1:4, 1:4], labels[4, 5:7], labels[0, 0], labels[5, 5] = 1, 2, 255, 3
    inside = np.zeros_like(labels, bool)  # 6 of its 9 pixels lie in class 1
    inside[1:4, 2:5] = True
    covering = np.zeros_like(inside)  # covers class 2, most of it outside
    covering[3:6, 4:8] = True
    half = np.zeros_like(inside)  # exactly half in class 1: no vote
    half[1, 3:5] = True
    expected = labels.copy()
    expected[1:4, 1] = 0
    expected[inside] = 1
    taken = covering & ~inside
    expected[taken] = 2
    expected[5, 5] = 3  # its own class keeps it, as no segment votes for class 3
    expected[3, 4] = 1  # both take it: the lowest
    found = vote(labels, [inside, covering, half])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(vote(labels, []), labels)

    images, given, out = folders
    big = np.zeros(SIZE, np.uint8)
    big[5:10, 5:12] = 7
    segment = np.zeros(SIZE, np.uint8)
    segment[5:11, 5:12] = 255
    for id in "ab":
        write_mask(given / f"{id}.png", big)
    (out / "proposals" / "a").mkdir(parents=True)
    Image.fromarray(segment).save(out / "proposals" / "a" / "0.png")
    np.save(out / "proposals" / "b.npy", np.where(segment > 0, 4, -1))
    settings = RefineSettings.of_method("sam-votes")
    assert refine_outputs(given, out / "masks", settings, images=images, proposals=out / "proposals") == 2
    for id in "ab":
        np.testing.assert_array_equal(read_mask(out / "masks" / f"{id}.png"), np.where(segment > 0, 7, 0))


BAD = [  # method, content, message
    ("clip-es", {"keys": [1], "high_res": MAPS}, "expected an entry attn_highres; is the method right"),
    ("clip-es", {"keys": np.array([1]), "attn_highres": MAPS}, r"expected \(1, H, W\), one map per key"),
    ("clip-es", {"keys": np.array([1, 1]), "attn_highres": MAPS}, "expected different classes in 0..253"),
    ("irn", {"keys": np.array([1, 300]), "high_res": MAPS}, "expected different classes"),
    ("irn", {"keys": np.array([1, 2]), "high_res": -MAPS}, "expected numbers of at least 0"),
    ("irn", {"keys": np.array([1, 2]), "high_res": MAPS * np.nan}, "NaN or infinity"),
    ("irn", {"keys": np.array([1, 2]), "high_res": MAPS[:, :5]}, "has shape .*, but its image is 34 x 24 pixels"),
    ("seco", {"msc_seg": LOGITS[0]}, r"expected \(1, C, h, w\)"),
    ("excel", {"msc_seg": np.array(["a"])}, "of <U1, expected numbers"),
    ("seco", LOGITS, "expected a pickled"),
    ("probabilities", PROBABILITIES * 9, "expected probabilities"),
]


def test_one_bad_file_costs_no_other_mask(folders):
    images, given, out = folders
    for number, (method, content, message) in enumerate(BAD):
        np.save(given / "a.npy", FILES[method])
        np.save(given / "b.npy", content)
        folder = out / str(number)
        with pytest.raises(InputError, match=rf"1 of 2 .*b\.npy.*{message}"):
            refine_outputs(given, folder, RefineSettings.of_method(method), images=images)
        assert sorted(path.name for path in folder.glob("*.png")) == ["a.png"]


def test_missing_folders_and_settings(folders):
    images, given, out = folders
    np.save(given / "a.npy", PROBABILITIES)
    for options, message in (
        ({"refiner": "walk"}, "needs a folder of edges"),
        ({"method": "sam-votes"}, "needs a folder of proposals"),
        ({"method": "wsss"}, "method is 'wsss'"),
        ({"refiner": "gcn"}, "refiner is 'gcn'"),
        ({"confidence": 95}, "confidence is 95"),
        ({"background": float("nan")}, "background is nan"),
    ):
        with pytest.raises(InputError, match=message):
            refine_outputs(given, out, RefineSettings(**options), images=images)
    with pytest.raises(InputError, match=r"1 of 1 .*edges.a\.npy: there is no such file"):
        refine_outputs(given, out, RefineSettings(refiner="walk"), images=images, edges=out / "edges")


def test_command(folders):
    images, given, out = folders
    np.save(given / "a.npy", FILES["clip-es"])
    words = ("refine", given, out, "--images", images, "--method", "clip-es", "--confidence", "0.5")
    for text in ("1 computed, 0 skipped", "0 computed, 1 skipped"):
        status, output, errors = command(*words)
        assert status == 0, errors
        assert text in output
    status, _, errors = command(*words, "--refiner", "none")
    assert (status, "--overwrite" in errors) == (1, True)
    settings = json.loads((out / "crf.jsonl").read_text().splitlines()[0])["settings"]
    assert (settings["method"], settings["confidence"], settings["bilateral"]) == ("clip-es", 0.5, [67, 3, 4])
