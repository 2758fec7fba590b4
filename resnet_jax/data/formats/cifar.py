"""Read CIFAR-10 and CIFAR-100 in their official layouts: binary or python, unpacked or as an archive."""

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from gzip import GzipFile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.source import Source, from_arrays
from resnet_jax.errors import InputError, first_line

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FILES: dict[str, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
CIFAR100_FILES: dict[str, tuple[str, ...]] = {"train": ("train",), "test": ("test",)}
# Of the python files and all archives, as published at https://www.cs.toronto.edu/~kriz/cifar.html
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
}
# Number of records in a binary file
RECORDS = {f"{name}.bin": 10_000 for names in CIFAR10_FILES.values() for name in names}
RECORDS |= {"train.bin": 50_000, "test.bin": 10_000}
# Unpacked bytes of an archive; the largest of the four has 187 million
MAX_UNPACKED = 256 << 20
# Channels, rows, columns
_PIXELS = 3 * 32 * 32


class _Layout(NamedTuple):
    """One of the two layouts of a data set."""

    folder: str
    """Folder to which the archive unpacks."""
    archive: str
    suffix: str
    """Suffix of files with images: ".bin", or nothing for pickles."""
    names: str
    """File with the names of the classes; empty if they are known."""


class _Kind(NamedTuple):
    """One of the two data sets."""

    title: str
    base: str
    """Name of a folder that is searched as well."""
    files: dict[str, tuple[str, ...]]
    """Files of each split."""
    labels: int
    """Bytes before the pixels of a binary record; the last one is the class."""
    key: bytes
    """Key of the classes in a pickle."""
    classes: int
    layouts: tuple[_Layout, _Layout]


_CIFAR10 = _Kind(
    title="CIFAR-10",
    base="cifar10",
    files=CIFAR10_FILES,
    labels=1,
    key=b"labels",
    classes=10,
    layouts=(
        _Layout("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", ""),
        _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", "", ""),
    ),
)
_CIFAR100 = _Kind(
    title="CIFAR-100",
    base="cifar100",
    files=CIFAR100_FILES,
    labels=2,
    key=b"fine_labels",
    classes=100,
    layouts=(
        _Layout("cifar-100-binary", "cifar-100-binary.tar.gz", ".bin", "fine_label_names.txt"),
        _Layout("cifar-100-python", "cifar-100-python.tar.gz", "", "meta"),
    ),
)


def cifar10(split: str, folder: Path) -> Source:
    """50,000 + 10,000 photos, 32x32 RGB (Krizhevsky 2009).

    It reads the official binary and python layouts: in `folder`, in the folders below it to which the archives unpack,
    or in the archives themselves, without unpacking them to disk. Raises InputError if a file is missing, has the wrong
    size or not the official md5; a pickle is opened only after this check.
    """
    return _open(_CIFAR10, split, folder)


def cifar100(split: str, folder: Path) -> Source:
    """50,000 + 10,000 photos of 100 classes, 32x32 RGB (Krizhevsky 2009).

    The labels are the fine ones. Files are found and checked as in `cifar10`.
    """
    return _open(_CIFAR100, split, folder)


def _open(kind: _Kind, split: str, folder: Path) -> Source:
    layout, home = _find(kind, folder)
    wanted = [name + layout.suffix for name in kind.files[split]]
    contents = _contents(home, layout, [*wanted, *filter(None, [layout.names])])
    where = home / layout.folder if home.is_file() else home
    read = _read_binary if layout.suffix else _read_python
    parts = [read(kind, where / name, contents[name]) for name in wanted]
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([labels for _, labels in parts])
    classes = _class_names(kind, where / layout.names, contents[layout.names]) if layout.names else CIFAR10_CLASSES
    return from_arrays(np.ascontiguousarray(images), labels, classes)


def _find(kind: _Kind, folder: Path) -> tuple[_Layout, Path]:
    """Return the layout that exists, and the folder of its files or otherwise its archive."""
    best: tuple[int, Path, list[str]] = (0, folder, [])
    for home in (folder, *(folder / base / layout.folder for base in ("", kind.base) for layout in kind.layouts)):
        for layout in kind.layouts:
            names = [name + layout.suffix for files in kind.files.values() for name in files]
            names += filter(None, [layout.names])
            missing = [name for name in names if not (home / name).is_file()]
            if not missing:
                return layout, home
            best = max(best, (len(names) - len(missing), home, missing), key=lambda found: found[0])
    for layout in kind.layouts:
        for archive in (folder / layout.archive, folder / kind.base / layout.archive, folder):
            if archive.name == layout.archive and archive.is_file():
                return layout, archive
    found, home, missing = best
    if found:
        raise InputError(f"{home}: {kind.title} is incomplete; missing: {', '.join(missing)}")
    folders, archives = (
        f"{a} or {b}" for a, b in zip(*((f"{x.folder}/", x.archive) for x in kind.layouts), strict=True)
    )
    raise InputError(
        f"{folder}: no {kind.title} here; expected {folders}, or the archive {archives}, from"
        " https://www.cs.toronto.edu/~kriz/cifar.html (name the folder with --data-dir)"
    )


def _contents(home: Path, layout: _Layout, names: Sequence[str]) -> dict[str, bytes]:
    if not home.is_file():
        return {name: (home / name).read_bytes() for name in names}
    with home.open("rb") as file:
        if hashlib.file_digest(file, _md5).hexdigest() != MD5[home.name]:
            raise InputError(f"{home}: not the official archive, or cut short (its md5 differs); download it again")
    return _members(home, [f"{layout.folder}/{name}" for name in names])


def _members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return exactly these files of an archive, by the last part of their names; skip all others."""
    try:
        with GzipFile(archive) as packed:
            data = packed.read(MAX_UNPACKED + 1)
        if len(data) > MAX_UNPACKED:
            raise InputError(f"{archive}: over {MAX_UNPACKED >> 20} MiB unpacked; download it again")
        found = {}
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if member.name in names and member.isreg() and member.size <= len(data):
                    file = tar.extractfile(member)
                    found[member.name] = file.read() if file else b""
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{archive}: the archive is damaged ({first_line(error)}); download it again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{archive}: this archive lacks {', '.join(missing)}; download it again")
    return {name.rpartition("/")[2]: content for name, content in found.items()}


def _read_binary(kind: _Kind, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    count = RECORDS[path.name]
    expected = count * (kind.labels + _PIXELS)
    if len(content) != expected:
        raise InputError(f"{path}: {len(content):,} bytes, expected {expected:,}; download it again")
    records = np.frombuffer(content, np.uint8).reshape(count, kind.labels + _PIXELS)
    labels = records[:, kind.labels - 1]
    if (labels >= kind.classes).any():
        over = f"a label over {kind.classes - 1}"
        raise InputError(f"{path}: {over}, so this is not {kind.title}'s binary layout; download it again")
    return records[:, kind.labels :], labels


def _read_python(kind: _Kind, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    table = _unpickle(path, content)
    return table[b"data"], np.array(table[kind.key])


def _class_names(kind: _Kind, path: Path, content: bytes) -> tuple[str, ...]:
    names = content.splitlines() if path.suffix else _unpickle(path, content)[b"fine_label_names"]
    classes = tuple(name.decode("ascii", "replace").strip() for name in names if name.strip())
    if len(set(classes)) != kind.classes or len(classes) != kind.classes:
        raise InputError(f"{path}: not the names of {kind.classes} classes, one per line; download it again")
    return classes


def _unpickle(path: Path, content: bytes) -> dict[bytes, Any]:
    if _md5(content).hexdigest() != MD5[path.name]:
        raise InputError(f"{path}: not the official file (its md5 differs), not opened; download it again")
    # Safe: exactly the published bytes
    return pickle.loads(content, encoding="bytes")


def _md5(content: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(content, usedforsecurity=False)
