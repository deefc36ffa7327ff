"""eval-seg: scores against ones computed image by image, the server's masks, and what is kept of a result."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.models import DeepLabV2, MultiScale, prepare
from amn_fast.ops.dense_crf import DenseCRF
from amn_fast.pipeline import run_stage, segmentation
from amn_fast.pipeline.runner import is_up_to_date
from amn_fast.pipeline.training import load_weights, read_origin
from command_line import command

from .conftest import configure

SETTINGS = (
    "train_seg.recipe=small", "train_seg.backbone=efficientnet_lite0", "train_seg.crop=96", "train_seg.batch=4",
    "train_seg.iterations=10", "train_seg.checkpoint_every=10", "train_seg.lr=0.0001",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The run folder of a network that has learnt from the true masks for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    config = configure(folder / "a.yaml", images, folder / "run", *SETTINGS, f"train_seg.masks={images / 'masks'}")
    run_stage(config, "train-seg")
    return config


@pytest.fixture
def settings(trained, images, tmp_path):
    """Gives the configuration of a copy of that run, and the words of its command line."""

    def make(*overrides, name="run"):
        if not (tmp_path / name).exists():
            shutil.copytree(trained.run, tmp_path / name)
        everything = (*SETTINGS, f"train_seg.masks={images / 'masks'}", *overrides)
        config = configure(tmp_path / "a.yaml", images, tmp_path / name, *everything)
        return config, [tmp_path / "a.yaml", *(word for override in everything for word in ("--set", override))]

    return make


def evaluate(config):
    return run_stage(config, "eval-seg")


def record(config):
    return json.loads((config.run / "segmentation.json").read_text())


def expected_labels(config, dataset, flip=False, window=None):
    """(label map, label map after CRF) of each image, one after the other."""
    net = MultiScale(DeepLabV2(3, "efficientnet_lite0"), (0.5, 0.75))
    load_weights(config.run / "weights" / "seg.safetensors", net)
    net = prepare(net)
    for id in dataset.ids:
        image = dataset.image(id)
        found = net.probabilities(net.base.normalize(image), flip, window).numpy()
        crf = DenseCRF(image, gaussian=(1, 3), bilateral=(67, 3, 4))
        yield id, found.argmax(0), crf.labels(-np.log(np.clip(found, 1e-5, 1)))


def miou(pairs, classes=4):
    """Mean IoU over the classes that the ground truth shows."""
    table = np.zeros((classes, classes))
    for labels, ground_truth in pairs:
        known = ground_truth != 255
        np.add.at(table, (ground_truth[known], labels[known]), 1)
    shown = table.sum(1) > 0
    return (np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table)))[shown].mean()


@pytest.mark.parametrize("flip", [False, True])
def test_scores_are_those_of_the_images_one_by_one(settings, flip):
    config, _ = settings(f"eval_seg.flip={str(flip).lower()}", "eval_seg.save_masks=true")
    assert evaluate(config)
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    plain, refined = [], []
    for id, labels, after in expected_labels(config, dataset, flip):
        plain.append((labels, dataset.ground_truth(id)))
        refined.append((after, dataset.ground_truth(id)))
        saved = read_mask(config.run / "segmentation/results/VOC2012/Segmentation/comp6_test_cls" / f"{id}.png")
        np.testing.assert_array_equal(saved, after)
    found = record(config)
    assert found["scored_images"] == 11
    assert found["without_crf"]["miou"] == pytest.approx(miou(plain), abs=1e-6)
    assert found["with_crf"]["miou"] == pytest.approx(miou(refined), abs=1e-6)
    assert found["with_crf"]["miou"] != found["without_crf"]["miou"]
    assert len(found["with_crf"]["scores"]["iou"]) == 4


def test_the_record_says_what_a_number_comes_from(settings):
    config, _ = settings("eval_seg.crf=false")
    evaluate(config)
    found = record(config)
    weights = (config.run / "weights" / "seg.safetensors").read_bytes()
    assert found["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert found["eval_seg"]["crf"] is False
    assert found["eval_seg"]["scales"] == [0.5, 0.75]
    assert found["train_seg"]["recipe"] == "small"
    assert (found["seed"], found["dataset"]["images"]) == (config.seed, 11)
    assert found["training"] == json.loads(read_origin(config.run / "weights" / "seg.safetensors"))
    assert found["training"]["images"] == 11
    assert set(found["environment"]) >= {"date", "machine", "python", "amn-fast", "torch", "numpy"}
    assert len(found["losses"]) == 1
    assert "with_crf" not in found
    assert json.loads((config.run / "metrics.json").read_text())["segmentation"] == found
    assert not (config.run / "segmentation").exists()


def test_the_same_scores_again_and_other_settings_evaluate_again(settings):
    config, _ = settings()
    assert evaluate(config)
    before = record(config)
    assert not evaluate(config)
    (config.run / "segmentation.json").unlink()
    assert evaluate(config)
    assert record(config) == before
    other, _ = settings("eval_seg.iterations=1")
    assert evaluate(other)
    assert record(other)["with_crf"] != before["with_crf"]
    assert record(other)["without_crf"] == before["without_crf"]


def test_pictures_of_another_set_need_no_labels_and_no_truth(settings, my_images):
    for path in (my_images / "masks").iterdir():
        if path.stem != "demo_001":
            path.unlink()
    options = "{masks: masks, classes: classes.txt, ids: mine.txt}"
    (my_images / "mine.txt").write_text("demo_001\ndemo_002\n")
    table = (my_images / "labels.csv").read_text().splitlines()
    (my_images / "labels.csv").write_text("\n".join(line for line in table if "demo_002" not in line) + "\n")
    config, _ = settings(
        f"eval_seg.data={{kind: folder, root: {my_images}, options: {options}}}", "eval_seg.save_masks=true"
    )
    evaluate(config)
    found = record(config)
    assert (found["dataset"]["images"], found["scored_images"]) == (2, 1)
    assert sorted(path.name for path in (config.run / segmentation.SERVER_LAYOUT).iterdir()) == [
        "demo_001.png",
        "demo_002.png",
    ]


def test_another_list_of_the_same_set_through_windows(settings, images):
    (images / "two.txt").write_text("demo_002\nnothing\n")
    config, _ = settings("eval_seg.options={ids: two.txt}", "eval_seg.window=64")
    evaluate(config)
    found = record(config)
    assert found["dataset"]["data"]["options"] == {"masks": "masks", "classes": "classes.txt", "ids": "two.txt"}
    assert found["dataset"]["list_sha256"] == hashlib.sha256((images / "two.txt").read_bytes()).hexdigest()
    assert found["training"]["list_sha256"] == hashlib.sha256((images / "ids.txt").read_bytes()).hexdigest()
    assert sorted(found["shown"]) == ["demo_002", "nothing"]
    assert found["shown"]["nothing"] is not None
    shown = config.run / "segmentation_shown"
    assert sorted(str(path.relative_to(shown)) for path in shown.rglob("*.png")) == [
        "crf/demo_002.png", "crf/nothing.png", "network/demo_002.png", "network/nothing.png",
    ]  # fmt: skip
    page = (config.run / "report.html").read_text()
    assert 'alt="Network and CRF of demo_002:' in page
    (images / "two.txt").unlink()


@pytest.fixture
def coco(images, tmp_path):
    """The images as a COCO set whose three categories have the ids 2, 17 and 90."""
    root = tmp_path / "coco"
    dataset = open_dataset("folder", images, masks="masks", classes="classes.txt", ids="ids.txt")
    (root / "val2014").mkdir(parents=True)
    images = []
    for number, id in enumerate(dataset.ids, 1):
        image = dataset.image(id)
        Image.fromarray(image).save(root / "val2014" / f"COCO_val2014_{number:012d}.png")
        write_mask(root / "masks" / f"{number:012d}.png", dataset.ground_truth(id))
        name = f"COCO_val2014_{number:012d}.png"
        images.append({"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
    categories = [{"id": id, "name": name} for id, name in zip((2, 17, 90), dataset.classes, strict=True)]
    (root / "annotations").mkdir()
    instances = {"images": images, "categories": categories, "annotations": []}
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(instances))
    return root


def test_masks_of_coco_hold_its_category_ids(settings, coco):
    config, words = settings(f"eval_seg.data={{kind: coco, root: {coco}, options: {{split: val2014, masks: masks}}}}")
    status, output, errors = command("eval-seg", *words, "--save-masks")
    assert status == 0, errors
    folder = config.run / "segmentation" / "results" / "COCO2014"
    assert str(folder) in output.replace("\n", "")
    dataset = open_dataset("coco", coco, split="val2014", masks="masks")
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:012d}.png" for number in range(1, 12)]
    for (id, _, after), name in zip(expected_labels(config, dataset), dataset.ids, strict=True):
        np.testing.assert_array_equal(read_mask(folder / f"{name}.png"), np.array([0, 2, 17, 90])[after], err_msg=id)
    segmentation.check_archive(folder, dataset)
    write_mask(folder / "000000000003.png", np.full(dataset.image("000000000003").shape[:2], 3, np.uint8))
    with pytest.raises(InputError, match=r"000000000003\.png: holds 3, which is the id of no class"):
        segmentation.check_archive(folder, dataset)
    write_mask(folder / "000000000003.png", np.full(dataset.image("000000000003").shape[:2], 91, np.uint8))
    with pytest.raises(InputError, match=r"unknown ids 91"):
        segmentation.check_archive(folder, dataset)


def test_a_set_of_other_classes_is_refused(settings, my_images):
    (my_images / "classes.txt").write_text("person\ncup\ncat\n")
    options = "{masks: masks, classes: classes.txt}"
    config, _ = settings(f"eval_seg.data={{kind: folder, root: {my_images}, options: {options}}}")
    with pytest.raises(
        InputError, match="has the classes person, cup, cat, expected those that the network was trained"
    ):
        evaluate(config)


def test_without_a_trained_network(settings):
    config, _ = settings("train_seg.lr=0.02")
    with pytest.raises(InputError, match="eval-seg needs the outputs of train-seg"):
        evaluate(config)


def test_an_error_in_the_pool_names_the_picture_and_ends_the_stage(settings, monkeypatch):
    config, _ = settings()
    crf = segmentation.seg.crf_labels
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    size = dataset.image("demo_003").shape

    def crash(image, *arguments):
        if image.shape == size:
            raise ZeroDivisionError("somewhere deep")
        return crf(image, *arguments)

    monkeypatch.setattr(segmentation.seg, "crf_labels", crash)
    with pytest.raises(RuntimeError, match="image 'demo_003': ZeroDivisionError: somewhere deep"):
        evaluate(config)
    assert not is_up_to_date(config, "eval-seg")
    monkeypatch.undo()
    assert evaluate(config)


def test_masks_after_an_evaluation(settings):
    """The evaluation kept scores alone: the network runs again, and says so; masks serve a run without them."""
    config, words = settings()
    evaluate(config)
    before = record(config)
    status, output, errors = command("eval-seg", *words, "--save-masks")
    assert status == 0, errors
    assert "kept scores, not masks: the network runs over all images once more" in errors
    assert "network and CRF" in output
    assert f"{before['with_crf']['miou']:.3f}" in output
    masks = config.run / segmentation.SERVER_LAYOUT
    assert len(list(masks.iterdir())) == 11
    with Image.open(masks / "demo_003.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]
    assert record(config)["with_crf"] == before["with_crf"]
    assert not evaluate(config)
    assert len(list(masks.iterdir())) == 11


@pytest.fixture
def archive(images, tmp_path):
    """Masks that the server would take, and the set they are of."""
    dataset = open_dataset("folder", images, masks="masks", classes="classes.txt", ids="ids.txt")
    for id in dataset.ids:
        write_mask(tmp_path / "archive" / f"{id}.png", dataset.ground_truth(id))
    segmentation.check_archive(tmp_path / "archive", dataset)
    return tmp_path / "archive", dataset


def spoil_name(folder):
    (folder / "more.png").write_bytes(b"")


def spoil_palette(folder):
    Image.fromarray(read_mask(folder / "demo_004.png")).save(folder / "demo_004.png")


def spoil_size(folder):
    write_mask(folder / "demo_004.png", np.zeros((5, 6), np.uint8))


def spoil_ids(folder):
    write_mask(folder / "demo_004.png", np.full_like(read_mask(folder / "demo_004.png"), 4))


def spoil_number(folder):
    (folder / "demo_004.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_name, r"holds 1 id \('more\.png'\) that the data set has not"),
        (spoil_palette, r"demo_004\.png: is no palette PNG in VOC's colours"),
        (spoil_size, "1 id .* with a wrong mask, the first: .*6 x 5 pixels"),
        (spoil_ids, "unknown ids 4"),
        (spoil_number, r"1 id \('demo_004'\) without a mask"),
    ],
)
def test_an_archive_that_the_server_would_not_take(archive, spoil, sentence):
    folder, dataset = archive
    spoil(folder)
    with pytest.raises(InputError, match=sentence):
        segmentation.check_archive(folder, dataset)


def test_metrics_hold_what_both_stages_found(copy_of_run):
    """Whichever of the two runs last; under other settings the old figures do not count."""
    config, _ = copy_of_run("run", (), *SETTINGS, "train_seg.iterations=2", "train_seg.checkpoint_every=2")
    run_stage(config, "train-seg")
    evaluate(config)
    metrics = json.loads((config.run / "metrics.json").read_text())
    assert metrics["segmentation"] == record(config)
    assert metrics["mask"]["miou"] > 0
    (config.run / "report.html").unlink()
    assert not run_stage(config, "evaluate")  # nothing to score, but the page is written again
    assert (config.run / "report.html").exists()
    (config.run / "evaluation.json").unlink()
    assert run_stage(config, "evaluate")
    assert json.loads((config.run / "metrics.json").read_text())["segmentation"] == record(config)
    other = config.model_copy(update={"eval_seg": config.eval_seg.model_copy(update={"iterations": 3})})
    run_stage(other, "evaluate")
    assert "segmentation" not in json.loads((other.run / "metrics.json").read_text())
