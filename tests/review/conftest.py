"""A finished run of any size without training: random shapes as activations, masks by make-mask's own functions."""

import importlib.util
import json

import numpy as np
import pytest

NEEDED = ("torch", "timm", "pydantic", "yaml", "typer", "rich")
if [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    collect_ignore_glob = ["test_*.py"]  # the extra 'pipeline'

CLASSES = ("cat", "<img src=x onerror=alert(1)>", "[red]dog[/red] é")


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """make_run(n, size) -> run folder of `n` images; every 50th has no class, one id needs escaping."""
    monkeypatch.setattr("os.fsync", lambda file: None)  # thousands of files that no test reads after a power cut
    from PIL import Image

    from amn_fast.config import read_config, to_yaml
    from amn_fast.data.masks import write_mask
    from amn_fast.data.store import Activations, write_activations
    from amn_fast.ops.mask import mask_from_scores, upsample
    from amn_fast.pipeline.inference import write_edge
    from amn_fast.steps.mask import scores

    def make(n, size=(24, 32)):
        run, data = tmp_path / "run", tmp_path / "data"
        (data / "images").mkdir(parents=True)
        (run / "masks").mkdir(parents=True)
        (data / "config.yaml").write_text(
            f"name: '<b>test</b>'\nrun: {json.dumps(str(run))}\n"
            f"data: {{kind: folder, root: {json.dumps(str(data))}, options: {{labels: labels.json}}}}\n"
            "mask: {exp_times: 2}\n"
        )
        config = read_config(str(data / "config.yaml"))
        (run / "config.yaml").write_text(to_yaml(config))
        labels = {}
        random = np.random.RandomState(0)
        small = (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1
        for number in range(n):
            id = "<i>&\"'[b]" if number == 7 else f"image {number:05d}"
            keys = np.unique(random.randint(1, 4, 2)).astype(np.uint8) if number % 50 else np.zeros(0, np.uint8)
            labels[id] = [CLASSES[key - 1] for key in keys]
            strided = random.rand(len(keys), *small).astype(np.float32) ** 2
            found = Activations(keys, strided, upsample(strided, size))
            edge = random.rand(*small).astype(np.float32)
            Image.fromarray(random.randint(60, 200, (*size, 3)).astype(np.uint8)).save(data / "images" / f"{id}.png")
            write_activations(run / "amn" / f"{id}.npz", found)
            write_edge(run / "edge" / f"{id}.npz", edge)
            mask = mask_from_scores(scores(found, edge, config.mask), [0, *keys], config.mask.background)
            write_mask(run / "masks" / f"{id}.png", mask)
        (data / "labels.json").write_text(json.dumps({"classes": list(CLASSES), "labels": labels}))
        return run

    return make
