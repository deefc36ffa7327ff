"""Fill the marked figures of README.md and docs/ from the results in benchmarks/results/.

    pytest benchmarks        # on a quiet machine; writes benchmarks/results/default.json
    python docs/figures.py

README's figures and the page `benchmarks` come from default.json. Until it exists, README quotes older recorded runs,
and the page says that there is none. The other figures are those of recorded runs of the dates beside them.

A mark is a pair of comments, `<!-- figure: NAME -->text<!-- /figure -->`; NAME is a key of `FIGURES`. A test holds the
committed texts to this script.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(?P<start><!-- figure: (?P<name>\w+) -->)(?P<text>.*?)(?P<end><!-- /figure -->)", re.DOTALL)


def pages() -> list[Path]:
    """README.md and the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill(text: str) -> str:
    """Return `text` with the content of every mark replaced by its figure."""
    return MARK.sub(lambda mark: mark["start"] + FIGURES[mark["name"]]() + mark["end"], text)


def _results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _default_run() -> dict[str, Any] | None:
    """The result of `pytest benchmarks`, if there is one.

    Raises:
        ValueError: default.json holds another profile, such as the tiny sizes of `--quick`.
    """
    if not (RESULTS / "default.json").exists():
        return None
    found = _results("default")
    if found["profile"] != "default":
        raise ValueError(f"{RESULTS / 'default.json'}: found profile {found['profile']!r}, expected 'default'")
    return found


def _default_rows(run: dict[str, Any], operation: str, case: str, **values: Any) -> list[dict[str, Any]]:
    """The rows on the CPU of an operation, of cases that start with `case`, and with these values.

    Raises:
        ValueError: there is none.
    """
    wanted = {"operation": operation, "device": "cpu"} | values
    rows = [row for row in run["rows"] if row["case"].startswith(case)]
    rows = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if not rows:
        raise ValueError(
            f"{RESULTS / 'default.json'}: found no row with case {case!r}, {wanted}; run the whole profile"
        )
    return rows


def _default_crf(run: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    return _default_rows(run, "dense_crf", "375x500, ", method="pydensecrf2", threads=1, ours_threads=threads)


def _source(run: dict[str, Any]) -> str:
    machine = run["machine"]
    return f"{machine['cpu']}, {machine['date']}, commit {machine['commit']},\n`benchmarks/results/default.json`"


def _crf_rows(threads: int, maps: int = 1) -> list[dict[str, Any]]:
    rows = _results("dense_crf_375x500")["rows"]
    return [row for row in rows if row["threads"] == threads and row["maps"] == maps]


def crf_ratios(threads: int) -> str:
    run = _default_run()
    ratios = [row["ratio"] for row in (_default_crf(run, threads) if run else _crf_rows(threads))]
    return f"{min(ratios):.1f} to {max(ratios):.1f} times"


def crf_source() -> str:
    run = _default_run()
    if run is None:
        return "identical argmax; AMD EPYC Zen 4, 2026-11-25,\n`benchmarks/results/dense_crf_375x500.json`"
    error = max(row["error"] for threads in (1, 2) for row in _default_crf(run, threads))
    return f"marginals within {error:.0e}; {_source(run)}"


def crf_table() -> str:
    alone = _results("dense_crf_375x500")["alone"]
    first, memory = ([row for row in alone if row["what"].startswith(what)] for what in ("first call", "peak memory"))
    lines = [
        "| labels | amn_fast, 1 thread | pydensecrf, 1 thread | ratio, 1 thread each | ratio, 2 threads against 1 "
        "| ratio, two label maps, 1 thread each | ratio, first call, 1 thread each "
        "| peak memory added, amn_fast / pydensecrf |",
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
    run = _default_run()
    if run is not None:
        row = _default_rows(run, "random_walk", "94x125, K = 1", ours_threads=1)[0]
        return f"{row['ours_ms']:.0f} ms and {_mib(row['ours_mib'])} MiB"
    row = _walk("94 x 125", 1, "amn_fast")
    return f"{row['seconds'] * 1e3:.0f} ms and {row['mib']:.0f} MiB"


def walk_source() -> str:
    run = _default_run()
    return "2026-11-25" if run is None else _source(run)


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


def default_table() -> str:
    """Every row of the default run; each side's threads stand beside its time."""
    run = _default_run()
    if run is None:
        return _block(["No default run is recorded yet."])
    machine = run["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, load {machine['load']} at the end, {machine['date']}, commit"
        f" {machine['commit']}, PyTorch {machine['torch']}, `benchmarks/results/default.json`.",
        "",
        "| operation | case | other | other, ms (threads) | amn_fast, ms (threads) | ratio [interval] "
        "| memory added, other / amn_fast, MiB | largest error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in run["rows"]:
        low, high = row["interval"]
        lines.append(
            f"| {row['operation']}{' (GPU)' if row['device'] == 'cuda' else ''} | {row['case']} | {row['method']} "
            f"| {row['ms']:.1f} ({row['threads']}) | {row['ours_ms']:.1f} ({row['ours_threads']}) "
            f"| {row['ratio']:.1f} [{low:.1f}, {high:.1f}] | {_mib(row['mib'])} / {_mib(row['ours_mib'])} "
            f"| {row['error']:.0e} |"
        )
    return _block(lines)


def _mib(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _block(lines: list[str]) -> str:
    """A table stands in its own paragraph."""
    return "\n\n" + "\n".join(lines) + "\n\n"


def _label_source(result: dict[str, Any], what: str) -> str:
    return f"{result['cpu']}, {result['date']}, `python benchmarks/label_jobs.py {what}`"


def label_costs() -> str:
    """The cost sheet of labelling: measured CPU time and bytes, extrapolated hours."""
    result = _results("label_costs")
    lines = [
        "| backbone, size | images per CPU second | networks | CRF | walk | read | written"
        " | COCO, 82,783 images | 1 M images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in result["rows"].items():
        backbone, size = name.split()
        seconds, speed = found["cpu_seconds"], found["images_per_cpu_second"]
        whole = seconds["read"] + seconds["label"] + seconds["PNG"]
        hours = [f"{count / speed / 3600:,.0f} h" for count in (82_783, 1_000_000)]
        cells = [f"{backbone}, {size}", f"{speed:.2f}", f"{found['share_of_networks']:.0%}"]
        cells += [f"{seconds[step] / whole:.0%}" for step in ("seed", "walk")]
        cells += [f"{found[key] / 1000:,.1f} kB" for key in ("bytes_read", "bytes_written")]
        lines.append("| " + " | ".join([*cells, hours[0] if size == "COCO" else "-", hours[1]]) + " |")
    counts = ", ".join(f"{found['images']} for {name}" for name, found in result["rows"].items())
    sizes = "VOC: 375 x 500, COCO: 480 x 640 pixels"
    text = (
        f"Measured on one thread with generated images of one or two labels ({sizes}; {counts};"
        " medians; three scales with efficientnet_lite0, four with resnet50), in float32;"
        f" {_label_source(result, 'costs')}.\nThe last two columns are **extrapolated** CPU hours: divide them by the"
        " number of CPUs."
    )
    return "\n".join(["", *lines, "", text, ""])


def label_startup() -> str:
    """CPU time and memory until the first shard is handed out."""
    result = _results("label_startup")
    each = [
        f"{found['cpu_seconds']:.0f} CPU seconds and {found['peak_mb']} MiB for {name}"
        for name, found in result["inputs"].items()
    ]
    return f"{'; '.join(each)} ({_label_source(result, 'startup')})"


def label_kills() -> str:
    """What the long test of kills has shown."""
    result = _results("label_kills")
    killed, memory = result["killed"], result["memory"]
    same = "the same" if result["same_bytes"] else "OTHER"
    return (
        f"A job of {result['images']:,} small images on three workers, at random moments of which {killed['worker']}"
        f" workers and {killed['parent']} times the whole job were killed with SIGKILL. It ended with"
        f" {result['rows']:,} rows, {result['error_rows']} of them errors for {result['damaged']} damaged images, and"
        f" {same} bytes in {result['files']:,} files as an undisturbed process, whose memory was"
        f" {memory['quarter']:.0f} MiB after a quarter of the images and {memory['end']:.0f} MiB at the end"
        f" ({_label_source(result, 'kills')})."
    )


FIGURES: dict[str, Callable[[], str]] = {
    "label_costs": label_costs,
    "label_startup": label_startup,
    "label_kills": label_kills,
    "crf_one_thread": lambda: crf_ratios(1),
    "crf_two_threads": lambda: crf_ratios(2),
    "crf_source": crf_source,
    "crf_table": crf_table,
    "crf_lists": crf_lists,
    "crf_present_21": lambda: crf_present(21),
    "crf_present_81": lambda: crf_present(81),
    "crf_pruned_21": lambda: crf_pruned(21),
    "crf_pruned_81": lambda: crf_pruned(81),
    "walk_own": walk_own,
    "walk_source": walk_source,
    "walk_dense": walk_dense,
    "walk_table": walk_table,
    "eval_seg": eval_seg,
    "default_table": default_table,
}


if __name__ == "__main__":
    for page in pages():
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
