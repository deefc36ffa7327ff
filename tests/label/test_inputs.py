"""What there is to label: folders, lists and archives, at paths and URLs, and their labels."""

import io
import os
import tarfile
import tracemalloc

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from amn_fast.data.image import read_image
from amn_fast.errors import InputError
from amn_fast.label.inputs import open_listing
from amn_fast.label.sidecars import parse_sidecar

CLASSES = ("cat", "cup", "dog")
COLOURS = {"a": 10, "b": 20, "sub/c": 30}


def png(grey):
    content = io.BytesIO()
    Image.new("L", (4, 3), grey).save(content, "PNG")
    return content.getvalue()


def members(names):
    """A tar of these names and contents."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def write(root, files):
    for name, content in files.items():
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(content)


def parquet(columns):
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), content)
    return content.getvalue()


IMAGES = {f"images/{id}.png": png(grey) for id, grey in COLOURS.items()}
SIDECARS = {"images/a.json": b'{"labels": ["dog", "cat"]}', "images/b.txt": b"cup\n", "images/sub/c.cls": b"2\n"}
EXPECTED = {"a": ["dog", "cat"], "b": ["cup"], "sub/c": ["dog"]}
LISTS = {
    "list.csv": b"Path,else\nimages/b.png,1\nimages/a.png,2\nimages/sub/c.png,3\n",
    "list.tsv": b"id\timage\nb\timages/b.png\na\timages/a.png\nsub/c\timages/sub/c.png\n",
    "list.txt": b"images/b.png\n\nimages/a.png\nimages/sub/c.png\n",
    "list.parquet": parquet({"url": [f"images/{id}.png" for id in COLOURS], "id": list(COLOURS)}),
}
ARCHIVES = {
    "tar/one-0.tar": members({"a.png": png(10), "a.json": b'["dog", "cat"]', "b.png": png(20), "b.txt": b"cup"}),
    "tar/one-1.tar": members({"sub/c.png": png(30), "sub/c.cls": b"dog", "sub/alone.txt": b"cat"}),
}


@pytest.mark.parametrize("kind", ["path", "memory", "file"])
@pytest.mark.parametrize("source", ["images", *LISTS, "tar", "tar/one-{0..1}.tar", "tar/*.tar"])
def test_images_and_sidecars(tmp_path, kind, source):
    root = {"path": str(tmp_path), "memory": f"memory:/{tmp_path}", "file": f"file://{tmp_path}"}[kind]
    write(root, {**IMAGES, "images/.hidden/x.png": b"", "images/notes.md": b"", **SIDECARS, **LISTS, **ARCHIVES})
    listing = open_listing(f"{root}/{source}", 2, None, CLASSES)
    assert listing.shards == 2
    given = [each for shard in range(2) for each in listing.part(shard).images(CLASSES, sidecars=True)]
    strip = ("images/", "one-0/", "one-1/")
    ids = [next((each.id.removeprefix(s) for s in strip if each.id.startswith(s)), each.id) for each in given]
    assert ids == list(COLOURS)
    for id, each in zip(ids, given, strict=True):
        assert read_image(each.image())[0, 0, 0] == COLOURS[id]
        assert each.labels() == EXPECTED[id]


def test_labels_of_a_file(tmp_path):
    write(tmp_path, {**IMAGES, **ARCHIVES})
    file = tmp_path / "labels.csv"
    file.write_text("id,labels\na,dog;cat\nsub/c,cup\n")
    for source in ("images", "tar"):
        listing = open_listing(str(tmp_path / source), 2, file, CLASSES)
        given = [each for shard in range(2) for each in listing.part(shard).images(CLASSES, sidecars=False)]
        assert [given[k].labels() for k in (0, 2)] == [["cat", "dog"], ["cup"]]
        with pytest.raises(InputError, match="the label file has no label of 'b'"):
            given[1].labels()
    other = tmp_path / "other.csv"
    other.write_text("id,labels\nq,dog\n")
    with pytest.raises(InputError, match=r"other.csv: has a label of none of the images, such as 'a'"):
        open_listing(str(tmp_path / "images"), 2, other, CLASSES)
    changed = open_listing(str(tmp_path / "images"), 2, file, CLASSES).identity
    file.write_text("id,labels\na,dog\nsub/c,cup\n")
    assert open_listing(str(tmp_path / "images"), 2, file, CLASSES).identity != changed


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "images", "images: there is no such folder, expected a folder, a list or a .tar"),
        ({"images/a.md": b""}, "images", "images: holds no images"),
        ({"images/a.png": b"", "images/a.jpg": b""}, "images", "two images have the id 'a'"),
        ({"images/a.png": b"", "images/b.tar": b""}, "images", "holds 1 archives among images, expected one kind"),
        ({}, "x-{1..2}*.tar", "there is no such file"),
        ({}, "list.csv", "list.csv: there is no such file"),
        ({"list.csv": b"id,colour\n1,2\n"}, "list.csv", "list.csv: has the columns id, colour, expected one of image,"),
        ({"list.csv": b"image\n\xff\n"}, "list.csv", "list.csv: is no table of UTF-8 text"),
        ({"list.csv": b"id,image\na,\n"}, "list.csv", "list.csv: row 1 names no image"),
        ({"list.csv": b"id,image\n../a,x.png\n"}, "list.csv", r"the id '\.\./a' is no name of a file inside a folder"),
        ({"list.csv": b"id,image\na//b,x.png\n"}, "list.csv", "the id 'a//b' is no name of a file inside a folder"),
        ({"list.parquet": b"PAR1"}, "list.parquet", "list.parquet: is no Parquet file"),
    ],
)
def test_wrong_input(tmp_path, files, source, message):
    write(tmp_path, files)
    with pytest.raises(InputError, match=message):
        open_listing(str(tmp_path / source), 2, None, CLASSES)


def test_damaged_archives_and_sidecars(tmp_path):
    whole = members({"a.png": png(10), "b.png": png(20)})
    files = {
        "cut.tar": whole[:1300],
        "no.tar": b"x" * 2000,
        "two.tar": members({"a.png": png(10), "b.png": png(20), "a.jpg": png(10)}),
        "up.tar": members({"../a.png": png(10)}),
    }
    write(tmp_path, files)
    listing = open_listing(str(tmp_path), 2, None, CLASSES)
    found = {}
    for shard in range(4):
        for each in listing.part(shard).images(CLASSES, sidecars=True):
            try:
                each.labels() and each.image()
                each.image()
            except InputError as error:
                found.setdefault(each.id, str(error))
    assert found["cut"].endswith("cut.tar: is no tar archive or is damaged")
    assert found["no"].endswith("no.tar: is no tar archive or is damaged")
    assert "the key 'a' is a duplicate" in found["two"]
    assert "the key '../a' is no name of a file" in found["up"]
    assert "has no sidecar .json, .txt, .cls" in found["two/a"]
    for content, name, message in (
        (b"{", "a.json", "a.json: is not JSON"),
        (b"[1]", "a.json", 'a.json: holds no list of class names, expected \\["name"\\]'),
        (b"\xff", "a.txt", "a.txt: is not UTF-8 text"),
        (b"3", "a.cls", r"a.cls: holds class 3, expected 0..2"),
    ):
        with pytest.raises(InputError, match=message):
            parse_sidecar(content, name, CLASSES)


def test_a_long_list_takes_little_memory(tmp_path):
    """Of 50,000 images; benchmarks/label_jobs.py measures a million."""
    count = 50_000
    with (tmp_path / "list.csv").open("w") as file:
        file.write("id,image\n" + "".join(f"img_{k:08d},train/img_{k:08d}.jpg\n" for k in range(count)))
    with (tmp_path / "labels.csv").open("w") as file:
        file.write("id,labels\n" + "".join(f"img_{k:08d},{CLASSES[k % 3]}\n" for k in range(count)))
    tracemalloc.start()
    listing = open_listing(str(tmp_path / "list.csv"), 1000, tmp_path / "labels.csv", CLASSES)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (listing.shards, listing.images, listing.size(49)) == (50, count, 1000)
    assert held / count < 400  # bytes an image
    assert peak / count < 1000
    part = listing.part(49)
    assert part.ids[-1] == "img_00049999"
    assert part.labels is not None
    np.testing.assert_array_equal(part.labels[-1], [False, True, False])
    assert os.path.dirname(part.locations[0]) == f"{tmp_path}/train"
