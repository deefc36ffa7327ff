"""Derive the sets of experiments from sets that lie here: smaller images, a folder of two classes, COCO's layout.

    python docs/experiments/derive_sets.py smaller data/voc12_animals data/voc12_animals_320 --long-side 320
    python docs/experiments/derive_sets.py folder data/voc12_animals data/cow_sheep --classes cow sheep
    python docs/experiments/derive_sets.py coco data/coco128_semseg data/coco128

`smaller` copies a set in VOC's layout; images and masks whose long side is longer are resized (area and nearest).
`folder` copies the images of six classes' `train` list that show some of these classes and no other one, with labels
and masks, as a user's own folder.
`coco` reads photographs with masks of COCO's panoptic ids (VOC's layout, `categories.json`) and writes the images and
an instances file with one object for each region of a thing class; stuff and unlabelled pixels are background. The
result must not exist yet.
"""

import argparse
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from faster_coco_eval.core import mask as coder
from PIL import Image

from amn_fast.data.base import IGNORE
from amn_fast.data.image import read_image, read_mask
from amn_fast.data.labels import write_labels
from amn_fast.data.masks import write_mask
from amn_fast.data.voc import open_voc

JPEG_QUALITY = 90
LAST_THING = 90


def size_of(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) with the long side at most `long_side`."""
    factor = min(1.0, long_side / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def smaller(root: Path, out: Path, long_side: int) -> None:
    """A copy of a set in VOC's layout with smaller images and masks."""
    shutil.copytree(root, out, ignore=lambda place, _: ["JPEGImages"] if Path(place) == root else [])
    (out / "JPEGImages").mkdir()
    for path in sorted((root / "JPEGImages").glob("*.jpg")):
        image = read_image(path)
        resized = cv2.resize(image, size_of(image.shape[1], image.shape[0], long_side), interpolation=cv2.INTER_AREA)
        Image.fromarray(resized).save(out / "JPEGImages" / path.name, quality=JPEG_QUALITY)
    for path in sorted(out.glob("SegmentationClass*/*.png")):
        mask = read_mask(path)
        size = size_of(mask.shape[1], mask.shape[0], long_side)
        write_mask(path, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT))


def folder(root: Path, out: Path, classes: list[str]) -> None:
    """A user's own folder: images/, labels.csv and masks/."""
    dataset = open_voc(root, ids="train", masks="SegmentationClass6", labels="cls_labels6.npy", classes="classes6.txt")
    columns = [dataset.classes.index(name) for name in classes]
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True)
    key_of = np.zeros(256, np.uint8)
    key_of[IGNORE] = IGNORE
    key_of[np.array(columns) + 1] = np.arange(1, len(columns) + 1)
    labels = {}
    for id in dataset.ids:
        shown = dataset.labels(id).astype(bool)
        if not shown[columns].any() or np.delete(shown, columns).any():
            continue
        shutil.copy(root / "JPEGImages" / f"{id}.jpg", out / "images")
        truth = dataset.ground_truth(id)
        assert truth is not None
        write_mask(out / "masks" / f"{id}.png", key_of[truth])
        labels[id] = shown[columns]
    write_labels(out / "labels.csv", labels, classes, labels)


def coco(root: Path, out: Path, split: str) -> None:
    """COCO's layout: `out`/SPLIT/ID.jpg and `out`/annotations/instances_SPLIT.json."""
    names = {int(id): name for id, (name, thing) in json.loads((root / "categories.json").read_text()).items() if thing}
    images, annotations = [], []
    (out / split).mkdir(parents=True)
    (out / "annotations").mkdir()
    for path in sorted((root / "JPEGImages").glob("*.jpg")):
        ids = np.asarray(Image.open(root / "SegmentationClass" / f"{path.stem}.png"))
        height, width = ids.shape
        images.append({"id": int(path.stem), "file_name": path.name, "height": height, "width": width})
        shutil.copy(path, out / split)
        for id in np.unique(ids[(ids > 0) & (ids <= LAST_THING)]).tolist():
            code = coder.encode(np.asfortranarray((ids == id).astype(np.uint8)))
            annotations.append({
                "id": len(annotations) + 1, "image_id": int(path.stem), "category_id": id, "iscrowd": 0,
                "area": int((ids == id).sum()), "bbox": [int(value) for value in coder.toBbox(code)],
                "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
            })  # fmt: skip
    categories = [{"id": id, "name": name} for id, name in sorted(names.items())]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smaller", "folder", "coco"))
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--long-side", type=int, default=320, help="of smaller images, in pixels")
    parser.add_argument("--classes", nargs="+", default=["cow", "sheep"], help="of a folder")
    parser.add_argument("--split", default="train2017", help="of COCO's layout")
    given = parser.parse_args()
    if given.out.exists():
        raise SystemExit(f"{given.out} exists, expected a new folder")
    if given.what == "smaller":
        smaller(given.root, given.out, given.long_side)
    elif given.what == "folder":
        folder(given.root, given.out, given.classes)
    else:
        coco(given.root, given.out, given.split)


if __name__ == "__main__":
    main()
