"""The images that are predicted or embedded: files, folders, tables, data sets, or what a program yields."""

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.datasets import DATASETS, open_split, takes_preprocessing
from resnet_jax.data.formats.folder import is_image
from resnet_jax.data.image import Preprocessing, decode, preprocessing_of
from resnet_jax.data.resize import resize_crop_as
from resnet_jax.errors import InputError
from resnet_jax.inference.predict import require_images
from resnet_jax.training.setup import TrainSetup

# Columns of a table that name a file, in the order in which they are looked for
_PATHS = ("path", "image", "file", "filename")


class Item(NamedTuple):
    """An image that is not decoded."""

    name: str
    content: Path | bytes | np.ndarray
    """A file, the bytes of one, or pixels uint8 (h, w) or (h, w, c)."""
    label: str | None = None
    """Its class, if that is known."""


def iterate_images(
    words: Sequence[str], *, split: str = "test", data_dir: Path = Path("data"), size: Preprocessing = Preprocessing()
) -> Iterator[Item]:
    """Yield the images that words name, in an order that is the same each time; no list of them is kept.

    Args:
        words: image files; folders, searched at any depth; tables FILE.csv with a column "path" and perhaps "label";
            or data sets such as "array_record:PATH".
        split: of a data set.
        data_dir: folder of the data sets.
        size: to which a data set resizes what it does not store as files.

    Raises:
        InputError: A word names nothing.
    """
    for word in words:
        path = Path(word)
        if path.is_dir():
            yield from _folder(path)
        elif path.is_file():
            yield from _table(path) if path.suffix == ".csv" else [Item(word, path)]
        elif takes_preprocessing(word) or word in DATASETS:
            yield from _split(word, split, data_dir, size)
        else:
            raise InputError(f"{word}: no such image, folder, table (.csv) or data set; check the path")


def _folder(home: Path) -> Iterator[Item]:
    """Yield the images below a folder, those of a folder before those of the folders in it."""
    found = False
    for folder, below, files in os.walk(home, onerror=_fail):
        below.sort()
        below[:] = [name for name in below if not name.startswith(".")]
        for name in sorted(name for name in files if is_image(name) and not name.startswith(".")):
            found = True
            path = Path(folder) / name
            yield Item(path.relative_to(home).as_posix(), path)
    if not found:
        raise InputError(f"{home}: no images in this folder; name another, or a data set such as array_record:{home}")


def _fail(error: OSError) -> None:
    raise error


def _table(file: Path) -> Iterator[Item]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            column = next((name for name in _PATHS if name in (rows.fieldnames or ())), None)
            if column is None:
                raise InputError(f"{file}: its header has no column {' or '.join(_PATHS)}; add one")
            for row in rows:
                name = row[column] or ""
                yield Item(name, file.parent / name, row.get("label"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a table in UTF-8 with commas ({error}); save it as CSV") from error


def _split(name: str, split: str, data_dir: Path, size: Preprocessing) -> Iterator[Item]:
    preprocessing = size if takes_preprocessing(name) else Preprocessing()
    source = open_split(name, split, data_dir, preprocessing=preprocessing)
    for index in range(source.size):
        if source.raw is not None:
            item = source.raw(index)
            content, title, target = item.content, item.name, item.target
        else:
            example = source.read(index)
            content, title, target = example.image, "", example.target
        label = source.classes[int(target)] if np.ndim(target) == 0 else None
        yield Item(title or f"{split}/{index}", content, label)


def as_items(images: Iterable[Any]) -> Iterator[Item]:
    """Yield items for paths, bytes, arrays or pictures of Pillow; those without a path are named by their number."""
    for number, image in enumerate(images):
        if isinstance(image, Item):
            yield image
        elif isinstance(image, (str, Path)):
            yield Item(str(image), Path(image))
        else:
            yield Item(str(number), image if isinstance(image, bytes) else np.asarray(image))


def read_item(setup: TrainSetup, item: Item) -> np.ndarray:
    """Return an image as a network takes it, uint8 (h, w, c); raise InputError, with its name, if it cannot be read."""
    height, width, channels = require_images(setup)
    image = item.content
    if not isinstance(image, np.ndarray):
        image = decode(image, channels, str(image) if isinstance(image, Path) else item.name)
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, channels):
        raise InputError(
            f"{item.name}: pixels of {image.dtype} {image.shape}; the network takes uint8 (h, w, {channels})"
        )
    image = np.broadcast_to(image, (*image.shape[:2], channels)) if image.shape[-1] != channels else image
    return resize_crop_as(np.ascontiguousarray(image), height, width, preprocessing_of(setup.recipe.data), item.name)


def skip_known(items: Iterator[Item], known: int, last: str | None, where: Path) -> Iterator[Item]:
    """Leave out the first items, which are known already; raise InputError if the last of them has another name."""
    skipped = next(itertools.islice(items, known - 1, known), None) if known else None
    if known and (skipped is None or skipped.name != last):
        now = "missing" if skipped is None else repr(skipped.name)
        raise InputError(f"{where}.part: image {known:,} was {last!r} and is {now} now; remove the file to begin again")
    return items
