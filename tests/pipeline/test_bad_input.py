"""Bad input through the command line: exit status 1 and one sentence, or a defined result; never a crash."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image

from amn_fast import cli, pipeline
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.errors import InputError
from amn_fast.files import write_atomically
from amn_fast.stages import refine_seed as refining
from amn_fast.stages._stage import Workspace

from .conftest import command, configure, start

STAGES = {stage.name: stage for stage in pipeline.STAGES}


def refusal(monkeypatch, capfd, *arguments):
    """The one sentence on stderr with which the command line ends, run in this process; progress bars do not count."""
    monkeypatch.setattr("sys.argv", ["amn-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    sentences = [line for line in errors.splitlines() if line.startswith("amn-fast: ")]
    assert len(sentences) == 1
    assert errors.endswith(sentences[0] + "\n")
    return sentences[0].removeprefix("amn-fast: ")


@pytest.fixture
def refused(monkeypatch, capfd):
    return lambda *arguments: refusal(monkeypatch, capfd, *arguments)


@pytest.fixture
def spoilt(my_pictures, tmp_path):
    """(folder of pictures, configuration file) of a set to be spoilt before anything has run on it."""
    configure(tmp_path / "tiny.yaml", my_pictures, tmp_path / "run")
    return my_pictures, tmp_path / "tiny.yaml"


def only(root, *ids):
    """Leave no more than `ids` in the set's list."""
    (root / "ids.txt").write_text("".join(f"{id}\n" for id in ids))


def test_the_sentence_is_all_that_a_process_says(spoilt):
    root, file = spoilt
    with (root / "ids.txt").open("a") as ids:
        ids.write("ghost\n")
    status, output, errors = command("run", file)
    assert status == 1
    assert output == ""
    sentence = errors.splitlines()[-1]
    assert (
        sentence
        == "amn-fast: data set pictures: 1 id ('ghost') of 12 have no image; 1 id ('ghost') of 12 have no labels"
    )
    assert errors.splitlines()[:-1] == ["train-cam"]
    assert not (file.parent / "run" / "weights").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture(spoilt, refused, workers):
    root, file = spoilt
    path = root / "images" / "demo_004.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sentence = refused("train-cam", file, "--set", f"workers={workers}")
    assert sentence.startswith(f"{path}: cannot be read as a picture: ")
    assert "truncated" in sentence


def test_labels_naming_an_unknown_class(spoilt, refused):
    root, file = spoilt
    table = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(table.replace("id,cat,cup,person", "id,cat,cup,unicorn"))
    sentence = refused("run", file)
    assert "labels.csv" in sentence
    assert "unknown class 'unicorn'" in sentence


def test_an_unknown_option_of_the_data_set(spoilt, refused):
    sentence = refused("run", spoilt[1], "--set", "data.options.split=train")
    assert sentence == "a data set of kind folder has no option 'split', expected images, labels, masks, classes, ids"


def test_no_data_set_there(spoilt, refused, tmp_path):
    sentence = refused("run", spoilt[1], "--root", tmp_path / "nowhere")
    assert sentence == f"{tmp_path / 'nowhere' / 'images'}: there is no such folder of pictures"


def test_a_configuration_that_is_not_there(refused):
    assert "configuration nothing.yaml does not exist" in refused("run", "nothing.yaml")


def test_a_wrong_setting(spoilt, refused):
    assert "mask.background is 2" in refused("make-mask", spoilt[1], "--set", "mask.background=2")


@pytest.mark.parametrize("name", ["2024", "a: b", "a #1", "null", "[x]", "ä 'quoted' \"twice\""])
def test_a_path_on_the_command_line_is_text_whatever_yaml_makes_of_it(spoilt, tmp_path, monkeypatch, refused, name):
    monkeypatch.chdir(tmp_path)
    sentence = refused("make-cam", spoilt[1], "--run", name)
    assert f"make-cam needs the outputs of train-cam, and {name} has none" in sentence


def test_a_loss_that_is_not_finite(spoilt, refused):
    sentence = refused("train-cam", spoilt[1], "--set", "train_cam.lr=1e30", "--set", "train_cam.new_lr=1e30")
    assert sentence.startswith("cam: the loss of epoch ")
    assert "is not finite" in sentence
    assert not (spoilt[1].parent / "run" / "weights" / "cam.safetensors").exists()


def test_a_seed_of_another_size(copy_of_run, refused):
    config, file = copy_of_run("run", ("train-amn",))
    seed = config.run / "cam_seed" / "demo_002.png"
    height, width = read_mask(seed).shape
    write_mask(seed, np.zeros((height + 1, width), np.uint8))
    assert refused("train-amn", file) == (
        f"seed {seed} is {height + 1} x {width}, its picture {height} x {width} (height x width)"
    )


def test_a_seed_with_an_unknown_label(copy_of_run, refused):
    config, file = copy_of_run("run", ("train-amn",))
    seed = config.run / "cam_seed" / "demo_002.png"
    write_mask(seed, np.full(read_mask(seed).shape, 4, np.uint8))
    assert refused("train-amn", file, "--set", "workers=2") == f"seed {seed} holds label 4, expected 0..3 or 255"


def test_a_mask_of_another_size(copy_of_run, refused):
    config, file = copy_of_run("run", ("evaluate",))
    mask = config.run / "masks" / "demo_002.png"
    height, width = read_mask(mask).shape
    write_mask(mask, np.zeros((height, width + 1), np.uint8))
    assert refused("evaluate", file) == (
        f"{mask} is ({height}, {width + 1}), but the ground truth of demo_002 is ({height}, {width}) (height, width)"
    )


def test_activations_of_another_picture(copy_of_run, refused):
    config, file = copy_of_run("run", ("make-mask",))
    path = config.run / "amn" / "demo_002.npz"
    shutil.copyfile(config.run / "amn" / "nothing.npz", path)
    sentence = refused("make-mask", file)
    assert "demo_002" in sentence


@pytest.mark.parametrize(("kind", "stage"), [("cam", "refine-seed"), ("amn", "make-mask"), ("edge", "evaluate")])
def test_a_damaged_file_of_an_earlier_stage(copy_of_run, refused, kind, stage):
    config, file = copy_of_run("run", (stage,))
    path = config.run / kind / "demo_005.npz"
    path.write_bytes(path.read_bytes()[:-30])
    sentence = refused(stage, file)
    assert f"{path} cannot be read: " in sentence


@pytest.mark.parametrize("damage", ["cut", "another network's", "no checkpoint"])
def test_a_checkpoint_that_does_not_fit(copy_of_run, refused, damage):
    config, file = copy_of_run("run", ("train-amn",))
    # As a kill leaves it: begun under this configuration, a checkpoint, no weights.
    record = {"fingerprint": STAGES["train-amn"].fingerprint(config), "done": False}
    (config.run / "stages" / "train-amn.json").write_text(json.dumps(record))
    checkpoint = config.run / "weights" / "amn.checkpoint.pt"
    if damage == "no checkpoint":
        checkpoint.write_bytes(b"not a checkpoint")
    else:
        import torch

        from amn_fast.models import CamNet

        net = CamNet(3, "efficientnet_lite0")
        write_atomically(checkpoint, lambda f: torch.save({"net": net.state_dict(), "optimizer": {}, "epochs": 1}, f))
        if damage == "cut":
            checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    sentence = refused("train-amn", file)
    assert sentence.startswith(f"checkpoint {checkpoint} does not fit: ")
    assert sentence.endswith("; remove it to train from the start")


def test_weights_of_another_network(copy_of_run, refused):
    config, file = copy_of_run("run", ("make-cam",))
    path = config.run / "weights" / "cam.safetensors"
    shutil.copyfile(config.run / "weights" / "irn.safetensors", path)
    assert refused("make-cam", file).startswith(f"weights {path} do not fit: ")
    path.write_bytes(path.read_bytes()[:100])
    assert refused("make-cam", file).startswith(f"weights {path} do not fit: ")


def test_a_damaged_record(copy_of_run, refused):
    config, file = copy_of_run("run")
    record = config.run / "stages" / "make-cam.json"
    record.write_text('{"done": tr')
    sentence = refused("run", file)
    assert sentence.startswith(f"{record} is not JSON (")
    assert sentence.endswith("; remove it to run make-cam again")


def test_a_run_folder_that_is_a_file(spoilt, refused, tmp_path):
    (tmp_path / "taken").write_text("")
    assert refused("run", spoilt[1], "--run", tmp_path / "taken") == f"{tmp_path / 'taken'}: File exists"


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts a small file system in memory; gives a function of its size and further options."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    yield mount
    subprocess.run(["umount", place], capture_output=True)


def test_a_run_folder_that_cannot_be_written(spoilt, refused, tmpfs):
    place = tmpfs("size=1m,ro")
    sentence = refused("run", spoilt[1], "--run", place / "run")
    assert sentence == f"{place / 'run'}: Read-only file system"


# What a run holds grows from stage to stage, so that each size is full at another place: at the weights and their
# checkpoint (some 20 MB), in the middle of a folder of small files.
@pytest.mark.parametrize(
    ("without", "room_kb", "full_in"),
    [
        (("train-cam",), 300, "weights"),
        (("make-cam",), 60, "cam"),
        (("refine-seed",), 8, "cam_seed"),
        (("train-amn",), 2000, "weights"),
        (("make-mask",), 12, ""),
        (("evaluate",), 4, ""),
        (("evaluate",), 100, "report.html"),
    ],
)
def test_a_full_disk(copy_of_run, refused, tmpfs, finished, without, room_kb, full_in):
    config, file = copy_of_run("run", without)
    shutil.rmtree(config.run / "weights" / "nothing", ignore_errors=True)
    place = tmpfs("size=400m")
    shutil.copytree(config.run, place / "run", copy_function=shutil.copy)
    space = os.statvfs(place)
    filler = place / "filler"
    with filler.open("wb") as fill:
        os.posix_fallocate(fill.fileno(), 0, max(0, space.f_bavail * space.f_frsize - room_kb * 1024))
    sentence = refused(without[0], file, "--run", place / "run")
    assert sentence.startswith(str(place / "run" / full_in))
    assert sentence.endswith(": No space left on device")
    assert not [path for path in (place / "run").rglob(".*") if path.name != ".lock"]  # nothing half-written stays
    filler.unlink()
    STAGES[without[0]].run(config.model_copy(update={"run": place / "run"}))
    for folder in ("weights", "cam", "cam_seed", "masks", "edge"):
        for path in (finished.run / folder).iterdir():
            assert (place / "run" / folder / path.name).read_bytes() == path.read_bytes()


def test_the_smallest_and_the_longest_picture_end_to_end(spoilt, tmp_path):
    root, file = spoilt
    sizes = {"dot": (1, 1), "tower": (3000, 20), "strip": (20, 3000)}
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("a") as labels:
        for id, size in sizes.items():
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / "images" / f"{id}.png")
            write_mask(root / "masks" / f"{id}.png", rng.integers(0, 2, size))
            labels.write(f"{id},1,0,0\n")
    only(root, "demo_000", "demo_001", "demo_002", *sizes)
    scales = ["cam.scales=[1.0, 0.5]", "amn.scales=[1.0, 0.5]", "train_irn.displacement=true"]
    config = configure(file, root, tmp_path / "run", "train_cam.epochs=1", "train_amn.epochs=1", *scales)
    pipeline.run(config)
    for id, size in sizes.items():
        mask = read_mask(config.run / "masks" / f"{id}.png")
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 1}
    assert set(json.loads((config.run / "metrics.json").read_text())["mask"]["per_picture"]) >= set(sizes)


def test_a_class_without_any_picture_and_a_set_without_ground_truth(spoilt, tmp_path, monkeypatch, capfd):
    root, file = spoilt
    (root / "classes.txt").write_text("cat\ncup\nperson\nunicorn\n")
    only(root, "demo_000", "demo_001", "demo_002", "demo_003")
    quick = ("train_cam.epochs=1", "train_amn.epochs=1")
    config = configure(file, root, tmp_path / "run", *quick)
    pipeline.run(config)
    scores = json.loads((config.run / "metrics.json").read_text())["mask"]["scores"]
    assert json.dumps(scores).count("NaN") == 0
    assert scores["iou"][4] is None  # neither in the truth nor in a mask: absent, not 0 and not 1
    assert scores["iou"][0] is not None
    assert 4 not in np.unique([np.unique(read_mask(p)).max() for p in (config.run / "masks").iterdir()])

    # The masks do not need ground truth; without it there is nothing to score, and the command says so by its silence.
    for mask in (root / "masks").iterdir():
        mask.unlink()
    settings = [word for setting in quick for word in ("--set", setting)]
    (config.run / "stages" / "evaluate.json").unlink()
    monkeypatch.setattr("sys.argv", ["amn-fast", "run", str(file), *settings])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert (config.run / "report.html").exists()
    assert "mask" not in json.loads((config.run / "metrics.json").read_text())


def test_a_crash_on_a_thread_names_the_picture(copy_of_run, monkeypatch):
    config, _ = copy_of_run("run", ("refine-seed",))
    crf = refining.refine_seed
    sizes = {id: Workspace(config).dataset.image(id).shape for id in ("demo_006",)}

    def crash(image, *arguments, **options):
        if image.shape == sizes["demo_006"]:
            raise ZeroDivisionError("somewhere deep")
        return crf(image, *arguments, **options)

    monkeypatch.setattr(refining, "refine_seed", crash)
    with pytest.raises(RuntimeError, match="picture 'demo_006': ZeroDivisionError: somewhere deep") as caught:
        STAGES["refine-seed"].run(config)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not STAGES["refine-seed"].is_done(config)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_crash_in_a_process_that_loads_pictures_names_the_picture(copy_of_run, monkeypatch, workers):
    from amn_fast.stages import _pictures

    config, _ = copy_of_run("run", ("train-amn",), f"workers={workers}")
    read = _pictures.read_seed

    def crash(path, *arguments):
        if path.stem == "demo_006":
            raise ZeroDivisionError("somewhere deep")
        return read(path, *arguments)

    monkeypatch.setattr(_pictures, "read_seed", crash)
    with pytest.raises(RuntimeError, match="picture 'demo_006': ZeroDivisionError: somewhere deep"):
        STAGES["train-amn"].run(config)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_ends_the_work(finished, threads):
    done, lock, failed = [], threading.Lock(), threading.Event()

    def work(id):
        if id == "3":
            failed.set()
            raise InputError("the activations are sad")
        if failed.is_set():
            time.sleep(0.2)  # long enough for the error to be noticed on a busy machine
        with lock:
            done.append(id)

    with pytest.raises(InputError, match=r"^picture '3': the activations are sad$"):
        Workspace(finished).for_each("title", [str(i) for i in range(500)], work, threads)
    assert len(done) < 100


def test_an_error_that_names_its_picture_is_left_as_it_is(finished):
    def work(id):
        raise InputError(f"images/{id}.jpg: cannot be read")

    with pytest.raises(InputError, match=r"^images/a1\.jpg: cannot be read$"):
        Workspace(finished).for_each("title", ["a1"], work)


@pytest.fixture
def interruptible():
    """Processes started from here heed Ctrl-C, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_stage_between_two_pictures(copy_of_run):
    """Within the pictures in work, not after all of them; and the run goes on later."""
    config, file = copy_of_run("run", ("make-mask", "evaluate"))
    process = start("run", file)
    while process.poll() is None and not list((config.run / "masks").glob("*.png")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode != 0
    assert len(list((config.run / "masks").glob("*.png"))) < 11
    pipeline.run(config)
    assert len(list((config.run / "masks").glob("*.png"))) == 11
