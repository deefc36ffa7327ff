"""A finished run of a tiny network, and images for it."""

import importlib.util
from pathlib import Path

import pytest

NEEDED = ("torch", "timm", "pydantic", "yaml", "typer", "rich", "pyarrow", "fsspec")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []  # the extras 'pipeline' and 'label'


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    from tiny_run import CONFIG, write_run

    config = CONFIG.replace("cam: {scales: [1.0]}", "cam: {scales: [1.0, 1.5]}")
    return write_run(tmp_path_factory.mktemp("label") / "run", config)


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of 30 images beside their labels.json."""
    from tiny_run import write_images

    write_images(tmp_path / "images", 30)
    return tmp_path / "images"
