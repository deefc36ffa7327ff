"""Fill the marked figures of README.md and docs/ from the results in benchmarks/results/.

    pytest benchmarks        # on a quiet machine; writes benchmarks/results/default.json
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


def _run(profile: str) -> dict[str, Any]:
    """The result of `pytest benchmarks` of that profile.

    Raises:
        ValueError: the file holds another profile, such as the tiny sizes of `--quick`.
    """
    found = _results(profile)
    if found["profile"] != profile:
        raise ValueError(f"{RESULTS / profile}.json: found profile {found['profile']!r}, expected {profile!r}")
    return found


def _rows(run: dict[str, Any], operation: str, case: str, **values: Any) -> list[dict[str, Any]]:
    """The rows on the CPU of an operation, of cases that start with `case`, and with these values.

    Raises:
        ValueError: there is none.
    """
    wanted = {"operation": operation, "device": "cpu"} | values
    rows = [row for row in run["rows"] if row["case"].startswith(case)]
    rows = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if not rows:
        raise ValueError(
            f"{RESULTS / run['profile']}.json: found no row with case {case!r}, {wanted}; run the whole profile"
        )
    return rows


def _crf(threads: int) -> list[dict[str, Any]]:
    return _rows(_run("default"), "dense_crf", "375x500, ", method="pydensecrf2", threads=1, ours_threads=threads)


def source() -> str:
    machine = _run("default")["machine"]
    return f"{machine['cpu']}, {machine['date']}, commit {machine['commit']},\n`benchmarks/results/default.json`"


def crf_ratios(threads: int) -> str:
    ratios = [row["ratio"] for row in _crf(threads)]
    return f"{min(ratios):.1f} to {max(ratios):.1f} times"


def crf_source() -> str:
    error = max(row["error"] for threads in (1, 2) for row in _crf(threads))
    return f"marginals within {error:.0e}; {source()}"


def crf_table() -> str:
    lines = [
        "| labels | pydensecrf, 1 thread | amn_fast, 1 thread | ratio | amn_fast, 2 threads | ratio "
        "| memory added, pydensecrf / amn_fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, two in zip(_crf(1), _crf(2), strict=True):
        lines.append(
            f"| {one['case'].split(', ')[1].split()[0]} | {one['ms']:.0f} ms | {one['ours_ms']:.0f} ms "
            f"| {_ratio(one)} | {two['ours_ms']:.0f} ms | {_ratio(two)} "
            f"| {_mib(one['mib'])} / {_mib(one['ours_mib'])} MiB |"
        )
    return _block(lines)


def crf_case(operation: str, case: str) -> str:
    row = _rows(_run("default"), operation, case)[0]
    return f"{row['ours_ms']:.0f} ms against {row['ms']:.0f} ms ({row['ratio']:.1f} times)"


def crf_large() -> str:
    """Images larger than VOC's, from the run of all sizes."""
    run = _run("full")
    machine = run["machine"]
    lines = [
        "| image | labels | pydensecrf, 1 thread | amn_fast, 1 thread | ratio | memory added, pydensecrf / amn_fast |",
        "|---|---|---|---|---|---|",
    ]
    for size, labels in (("480x640", 81), ("1080x1920", 3), ("3000x4000", 3)):
        row = _rows(run, "dense_crf", f"{size}, {labels} labels")[0]
        lines.append(
            f"| {size} | {labels} | {row['ms']:,.0f} ms | {row['ours_ms']:,.0f} ms | {_ratio(row)} "
            f"| {_mib(row['mib'])} / {_mib(row['ours_mib'])} MiB |"
        )
    source = f"`pytest benchmarks --full`, {machine['cpu']}, {machine['date']}, commit {machine['commit']},"
    return _block([*lines, "", source, "`benchmarks/results/full.json`."])


def walk_own() -> str:
    row = _rows(_run("default"), "random_walk", "94x125, K = 1", ours_threads=1)[0]
    return f"{row['ours_ms']:.0f} ms and {_mib(row['ours_mib'])} MiB"


def walk_dense() -> str:
    row = _rows(_run("default"), "random_walk", "32x40, K = 1", method="dense matrix power")[0]
    return f"{row['ours_ms']:.1f} ms against {row['ms']:.0f} ms"


def walk_table() -> str:
    lines = [
        "| map | amn_fast, 1 thread | other | other, 1 thread | ratio [interval] | memory added, other / amn_fast "
        "| largest error of amn_fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in _rows(_run("default"), "random_walk", ""):
        if row["method"] != "dense matrix power":
            lines.append(
                f"| {row['case']} | {row['ours_ms']:.1f} ms | {row['method']} | {row['ms']:.0f} ms | {_ratio(row)} "
                f"| {_mib(row['mib'])} / {_mib(row['ours_mib'])} MiB | {row['error']:.0e} |"
            )
    return _block(lines)


def eval_seg() -> str:
    row = _rows(_run("default"), "eval-seg", "")[0]
    return f"{row['ratio']:.1f} times as fast ({row['case']})"


def default_table() -> str:
    """Every row of a run; each side's threads stand beside its time."""
    return _table("default", _run("default")["rows"])


def further_sizes() -> str:
    """The rows of a run of all sizes that the default one does not have."""
    known = {_key(row) for row in _run("default")["rows"]}
    return _table("full", [row for row in _run("full")["rows"] if _key(row) not in known])


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    case = row["case"].split(" (")[0]  # without measured shares
    return row["operation"], case, row["device"], row["method"]


def _table(profile: str, rows: list[dict[str, Any]]) -> str:
    machine = _run(profile)["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, load {machine['load']} at the end, {machine['date']}, commit"
        f" {machine['commit']}, PyTorch {machine['torch']}, `benchmarks/results/{profile}.json`.",
        "",
        "| operation | case | other | other, ms (threads) | amn_fast, ms (threads) | ratio [interval] "
        "| memory added, other / amn_fast, MiB | largest error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['operation']}{' (GPU)' if row['device'] == 'cuda' else ''} | {row['case']} | {row['method']} "
            f"| {row['ms']:.1f} ({row['threads']}) | {row['ours_ms']:.1f} ({row['ours_threads']}) "
            f"| {_ratio(row)} | {_mib(row['mib'])} / {_mib(row['ours_mib'])} | {row['error']:.0e} |"
        )
    return _block(lines)


def _ratio(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['ratio']:.1f} [{low:.1f}, {high:.1f}]"


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
    "source": source,
    "label_costs": label_costs,
    "label_startup": label_startup,
    "label_kills": label_kills,
    "crf_one_thread": lambda: crf_ratios(1),
    "crf_two_threads": lambda: crf_ratios(2),
    "crf_source": crf_source,
    "crf_table": crf_table,
    "crf_large": crf_large,
    "crf_two_maps": lambda: crf_case("dense_crf, two maps", "375x500, 3"),
    "crf_eight_2": lambda: crf_case("dense_crf, 8 images", "375x500, 2 "),
    "crf_eight_21": lambda: crf_case("dense_crf, 8 images", "375x500, 21"),
    "crf_present_21": lambda: crf_case("dense_crf, 3 labels present", "375x500, 21"),
    "crf_present_81": lambda: crf_case("dense_crf, 3 labels present", "375x500, 81"),
    "crf_pruned_21": lambda: crf_case("dense_crf, pruned", "375x500, 4 prominent labels of 21"),
    "crf_pruned_81": lambda: crf_case("dense_crf, pruned", "375x500, 4 prominent labels of 81"),
    "crf_script": lambda: crf_case("dense_crf, one script", "375x500"),
    "walk_own": walk_own,
    "walk_source": source,
    "walk_dense": walk_dense,
    "walk_table": walk_table,
    "eval_seg": eval_seg,
    "default_table": default_table,
    "further_sizes": further_sizes,
}


if __name__ == "__main__":
    for page in pages():
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
