"""A folder of a reference implementation takes the place of earlier stages."""

import json
import shutil

import numpy as np
import pytest
import torch

from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.published import read_published, write_published
from amn_fast.data.store import Activations
from amn_fast.errors import InputError
from amn_fast.models import DeepLabV2, IrnNet, MultiScale, published_state_dict
from amn_fast.ops.mask import make_mask
from amn_fast.pipeline import run_stage
from amn_fast.pipeline.exporting import export
from amn_fast.pipeline.importing import import_before, import_segmentation
from amn_fast.pipeline.runner import is_up_to_date
from amn_fast.steps import irn
from command_line import command

from .conftest import configure


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory):
    """What the finished run exports, and a random IRN, as AMN's code leaves them."""
    folder = tmp_path_factory.mktemp("published")
    export(finished, folder)
    (folder / "sess").mkdir()
    torch.manual_seed(0)
    torch.save(published_state_dict(IrnNet()), folder / "sess" / "res50_irn.pth")
    return folder


RESNET = ("backbone=resnet50", "weights=null")


def test_make_mask_and_evaluate_go_on_from_published_files(finished, published, my_images, tmp_path):
    (my_images / "ids.txt").write_text("demo_000\ndemo_003\nnothing\n")
    config = configure(tmp_path / "tiny.yaml", my_images, tmp_path / "run", *RESNET)
    options = [part for setting in RESNET for part in ("--set", setting)]
    status, _, errors = command("make-mask", tmp_path / "tiny.yaml", *options, "--from-published", published)
    assert status == 0, errors
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    net = IrnNet()
    net.load_state_dict({**net.state_dict(), **_ours(published)})
    net.eval()
    for id in dataset.ids:
        image = dataset.image(id)
        mask = read_mask(config.run / "masks" / f"{id}.png")
        found = read_published(published / "result" / "amn_cam" / f"{id}.npy", {id: image.shape[:2]}.__getitem__)
        edge = irn.find_edge(net, image, config.edge.pad, torch.device("cpu"))
        expected = make_mask(found.strided, edge, [0, *found.keys], image.shape[:2])
        assert (mask != expected).mean() < 1e-3, id
    before = {path: path.stat().st_mtime_ns for path in (config.run / "amn").iterdir()}
    import_before(config, published, "make-mask")  # a second time nothing is imported
    assert before == {path: path.stat().st_mtime_ns for path in (config.run / "amn").iterdir()}

    assert run_stage(config, "evaluate")
    stages = json.loads((config.run / "metrics.json").read_text())["stages"]
    assert stages["make-amn-cam"] == {"from": str(published)}
    assert stages["train-cam"] == {}
    assert stages["make-mask"]["seconds"] > 0
    assert (config.run / "report.html").is_file()
    for id in dataset.ids:
        assert (
            read_mask(config.run / "cam_seed" / f"{id}.png") == read_mask(finished.run / "cam_seed" / f"{id}.png")
        ).all()


def _ours(published):
    state = torch.load(published / "sess" / "res50_irn.pth", weights_only=True)
    from amn_fast.models.published import published_names

    return {name: state[aliases[0]] for name, aliases in published_names(IrnNet()).items()}


def test_a_picture_without_a_file_is_named_before_anything_is_read(published, images, tmp_path):
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "run", *RESNET)
    (tmp_path / "there" / "result" / "amn_cam").mkdir(parents=True)
    shutil.copytree(published / "sess", tmp_path / "there" / "sess")
    with pytest.raises(InputError, match=r"amn_cam: 11 ids \('demo_000', .*without a file ID\.npy"):
        import_before(config, tmp_path / "there", "make-mask")
    assert not list((config.run).glob("amn/*"))


def test_activations_of_another_picture_or_with_unknown_classes_are_named(finished, published, images, tmp_path):
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "run", *RESNET)
    there = tmp_path / "there" / "result" / "amn_cam"
    shutil.copytree(published / "result" / "amn_cam", there)
    shutil.copytree(published / "sess", tmp_path / "there" / "sess")
    entries = {"keys": torch.tensor([79]), "cam": torch.zeros(1, 2, 2), "high_res": np.zeros((1, 8, 8), np.float32)}
    np.save(there / "demo_003.npy", entries)
    with pytest.raises(InputError, match=r"demo_003\.npy: keys are \[79\], expected"):
        import_before(config, tmp_path / "there", "make-mask")
    assert not is_up_to_date(config, "make-amn-cam")


def test_what_the_stage_goes_on_from_must_be_there(images, tmp_path):
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "run", *RESNET)
    with pytest.raises(InputError, match=r"holds no result/amn_cam, which make-mask continues from"):
        import_before(config, tmp_path / "there", "make-mask")


def test_a_run_folder_with_outputs_of_its_own_is_left_alone(published, copy_of_run):
    config, _ = copy_of_run("own")
    with pytest.raises(InputError, match="holds other outputs of make-cam, expected an empty one"):
        import_before(config, published, "make-mask")
    assert is_up_to_date(config, "make-mask")


def test_two_weight_files_for_one_network(published, images, tmp_path):
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "run", *RESNET)
    (tmp_path / "there" / "sess").mkdir(parents=True)
    for name in ("a_irn.pth", "b_irn.pth.pth"):
        (tmp_path / "there" / "sess" / name).touch()
    with pytest.raises(InputError, match=r"a_irn\.pth and b_irn\.pth\.pth for sess/\*irn\.pth, expected one file"):
        import_before(config, tmp_path / "there", "make-mask")


SEGMENTATION = ("train_seg.backbone=resnet101", "eval_seg.crf=false", "eval_seg.scales=[0.5]", "eval_seg.flip=false")


def test_eval_seg_takes_published_weights(my_images, tmp_path):
    (my_images / "ids.txt").write_text("demo_000\nnothing\n")
    torch.manual_seed(0)
    net = DeepLabV2(3)
    torch.save(published_state_dict(net), tmp_path / "deeplab.pth")
    config = configure(tmp_path / "tiny.yaml", my_images, tmp_path / "run", *SEGMENTATION)
    options = [part for setting in SEGMENTATION for part in ("--set", setting)]
    call = ("eval-seg", tmp_path / "tiny.yaml", *options, "--save-masks", "--from-published", tmp_path / "deeplab.pth")
    status, _, errors = command(*call)
    assert status == 0, errors
    found = json.loads((config.run / "segmentation.json").read_text())
    assert found["stages"]["train-seg"] == {"from": str(tmp_path / "deeplab.pth")}
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    id, image = dataset.ids[0], dataset.image(dataset.ids[0])
    expected = MultiScale(net, (0.5,)).eval().probabilities(net.normalize(image)).argmax(0).numpy()
    saved = read_mask(config.run / "segmentation/results/VOC2012/Segmentation/comp6_test_cls" / f"{id}.png")
    np.testing.assert_array_equal(saved, expected)


def test_published_segmentation_weights_for_other_classes(images, tmp_path):
    torch.save(published_state_dict(DeepLabV2(20)), tmp_path / "deeplab.pth")
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "run", *SEGMENTATION)
    with pytest.raises(InputError, match=r"deeplab\.pth are for 20 classes, expected 3"):
        import_segmentation(config, tmp_path / "deeplab.pth")
    assert not (config.run / "weights" / "seg.safetensors").exists()


def test_what_could_not_be_taken_does_not_stand_in_the_way(images, tmp_path):
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "run", *SEGMENTATION)
    with pytest.raises(InputError, match=r"mistyped\.pth"):
        import_segmentation(config, tmp_path / "mistyped.pth")
    torch.save(published_state_dict(DeepLabV2(3)), tmp_path / "deeplab.pth")
    import_segmentation(config, tmp_path / "deeplab.pth")
    assert (config.run / "weights" / "seg.safetensors").exists()
    with pytest.raises(InputError, match="holds other outputs of train-seg"):
        import_segmentation(config, tmp_path / "another.pth")


def test_an_import_deletes_nothing_that_it_reads(published, images, tmp_path):
    """The run folder is apart from the source: neither in it nor around it."""
    shutil.copytree(published, tmp_path / "pub")
    config = configure(tmp_path / "tiny.yaml", images, tmp_path / "pub" / "result", *RESNET)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pub").rglob("*")}
    for run in (tmp_path / "pub" / "result", tmp_path / "pub", tmp_path / "pub" / "new", tmp_path):
        moved = config.model_copy(update={"run": run})
        with pytest.raises(InputError, match=r"that no run has made|apart from all that is read"):
            import_before(moved, tmp_path / "pub", "refine-seed")
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pub").rglob("*")} == before


def test_imported_outputs_stand_for_these_images_and_labels(published, images, my_images, tmp_path):
    config = configure(tmp_path / "tiny.yaml", my_images, tmp_path / "run", *RESNET)
    import_before(config, published, "make-mask")
    assert is_up_to_date(config, "make-amn-cam")
    other = config.model_copy(update={"train_cam": config.train_cam.model_copy(update={"lr": 0.5})})
    assert is_up_to_date(other, "make-amn-cam")  # it was imported, whatever this run's settings are
    shutil.copy(my_images / "images" / "demo_001.jpg", my_images / "images" / "demo_002.jpg")
    with pytest.raises(InputError, match=r"make-mask needs .* \(1 image changed \(demo_002\)\)"):
        run_stage(config, "make-mask")
    shutil.copy(images / "images" / "demo_002.jpg", my_images / "images")
    table = (my_images / "labels.csv").read_text().replace("demo_003,", "demo_003,1,1,1\n#")
    rows = [line for line in table.splitlines() if not line.startswith("#")]
    (my_images / "labels.csv").write_text("\n".join(rows) + "\n")
    fresh = configure(tmp_path / "tiny.yaml", my_images, tmp_path / "fresh", *RESNET)
    with pytest.raises(InputError, match=r"demo_003\.npy: keys are .*, expected \[0, 1, 2\]"):
        import_before(fresh, published, "refine-seed")


def test_constant_activations_are_named(published, images, tmp_path, capsys):
    """Such an image becomes background; the first few are printed, all are in the log."""
    source = shutil.copytree(published, tmp_path / "published")
    files = sorted((source / "result" / "cam").glob("*.npy"))[:6]
    dataset = open_dataset("folder", images, classes="classes.txt", ids="ids.txt", masks="masks")
    for file in files:
        found = read_published(file, lambda id: dataset.image(id).shape[:2])
        flat = Activations(found.keys, np.zeros_like(found.strided), np.zeros_like(found.full))
        write_published(file, flat, background=False)
    config = configure(tmp_path / "c.yaml", images, tmp_path / "run")
    import_before(config, source, "refine-seed")
    run_stage(config, "refine-seed")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: image ")]
    expected = [file.stem for file in files if dataset.labels(file.stem).any()]
    assert len(lines) == min(5, len(expected))
    logged = [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]
    assert sorted(line["image"] for line in logged if line["event"] == "constant activations") == expected
