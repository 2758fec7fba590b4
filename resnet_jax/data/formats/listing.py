"""Lists of image files with a label each: what a CSV file, a pattern of names or an archive says of a data set."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.formats.files import Files, digest_of, image_content, open_files, where_is
from resnet_jax.data.formats.folder import CHOOSE, TEST_NAMES, files_digest
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import MissingSplitError, RawExample, Source, from_raw, require_one_size
from resnet_jax.errors import InputError
from resnet_jax.runtime.checksum import sha256_of


class Listed(NamedTuple):
    """An image file and what is known of it."""

    file: str
    """Path below the folder of the list, or in the archive."""
    split: str
    """As the data set names it; empty if it has no splits."""
    target: Any
    """Name of a class, names of several labels, or numbers."""
    groups: Mapping[str, str] = {}
    """Its group by each rule, such as the columns of a CSV file."""


def source_of(
    home: Path, listed: Sequence[Listed], split: str, preprocessing: Preprocessing, test_split: str | None, kind: str
) -> Source:
    """Return the source of a split of listed files.

    Args:
        home: folder that the files are in, or a zip archive of them.
        listed: all files of the data set.
        split: "train" or "test".
        preprocessing: of the images.
        test_split: name of the test split in the list; None is the first of test, val, valid and validation.
        kind: what the targets are: "class", "labels" or "numbers".

    Raises:
        InputError: A split is missing, or an image has a class that no training image has.
    """
    names = dict.fromkeys(one.split for one in listed)
    chosen, notes = _choose(home, list(names), split, test_split)
    train = [one for one in listed if one.split in ("train", "")]
    if not train:
        raise InputError(
            f"{home}: no training images, only {', '.join(names) or 'none'}; call the training split train"
        )
    some = [one for one in listed if one.split == chosen]
    classes, targets = _targets(home, train, some, kind)
    groups = partial(_groups, home, tuple(some))
    files = tuple(one.file for one in some)
    opened = open_files(home)
    digest = partial(_digest, opened, files, targets)
    raw = partial(_read, opened, files, targets)
    source = from_raw(len(files), classes, raw, preprocessing, targets, digest)
    require_one_size(source, home, preprocessing)
    return source._replace(notes=notes, groups=groups)


def _choose(home: Path, names: list[str], split: str, asked: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the name of a split in the list, and a note on the choice between several."""
    if split == "train":
        return "train" if "train" in names else "", ()
    known = [asked] if asked else [name for name in TEST_NAMES if name in names]
    if not known or known[0] not in names:
        what = asked or "test or val"
        raise MissingSplitError(f"{home}: no {what} images; hold training images out with data.num_validation")
    others = " or ".join(known[1:])
    return known[0], (f"the test split is {known[0]} of {home}: not {others}; {CHOOSE}",) if others else ()


def _targets(home: Path, train: list[Listed], some: list[Listed], kind: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of classes, labels or numbers, and the targets: (n,) int64 or (n, k) float32."""
    if kind == "numbers":
        return tuple(train[0].target), np.array([list(one.target.values()) for one in some], np.float32)
    names = {name for one in train for name in ([one.target] if kind == "class" else one.target)}
    # As numbers, 10 comes after 9
    by_number = all(name.isascii() and name.isdigit() and len(name) < 19 for name in names)
    classes = tuple(sorted(names, key=int if by_number else None))
    place = {name: number for number, name in enumerate(classes)}
    for one in some:
        for name in [one.target] if kind == "class" else one.target:
            if name not in place:
                raise InputError(f"{home}: {one.file} is of the class {name!r}, which no training image has")
    if kind == "class":
        return classes, np.array([place[one.target] for one in some], np.int64)
    labels = np.zeros((len(some), len(classes)), np.float32)
    for row, one in zip(labels, some, strict=True):
        row[[place[name] for name in one.target]] = 1
    return classes, labels


def _groups(home: Path, listed: tuple[Listed, ...], rule: str) -> np.ndarray:
    if rule == "folder":
        return np.array([os.path.dirname(one.file) for one in listed])
    if rule not in listed[0].groups:
        known = ", ".join(("folder", *listed[0].groups))
        raise InputError(f"data.group_by is {rule}; {home} has {known}")
    return np.array([one.groups[rule] for one in listed])


def _digest(opened: Files, files: tuple[str, ...], targets: np.ndarray) -> str:
    if opened.root.is_dir():
        return files_digest(opened.root, files, targets)
    return sha256_of([digest_of(opened, list(files)), targets.tolist()])


def _read(opened: Files, files: tuple[str, ...], targets: np.ndarray, index: int) -> RawExample:
    file, target = files[index], targets[index]
    target = int(target) if targets.ndim == 1 else target
    return RawExample(image_content(opened, file), target, file, where_is(opened, file))
