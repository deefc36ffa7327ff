"""Reads and writes masks with the labelling tools' own code; runs in the tools' environment, see judges.txt.

    judge.py decode TOOL PATH OUT.npz CLASSES.json     masks by id, as the tool reads them
    judge.py encode TOOL IN.npz PATH CLASSES.json      the tool's export of these masks

Labels are 1..C in the order of CLASSES.json, 255 is the label "unknown".
"""

import json
import os
import shutil
import subprocess
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


def decode_ultralytics(path, label_of):
    """The polygons as its data set reads them, filled by its own function."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import polygon2mask

    settings = ultralytics_settings(path)
    dataset = YOLODataset(img_path=settings["train"], data=settings, task="segment", imgsz=64, augment=False)
    found = {}
    for entry in dataset.labels:
        mask = np.zeros(entry["shape"], np.uint8)
        for label, corners in zip(entry["cls"][:, 0].tolist(), entry["segments"], strict=True):
            filled = polygon2mask(mask.shape, [(corners * np.array(mask.shape[::-1], np.float32)).ravel()])
            mask[filled > 0] = label_of[settings["names"][int(label)]]
        found[Path(entry["im_file"]).stem] = mask
    return found


def decode_ultralytics_semantic(path, label_of):
    from ultralytics.data.dataset import SemanticDataset
    from ultralytics.utils import DEFAULT_CFG

    settings = ultralytics_settings(path)
    expected = {label: name for name, label in label_of.items() if label != 255}
    assert settings["names"] == expected, settings["names"]
    dataset = SemanticDataset(
        img_path=settings["train"], data=settings, task="semantic", imgsz=64, augment=False, hyp=DEFAULT_CFG
    )
    return {Path(file).stem: dataset.load_mask(index) for index, file in enumerate(dataset.im_files)}


def ultralytics_settings(path):
    os.environ["YOLO_CONFIG_DIR"] = str(path)
    from ultralytics.data.utils import check_det_dataset

    return check_det_dataset(str(path / "data.yaml"))


def decode_fiftyone(path, label_of):
    """Run the script of the export, then read its data set from the database."""
    import fiftyone
    from PIL import Image, ImageOps

    name = f"amn-fast-{os.getpid()}"
    run = [sys.executable, path / "import_fiftyone.py"]
    assert subprocess.run(run, capture_output=True).returncode == 1
    subprocess.run([*run, name], check=True)
    assert b"already" in subprocess.run([*run, name], capture_output=True).stderr
    dataset = fiftyone.load_dataset(name)
    assert {name: value for value, name in dataset.default_mask_targets.items()} | {"background": 0} == label_of
    found = {}
    for sample in dataset:
        found[sample.image_id] = sample.mask.get_mask()
        image = ImageOps.exif_transpose(Image.open(sample.filepath))
        assert image.size == found[sample.image_id].shape[::-1]
    dataset.delete()
    return found


def encode_fiftyone(masks, path, label_of):
    import fiftyone
    from PIL import Image

    dataset = fiftyone.Dataset()
    for id, mask in masks.items():
        file = path.parent / f"{id}.png"
        Image.fromarray(np.zeros_like(mask)).save(file)
        dataset.add_sample(fiftyone.Sample(filepath=str(file), mask=fiftyone.Segmentation(mask=mask)))
    form = fiftyone.types.ImageSegmentationDirectory
    dataset.export(export_dir=str(path), dataset_type=form, label_field="mask", export_media=False)
    dataset.delete()


DECODE = {
    "voc": decode_datumaro,
    "cvat": decode_datumaro,
    "coco": decode_pycocotools,
    "label-studio": decode_label_studio,
    "yolo-seg": decode_supervision,
    "ultralytics": decode_ultralytics,
    "ultralytics-semantic": decode_ultralytics_semantic,
    "fiftyone": decode_fiftyone,
}
ENCODE = {
    "voc": encode_datumaro,
    "cvat": encode_datumaro,
    "coco": encode_datumaro,
    "label-studio": encode_label_studio,
    "fiftyone": encode_fiftyone,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
