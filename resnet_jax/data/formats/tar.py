"""Read tar shards as WebDataset writes them: indexed once, then read at random."""

import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from resnet_jax.data.formats.extents import (
    Extents,
    make_extents,
    read_index,
    source_of_extents,
    stamp_of,
    write_index,
)
from resnet_jax.data.formats.folder import is_image
from resnet_jax.data.formats.globs import files_of_split
from resnet_jax.data.formats.masks import CLASSES, read_names
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, first_line

# Bytes of a .cls file
_LONGEST = 1000


def tar_shards(
    split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing(), test_split: str | None = None
) -> Source:
    """Tar archives of WebDataset, such as tar:shards/{split}-*.tar, with KEY.jpg and KEY.cls, a number.

    {split} stands for train and for test (or val); without it, all are training images. The names of the classes are
    the lines of classes.txt beside the archives, otherwise their numbers. An archive is indexed once, in
    ARCHIVE.index.npy beside it if that can be written.

    Raises:
        InputError: There are no archives, one is compressed or damaged, or an image has no class.
    """
    shards = [_indexed(file) for file in files_of_split("tar", split, folder, path, test_split)]
    home, labels = shards[0].path.parent, np.concatenate([shard.labels for shard in shards])
    if not len(labels):
        raise InputError(f"{home}: no images with a class in tar:{path}; an example is KEY.jpg and KEY.cls")
    names = read_names(home) if (home / CLASSES).is_file() else _numbers(labels, path, split, folder)
    return source_of_extents(shards, names, preprocessing)


def _numbers(labels: np.ndarray, path: str, split: str, folder: Path) -> list[str]:
    """Return the classes 0, 1, ... up to the largest of the training images, or of this split."""
    files = files_of_split("tar", "train", folder, path) if split == "test" else []
    train = [_indexed(file).labels for file in files]
    return list(map(str, range(1 + max(int(some.max(initial=0)) for some in (labels, *train)))))


def _indexed(path: Path) -> Extents:
    """Return the images of an archive, by an index that an earlier call wrote, or that is written now."""
    file, known = path.with_name(f"{path.name}.index.npy"), stamp_of(path.stat())
    rows = read_index(file, known)
    if rows is not None:
        with suppress(InputError):
            return make_extents(path, rows[:, :2], rows[:, 2])
    rows = np.array(list(_index(path)), np.int64).reshape(-1, 3)
    extents = make_extents(path, rows[:, :2], rows[:, 2])
    write_index(file, known, rows)
    return extents


def _index(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield begin and length of each image with a class, and the class."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                if member.isreg() and not member.issparse() and key:
                    kind = "image" if is_image(name) else suffix
                    found.setdefault(f"{folder}{slash}{key}", {})[kind] = member
            for key, members in found.items():
                if "image" in members and "cls" in members:
                    file = tar.extractfile(members["cls"])
                    text = file.read(_LONGEST).decode("ascii", "replace").strip() if file else ""
                    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
                        raise InputError(f"{path}: {key}.cls is {text[:50]!r}; give the number of a class")
                    yield members["image"].offset_data, members["image"].size, int(text)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a tar archive without compression ({first_line(error)})") from error
