"""Read ImageNet's validation images and the sets that use its classes.

Reference:
    Russakovsky et al. 2015 (ImageNet); Beyer et al. 2020 (ReaL); Recht et al. 2019 (ImageNetV2); Hendrycks et al. 2019
    and 2020 (ImageNet-A and ImageNet-R); Wang et al. 2019 (ImageNet-Sketch).
"""

import re
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.formats.folder import SUFFIXES, files_digest, list_files, resolve_root
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import RawExample, Source, from_raw, subset
from resnet_jax.errors import InputError, first_line
from resnet_jax.runtime.safe_files import read_regular
from resnet_jax.runtime.strict_json import parse_json

_NUMBER = re.compile(r".*_(\d{8})\.[^.]*")


@cache
def imagenet_classes() -> dict[str, str]:
    """Return the names of ImageNet's 1,000 classes by their synsets, in the order of the outputs.

    Example:
        >>> list(imagenet_classes().items())[0]
        ('n01440764', 'tench')
    """
    lines = resources.files(__package__).joinpath("imagenet_classes.txt").read_text().splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return {synset: name for synset, name in pairs}  # noqa: C416


def imagenet(split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing()) -> Source:
    """ImageNet, ImageNetV2 and ImageNet-Sketch: PATH/val/SYNSET/*.JPEG, or PATH/SYNSET/*.

    Folders are named by synset (n01440764) or by the number of the class, 0 to 999, and not all need be there. The
    training split is PATH/train. Raises InputError if there are no such folders.
    """
    root = resolve_root(path, folder) / Path(path).expanduser()
    home = root / "train" if split == "train" else next((at for at in (root / "val", root) if at.is_dir()), root)
    if not home.is_dir():
        raise InputError(f"{home}: no such folder, here or below {folder}; name the folder of the images")
    synsets = {synset: number for number, synset in enumerate(imagenet_classes())}
    numbers = {str(number): number for number in range(len(synsets))}
    found = sorted(item.name for item in home.iterdir() if item.is_dir() and item.name in {**synsets, **numbers})
    if not found:
        raise InputError(f"{home}: no folders of ImageNet's classes here, such as n01440764 or 0")
    files = [list_files(home, name, SUFFIXES)[0] for name in found]
    labels = np.repeat([{**synsets, **numbers}[name] for name in found], [len(of_class) for of_class in files])
    names = tuple(chain.from_iterable(files))
    home = home.resolve()
    raw, digest = partial(_file, home, names, labels), partial(files_digest, home, names, labels)
    return from_raw(len(names), tuple(imagenet_classes().values()), raw, preprocessing, labels, digest)


def _file(home: Path, files: tuple[str, ...], labels: np.ndarray, index: int) -> RawExample:
    return RawExample(home / files[index], int(labels[index]), files[index], str(home / files[index]))


def imagenet_present(split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing()) -> Source:
    """ImageNet-A or -R, as imagenet:PATH; outputs are compared among the classes that have images."""
    return imagenet(split, folder, path, preprocessing)


def imagenet_real(split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing()) -> Source:
    """ImageNet's validation images by the labels of PATH/real.json, any of which is right.

    Images without a label do not count. Targets are float32 (1000,), 1 over the number of labels at each.

    Raises:
        InputError: The labels do not fit.
    """
    source = imagenet(split, folder, path, preprocessing)
    file = resolve_root(path, folder) / Path(path).expanduser() / "real.json"
    try:
        lists = [[int(label) for label in labels] for labels in parse_json(read_regular(file))]
        if any(not 0 <= label < 1000 for labels in lists for label in labels):
            raise ValueError("a label that is not a class")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: no list of labels for each validation image ({first_line(error)})") from error
    assert source.raw is not None
    places = [_place(source.raw(index), len(lists)) for index in range(source.size)]
    kept = np.array([index for index, place in enumerate(places) if lists[place]], np.int64)
    if not kept.size:
        raise InputError(f"{file}: no image has a label")
    chosen = [lists[places[index]] for index in kept]
    read, raw = (partial(_relabelled, each, kept, chosen) for each in (source.read, source.raw))
    return subset(source, kept)._replace(read=read, raw=raw, labels=None)


def _place(item: RawExample, count: int) -> int:
    """Return the place of a validation image among the 50,000, from 0, by the number in its name."""
    match = _NUMBER.fullmatch(item.name)
    if not match or not 1 <= int(match[1]) <= count:
        raise InputError(f"{item.where}: its name has no number from 00000001 on, as ILSVRC2012_val_00000001.JPEG has")
    return int(match[1]) - 1


def _relabelled(read: Callable[[int], Any], kept: np.ndarray, chosen: list[list[int]], index: int) -> Any:
    target = np.zeros(1000, np.float32)
    target[chosen[index]] = 1 / len(set(chosen[index]))
    return read(int(kept[index]))._replace(target=target)
