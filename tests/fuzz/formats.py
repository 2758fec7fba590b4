"""Data sets as people have them, to begin from: boxes, archives, tables and sound, each with its reader."""

import io
import json
import tarfile
import wave
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mutate import WORDS, change_bytes, change_json, change_lines
from PIL import Image

from resnet_jax.data.audio import decode_audio
from resnet_jax.data.formats.coco import coco_boxes
from resnet_jax.data.formats.pattern import zip_folder
from resnet_jax.data.formats.table import csv_file
from resnet_jax.data.formats.tar import tar_shards
from resnet_jax.data.formats.voc import voc_boxes
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import source_digest

SMALL = Preprocessing(image_size=4)
PARTS = ("", "..", "/", "a/", "\\", "\n", "é", "x" * 300, "train", ".", "__MACOSX/")


def png(color: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read_all(source: Any) -> None:
    source_digest(source)
    for index in range(min(source.size, 10)):
        source.read(index)


def home_of(path: Path) -> Path:
    """Return the folder of the valid files."""
    return next(parent for parent in path.parents if parent.name == "files")


# Boxes

XML = """<annotation><size><width>8</width><height>8</height></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>8</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>2.5</xmin><ymin>1</ymin><xmax>8</xmax><ymax>3</ymax></bndbox></object>
</annotation>"""
XML_PARTS = (
    *('<!DOCTYPE a [<!ENTITY b "c">]>', "&b;", "<object>", "</object>", "<a>" * 10_000, "<name/>", "-1", "1e999"),
    *('<?xml version="1.0" encoding="utf-7"?>', "<![CDATA[", "9" * 400, "\0", "é", "<xmin>3</xmin>", "nan"),
)


def make_voc(folder: Path) -> None:
    images = [(f"JPEGImages/{n}.jpg", png(n)) for n in (0, 1)]
    boxes = [(f"Annotations/{n}.xml", XML.encode()) for n in (0, 1)]
    write(folder, [*images, *boxes, ("ImageSets/Main/train.txt", b"0 1\n1 -1\n"), ("classes.txt", b"cat\ndog\n")])


def change_voc(draw: Random, content: bytes) -> bytes:
    if not content.startswith(b"<"):
        return (change_bytes if content.startswith(b"\x89") else change_lines)(draw, content)
    if draw.random() < 0.3:
        return change_bytes(draw, content)
    start = draw.randrange(len(content) + 1)
    end = start + draw.choice((0, 0, 1, 10))
    return content[:start] + draw.choice(XML_PARTS).encode() + content[end:]


def read_voc(path: Path) -> None:
    read_all(voc_boxes("train", home_of(path), str(home_of(path)), SMALL))


def make_coco(folder: Path) -> None:
    box = {"category_id": 3, "bbox": [1, 2, 4.5, 5], "area": 9, "iscrowd": 0}
    boxes = [{"id": n, "image_id": n % 2, **box} for n in range(3)]
    images = [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 8} for n in (0, 1)]
    table = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}
    write(folder, [(f"train/{n}.png", png(n)) for n in (0, 1)])
    write(folder, [("annotations/instances_train.json", json.dumps(table).encode())])


def change_coco(draw: Random, content: bytes) -> bytes:
    return (change_json if content.startswith(b"{") else change_bytes)(draw, content)


def read_coco(path: Path) -> None:
    read_all(coco_boxes("train", home_of(path), str(home_of(path)), SMALL))


# Archives


def change_archive(
    unpack: Callable[[bytes], list[tuple[str, bytes]]], pack: Callable[[list[tuple[str, bytes]]], bytes]
) -> Callable[[Random, bytes], bytes]:
    """Return a change of names and contents in an archive, of which headers and checksums are right, or of bytes."""

    def change(draw: Random, content: bytes) -> bytes:
        if draw.random() < 0.4:
            return change_bytes(draw, content)
        members = unpack(content)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(members))
            name, inside = members[place]
            match draw.randrange(5):
                case 0:
                    start, end = sorted(draw.randrange(len(name) + 1) for _ in range(2))
                    members[place] = name[:start] + draw.choice(PARTS) + name[end:], inside
                case 1:
                    members[place] = name, change_bytes(draw, inside)
                case 2:
                    members[place] = name, draw.choice(WORDS).encode(errors="surrogateescape")
                case 3:
                    members.append((draw.choice(members)[0], inside))
                case _ if len(members) > 1:
                    del members[place]
        return pack(members)

    return change


def packed_zip(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, (name, content) in enumerate(members):
            info = zipfile.ZipInfo(name or "?")
            info.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
            # Not by `writestr`, which warns of a name that is there twice
            archive.NameToInfo.pop(info.filename, None)
            archive.writestr(info, content)
    return file.getvalue()


def unpacked_zip(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


change_zip = change_archive(unpacked_zip, packed_zip)


def make_zip(folder: Path) -> None:
    names = [f"pets/{split}/{name}/{n}.png" for n in (0, 1) for split in ("train", "test") for name in ("cat", "dog")]
    (folder / "pets.zip").write_bytes(packed_zip([(name, png(n)) for n, name in enumerate(names)]))


def read_zip(path: Path) -> None:
    read_all(zip_folder("train", path.parent, path.name, SMALL))


def packed_tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def unpacked_tar(content: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


_change_tar = change_archive(unpacked_tar, packed_tar)


def make_tar(folder: Path) -> None:
    members = [(f"{n}.{kind}", png(n) if kind == "png" else b"%d\n" % n) for n in range(3) for kind in ("png", "cls")]
    for number in (0, 1):
        (folder / f"train-{number}.tar").write_bytes(packed_tar(members))
    # And its index
    read_tar(folder / "train-0.tar")


def change_tar(draw: Random, content: bytes) -> bytes:
    return (change_bytes if content.startswith(b"\x93NUMPY") else _change_tar)(draw, content)


def read_tar(path: Path) -> None:
    if path.suffix == ".tar":
        path.with_name(f"{path.name}.index.npy").unlink(missing_ok=True)
    read_all(tar_shards("train", path.parent, "{split}-*.tar", SMALL))


# Tables and sound

TABLES = {
    "classes.csv": "path,label,split\n0.png,cat,train\n1.png,dog,train\n0.png,dog,test\n",
    "labels.csv": "path,labels,patient\n0.png,cat|dog,1\n1.png,,2\n",
    "numbers.csv": "path,target_x,target_y\n0.png,1.5,2\n1.png,-3,1e3\n",
}


def make_tables(folder: Path) -> None:
    write(folder, [*((f"{n}.png", png(n)) for n in (0, 1)), *((name, text.encode()) for name, text in TABLES.items())])


def change_table(draw: Random, content: bytes) -> bytes:
    if content.startswith(b"\x89") or draw.random() < 0.3:
        return change_bytes(draw, content)
    if draw.random() < 0.5:
        return change_lines(draw, content)
    cells = content.split(b",")
    cells[draw.randrange(len(cells))] = draw.choice((*WORDS, '"', "a\n", "../0.png", "/dev/zero", "|")).encode(
        errors="surrogateescape"
    )
    return b",".join(cells)


def read_table(path: Path) -> None:
    for name in TABLES:
        if path.suffix != ".csv" or path.name == name:
            read_all(csv_file("train", path.parent, name, SMALL))


def make_sounds(folder: Path) -> None:
    import soundfile

    waves = np.sin(np.arange(2_000) / 9)[:, None] * np.array([0.5, 0.2])
    for name in ("a.wav", "b.flac", "c.ogg"):
        soundfile.write(folder / name, waves, 16_000)
    soundfile.write(folder / "d.wav", waves, 16_000, subtype="FLOAT")
    with wave.open(str(folder / "e.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(1), file.setframerate(8_000)
        file.writeframes(bytes(range(256)))


def read_sound(path: Path) -> None:
    decode_audio(path, 8_000, 800)
