"""NumPy files are read on several threads; CPython 3.11 and 3.12 count the depth of `ast.parse` for all of them."""

import ast

import numpy as np

from amn_fast.crf_folder import read_probabilities
from amn_fast.data.legacy import read_legacy, write_legacy
from amn_fast.data.store import Activations, read_activations, read_strided, write_activations
from amn_fast.pipeline.inference import read_edge, write_edge
from amn_fast.refine.scores import read_numbers


def test_readers_survive_the_parser_that_threads_share(tmp_path, monkeypatch):
    maps = np.full((2, 4, 5), 0.5, np.float32)
    write_activations(tmp_path / "a.npz", Activations(np.array([1, 2], np.uint8), maps[:, :1, :2], maps))
    write_edge(tmp_path / "edge.npz", maps[0])
    write_legacy(tmp_path / "legacy.npy", {"keys": np.arange(2)})
    np.save(tmp_path / "plain.npy", maps)
    np.savez(tmp_path / "plain.npz", maps)
    readers = {
        read_activations: "a.npz",
        read_strided: "a.npz",
        read_edge: "edge.npz",
        read_legacy: "legacy.npy",
        read_numbers: "plain.npy",
        (lambda path: read_probabilities(path, None)): "plain.npz",
        (lambda path: read_probabilities(path, "")): "plain.npy",
    }
    real = ast.literal_eval
    for read, name in readers.items():
        failures = [SystemError("AST constructor recursion depth mismatch")] * 3

        def parse(text, failures=failures):
            if failures:
                raise failures.pop()
            return real(text)

        monkeypatch.setattr(ast, "literal_eval", parse)
        read(tmp_path / name)
        assert not failures, f"{name}: the header was not parsed"
