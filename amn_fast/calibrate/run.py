"""`amn-fast calibrate`: questions about pixels of a run's masks, and the threshold that answers or masks speak for."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amn_fast.calibrate.estimate import (
    BACKGROUND,
    FEWEST_MASKS,
    OTHER,
    OWN,
    Answers,
    Masks,
    Quality,
)
from amn_fast.calibrate.sampling import Question, ScoredRun
from amn_fast.data.base import quote
from amn_fast.data.image import image_size, read_mask
from amn_fast.data.labels import read_json
from amn_fast.data.masks import check_mask, find_masks
from amn_fast.data.text import read_text
from amn_fast.errors import InputError
from amn_fast.files import write_atomically, write_json, write_text
from amn_fast.pipeline.chosen import chosen_mask
from amn_fast.pipeline.engine import cores, for_each
from amn_fast.pipeline.folder import Workspace
from amn_fast.review.doubt import read_doubt
from amn_fast.steps.doubt import agreement, fit_iou

RESULT = "calibration.json"
FOLDER = "calibration"
COLUMNS = ["image", "x", "y", "answer", "view"]
UNSURE, NO_CLASS = "unsure", "background"
THRESHOLDS = tuple(k / 20 for k in range(1, 20))
VIEW_SIDE = 640
MOST_GROUPS, ANSWERS_PER_GROUP = 4, 40
"""Groups of images by doubt whose IoU answers estimate, and the fewest answers in each."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        source: "answers" or "masks".
        used: how many answers or masks count.
        chosen: the masks at the chosen threshold.
        current: the masks at the run's own threshold; None where it is 0 or 1.
        classes: names of the labels 0..C.
        by_doubt: (doubt, expected IoU) of some masks, doubt ascending: the mean IoU over the labels of an image; empty
            where the run has no doubt.csv or too few masks are known.
    """

    source: str
    used: int
    chosen: Quality
    current: Quality | None
    classes: tuple[str, ...]
    by_doubt: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of calibration.json."""
        return {
            "source": self.source,
            "used": self.used,
            "classes": list(self.classes),
            "chosen": self.chosen.to_json(),
            "current": self.current.to_json() if self.current else None,
            "by_doubt": [[round(doubt, 4), round(iou, 4)] for doubt, iou in self.by_doubt],
        }


def write_questions(run: Path | str, path: Path | str, *, points: int = 200, random_seed: int = 0) -> int:
    """Draw pixels of a run's images, and write a CSV file that asks what they show.

    The pixels are a random sample, stratified by the best class of the pixel and the bin of its score. Each has a view
    in RUN/calibration, the image with the pixel marked. The same run, `points` and `random_seed` give the same pixels.

    Args:
        run: a run folder with activations and, where its masks come from a random walk, edges.
        path: the CSV file, which must not exist: it might hold answers.
        points: the number of questions; at least 4 for each class.
        random_seed: what the draw depends on.

    Returns:
        the number of questions.

    Raises:
        InputError: the run has no activations or edges, `path` exists, or there are too few points.
    """
    path, scored = Path(path), ScoredRun(run)
    if path.exists():
        raise InputError(f"{path} exists and may hold answers; name another file for the questions")
    questions = scored.draw(points, random_seed)
    views = scored.work.root / FOLDER
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, question in enumerate(questions, 1):
        view = f"{number:04d}.jpg"
        _write_view(views / view, scored.work.dataset.image(question.image), question.x, question.y)
        writer.writerow([question.image, question.x, question.y, "", view])
    write_json(views / "design.json", {"points": points, "random_seed": random_seed})
    write_text(path, table.getvalue())
    return len(questions)


def from_answers(run: Path | str, path: Path | str) -> Calibration:
    """The threshold with the highest expected mIoU by the answers in a file that `write_questions` wrote.

    Args:
        run: the run folder, unchanged since.
        path: the CSV file. An answer is the name of a class or "background"; without one, or with "unsure", a row does
            not count.

    Raises:
        InputError: a line is not as expected (the sentence names it), no row is answered, or the run's scores have
            changed since the questions were drawn.
    """
    scored = ScoredRun(run)
    design = scored.work.root / FOLDER / "design.json"
    if not design.is_file():
        raise InputError(f"{run} has no questions; draw them with `amn-fast calibrate {run} --questions FILE`")
    drawn = read_json(design)
    questions = scored.draw(int(drawn["points"]), int(drawn["random_seed"]))
    known = {(one.image, one.x, one.y): one for one in questions}
    names = (NO_CLASS, *scored.work.dataset.classes)
    edges, sizes = scored.edges, scored.sizes
    counts = np.zeros((*sizes.shape, 3), np.int64)
    others = scored.together.astype(np.float64)
    answers = read_answers(Path(path), known, names)
    for question, answer in answers:
        kind = OWN if answer == question.label else BACKGROUND if answer == 0 else OTHER
        counts[question.label - 1, question.bin, kind] += 1
        if kind == OTHER:
            others[question.label - 1, answer - 1] += 1
    others /= np.maximum(others.sum(1, keepdims=True), 1)
    found = Answers(sizes, counts, others, edges, scored.sure)
    current = chosen_mask(scored.work.config).threshold
    return Calibration(
        "answers",
        len(answers),
        found.quality(found.best()),
        found.quality(edges.index(current)) if current in edges else None,
        names,
        _by_doubt_of_answers(read_doubt(scored.work.root), answers, sizes, counts, current, edges),
    )


def from_masks(run: Path | str, folder: Path | str, *, random_seed: int = 0) -> Calibration:
    """The threshold with the highest mIoU over the images that have a trusted mask.

    Args:
        run: a run folder with activations and, where its masks come from a random walk, edges.
        folder: masks ID.png of five or more images, drawn by people; 255 is unknown. They should be a random choice of
            the images, and the run should not have trained on them.
        random_seed: what the bootstrap depends on.

    Raises:
        InputError: there are fewer than five masks, one belongs to no image, or one does not fit its image or classes.
    """
    scored, folder = ScoredRun(run), Path(folder)
    dataset = scored.work.dataset
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of trusted masks ID.png")
    files = find_masks(folder)
    strange = sorted(set(files) - set(dataset.ids))
    if strange:
        raise InputError(
            f"{files[strange[0]]}: belongs to no image of {run}, expected ID.png with an id of its data set"
        )
    if len(files) < FEWEST_MASKS:
        raise InputError(f"{folder}: holds {len(files)} trusted masks, expected {FEWEST_MASKS} or more")
    current = chosen_mask(scored.work.config).threshold
    thresholds = tuple(sorted({*THRESHOLDS, *([current] if 0 < current < 1 else [])}))
    counted: dict[str, tuple[NDArray[np.int64], ...]] = {}
    iou: dict[str, float] = {}
    doubt = read_doubt(scored.work.root)

    def one(id: str) -> None:
        true = _trusted(files[id], scored.work, id)
        if id in doubt and scored.work.trusted(id) is None:  # a trusted mask of the run is its own mask
            known = true != 255
            iou[id] = agreement(read_mask(scored.work.item("masks", id))[known][None], true[known][None])
        counted[id] = _count(scored.masks(id, thresholds), true, len(dataset.classes))

    for_each("calibration", files, one, cores())
    right, predicted, true = (np.stack(part) for part in zip(*(counted[id] for id in sorted(counted)), strict=True))
    found = Masks(right, predicted, true, thresholds)

    def quality(place: int) -> Quality:
        return found.quality(place, np.random.default_rng(random_seed))

    return Calibration(
        "masks",
        len(files),
        quality(found.best()),
        quality(thresholds.index(current)) if current in thresholds else None,
        (NO_CLASS, *dataset.classes),
        _fitted([(doubt[id], value) for id, value in iou.items()]) if len(iou) >= FEWEST_MASKS else (),
    )


def store(run: Path | str, found: Calibration) -> None:
    """Write calibration.json in the run folder, and calibration/expected_iou.csv; the report shows them."""
    run = Path(run)
    write_json(run / RESULT, found.to_json())
    if found.by_doubt:
        known, iou = zip(*found.by_doubt, strict=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "doubt", "expected_iou"])
        for id, value in read_doubt(run).items():
            writer.writerow([id, f"{value:.4f}", f"{np.interp(value, known, iou):.3f}"])
        write_text(run / FOLDER / "expected_iou.csv", text.getvalue())


def _fitted(pairs: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Expected IoU at each doubt, which never rises."""
    pairs = sorted(pairs)
    doubt = np.array([one for one, _ in pairs])
    return tuple(zip(doubt.tolist(), fit_iou(doubt, np.array([iou for _, iou in pairs])).tolist(), strict=True))


def _by_doubt_of_answers(
    doubt: dict[str, float],
    answers: list[tuple[Question, int]],
    sizes: NDArray[np.int64],
    counts: NDArray[np.int64],
    threshold: float,
    edges: Sequence[float],
) -> tuple[tuple[float, float], ...]:
    """Expected IoU in groups of images of similar doubt: an answer stands for its share of its cell's pixels."""
    asked = counts.sum(-1)
    known = [(doubt[one.image], one, answer) for one, answer in answers if one.image in doubt]
    groups = min(MOST_GROUPS, len(known) // ANSWERS_PER_GROUP)
    if groups < 2 or threshold not in edges:
        return ()
    place = edges.index(threshold)
    known.sort(key=lambda row: (row[0], row[1]))
    pairs = []
    for part in np.array_split(np.arange(len(known)), groups):
        tally = np.zeros((2, 2))  # by truth and mask: background, own class
        wrong = 0.0
        for k in part:
            _, one, answer = known[k]
            weight = sizes[one.label - 1, one.bin] / asked[one.label - 1, one.bin]
            shown = int(one.bin > place)
            if answer in (0, one.label):
                tally[int(answer > 0), shown] += weight
            else:
                wrong += weight
        right = np.diag(tally)
        union = tally.sum(0) + tally.sum(1) - right + wrong
        pairs.append((float(np.mean([known[k][0] for k in part])), float((right / np.maximum(union, 1e-9)).mean())))
    return _fitted(pairs)


def _trusted(path: Path, work: Workspace, id: str) -> NDArray[np.uint8]:
    file = work.dataset.image_file(id)
    check_mask(path, work.dataset.image(id).shape[:2] if file is None else image_size(file), len(work.dataset.classes))
    return read_mask(path)


def _count(
    masks: NDArray[np.uint8], true: NDArray[np.uint8], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Right and predicted pixels (T, C + 1) of the masks (T, H, W) of one image, and true ones (C + 1,)."""
    known = true != 255
    shown = true[known]
    right, predicted = np.zeros((2, len(masks), classes + 1), np.int64)
    for place, mask in enumerate(masks):
        found = mask[known]
        predicted[place] = np.bincount(found, minlength=classes + 1)
        right[place] = np.bincount(found[found == shown], minlength=classes + 1)
    return right, predicted, np.bincount(shown, minlength=classes + 1).astype(np.int64)


def read_answers(
    path: Path, questions: dict[tuple[str, int, int], Question], names: Sequence[str]
) -> list[tuple[Question, int]]:
    """The answered questions of a CSV file, each with the label 0..C of its answer.

    Raises:
        InputError: the file is missing or no CSV; a line has no image, no pixel, another answer than a name, a pixel
            that was not asked for, or one that an earlier line has.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    labels = {name: label for label, name in enumerate(names)}
    found: list[tuple[Question, int]] = []
    first: dict[tuple[str, int, int], int] = {}
    header: list[str] = []
    try:
        for row in rows:
            line = f"{path}, line {rows.line_num}"
            if not any(row):
                continue
            if not header:
                header = [name.strip().lower() for name in row]
                if lacking := [name for name in COLUMNS[:4] if name not in header]:
                    raise InputError(
                        f"{line}: found the columns {quote(', '.join(row))}, expected {', '.join(COLUMNS[:4])};"
                        f" {lacking[0]} is missing"
                    )
                continue
            if len(row) != len(header):
                raise InputError(f"{line}: found {len(row)} values, expected {len(header)}, as in the first line")
            values = dict(zip(header, row, strict=True))
            place = (values["image"], _pixel(line, "x", values["x"]), _pixel(line, "y", values["y"]))
            if place not in questions:
                raise InputError(
                    f"{line}: found pixel x {place[1]}, y {place[2]} of image {quote(place[0])},"
                    " expected a pixel that was asked for; if the run has changed since, draw new questions"
                )
            if place in first:
                raise InputError(f"{line}: found the pixel of line {first[place]} again, expected each pixel once")
            first[place] = rows.line_num
            answer = values["answer"].strip()
            if not answer or (answer == UNSURE and UNSURE not in labels):
                continue
            if answer not in labels:
                raise InputError(f"{line}: found the answer {quote(answer)}, expected {_listed(names)} or {UNSURE}")
            found.append((questions[place], labels[answer]))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: is not CSV: {error}") from error
    if not found:
        raise InputError(f"{path}: no row has an answer, expected {_listed(names)} in the column answer")
    return found


def _pixel(line: str, column: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{line}: found {column} {quote(text)}, expected an integer") from None


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _write_view(path: Path, image: NDArray[np.uint8], x: int, y: int) -> None:
    """The image with a ring around a pixel."""
    factor = VIEW_SIDE / max(image.shape[:2])
    view = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    place = (round((x + 0.5) * factor), round((y + 0.5) * factor))
    for radius, colour in ((12, (0, 0, 0)), (11, (255, 255, 255))):
        cv2.circle(view, place, radius, colour, 2, cv2.LINE_AA)
    cv2.circle(view, place, 1, (255, 0, 0), -1)
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=85)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
