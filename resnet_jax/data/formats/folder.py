"""Read folders of image files, one folder per class: the layout of torchvision's ImageFolder."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import MissingSplitError, RawExample, Source, from_raw, require_one_size
from resnet_jax.errors import InputError
from resnet_jax.runtime.checksum import sha256_of

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# The first that exists is the test split
TEST_NAMES = ("test", "val", "valid", "validation")
_LAYOUT = "expected train/CLASS/*.jpg and val/CLASS/*.jpg (or valid/, validation/, test/), one folder a class"


def image_folder(split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing()) -> Source:
    """Image files as PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, RGB, brought to data.image_size.

    `path` is below `folder` if it exists there, otherwise in the working directory. Classes are the sorted names of the
    folders, and images are sorted by path within them, so the order is the same on every machine. Raises InputError if
    a folder is missing, a class is empty or not in both splits, or images without resizing differ in size.
    """
    root = resolve_root(path, folder) / Path(path).expanduser()
    train, test = root / "train", next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if not train.is_dir():
        what = "no train/ in this folder" if root.is_dir() else f"no such folder, here or below {folder}"
        raise InputError(f"{root}: {what}; {_LAYOUT}")
    classes = _classes(train)
    if test is not None:
        _require_same(train, classes, test)
    elif split == "test":
        raise MissingSplitError(
            f"{root}: no val/ in this folder; {_LAYOUT}, or hold training images out by data.num_validation"
        )
    # Read later, perhaps from another working directory
    home = (test if split == "test" and test is not None else train).resolve()
    names = [_images(home, name) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in names])
    files = tuple(name for of_class in names for name in of_class)
    digest = partial(files_digest, home, files, labels)
    source = from_raw(len(files), classes, partial(_file, home, files, labels), preprocessing, labels, digest)
    require_one_size(source, home, preprocessing)
    return source


def resolve_root(path: str, folder: Path) -> Path:
    """Return the base of a path: the working directory if it exists only there, otherwise `folder`."""
    here = Path(path).expanduser()
    return Path() if here.is_dir() and not (folder / here).is_dir() else folder


def files_digest(home: Path, files: Sequence[str], labels: np.ndarray) -> str:
    """Return the SHA-256 of names, sizes and labels; on threads, since each size of a network's file takes a trip."""

    def sizes(start: int) -> list[int]:
        return [_size(home / name) for name in files[start : start + 1000]]

    with ThreadPoolExecutor(16) as pool:
        found = list(chain.from_iterable(pool.map(sizes, range(0, len(files), 1000))))
    return sha256_of([list(files), found, labels.tolist()])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # As of a link to nothing, which training replaces
        return -1


def _file(home: Path, files: tuple[str, ...], labels: np.ndarray, index: int) -> RawExample:
    path = home / files[index]
    return RawExample(path, int(labels[index]), files[index], str(path))


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: no folders of classes here; {_LAYOUT}")
    return tuple(names)


def _require_same(train: Path, classes: tuple[str, ...], test: Path) -> None:
    """Raise InputError with the name of a class that only one of the two splits has."""
    others = _classes(test)
    for here, names, there, known in ((test, classes, train, others), (train, others, test, classes)):
        missing = [name for name in names if name not in known]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(f"{here}: no class {missing[0]!r}{more}, which {there} has; make their folders agree")


def _images(home: Path, name: str) -> list[str]:
    """Return images of a class at any depth, as sorted POSIX paths below `home`; follow each link once."""
    found, seen = [], set()
    for folder, below, files in os.walk(home / name, followlinks=True, onerror=_fail):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(item for item in below if not item.startswith("."))
        images = [] if real in seen else [item for item in files if _is_image(item)]
        seen.add(real)
        found += [(Path(folder) / item).relative_to(home).as_posix() for item in images]
    if not found:
        raise InputError(f"{home / name}: no images here ({', '.join(sorted(SUFFIXES))}); add some or remove the class")
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _fail(error: OSError) -> None:
    # `os.walk` would skip a folder without read permission
    raise error
