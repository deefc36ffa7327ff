"""A folder of the published code takes the place of earlier stages."""

import json
import shutil

import numpy as np
import pytest
import torch

from amn_fast.data import open_dataset
from amn_fast.data.image import read_mask
from amn_fast.data.published import read_published
from amn_fast.errors import InputError
from amn_fast.models import DeepLabV2, IrnNet, MultiScale, published_state_dict
from amn_fast.ops.mask import make_mask
from amn_fast.stages import evaluate, make_amn_cam
from amn_fast.stages import make_mask as stage
from amn_fast.stages.from_published import adopt, adopt_segmentation
from amn_fast.stages.to_published import export

from .conftest import command, configure


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory):
    """What the finished run exports, and a random IRN, as the published code leaves them."""
    folder = tmp_path_factory.mktemp("published")
    export(finished, folder)
    (folder / "sess").mkdir()
    torch.manual_seed(0)
    torch.save(published_state_dict(IrnNet()), folder / "sess" / "res50_irn.pth")
    return folder


RESNET = ("backbone=resnet50", "weights=null")


def test_make_mask_and_evaluate_go_on_from_published_files(finished, published, pictures, tmp_path):
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *RESNET)
    options = [part for setting in RESNET for part in ("--set", setting)]
    status, _, errors = command("make-mask", tmp_path / "tiny.yaml", *options, "--from-published", published)
    assert (status, "Traceback" in errors) == (0, False)
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    net = IrnNet()
    net.load_state_dict({**net.state_dict(), **_ours(published)})
    net.eval()
    for id in dataset.ids:
        image = dataset.image(id)
        mask = read_mask(config.run / "masks" / f"{id}.png")
        found = read_published(published / "result" / "amn_cam" / f"{id}.npy", {id: image.shape[:2]}.__getitem__)
        edge = stage.find_edge(net, image, config.edge.pad, torch.device("cpu"))
        expected = make_mask(found.strided, edge, [0, *found.keys], image.shape[:2])
        assert (mask != expected).mean() < 1e-3, id
    before = {path: path.stat().st_mtime_ns for path in (config.run / "amn").iterdir()}
    adopt(config, published, stage.stage)  # a second time nothing is taken
    assert before == {path: path.stat().st_mtime_ns for path in (config.run / "amn").iterdir()}

    assert evaluate.stage.run(config)
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


def test_a_picture_without_a_file_is_named_before_anything_is_read(published, pictures, tmp_path):
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *RESNET)
    (tmp_path / "there" / "result" / "amn_cam").mkdir(parents=True)
    with pytest.raises(InputError, match=r"amn_cam: 11 ids \('demo_000', .*without a file ID\.npy"):
        adopt(config, tmp_path / "there", stage.stage)
    assert not list((config.run).glob("amn/*"))


def test_activations_of_another_picture_or_with_unknown_classes_are_named(finished, published, pictures, tmp_path):
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *RESNET)
    there = tmp_path / "there" / "result" / "amn_cam"
    shutil.copytree(published / "result" / "amn_cam", there)
    entries = {"keys": torch.tensor([79]), "cam": torch.zeros(1, 2, 2), "high_res": np.zeros((1, 8, 8), np.float32)}
    np.save(there / "demo_003.npy", entries)
    with pytest.raises(
        InputError, match=r"demo_003\.npy has labels \[80\] and maps of \(8, 8\), expected labels up to 3"
    ):
        adopt(config, tmp_path / "there", stage.stage)
    assert not make_amn_cam.stage.is_done(config)


def test_what_the_stage_goes_on_from_must_be_there(pictures, tmp_path):
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *RESNET)
    with pytest.raises(InputError, match=r"holds no sess/\*irn\.pth, which make-mask goes on from"):
        adopt(config, tmp_path, stage.stage)


def test_a_run_folder_with_outputs_of_its_own_is_left_alone(published, copy_of_run):
    config, _ = copy_of_run("own")
    with pytest.raises(InputError, match="holds other outputs of make-cam, expected an empty one"):
        adopt(config, published, stage.stage)
    assert stage.stage.is_done(config)


def test_two_weight_files_for_one_network(published, pictures, tmp_path):
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *RESNET)
    (tmp_path / "sess").mkdir()
    for name in ("a_irn.pth", "b_irn.pth.pth"):
        (tmp_path / "sess" / name).touch()
    with pytest.raises(InputError, match=r"a_irn\.pth and b_irn\.pth\.pth for sess/\*irn\.pth, expected one file"):
        adopt(config, tmp_path, stage.stage)


SEGMENTATION = ("train_seg.backbone=resnet101", "eval_seg.crf=false", "eval_seg.scales=[0.5]", "eval_seg.mirror=false")


def test_eval_seg_takes_published_weights(pictures, tmp_path):
    torch.manual_seed(0)
    net = DeepLabV2(3)
    torch.save(published_state_dict(net), tmp_path / "deeplab.pth")
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *SEGMENTATION)
    options = [part for setting in SEGMENTATION for part in ("--set", setting)]
    call = ("eval-seg", tmp_path / "tiny.yaml", *options, "--save-masks", "--from-published", tmp_path / "deeplab.pth")
    status, _, errors = command(*call)
    assert (status, "Traceback" in errors) == (0, False)
    found = json.loads((config.run / "segmentation.json").read_text())
    assert found["stages"]["train-seg"] == {"from": str(tmp_path / "deeplab.pth")}
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    id, image = dataset.ids[0], dataset.image(dataset.ids[0])
    expected = MultiScale(net, (0.5,)).eval().probabilities(net.normalize(image)).argmax(0).numpy()
    saved = read_mask(config.run / "segmentation/results/VOC2012/Segmentation/comp6_test_cls" / f"{id}.png")
    np.testing.assert_array_equal(saved, expected)


def test_published_segmentation_weights_for_other_classes(pictures, tmp_path):
    torch.save(published_state_dict(DeepLabV2(20)), tmp_path / "deeplab.pth")
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *SEGMENTATION)
    with pytest.raises(InputError, match=r"deeplab\.pth are for 20 classes, expected 3"):
        adopt_segmentation(config, tmp_path / "deeplab.pth")
    assert not (config.run / "weights" / "seg.safetensors").exists()


def test_what_could_not_be_taken_does_not_stand_in_the_way(pictures, tmp_path):
    config = configure(tmp_path / "tiny.yaml", pictures, tmp_path / "run", *SEGMENTATION)
    with pytest.raises(InputError, match=r"mistyped\.pth"):
        adopt_segmentation(config, tmp_path / "mistyped.pth")
    torch.save(published_state_dict(DeepLabV2(3)), tmp_path / "deeplab.pth")
    adopt_segmentation(config, tmp_path / "deeplab.pth")
    assert (config.run / "weights" / "seg.safetensors").exists()
    with pytest.raises(InputError, match="holds other outputs of train-seg"):
        adopt_segmentation(config, tmp_path / "another.pth")
