"""The arguments that the operations accept and refuse: one table for all operations and all their backends."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import amn_fast  # noqa: E402
from amn_fast import _native  # noqa: E402
from amn_fast.errors import InputError  # noqa: E402
from amn_fast.ops import pair_loss, pixel_loss  # noqa: E402

BACKENDS = ["reference", *(["cpu"] if _native.native is not None else [])]
NAN, INF = math.nan, math.inf
WRONG = (None, "5", [5], 1j, np.zeros(3))  # neither an integer nor a number
NOT_INTEGERS = (*WRONG, 2.5, True)
NOT_NUMBERS = (*WRONG, True, NAN)


class Operation(NamedTuple):
    """Good arguments, further good values and bad values of each argument."""

    run: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    good: dict[str, tuple[Any, ...]]
    bad: dict[str, tuple[Any, ...]]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def walk_arguments() -> dict[str, Any]:
    return {"x": rng().random((2, 6, 7), np.float32), "edge": rng().random((6, 7), np.float32) ** 3, "exp_times": 3}


def mask_arguments() -> dict[str, Any]:
    walk = walk_arguments()
    return {"activations": walk.pop("x"), **walk, "keys": [4, 9], "size": (21, 28)}


def bad_maps(shape: tuple[int, ...]) -> tuple[Any, ...]:
    values = [np.ones(shape) for _ in range(3)]
    values[0].flat[3], values[1].flat[3], values[2].flat[3] = NAN, INF, 1e39
    return (*values, np.ones(shape, complex), np.ones(shape[1:]), np.array([["a"]]), None, "maps", [[1], [2, 3]])


def labels(*shape: int, count: int = 3) -> Any:
    found = torch.from_numpy(rng().integers(0, count, shape).astype(np.uint8))
    found[..., 0] = 255
    return found


def pair_arguments() -> dict[str, Any]:
    maps = torch.from_numpy(rng().standard_normal((2, 3, 6, 11), np.float32))
    return {"edge_logits": maps[:, :1], "displacement": maps[:, 1:], "labels": labels(2, 6, 11), "radius": 3}


def merge_arguments() -> dict[str, Any]:
    maps = [torch.from_numpy(rng().random((4, *size), np.float32)) for size in ((3, 4), (2, 2))]
    return {"maps": maps, "size": (20, 30), "valid": [2, 0]}


FLOAT = torch.zeros(1, 4, 5)
WALK = Operation(
    amn_fast.random_walk,
    walk_arguments,
    good={
        "x": (
            walk_arguments()["x"] > 0.5,
            np.ones((2, 6, 7), np.int64),
            np.ones((2, 6, 7), ">f4"),
            np.zeros((0, 6, 7)),
            torch.ones(2, 6, 7).bfloat16(),
            torch.ones(2, 6, 7).bool(),
            torch.nn.Parameter(torch.ones(2, 6, 7)),
            np.full((2, 6, 7), 3e38),
        ),
        "edge": (np.zeros((1, 6, 7)), np.eye(6, 7, dtype=bool), torch.ones(6, 7).half()),
        "radius": (1, np.int8(64)),
        "beta": (1, np.float32(0.5), 1e-300),
        "exp_times": (0, np.uint8(9)),
        "method": ("steps",),
        "tolerance": (1e-9,),
        "threads": (1, 7, None),
    },
    bad={
        "x": bad_maps((2, 6, 7)),
        "edge": (
            *bad_maps((6, 7)),
            np.full((6, 7), -0.01),
            np.full((6, 7), 1.01),
            np.zeros((2, 6, 7)),
            np.zeros((0, 7)),
        ),
        "radius": (0, 65, -1, 2**70, *NOT_INTEGERS),
        "beta": (0, -1, INF, *NOT_NUMBERS),
        "exp_times": (-1, 31, *NOT_INTEGERS),
        "method": ("euler", None, 3),
        "tolerance": (0, 1, -1, INF, *NOT_NUMBERS),
        "threads": (0, -2, 2**70, *NOT_INTEGERS[1:]),
    },
)
PIXEL = Operation(
    amn_fast.pixel_loss,
    lambda: {"logits": torch.from_numpy(rng().standard_normal((2, 3, 6, 7), np.float32)), "labels": labels(2, 9, 5)},
    good={
        "logits": (FLOAT.new_ones(2, 4, 1, 1).bfloat16(), FLOAT.new_ones(2, 3, 6, 7).requires_grad_()),
        "labels": (labels(2, 1, 1), labels(2, 5, 9).transpose(1, 2)),
        "eps": (0, 1, np.float64(0.1)),
        "ignore_index": (np.int64(255),),
    },
    bad={
        "logits": (
            None, np.zeros((2, 3, 6, 7)), torch.zeros(2, 1, 6, 7), torch.zeros(3, 6, 7), torch.zeros(2, 3, 0, 7),
            torch.zeros(2, 3, 6, 7).int(), torch.zeros(2, 3, 6, 7).cfloat(), torch.zeros(2, 3, 6, 7).to_sparse(),
            torch.zeros(2, 3, 6, 7, device="meta"), torch.zeros(3, 3, 6, 7),
        ),
        "labels": (
            None, np.zeros((2, 6, 7), np.uint8), labels(2, 6, 7).long(), labels(2, 6, 7).bool(), labels(3, 6, 7),
            labels(6, 7), torch.zeros(2, 0, 7, dtype=torch.uint8), torch.full((2, 6, 7), 3, dtype=torch.uint8),
            labels(2, 6, 7).to_sparse(), labels(2, 6, 7).to("meta"),
        ),
        "eps": (-0.1, 1.1, *NOT_NUMBERS),
        "ignore_index": (-100, -1, 256, *NOT_INTEGERS),
    },
)  # fmt: skip
PAIR = Operation(
    lambda **arguments: torch.stack(amn_fast.pair_loss(**arguments)),
    pair_arguments,
    good={
        "edge_logits": (torch.zeros(2, 1, 6, 11).half(), torch.zeros(2, 1, 6, 11).double()),
        "labels": (labels(2, 6, 11, count=250), labels(2, 6, 11) * 0),
        "radius": (2, np.int32(6)),
        "ignore_index": (0, 7),
    },
    bad={
        "edge_logits": (None, np.zeros((2, 1, 6, 11)), torch.zeros(2, 2, 6, 11), torch.zeros(2, 1, 6, 11).int(),
                        torch.zeros(2, 1, 6, 11).to_sparse(), torch.zeros(2, 1, 6, 11, device="meta")),
        "displacement": (None, torch.zeros(2, 2, 6, 10), torch.zeros(2, 1, 6, 11), torch.zeros(2, 2, 6, 11).long()),
        "labels": (None, labels(2, 6, 11).numpy(), labels(2, 6, 10), labels(2, 6, 11).long(), labels(1, 6, 11)),
        "radius": (1, 0, 7, 2**40, *NOT_INTEGERS),
        "ignore_index": (-1, 256, *NOT_INTEGERS),
    },
)  # fmt: skip
CAM = Operation(
    amn_fast.merge_cam,
    merge_arguments,
    good={
        "maps": (
            [np.ones((4, 3, 3), np.float16)], (np.ones((4, 1, 1), ">f8"),), [torch.ones(4, 2, 3).bfloat16()],
            [torch.ones(4, 2, 3, requires_grad=True), np.ones((4, 5, 5))],
        ),
        "size": ([1, 1], (np.int64(40), 3)),
        "valid": ([], (1, 3), np.array([0, 1]), torch.tensor([3])),
    },
    bad={
        "maps": (
            [], None, np.ones((4, 3, 3)), [np.ones((4, 3))], [np.ones((4, 0, 3))], [np.ones((4, 3, 3), int)],
            [np.ones((4, 3, 3)), np.ones((5, 3, 3))], [np.full((4, 3, 3), NAN)], [torch.full((4, 3, 3), -INF)],
            [torch.ones(4, 3, 3), torch.ones(4, 3, 3, device="meta")], ["map"], [torch.ones(4, 3, 3).to_sparse()],
        ),
        "size": ((0, 5), (5, 2**70), (5, -1), (5,), (1, 2, 3), 5, None, (2.0, 3), (True, 3)),
        "valid": ([4], [-1], [1, 1], [1.0], [True], None, 2, "01", np.zeros((2, 2), int)),
    },
)  # fmt: skip
OPERATIONS = {
    "random_walk": WALK,
    "make_mask": Operation(
        amn_fast.make_mask,
        mask_arguments,
        good={
            "activations": tuple(v for v in WALK.good["x"] if len(v) == 2)[:-1],
            "keys": ([0, 4, 9], np.array([1, 255]), torch.tensor([7, 8])),
            "size": ([24, 28], (1, np.int64(1))),
            "threshold": (0, -1, 2),
            "power": (1e-3, 2),
            "per_class": (True, np.False_),
            "backend": ("auto",),
        },
        bad={
            "activations": (*bad_maps((2, 6, 7)), np.full((2, 6, 7), -1.0)),
            "edge": WALK.bad["edge"],
            "keys": ([4], [0, 4], [1, 2, 3, 4], [1, 256], [-1, 3], [1.0, 2.0], [True, False], None, "ab", [[1, 2]]),
            "size": ((25, 28), (24, 29), *CAM.bad["size"]),
            "threshold": (INF, *NOT_NUMBERS),
            "power": (0, -1, INF, *NOT_NUMBERS),
            "per_class": (0, "yes", None),
            "radius": (0,),
        },
    ),
    "pixel_loss": PIXEL,
    "pair_loss": PAIR,
    "merge_cam": CAM,
    "merge_amn": Operation(
        amn_fast.merge_amn,
        lambda: {**merge_arguments(), "valid": [2, 0], "seed": labels(20, 30)},
        good={"seed": (labels(20, 30) * 0, labels(30, 20).T, labels(20, 30).numpy())},
        bad={
            "maps": CAM.bad["maps"],
            "size": CAM.bad["size"],
            "valid": ([3], *CAM.bad["valid"][1:]),
            "seed": (None, labels(30, 20), labels(20, 30).long(), labels(20, 30).to("meta"), "seed"),
        },
    ),
}  # fmt: skip


def as_arrays(result: Any) -> list[np.ndarray]:
    parts = result if isinstance(result, list | tuple) else [result]
    return [part.detach().double().numpy() if isinstance(part, torch.Tensor) else part for part in parts]


@pytest.mark.parametrize("name", OPERATIONS)
def test_good_arguments_give_the_same_answer_on_every_backend(name):
    operation = OPERATIONS[name]
    for argument, values in {"backend": BACKENDS, **operation.good}.items():
        for value in values:
            arguments = {**operation.arguments(), argument: value}
            answers = [as_arrays(operation.run(**{"backend": backend, **arguments})) for backend in BACKENDS]
            for answer in answers[1:]:
                for found, expected in zip(answer, answers[0], strict=True):
                    scale = max(np.abs(expected).max(initial=0), 1e-30)
                    assert found.dtype == expected.dtype, (argument, value)
                    assert np.abs(found - expected).max(initial=0) <= 1e-2 * scale, (argument, value)


@pytest.mark.parametrize("name", OPERATIONS)
def test_bad_arguments_give_the_same_refusal_on_every_backend(name):
    operation = OPERATIONS[name]
    for argument, values in operation.bad.items():
        for value in values:
            messages = set()
            for backend in BACKENDS:
                with pytest.raises(InputError) as caught:
                    print(
                        argument,
                        repr(value),
                        operation.run(**{**operation.arguments(), argument: value, "backend": backend}),
                    )
                messages.add(str(caught.value))
            assert len(messages) == 1, messages
            (message,) = messages
            assert "expected" in message, message
            assert "\n" not in message
            assert argument in message or f"the {argument}" in message or argument in ("logits", "displacement"), (
                message
            )
    for backend in ("gpu", None, 3, "cuda"):
        with pytest.raises(InputError, match=r"backend is .*, expected 'auto' or one of"):
            operation.run(**operation.arguments(), backend=backend)


def test_operators_called_directly_validate():
    """`torch.ops.amn_fast.*` hands addresses to C++: every shape, dtype and label is checked there too."""
    amn_fast.random_walk(torch.ones(1, 2, 2), torch.zeros(2, 2))  # registers the operator
    logits, small = torch.zeros(2, 3, 4, 5), labels(2, 4, 5)
    edge, moved, pairs = torch.zeros(2, 1, 6, 11), torch.zeros(2, 2, 6, 11), labels(2, 6, 11)
    sums, _, normaliser = pixel_loss._pixel_sums(logits, small, 0.4, 255, "auto")
    five, _, tallies = pair_loss._pair_sums(edge, moved, pairs, 3, 255, "auto")
    maps, seed = [torch.ones(4, 3, 3)], labels(20, 30)
    wrong = torch.full_like(small, 9)
    calls = [
        ("pixel_sums", (logits[0], small, 0.4, 255, "cpu")),
        ("pixel_sums", (logits, small[:1], 0.4, 255, "cpu")),
        ("pixel_sums", (logits, wrong, 0.4, 255, "cpu")),
        ("pixel_sums", (logits, small, 0.4, 256, "cpu")),
        ("pixel_sums", (logits, small, 0.4, 255, "reference")),
        ("pixel_sums_backward", (sums, logits, wrong, normaliser, 0.4, 255, "cpu")),
        ("pixel_sums_backward", (sums, logits, small, normaliser[:, :1], 0.4, 255, "cpu")),
        ("pixel_sums_backward", (sums, logits, small, normaliser.double(), 0.4, 255, "cpu")),
        ("pixel_sums_backward", (sums[:1], logits, small, normaliser, 0.4, 255, "cpu")),
        ("pair_sums", (edge, moved[:1], pairs, 3, 255, "cpu")),
        ("pair_sums", (edge, moved, pairs, 9, 255, "cpu")),
        ("pair_sums", (edge, moved, pairs[:, :3], 3, 255, "cpu")),
        ("pair_sums_backward", (five, edge, moved, tallies[:, :3], "cpu")),
        ("pair_sums_backward", (five, edge, moved[..., :5], tallies, "cpu")),
        ("pair_sums_backward", (five[:2], edge, moved, tallies, "cpu")),
        ("pair_sums_backward", (five, edge, moved, tallies.float(), "cpu")),
        ("merge_cam", ([*maps, torch.ones(4, 3)], 20, 30, [0], "cpu")),
        ("merge_cam", (maps, 20, 30, [4], "cpu")),
        ("merge_cam", (maps, 20, -30, [0], "cpu")),
        ("merge_cam", ([], 20, 30, [0], "cpu")),
        ("merge_amn", (maps, 20, 30, [0], seed[:5], "cpu")),
        ("merge_amn", (maps, 20, 30, [3], seed, "cpu")),
        ("random_walk", ([torch.ones(1, 2, 2)], [], 5, 10.0, 8, "chebyshev", 1e-6, "cpu", 1)),
        ("random_walk", ([torch.ones(1, 2, 2)], [torch.ones(3, 2)], 5, 10.0, 8, "chebyshev", 1e-6, "cpu", 1)),
        ("random_walk", ([torch.ones(1, 2, 2)], [torch.ones(2, 2)], 500, 10.0, 8, "chebyshev", 1e-6, "cpu", 1)),
    ]
    for name, arguments in calls:
        with pytest.raises(InputError, match=r"expected|has no backend"):
            print(name, arguments, getattr(torch.ops.amn_fast, name)(*arguments))


def test_tensor_subclasses_are_handled_like_tensors():
    class Tagged(torch.Tensor):
        pass

    for name in ("random_walk", "pixel_loss", "merge_cam"):
        arguments = OPERATIONS[name].arguments()
        tagged = {
            key: torch.as_tensor(value).as_subclass(Tagged) if isinstance(value, np.ndarray | torch.Tensor) else value
            for key, value in arguments.items()
        }
        if name == "merge_cam":
            tagged["maps"] = [m.as_subclass(Tagged) for m in arguments["maps"]]
        found, expected = OPERATIONS[name].run(**tagged), OPERATIONS[name].run(**arguments)
        for part, plain in zip(as_arrays(found), as_arrays(expected), strict=True):
            np.testing.assert_allclose(np.asarray(part), plain, rtol=1e-6)
        first = found[0] if isinstance(found, tuple) else found
        assert isinstance(first, Tagged), name


def test_forward_mode_derivatives_are_right_or_refused():
    arguments = {name: OPERATIONS[name].arguments() for name in ("pixel_loss", "pair_loss", "merge_cam")}
    functions = {
        "pixel_loss": (lambda x, **o: amn_fast.pixel_loss(x, arguments["pixel_loss"]["labels"], **o), "logits"),
        "pair_loss": (
            lambda x, **o: amn_fast.pair_loss(**{**arguments["pair_loss"], "edge_logits": x}, **o).total,
            "edge_logits",
        ),
        "merge_cam": (lambda x, **o: amn_fast.merge_cam([x], (20, 30), [2, 0], **o)[1].sum(), "maps"),
    }
    for name, (function, argument) in functions.items():
        value = arguments[name][argument]
        x = (value[0] if name == "merge_cam" else value).double()
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad(function(x), x)
        x = x.detach()
        _, tangent = torch.func.jvp(function, (x,), (torch.ones_like(x),))
        torch.testing.assert_close(tangent, gradient.sum(), rtol=1e-6, atol=1e-9)
        if "cpu" in BACKENDS:
            with pytest.raises(amn_fast.errors.BackendError, match="'cpu' has no forward-mode derivative"):
                torch.func.jvp(lambda v, f=function: f(v, backend="cpu"), (x,), (x,))


@pytest.mark.skipif(_native.native is None, reason=_native.missing)
def test_labels_that_change_between_forward_and_backward():
    buffer = np.zeros((2, 40, 50), np.uint8)
    for hostile in (3, 40, 255 - 1):
        buffer[:] = 0
        logits = torch.zeros(2, 3, 40, 50, requires_grad=True)
        loss = amn_fast.pixel_loss(logits, torch.from_numpy(buffer), backend="cpu")
        buffer[:] = hostile
        with pytest.raises(InputError, match=rf"labels hold {hostile}, expected 0\.\.2"):
            loss.backward()
