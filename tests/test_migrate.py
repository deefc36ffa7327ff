"""The blocks on the right of docs/migrate.md run, in their order, on published files."""

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from amn_fast.models import AmnNet, CamNet, IrnNet, published_state_dict  # noqa: E402

PAGE = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sess").mkdir()
    (tmp_path / "result" / "cam").mkdir(parents=True)
    torch.manual_seed(0)
    for name, net in (("cam", CamNet(20)), ("amn", AmnNet(20)), ("irn", IrnNet())):
        torch.save(published_state_dict(net), f"sess/{name}.pth")
    height, width = size = (61, 80)
    rng = np.random.default_rng(0)
    entry = {
        "keys": torch.tensor([3, 14]),
        "cam": torch.rand(2, 16, 20),
        "high_res": rng.random((2, *size), np.float32),
    }
    np.save("result/cam/2007_000032.npy", entry)
    probabilities = rng.random((3, *size))
    names = {
        "image": rng.integers(0, 256, (*size, 3), np.uint8),
        "size": size,
        "labels": np.isin(np.arange(20), (3, 14)),
        "probabilities": (probabilities / probabilities.sum(0)).astype(np.float32),
    }
    blocks = re.findall(r"```python\n(# amn_fast\n.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 9
    for block in blocks:
        exec(compile(block, "docs/migrate.md", "exec"), names)
        if "seed = refine_seed(" in block and "amn_seed" not in block:
            assert names["seed"].shape == size
        if "merge_amn" in block:
            assert names["high_res"].shape == (3, height, width)
            assert names["amn_seed"].shape == size
    assert names["rw"].shape == (2, 1, 16, 20)
    assert names["mask"].shape == size
    assert set(np.unique(names["mask"])) <= {0, 4, 15}
    assert (tmp_path / "cam_again.pth").is_file()
    assert torch.isfinite(names["loss"])
    np.testing.assert_allclose(names["Q"].sum(0), 1, atol=1e-5)
    assert names["dcrf"].DenseCRF2D
