"""Data sets that `--download` fetches, and the readers of those that have no layout of their own here."""

import hashlib
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.formats.cifar import MD5
from resnet_jax.data.formats.folder import image_folder
from resnet_jax.data.formats.listing import Listed, source_of
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, first_line
from resnet_jax.runtime.download import download

# Unpacked bytes of an archive
_MOST = 16 << 30
_CIFAR = "https://www.cs.toronto.edu/~kriz"
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"


class Remote(NamedTuple):
    """A file of a data set."""

    url: str
    md5: str
    folder: str = ""
    """Folder below that of the data sets, where the file lies and an archive is unpacked."""
    unpacks: str = ""
    """Folder that unpacking the archive makes; empty for a file that is read as it is."""


# As published by their authors
REMOTE: dict[str, tuple[Remote, ...]] = {
    "cifar10": (Remote(f"{_CIFAR}/cifar-10-binary.tar.gz", MD5["cifar-10-binary.tar.gz"]),),
    "cifar100": (Remote(f"{_CIFAR}/cifar-100-binary.tar.gz", MD5["cifar-100-binary.tar.gz"]),),
    "imagenette": (
        Remote(
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            "3df6f0d01a2c9592104656642f5e78a3",
            unpacks="imagenette2-320",
        ),
    ),
    "flowers102": (
        Remote(f"{_FLOWERS}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102", "jpg"),
        Remote(f"{_FLOWERS}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
        Remote(f"{_FLOWERS}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102"),
    ),
    "oxford_iiit_pet": (
        Remote(f"{_PETS}/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet", "images"),
        Remote(f"{_PETS}/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "oxford-iiit-pet", "annotations"),
    ),
}


def fetch(name: str, folder: Path, log: Callable[[str], None] = print) -> None:
    """Download a data set into a folder unless it is there, and unpack what is not read from its archive.

    Raises:
        InputError: The data set is none of REMOTE, or a file cannot be had.
    """
    if name not in REMOTE:
        raise InputError(f"--download: {name} is not downloaded, only {', '.join(REMOTE)}; leave it out")
    for remote in REMOTE[name]:
        home = folder / remote.folder
        if remote.unpacks and (home / remote.unpacks).is_dir():
            continue
        path = home / remote.url.rpartition("/")[2]
        download(remote.url, path, remote.md5, log)
        if remote.unpacks:
            unpack(path, home, remote.unpacks)


def unpack(archive: Path, home: Path, name: str) -> None:
    """Unpack the files of a tar archive that are below `name`, all or none, into a folder.

    Links, devices and names that lead elsewhere are left out.

    Raises:
        InputError: The archive is damaged or too large, or has no such folder.
    """
    partial, total = home / f"{name}.part", 0
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if not member.isreg() or place.parts[:1] != (name,) or ".." in place.parts:
                    continue
                total += member.size
                content = tar.extractfile(member)
                if total > _MOST or content is None:
                    raise ValueError(f"over {_MOST >> 30} GiB unpacked")
                to = partial.joinpath(*place.parts[1:])
                to.parent.mkdir(parents=True, exist_ok=True)
                with content, to.open("xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except (tarfile.TarError, zlib.error, EOFError, ValueError, FileExistsError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"{archive}: cannot be unpacked ({first_line(error)}); download it again") from error
    if not partial.is_dir():
        raise InputError(f"{archive}: has no folder {name}; download it again")
    os.replace(partial, home / name)


def imagenette(split: str, folder: Path, preprocessing: Preprocessing = Preprocessing()) -> Source:
    """9,469 + 3,925 photos of 10 easy ImageNet classes, shorter side 320 (Howard 2019)."""
    _require("imagenette", folder, "imagenette2-320")
    return image_folder(split, folder, str((folder / "imagenette2-320").absolute()), preprocessing)


def flowers102(
    split: str, folder: Path, preprocessing: Preprocessing = Preprocessing(), test_split: str | None = None
) -> Source:
    """1,020 + 6,149 photos of 102 flowers, and 1,020 of validation (Nilsback and Zisserman 2008)."""
    home = _require("flowers102", folder, "flowers-102")
    from scipy.io import loadmat

    tables: dict[str, Any] = {}
    for remote in REMOTE["flowers102"][1:]:
        path = home / remote.url.rpartition("/")[2]
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != remote.md5:
            raise InputError(f"{path}: missing, or not the official file (its md5 differs); give --download")
        tables |= loadmat(io.BytesIO(content))
    labels = tables["labels"].ravel()
    splits = {"train": "trnid", "val": "valid", "test": "tstid"}
    listed = [
        Listed(f"jpg/image_{number:05}.jpg", name, str(labels[number - 1]))
        for name, key in splits.items()
        for number in np.ravel(tables[key])
    ]
    return source_of(home, listed, split, preprocessing, test_split, "class")


def oxford_iiit_pet(split: str, folder: Path, preprocessing: Preprocessing = Preprocessing()) -> Source:
    """3,680 + 3,669 photos of 37 breeds of cats and dogs (Parkhi et al. 2012)."""
    home = _require("oxford_iiit_pet", folder, "oxford-iiit-pet")
    listed = []
    for name, file in (("train", "trainval.txt"), ("test", "test.txt")):
        path = home / "annotations" / file
        if not path.is_file():
            raise InputError(f"{path}: no such list; give --download")
        stems = [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.split()]
        listed += [Listed(f"images/{stem}.jpg", name, stem.rpartition("_")[0]) for stem in stems]
    return source_of(home, listed, split, preprocessing, None, "class")


def _require(name: str, folder: Path, inside: str) -> Path:
    home = (folder / inside).resolve()
    if not home.is_dir():
        raise InputError(f"{home}: no such folder; --download fetches {name}, or name the folder above with --data-dir")
    return home
