"""The review page of a run: a gallery of all its masks, in RUN/review.

index.html shows what data.js lists. Each image has a thumbnail, thumbs/KEY.jpg, and a script, maps/KEY.js, with its
mask and its quantised scores at the thumbnail's size; a browser loads both when the image comes into view, also without
a server. decisions.json holds what the reviewer decided; nothing here ever removes a decision.
"""

import base64
import colorsys
import hashlib
import io
import json
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast._pool import thread_pool
from amn_fast.config import Config
from amn_fast.data import open_dataset
from amn_fast.data.base import IGNORE, Dataset
from amn_fast.data.image import read_mask
from amn_fast.data.masks import check_ids, describe_size
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.files import write_atomically, write_text
from amn_fast.ops._arrays import thread_count
from amn_fast.pipeline.chosen import chosen_mask
from amn_fast.review.decisions import FOLDER, Decision, read_decisions
from amn_fast.review.doubt import doubt, read_doubt
from amn_fast.review.source import run_config, unknown_name

FORMAT = 1
"""Raised when the files of an image come out differently than before."""
SIDE = 400
"""Longest side of a thumbnail in pixels."""
LEVELS = 200
"""A score s is stored as ceil(200 s): s > k / 200 holds exactly where the stored value is above k."""

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Page:
    """A review page on disk.

    Attributes:
        folder: RUN/review.
        ids: ids of all images, in the order of the data set.
        built: how many images were computed; the others were up to date.
        failures: id -> reason, for images that cannot be shown; they are listed on the page.
    """

    folder: Path
    ids: tuple[str, ...]
    built: int
    failures: dict[str, str]

    @property
    def decisions(self) -> Path:
        return self.folder / "decisions.json"


def build_page(run: Path | str, *, advance: Callable[[], object] = lambda: None) -> Page:
    """Write or update RUN/review for a run that has masks.

    The order is that of the run's doubt.csv; without it, `doubt` ranks the masks. An image is computed again if its
    mask, its scores, or the settings of make-mask changed. Decisions are kept.

    Args:
        run: the run folder.
        advance: called after each image.

    Raises:
        InputError: `run` is no run folder with masks, or its decisions.json is damaged.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file() or not (run / "masks").is_dir():
        raise InputError(f"{run}: is not a run folder with masks (config.yaml, masks/)")
    config = run_config(run)
    dataset = open_dataset(config.data.kind, config.data.root, **config.data.options)
    folder = run / FOLDER
    decided = read_decisions(folder / "decisions.json") if (folder / "decisions.json").exists() else {}
    log = _Log(folder / "items.jsonl")
    built: set[str] = set()

    def item_of(id: str) -> dict[str, Any]:
        state = _state(run, id, config, dataset)
        item = log.find(id, state)
        if item is None or not all((folder / name).exists() for name in _files(item)):
            item = _describe(run, id, config, dataset, folder)
            log.append(id, state, item)
            built.add(id)
        advance()
        return item

    with thread_pool(thread_count(None)) as pool:
        items = [dict(item) for item in pool.map(item_of, dataset.ids)]
    ranked = read_doubt(run)
    for item in items:
        if "failure" not in item:
            item["doubt"] = ranked.get(item["id"], item["doubt"])
    log.rewrite(dataset.ids)
    labels = {**dict(enumerate(dataset.classes, 1)), IGNORE: unknown_name(dataset.classes)}
    data = {
        "name": config.name,
        "storage": f"amn-fast review {hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]}",
        "threshold": chosen_mask(config).threshold,
        "levels": LEVELS,
        "labels": {str(label): name for label, name in labels.items()},
        "colours": {str(label): _colour(label) for label in labels},
        "items": items,
    }
    write_text(folder / "data.js", f"window.REVIEW = {_script(data)};\n")
    write_text(folder / "decisions.js", decisions_script(decided))
    with TEMPLATE.open("rb") as source:
        write_atomically(folder / "index.html", lambda file: shutil.copyfileobj(source, file))
    failures = {item["id"]: item["failure"] for item in items if "failure" in item}
    return Page(folder, tuple(dataset.ids), len(built), failures)


def _colour(label: int) -> list[int]:
    """A bright colour, as far as possible from those of the labels before: hues a golden angle apart; 255 is white."""
    if label == IGNORE:
        return [255, 255, 255]
    return [round(255 * part) for part in colorsys.hsv_to_rgb((label - 1) * 0.618034 % 1, 0.85, 1)]


def decisions_script(decided: dict[str, Decision]) -> str:
    """The script that hands decisions.json to the page."""
    return f"window.DECISIONS = {_script(decided)};\n"


def _script(value: object) -> str:
    """JSON that is safe inside a script, whatever the names in it hold."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _state(run: Path, id: str, config: Config, dataset: Dataset) -> list[Any]:
    """What an image's files on the page depend on."""
    paths = (run / "masks" / f"{id}.png", run / "amn" / f"{id}.npz", run / "edge" / f"{id}.npz", dataset.image_file(id))
    found = []
    for path in paths:
        status = path.stat() if path is not None and path.exists() else None
        found.append([status.st_size, status.st_mtime_ns] if status else None)
    return [FORMAT, len(dataset.classes), config.mask.model_dump(mode="json"), found]


def _files(item: dict[str, Any]) -> list[str]:
    return [] if "failure" in item else [f"thumbs/{item['key']}.jpg", f"maps/{item['key']}.js"]


def _describe(run: Path, id: str, config: Config, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Write an image's thumbnail and map; return its entry in data.js."""
    key = hashlib.sha256(id.encode()).hexdigest()[:20]
    path = run / "masks" / f"{id}.png"
    try:
        mask = read_mask(path)
        check_ids(path, mask, len(dataset.classes))
        image = dataset.image(id)
        if mask.shape != image.shape[:2]:
            raise InputError(f"{path}: is {describe_size(mask.shape)}, but its image is {describe_size(image.shape)}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        planes, how_doubtful = [_small(mask)], None
        scored = (run / "amn" / f"{id}.npz").exists() and (run / "edge" / f"{id}.npz").exists()
        if scored:
            scores, keys = _scores(run, id, config)
            if scores.shape[1:] != mask.shape:
                raise InputError(f"{path}: is {describe_size(mask.shape)}, but its scores {scores.shape[1:]}")
            how_doubtful = round(doubt(scores), 4)
            planes += quantised(np.stack([_small(one) for one in scores]) if len(scores) else scores, keys, planes[0])
    except InputError as error:
        return {"id": id, "key": key, "failure": str(error), "doubt": 1.0, "classes": [], "mask": "", "scored": False}
    _write_thumbnail(folder / "thumbs" / f"{key}.jpg", image)
    height, width = planes[0].shape
    content = base64.b64encode(zlib.compress(np.stack(planes).tobytes(), 6)).decode()
    write_text(folder / "maps" / f"{key}.js", f'window.reviewMap("{key}",{width},{height},"{content}");\n')
    present = [label for label in np.unique(mask).tolist() if label]
    return {"id": id, "key": key, "doubt": how_doubtful, "classes": present, "mask": digest, "scored": scored}


def _scores(run: Path, id: str, config: Config) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    from amn_fast.pipeline.inference import read_edge
    from amn_fast.steps.mask import scores

    found = read_activations(run / "amn" / f"{id}.npz")
    return scores(found, read_edge(run / "edge" / f"{id}.npz"), config.mask), found.keys


def quantised(
    scores: NDArray[np.float32], keys: NDArray[np.uint8], like: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The highest score of each pixel as ceil(200 s), and its label; zeros in the shape of `like` without any class."""
    if not len(keys):
        return np.zeros_like(like), np.zeros_like(like)
    levels = np.ceil(scores.max(0).astype(np.float64) * LEVELS).astype(np.uint8)
    return levels, keys[scores.argmax(0)]


def _small(image: NDArray[Any]) -> NDArray[Any]:
    """Every pixel of a thumbnail from the pixel of `image` under its centre: labels and scores are not blended."""
    height, width = thumbnail_size(image.shape)
    rows = ((np.arange(height) + 0.5) * image.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(np.intp)
    return image[rows[:, None], columns]


def thumbnail_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of the thumbnail of an image of `shape`: never larger than the image."""
    factor = min(1.0, SIDE / max(shape[:2]))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _write_thumbnail(path: Path, image: NDArray[np.uint8]) -> None:
    height, width = thumbnail_size(image.shape)
    buffer = io.BytesIO()
    Image.fromarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)).save(buffer, "JPEG", quality=85)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


class _Log:
    """items.jsonl: a line for each image that was computed, so that an interrupted build resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, Any]] = {}
        self._used: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
                self._entries[entry["id"]] = {"id": entry["id"], "state": entry["state"], "item": entry["item"]}
            except (ValueError, KeyError, TypeError):  # a line cut off by a kill: its image is computed again
                continue

    def find(self, id: str, state: list[Any]) -> dict[str, Any] | None:
        entry = self._entries.get(id)
        if entry is None or entry["state"] != state:
            return None
        self._used[id] = entry
        return entry["item"]

    def append(self, id: str, state: list[Any], item: dict[str, Any]) -> None:
        self._used[id] = {"id": id, "state": state, "item": item}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(self._used[id]) + "\n")

    def rewrite(self, ids: Sequence[str]) -> None:
        """Keep the entries of this build alone, in the order of `ids`."""
        write_text(self._path, "".join(json.dumps(self._used[id]) + "\n" for id in ids))
