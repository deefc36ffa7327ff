"""rloss's bilateralfilter module: recorded answers, in place; bad calls; threads; the shim."""

import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("torch")

import modern_cases

from amn_fast.compat import bilateralfilter as module
from amn_fast.errors import InputError

GOLDEN = modern_cases.recorded("bilateralfilter")


def recorded(key):
    names, sigmas = key.split("__")
    parts = names.split("_")
    maps = ["_".join(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    images = modern_cases.images(*parts[::2]).numpy()
    return images, modern_cases.maps(*maps).numpy(), *map(int, sigmas.split("_"))


@pytest.mark.parametrize("compiled", [True, False])
def test_recorded_answers(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(module, "native", None)
    for key in GOLDEN.files:
        images, maps, sigma_rgb, sigma_xy = recorded(key)
        expected, (count, channels, height, width) = GOLDEN[key], maps.shape
        outs = np.full(maps.size, 7, np.float32)
        module.bilateralfilter_batch(
            images.flatten(), maps.flatten(), outs, count, channels, height, width, sigma_rgb, sigma_xy
        )
        assert np.abs(outs.reshape(maps.shape) - expected).max() <= 2e-6 * np.abs(expected).max(), key
        one = maps[0, 0].copy()
        module.bilateralfilter(images[0].ravel().tolist(), one, one, height, width, sigma_rgb, sigma_xy)
        np.testing.assert_allclose(one, expected[0, 0], rtol=0, atol=2e-6 * np.abs(expected).max(), err_msg=key)


IMAGE = np.linspace(0, 255, 3 * 4 * 5, dtype=np.float32)
GOOD = {"images": IMAGE, "ins": IMAGE[:40], "outs": None, "N": 1, "K": 2, "H": 4, "W": 5, "sigmargb": 15, "sigmaxy": 50}
BAD = [
    ({"images": IMAGE[:-1]}, r"images holds 59 numbers, expected 1 · 3 · 4 · 5 = 60"),
    ({"ins": IMAGE}, "ins holds 60 numbers, expected 1 · 2 · 4 · 5 = 40"),
    ({"outs": np.zeros(39, np.float32)}, "outs holds 39 numbers, expected N · K · H · W = 40"),
    ({"outs": np.zeros(40)}, "outs is ndarray float64, expected a C-contiguous NumPy array of float32"),
    ({"outs": np.zeros(80, np.float32)[::2]}, "expected a C-contiguous"),
    ({"outs": [0.0] * 40}, "outs is list"),
    ({"outs": np.broadcast_to(np.float32(0), 40)}, "outs is "),
    ({"images": np.where(IMAGE == 255, np.nan, IMAGE)}, "images hold NaN or infinity"),
    ({"ins": np.full(40, np.inf)}, "ins hold NaN or infinity"),
    ({"sigmargb": 0}, "sigmargb is 0"),
    ({"sigmaxy": float("nan")}, "sigmaxy is nan"),
    ({"sigmaxy": 1e-9}, "too large|range"),
    ({"H": 0}, "H is 0, expected an integer of at least 1"),
    ({"N": -1}, "N is -1"),
]


def test_bad_calls_and_no_images():
    for change, message in BAD:
        arguments = GOOD | {"outs": np.zeros(40, np.float32)} | change
        before = np.array(arguments["outs"])
        with pytest.raises(InputError, match=message):
            module.bilateralfilter_batch(**arguments)
        np.testing.assert_array_equal(arguments["outs"], before)
    empty = np.zeros(0, np.float32)
    module.bilateralfilter_batch(empty, empty, empty, 0, 2, 4, 5, 15, 50)


def test_normalised_images_give_one_warning(monkeypatch):
    monkeypatch.setattr(module, "_warned", False)
    for scale, shift, expected in (
        (1, 0, 0),
        (1 / 255, 0, 1),
        (4 / 255, -2, 0),
    ):  # the last: a second one
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            module.bilateralfilter_batch(**GOOD | {"images": IMAGE * scale + shift, "outs": np.zeros(40, np.float32)})
        assert len(found) == expected
    assert module._warned


def test_other_threads_run_meanwhile_and_keep_their_settings():
    import torch

    images, maps, sigma_rgb, sigma_xy = recorded("face_k21__15_50")
    count, channels, height, width = 6, *maps.shape[1:]
    outs = np.zeros(count * maps.size, np.float32)
    batch = np.tile(images, (count, 1, 1, 1)), np.tile(maps, (count, 1, 1, 1))
    ticks, done, threads = [], threading.Event(), torch.get_num_threads()

    def tick():
        while not done.wait(1e-4):
            ticks.append(time.perf_counter())

    def ran_meanwhile():
        """Whether the other thread ran in the first half of a call: one that keeps the lock lets it run at its end."""
        start = time.perf_counter()
        module.bilateralfilter_batch(*batch, outs, count, channels, height, width, sigma_rgb, sigma_xy)
        half = (start + time.perf_counter()) / 2
        return any(start < tick < half for tick in ticks)

    other = threading.Thread(target=tick)
    other.start()
    try:
        assert any(ran_meanwhile() for _ in range(20))  # a busy machine may run the other thread late
    finally:
        done.set()
        other.join()
    assert torch.get_num_threads() == threads
    outs = outs.reshape(count, -1)
    assert (outs == outs[0]).all()


def test_install_and_shim(tmp_path):
    code = "import bilateralfilter as b, numpy as n; o = n.zeros(4, n.float32);"
    code += "b.bilateralfilter(n.arange(12.) * 20, n.ones(4), o, 2, 2, 15., 50.); assert (o > 0.1).all();"
    code += "from bilateralfilter import bilateralfilter, bilateralfilter_batch; print(b.__name__)\n"
    (tmp_path / "script.py").write_text(code)
    install = f"from amn_fast.compat.bilateralfilter import install; install()\n{code}"
    for command in (["-c", install], ["-m", "amn_fast", "shim", str(tmp_path / "script.py")]):
        run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip().endswith("bilateralfilter")
