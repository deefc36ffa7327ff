"""A labelling job and its shards: what is computed together, and what says that it is finished.

OUT/job.json               what every output depends on
OUT/masks/ID.png           or, in the form `tar`, OUT/masks/NNNNN.tar
OUT/shards/NNNNN.parquet   a row for each image; `pandas.read_parquet("OUT/shards")` reads all
OUT/manifests/NNNNN.json   the shard's manifest, written last: a shard that has one is finished
OUT/logs/                  times, attempts and progress: what depends on who computed it
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from amn_fast import __version__
from amn_fast._extras import require
from amn_fast.errors import InputError
from amn_fast.label.places import TEMPORARY, Place
from amn_fast.pipeline.contents import digest

FORMAT = 1  # goes up when the same job gives other outputs
JOB = "job.json"
OK, ERROR = "ok", "error"
MOST_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Row:
    """An image in the table of its shard.

    Attributes:
        id: of the image.
        status: OK or ERROR.
        labels: names of its classes.
        predicted: whether the classifier gave them.
        height, width: of the mask, in pixels.
        areas: pixels of each label in the mask, in the order of `labels`.
        doubt: see `amn_fast.review.doubt.doubt`.
        error: a sentence.
    """

    id: str
    status: str
    labels: tuple[str, ...] = ()
    predicted: bool | None = None
    height: int | None = None
    width: int | None = None
    areas: tuple[int, ...] = ()
    doubt: float | None = None
    error: str | None = None

    @classmethod
    def failed(cls, id: str, error: object) -> "Row":
        return cls(id, ERROR, error=" ".join(str(error).split())[:MOST_ERROR_CHARACTERS])


@dataclass(frozen=True)
class Outcome:
    """A finished shard: images, and how many of them are errors."""

    shard: int
    images: int
    errors: int


def shard_name(shard: int) -> str:
    """The name of a shard in all files."""
    return f"{shard:05d}"


# --------------------------------------------------------------------------------------------------------------- jobs


def claim(place: Place, identity: Mapping[str, Any]) -> str:
    """Take a folder for a job: mark it as this job's, or check that it is.

    Args:
        identity: what every output depends on, as JSON.

    Returns:
        the job's hash.

    Raises:
        InputError: the folder belongs to another job, or holds files that no job has written.
    """
    whole = {"format": FORMAT, "version": __version__, **identity}
    found = read_job(place)
    if found is None:
        others = [name for name in place.names("") if name != TEMPORARY]
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise InputError(
                f"{place}: holds {shown}, which no labelling job has written; expected a new or an empty folder"
            )
        place.write(JOB, (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode(), "job")
    elif found != json.loads(json.dumps(whole)):
        different = ", ".join(_differences(found, json.loads(json.dumps(whole))))
        raise InputError(f"{place}: belongs to a job of another configuration ({different}); choose another folder")
    return digest(whole)


def read_job(place: Place) -> dict[str, Any] | None:
    """The identity of the job that a folder belongs to; None where there is none.

    Raises:
        InputError: the file is damaged.
    """
    content = place.read(JOB)
    try:
        value = None if content is None else json.loads(content)
        if value is not None and not isinstance(value, dict):
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"{place}: {JOB} is damaged, so the folder's job is not known; choose another folder"
        ) from error
    return value


def _differences(found: Any, expected: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted({*found, *expected})
        each = (_differences(found.get(key), expected.get(key), f"{name}.{key}" if name else key) for key in keys)
        return [difference for differences in each for difference in differences][:3]
    if found == expected:
        return []
    texts = [text if len(text := json.dumps(value)) <= 60 else f"{text[:57]}..." for value in (found, expected)]
    return [f"{name}: found {texts[0]}, expected {texts[1]}"]


# ------------------------------------------------------------------------------------------------------------- shards


def manifest_name(shard: int) -> str:
    return f"manifests/{shard_name(shard)}.json"


def table_name(shard: int) -> str:
    return f"shards/{shard_name(shard)}.parquet"


def archive_name(shard: int) -> str:
    return f"masks/{shard_name(shard)}.tar"


def mask_name(id: str) -> str:
    return f"masks/{id}.png"


def finished_shards(place: Place) -> set[int]:
    """The numbers of the shards that have a manifest."""
    names = (name.removesuffix(".json") for name in place.names("manifests") if name.endswith(".json"))
    return {int(name) for name in names if name.isdecimal()}


def read_manifest(place: Place, shard: int) -> Outcome | None:
    """A finished shard; None where it has no manifest, or a damaged one."""
    try:
        value = json.loads(place.read(manifest_name(shard)) or b"")
        return Outcome(shard, int(value["images"]), int(value["errors"]))
    except (ValueError, KeyError, TypeError):
        return None


def write_shard(
    place: Place, shard: int, job: str, rows: Sequence[Row], masks: Mapping[str, bytes] | None, log: Sequence[Any]
) -> Outcome:
    """Write the table of a shard and, in the form `tar`, its masks; then its manifest.

    Args:
        job: the job's hash.
        rows: in the order of their ids.
        masks: PNG by id; None where they have been written as files.
        log: values for the shard's log, one a line.
    """
    owner = shard_name(shard)
    place.remove(manifest_name(shard))  # an earlier one, if failed images were computed again
    files = {table_name(shard): _table(rows)}
    if masks is not None:
        files[archive_name(shard)] = _archive(masks)
    for name, content in files.items():
        place.write(name, content, owner)
    lines = "".join(json.dumps(value, sort_keys=True) + "\n" for value in log)
    place.write(f"logs/{owner}.jsonl", lines.encode(), owner)
    outcome = Outcome(shard, len(rows), sum(row.status == ERROR for row in rows))
    hashes = {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in sorted(files.items())}
    manifest = {**asdict(outcome), "job": job, "files": hashes}
    place.write(manifest_name(shard), (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode(), owner)
    return outcome


def read_rows(place: Place, shard: int) -> list[Row]:
    """The table of a shard; no rows where there is none."""
    content = place.read(table_name(shard))
    if content is None:
        return []
    require("pyarrow", "label")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    return [Row(**row | {"labels": tuple(row["labels"]), "areas": tuple(row["areas"])}) for row in rows]


def read_masks(place: Place, shard: int) -> dict[str, bytes]:
    """PNG by id from the archive of a shard; nothing where there is none."""
    content = place.read(archive_name(shard))
    if content is None:
        return {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name.removesuffix(".png"): file.read() for name, file in files.items() if file is not None}


def _table(rows: Sequence[Row]) -> bytes:
    """The rows as Parquet; the same rows are the same bytes, given the version of pyarrow."""
    require("pyarrow", "label")
    import pyarrow as pa
    import pyarrow.parquet

    schema = pa.schema(
        [
            ("id", pa.string()),
            ("status", pa.string()),
            ("labels", pa.list_(pa.string())),
            ("predicted", pa.bool_()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("areas", pa.list_(pa.int64())),
            ("doubt", pa.float32()),
            ("error", pa.string()),
        ]
    )
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema)
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    return content.getvalue()


def _archive(masks: Mapping[str, bytes]) -> bytes:
    """A tar of ID.png in the order of the ids, without times and owners."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for id in sorted(masks):
            member = tarfile.TarInfo(f"{id}.png")
            member.size = len(masks[id])
            archive.addfile(member, io.BytesIO(masks[id]))
    return content.getvalue()
