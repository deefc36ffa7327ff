"""Fill the marked figures of README.md and docs/ from the results in benchmarks/results/.

    python docs/figures.py

A mark is a pair of comments, `<!-- figure: NAME -->text<!-- /figure -->`; NAME is a key of `FIGURES`. A test holds the
committed texts to this script.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(?P<start><!-- figure: (?P<name>\w+) -->)(?P<text>.*?)(?P<end><!-- /figure -->)", re.DOTALL)


def pages() -> list[Path]:
    """README.md and the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill(text: str) -> str:
    """Return `text` with the content of every mark replaced by its figure."""
    return MARK.sub(lambda mark: mark["start"] + FIGURES[mark["name"]]() + mark["end"], text)


def _results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def _crf_rows(threads: int, maps: int = 1) -> list[dict[str, Any]]:
    rows = _results("dense_crf_375x500")["rows"]
    return [row for row in rows if row["threads"] == threads and row["maps"] == maps]


def crf_ratios(threads: int) -> str:
    ratios = [row["ratio"] for row in _crf_rows(threads)]
    return f"{min(ratios):.1f} to {max(ratios):.1f} times"


def crf_table() -> str:
    alone = _results("dense_crf_375x500")["alone"]
    first, memory = ([row for row in alone if row["what"].startswith(what)] for what in ("first call", "peak memory"))
    lines = [
        "| labels | amn_fast, 1 thread | pydensecrf | ratio, 1 thread | ratio, 2 threads "
        "| ratio, two label maps, 1 thread | ratio, first call, 1 thread | peak memory added, amn_fast / pydensecrf |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns = (_crf_rows(1), _crf_rows(2), _crf_rows(1, maps=2), first, memory)
    for one, two, maps, start, peak in zip(*columns, strict=True):
        lines.append(
            f"| {one['labels']} | {one['ours_ms']:.0f} ms | {one['peer_ms']:.0f} ms | {one['ratio']:.1f} "
            f"| {two['ratio']:.1f} | {maps['ratio']:.1f} | {start['ratio']:.1f} "
            f"| {peak['ours']:.0f} / {peak['peer']:.0f} MB |"
        )
    return _block(lines)


def crf_lists() -> str:
    parts = _results("dense_crf_375x500")["parts"]
    return ", ".join(f"{part['ratio']:.1f}" for part in parts if part.get("what", "").startswith("8 pictures"))


def crf_present(labels: int) -> str:
    row = next(row for row in _results("dense_crf_shown")["rows"] if row["labels"] == labels)
    return f"{row['ours_ms']:.0f} ms against {row['peer_ms']:.0f} ms ({row['ratio']:.0f} times)"


def crf_pruned(labels: int) -> str:
    parts = _results("dense_crf_prune")["parts"]
    return f"{next(part['ratio'] for part in parts if 'pruned' in part and part['labels'] == labels):.1f} times"


def _walk(size: str, maps: int, method: str) -> dict[str, Any]:
    rows = _results("random_walk")["rows"]
    return next(row for row in rows if (row["size"], row["maps"], row["method"]) == (size, maps, method))


def walk_own() -> str:
    row = _walk("94 x 125", 1, "amn_fast")
    return f"{row['seconds'] * 1e3:.0f} ms and {row['mib']:.0f} MiB"


def walk_dense() -> str:
    row = _walk("94 x 125", 1, "dense (published) ≈")
    return f"{row['seconds']:.0f} s and {row['mib'] / 1024:.0f} GiB"


def walk_table() -> str:
    lines = [
        "| map | K | amn_fast | 256 steps | SciPy sparse | PyTorch sparse "
        "| memory, amn_fast / SciPy | error, amn_fast / SciPy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for own in _results("random_walk")["rows"]:
        if own["method"] != "amn_fast":
            continue
        size, maps = own["size"], own["maps"]
        others = [_walk(size, maps, f"{name}, 256 steps") for name in ("amn_fast", "SciPy sparse", "PyTorch sparse")]
        ratios = " | ".join(f"{other['seconds'] / own['seconds']:.1f} x" for other in others)
        scipy = others[1]
        lines.append(
            f"| {size} | {maps} | {own['seconds'] * 1e3:.1f} ms | {ratios} "
            f"| {own['mib']:.1f} / {scipy['mib']:.0f} MiB | {own['error']:.1e} / {scipy['error']:.1e} |"
        )
    return _block(lines)


def eval_seg() -> str:
    result = _results("eval_seg")
    ratio, ours, theirs = result["published_over_ours"], *(result["methods"][name] for name in ("ours", "published"))
    return (
        f"{ratio['seconds']:.1f} times as fast ({ratio['processor_seconds']:.1f} times in CPU time), "
        f"{ours['written_mb']} MB written instead of {theirs['written_mb']} MB"
    )


def _block(lines: list[str]) -> str:
    """A table stands in its own paragraph."""
    return "\n\n" + "\n".join(lines) + "\n\n"


FIGURES: dict[str, Callable[[], str]] = {
    "crf_one_thread": lambda: crf_ratios(1),
    "crf_two_threads": lambda: crf_ratios(2),
    "crf_table": crf_table,
    "crf_lists": crf_lists,
    "crf_present_21": lambda: crf_present(21),
    "crf_present_81": lambda: crf_present(81),
    "crf_pruned_21": lambda: crf_pruned(21),
    "crf_pruned_81": lambda: crf_pruned(81),
    "walk_own": walk_own,
    "walk_dense": walk_dense,
    "walk_table": walk_table,
    "eval_seg": eval_seg,
}


if __name__ == "__main__":
    for page in pages():
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
