"""Reads and writes masks with the labelling tools' own code; runs in the tools' environment, see judges.txt.

    judge.py decode TOOL PATH OUT.npz CLASSES.json     masks by id, as the tool reads them
    judge.py encode TOOL IN.npz PATH CLASSES.json      the tool's export of these masks

Labels are 1..C in the order of CLASSES.json, 255 is the label "unknown".
"""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np


def main(action, tool, source, target, classes):
    names = json.loads(Path(classes).read_text())
    label_of = {name: label for label, name in enumerate(names, 1)} | {"unknown": 255, "background": 0}
    if action == "decode":
        np.savez(target, **DECODE[tool](Path(source), label_of))
    else:
        with np.load(source) as file:
            ENCODE[tool](dict(file), Path(target), label_of)


def decode_datumaro(path, label_of):
    from datumaro import Dataset

    if path.suffix == ".zip":
        unpacked = path.with_suffix(".unpacked")
        shutil.unpack_archive(path, unpacked)
        path = unpacked
    dataset = Dataset.import_from(str(path), "voc_instance_segmentation")
    labels = dataset.categories()[next(k for k in dataset.categories() if k.name == "label")]
    found = {}
    for item in dataset:
        mask = np.zeros(np.load(path.parent / "sizes.npz")[item.id], np.uint8)
        for annotation in item.annotations:
            mask[np.asarray(annotation.image).astype(bool)] = label_of[labels[annotation.label].name]
        found[item.id] = mask
    return found


def encode_datumaro(masks, path, label_of):
    from datumaro import Dataset, DatasetItem, Mask
    from datumaro.components.media import Image

    names = list(label_of)
    items = [
        DatasetItem(
            id=id,
            subset="default",
            media=Image.from_numpy(np.zeros((*mask.shape, 3), np.uint8)),
            annotations=[
                Mask(mask == value, label=names.index(name), id=number, group=number)
                for number, (name, value) in enumerate(label_of.items(), 1)
                if value and (mask == value).any()
            ],
        )
        for id, mask in masks.items()
    ]
    dataset = Dataset.from_iterable(items, categories=names)
    form = "coco_instances" if path.name == "coco" else "voc_segmentation"
    options = {} if form == "coco_instances" else {"label_map": "source"}
    dataset.export(str(path), form, save_media=False, **options)
    if path.suffix == ".zip":
        folder = path.rename(path.with_suffix(".folder"))
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*"):
                archive.write(file, file.relative_to(folder))


def decode_pycocotools(path, label_of):
    from pycocotools.coco import COCO

    coco = COCO(str(path))
    found = {}
    for image in coco.imgs.values():
        mask = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.imgToAnns[image["id"]]:
            region = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == region.sum()
            x, y, width, height = annotation["bbox"]
            assert region[y : y + height, x : x + width].sum() == region.sum()
            mask[region] = label_of[coco.cats[annotation["category_id"]]["name"]]
        found[Path(image["file_name"]).stem] = mask
    return found


def decode_label_studio(path, label_of):
    from label_studio_sdk.converter.brush import decode_rle

    found = {}
    for task in json.loads(path.read_text()):
        mask = np.load(path.parents[1] / "sizes.npz")[task["data"]["id"]]
        mask = np.zeros(mask, np.uint8)
        for result in task["predictions"][0]["result"]:
            size = result["original_height"], result["original_width"]
            opacity = decode_rle(result["value"]["rle"]).reshape(*size, 4)[..., 3]
            assert set(np.unique(opacity)) <= {0, 255}
            mask[opacity > 0] = label_of[result["value"]["brushlabels"][0]]
        found[task["data"]["id"]] = mask
    return found


def encode_label_studio(masks, path, label_of):
    from label_studio_sdk.converter.brush import mask2rle

    tasks = []
    for id, mask in masks.items():
        results = [
            {
                "type": "brushlabels",
                "original_width": mask.shape[1],
                "original_height": mask.shape[0],
                "value": {"rle": mask2rle((mask == value).astype(np.uint8) * 255), "brushlabels": [name]},
            }
            for name, value in label_of.items()
            if value and (mask == value).any()
        ]
        image = f"/data/upload/1/{id}.png"
        tasks.append({"data": {"image": image}, "annotations": [{"was_cancelled": False, "result": results}]})
    path.write_text(json.dumps(tasks))


def decode_supervision(path, label_of):
    import supervision

    dataset = supervision.DetectionDataset.from_yolo(
        str(path / "images"), str(path / "labels"), str(path / "data.yaml"), force_masks=True
    )
    found = {}
    for image, pixels, detections in dataset:
        mask = np.zeros(pixels.shape[:2], np.uint8)
        for region, label in zip(detections.mask if len(detections) else [], detections.class_id, strict=True):
            mask[region] = label_of[dataset.classes[label]]
        found[Path(image).stem] = mask
    return found


DECODE = {
    "voc": decode_datumaro,
    "cvat": decode_datumaro,
    "coco": decode_pycocotools,
    "label-studio": decode_label_studio,
    "yolo-seg": decode_supervision,
}
ENCODE = {
    "voc": encode_datumaro,
    "cvat": encode_datumaro,
    "coco": encode_datumaro,
    "label-studio": encode_label_studio,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
