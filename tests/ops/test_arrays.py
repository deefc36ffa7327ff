"""The rules that all operations share: threads, backends, and the checks of arguments."""

import math
import os
import re

import numpy as np
import pytest

from amn_fast import _cpus
from amn_fast.errors import BackendError, InputError
from amn_fast.ops import _arrays


def fake_system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "sys/fs/cgroup/cpu,cpuacct"
QUOTAS = {
    "no cgroups": ({}, math.inf),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
    "v2": ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "150000 100000\n"}, 1.5),
    "v2, the parent's limit": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
        },
        2,
    ),
    "v2, a container that sees its own group as the root": (
        {"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"},
        3,
    ),
    "v1": (
        {
            "proc/self/cgroup": "5:memory:/x\n3:cpu,cpuacct:/job\n",
            f"{V1}/job/cpu.cfs_quota_us": "250000\n",
            f"{V1}/job/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/\n",
            f"{V1}/cpu.cfs_quota_us": "-1\n",
            f"{V1}/cpu.cfs_period_us": "100000\n",
        },
        math.inf,
    ),
}


def test_threads_respect_affinity_and_cgroup_quota(tmp_path, monkeypatch):
    for number, (name, (files, expected)) in enumerate(QUOTAS.items()):
        assert _cpus.cpu_quota(fake_system(tmp_path / str(number), files)) == expected, name
    for cpus, quota, expected in ((8, math.inf, 8), (8, 2.5, 3), (2, 16.0, 2), (4, 0.1, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)), raising=False)
        monkeypatch.setattr(_cpus, "cpu_quota", lambda quota=quota: quota)
        assert _arrays.thread_count(None) == expected
        assert _arrays.thread_count(np.int64(7)) == 7  # asked for, so not limited
    for bad in (0, -1, 65537, 2**70, 2.0, True, "2", np.zeros(1)):
        with pytest.raises(InputError, match=r"^threads is .*, expected an integer in 1\.\.65536$"):
            _arrays.thread_count(bad)


def test_the_choice_of_a_backend(monkeypatch, caplog):
    obstacles = {"triton": "no GPU", "cpu": "", "reference": ""}

    def choose(backend="auto"):
        return _arrays.choose_backend(backend, "an_operation", obstacles)

    with caplog.at_level("INFO", logger="amn_fast"):
        assert [choose(), choose(), choose("reference")] == ["cpu", "cpu", "reference"]
    assert [record.message for record in caplog.records] == ["an_operation: not using backend 'triton': no GPU"]
    for backend in ("fast", None, 3, "cuda"):
        with pytest.raises(InputError, match=r"^an_operation: backend is .*'auto' or one of triton, cpu, reference$"):
            choose(backend)
    with pytest.raises(BackendError, match=r"backend 'triton' cannot run here: no GPU; .*AMN_FAST_BACKEND \(cpu, ref"):
        choose("triton")
    with pytest.raises(BackendError, match=r"^an_operation: no backend .*AMN_FAST_BACKEND: triton: no GPU; cpu: none$"):
        _arrays.choose_backend("auto", "an_operation", {"triton": "no GPU", "cpu": "none"})

    with _arrays.default_backend("reference"):
        assert [choose(), choose("cpu")] == ["reference", "cpu"]
        monkeypatch.setenv("AMN_FAST_BACKEND", "cpu")
        assert choose() == "cpu"
        monkeypatch.setenv("AMN_FAST_BACKEND", "auto")
        assert choose() == "reference"
    assert choose() == "cpu"
    with _arrays.default_backend("triton"), pytest.raises(BackendError, match="set by the configuration key 'backend'"):
        choose()
    monkeypatch.setenv("AMN_FAST_BACKEND", "cuda")
    with pytest.raises(BackendError, match=r"'cuda' \(set by AMN_FAST_BACKEND\) cannot run here: this operation does"):
        choose()
    monkeypatch.setenv("AMN_FAST_BACKEND", "gpu")
    with pytest.raises(InputError, match=r"^environment variable AMN_FAST_BACKEND is 'gpu', expected 'auto' or one of"):
        choose()
    with pytest.raises(InputError, match=r"^backend is 'gpu', expected one of auto, reference"):
        _arrays.default_backend("gpu").__enter__()


NAN, INF = math.nan, math.inf
SCALARS = [  # the check, its arguments, good values, bad values, the end of the message
    (_arrays.integer, (), [-3, 0, np.uint8(7)], [1.0, True, "1", None, [1]], "expected an integer"),
    (_arrays.integer, (1, 64), [1, 64], [0, 65, 2**80, NAN], "expected an integer in 1..64"),
    (_arrays.integer, (None, 3), [-(2**70), 3], [4], "expected an integer of at most 3"),
    (_arrays.number, (), [-1.5, 0, np.float32(2)], [NAN, INF, -INF, 10**400, True, "1", None, 1j], "a finite number"),
    (_arrays.number, ("[0, 1)",), [0, 0.5], [-1e-9, 1, NAN, np.ones(2)], r"expected a number in \[0, 1\)"),
    (_arrays.number, ("(0, inf]",), [1e-300, INF], [0, -1], r"expected a number in \(0, inf\]"),
    (_arrays.flag, (), [True, np.False_], [0, "yes", None], "expected True or False"),
    (_arrays.choice, (("a", "b"),), ["a", "b"], ["c", "", None, ["a"]], "expected one of a, b"),
    (_arrays.image_size, (), [(2, 3), [1, np.int64(9)], np.array([4, 5])], [], ""),
    (_arrays.image_size, (), [], [(0, 3), (3, 2.0), (1,), 5, None, "ab"], r"expected \(height, width\)|an integer in"),
]


def test_scalars():
    for check, arguments, good, bad, message in SCALARS:
        for value in good:
            result = check("value", value, *arguments)
            assert np.array_equal(result, value)
            assert type(result) in (int, float, bool, str, tuple)
        for value in bad:
            with pytest.raises(InputError, match=message) as caught:
                check("value", value, *arguments)
            assert re.match("value.* is ", str(caught.value))


def test_arrays():
    torch = pytest.importorskip("torch")
    ones = torch.ones(2, 3)
    for value in (
        [[1, 1, 1]] * 2,
        np.ones((2, 3), bool),
        np.ones((2, 3), np.float16),
        ones.to(torch.bfloat16),
        ones.to(torch.bool),
        torch.nn.Parameter(ones),
        ones.t().t().contiguous(),
    ):
        array = _arrays.as_array("x", value)
        assert type(array) is np.ndarray
        assert array.dtype.kind in "fiub"
        np.testing.assert_array_equal(array, np.ones((2, 3)))
    for value in (
        "text",
        None,
        [[1], [1, 2]],
        np.ones(2, complex),
        np.array([object()]),
        np.array(["2020-01-01"], "M8[D]"),
        ones.to(torch.complex64),
        ones.to_sparse(),
        ones.to("meta"),
    ):
        with pytest.raises(InputError, match=r"^x (is|has dtype) .*expected"):
            _arrays.as_array("x", value)
    assert isinstance(_arrays.like(ones, np.ones(2)), torch.Tensor)
    assert type(_arrays.like(np.ones(2), np.ones(2))) is np.ndarray
