"""Trusted masks: drawn or corrected by people, for some of the images; full masks, scribbles or points."""

from pathlib import Path

import numpy as np

from amn_fast._pool import thread_pool
from amn_fast.data.base import list_ids
from amn_fast.data.image import image_size, read_mask
from amn_fast.data.masks import check_mask
from amn_fast.errors import InputError
from amn_fast.pipeline.engine import cores
from amn_fast.pipeline.folder import Workspace


def check_trusted(work: Workspace) -> None:
    """Check every file of the folder `trusted`, if the configuration names one.

    Raises:
        InputError: the folder is missing or holds no mask; a mask belongs to no image, has another size than its image,
            is unknown (255) everywhere, or holds an id that is no class or a class that its image's label does not.
    """
    folder = work.config.trusted
    if folder is None:
        return
    if not folder.is_dir():
        raise InputError(f"trusted is {folder}, expected a folder of masks ID.png")
    files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.png"))}
    if not files:
        raise InputError(f"{folder}: holds no trusted masks, expected files ID.png")
    strange = sorted(set(files) - set(work.dataset.ids))
    if strange:
        raise InputError(f"{folder}: {list_ids(strange)} of {len(files)} trusted masks belong to no image")
    with thread_pool(cores()) as pool:
        list(pool.map(lambda id: _check(work, id, files[id]), files))


def _check(work: Workspace, id: str, path: Path) -> None:
    image, classes = work.dataset.image_file(id), work.dataset.classes
    size = work.dataset.image(id).shape[:2] if image is None else image_size(image)
    check_mask(path, size, len(classes))
    shown = {label for label in np.unique(read_mask(path)).tolist() if 0 < label <= len(classes)}
    absent = [classes[label - 1] for label in sorted(shown) if not work.dataset.labels(id)[label - 1]]
    if absent:
        raise InputError(
            f"{path}: holds {', '.join(absent)}, but the label of image {id!r} does not; correct one of the two"
        )
