"""Images to label: a folder, a list or WebDataset archives, on a disk or at a URL, and where their labels come from.

What is listed at the start is ids and locations; images and sidecar files are read by the process that labels them.
"""

from pathlib import Path, PurePosixPath

from amn_fast.data.names import clean_id
from amn_fast.errors import InputError
from amn_fast.label.archives import Archives, expand
from amn_fast.label.files import LIST_SUFFIXES, Files, read_list, relative, walk
from amn_fast.label.listing import Listing, without_suffix


def open_listing(location: str, shard_size: int, labels: Path | None, classes: tuple[str, ...]) -> Listing:
    """List the images at a location.

    Args:
        location: a folder of images, with its subfolders; a list `.csv`, `.tsv`, `.txt` or `.parquet`; a `.tar` of
            WebDataset, a pattern of them (`data/{000..127}.tar`, `data/*.tar`) or a folder of them. A path or a URL.
        shard_size: images in a shard; an archive is a shard of its own.
        labels: a file of image-level labels, see `amn_fast.data.labels`; None where they come from elsewhere.
        classes: of the run.

    Raises:
        InputError: there is nothing to label, two images have the same id, or an id cannot name a file.
    """
    suffix = PurePosixPath(location).suffix.lower()
    if suffix == ".tar":
        return Archives.of(expand(location), labels)
    if suffix in LIST_SUFFIXES:
        found = read_list(location, suffix)
    else:
        names = list(walk(location))
        archives = [name for name in names if name.lower().endswith(".tar")]
        if archives and len(archives) < len(names):
            raise InputError(f"{location}: holds {len(archives)} archives among images, expected one kind alone")
        if archives:
            return Archives.of(archives, labels)
        found = ((clean_id(without_suffix(relative(name, location))), name) for name in names)
    return Files.of(location, found, shard_size, labels, classes)
