"""`amn-fast calibrate`: questions, answers and trusted masks of a run, and what it says of bad files."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from amn_fast.calibrate.run import from_answers, from_masks, write_questions
from amn_fast.data import open_dataset
from amn_fast.errors import InputError
from command_line import command

POINTS = 24


@pytest.fixture(scope="module")
def asked(finished, tmp_path_factory):
    """A copy of the finished run with questions, and their file."""
    run = tmp_path_factory.mktemp("calibrate") / "run"
    shutil.copytree(finished.run, run)
    file = run.parent / "questions.csv"
    assert write_questions(run, file, points=POINTS) == POINTS
    return run, file


def rows_of(file):
    return list(csv.reader(file.read_text().splitlines()))


def test_questions_are_drawn_again_and_answers_give_a_threshold(asked, finished, tmp_path):
    run, file = asked
    again = tmp_path / "again.csv"
    write_questions(run, again, points=POINTS)
    assert again.read_bytes() == file.read_bytes()
    other = tmp_path / "other.csv"
    write_questions(run, other, points=POINTS, random_seed=1)
    assert other.read_bytes() != file.read_bytes()
    with pytest.raises(InputError, match="exists and may hold answers"):
        write_questions(run, file)
    write_questions(run, tmp_path / "back.csv", points=POINTS)
    rows, dataset = rows_of(file), open_dataset("folder", finished.data.root, **finished.data.options)
    names = ("background", *dataset.classes)
    for row in rows[1:]:
        row[3] = names[dataset.ground_truth(row[0])[int(row[2]), int(row[1])]]
        assert (run / "calibration" / row[4]).is_file()
    rows[1][3] = "unsure"
    answered = tmp_path / "answered.csv"
    answered.write_text("\n".join(map(",".join, rows)))
    status, output, errors = command("calibrate", run, "--answers", answered)
    assert status == 0, errors
    result = json.loads((run / "calibration.json").read_text())
    assert result["used"] == POINTS - 1
    assert result["classes"] == list(names)
    for figure in ("miou", "precision", "recall"):
        found = result["chosen"][figure]
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert f"--set mask.background={result['chosen']['threshold']:g}" in output or "uses the chosen" in output


@pytest.mark.parametrize(
    ("row", "values", "expected"),
    [
        (0, {0: "picture"}, r"line 1: found the columns 'picture, x, .*expected image, x, y, answer; image is missing"),
        (3, {3: "dog"}, r"line 4: found the answer 'dog', expected background, cat, cup, person or unsure"),
        (3, {1: "4.5"}, r"line 4: found x '4\.5', expected an integer"),
        (2, {1: "100000"}, r"line 3: found pixel x 100000, .*expected a pixel that was asked for"),
        (2, {0: "no-such"}, r"line 3: found pixel .*of image 'no-such'"),
        (2, {4: "a,b"}, r"line 3: found 6 values, expected 5"),
        (2, "copy of 1", r"line 3: found the pixel of line 2 again, expected each pixel once"),
        (None, {}, r"no row has an answer, expected background, cat, cup, person in the column answer"),
    ],
)
def test_bad_answers_get_a_sentence_with_line_found_and_expected(asked, tmp_path, row, values, expected):
    run, file = asked
    rows = rows_of(file)
    if values == "copy of 1":
        rows[row] = rows[1]
    else:
        for column, value in values.items():
            rows[row][column] = value
    if row is not None:
        rows[-1][3] = "background"
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(map(",".join, rows)))
    with pytest.raises(InputError, match=expected):
        from_answers(run, bad)


def test_trusted_masks_of_all_images_give_the_scores_of_the_evaluation(finished, tmp_path):
    found = from_masks(finished.run, finished.data.root / "masks")
    metrics = json.loads((finished.run / "metrics.json").read_text())
    assert found.current.miou.value == pytest.approx(metrics["mask"]["miou"], abs=1e-6)
    doubt, expected = zip(*found.by_doubt, strict=True)
    assert list(doubt) == sorted(doubt)
    assert list(expected) == sorted(expected, reverse=True)
    assert np.mean(expected) == pytest.approx(np.mean(list(metrics["mask"]["per_image"].values())), abs=1e-6)
    assert found.chosen.miou.value >= found.current.miou.value
    few = tmp_path / "few"
    few.mkdir()
    for k in range(4):
        shutil.copy(finished.data.root / "masks" / f"demo_00{k}.png", few)
    for name, size, expected in (("other", (4, 4), "belongs to no image"), ("demo_004", (4, 4), "demo_004")):
        Image.fromarray(np.zeros(size, np.uint8)).save(few / f"{name}.png")
        with pytest.raises(InputError, match=expected):
            from_masks(finished.run, few)
        (few / f"{name}.png").unlink()
    with pytest.raises(InputError, match="holds 4 trusted masks, expected 5 or more"):
        from_masks(finished.run, few)


def test_one_source_at_a_time(asked):
    status, _, errors = command("calibrate", asked[0])
    assert status == 1
    assert "found none of them, expected one of --questions FILE, --answers FILE, --masks DIR" in errors
