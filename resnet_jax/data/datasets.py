"""The data sets, one entry each in DATASETS; a split is "train" or "test"."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from resnet_jax.data.formats.array_record import array_record
from resnet_jax.data.formats.cifar import cifar10, cifar100
from resnet_jax.data.formats.folder import image_folder, resolve_root
from resnet_jax.data.formats.tfds import tensorflow_datasets
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.permutation import epoch_permutation
from resnet_jax.data.source import Source, from_arrays, subset
from resnet_jax.errors import InputError, unknown

SPLITS = ("train", "validation", "test")


def digits(split: str, folder: Path) -> Source:
    """1,797 scanned digits, 8x8 grey (Alpaydin and Kaynak 1998), bundled.

    A fifth of the images (360), always the same, is the test split, so both splits share writers.
    """
    table = _digits_table()
    images = np.round(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = epoch_permutation(0, 0, len(images))
    part = np.sort(order[:360] if split == "test" else order[360:])
    return from_arrays(images[part], table[part, -1].astype(int), [str(digit) for digit in range(10)])


def _digits_table() -> np.ndarray:
    """Return pixels 0 to 16 and the class of each digit, (1797, 65).

    The file is read without scikit-learn, which takes seconds to import.
    """
    spec = find_spec("sklearn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else Path()
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])


def synthetic(split: str, folder: Path) -> Source:
    """512 + 128 noisy 32x32 RGB images of 10 patterns, made up."""
    rng = np.random.Generator(np.random.Philox(key=np.array([0, split == "train"], np.uint64)))
    patterns = np.random.Generator(np.random.Philox(key=np.array([1, 0], np.uint64))).random((10, 8, 8, 3))
    labels = np.arange(512 if split == "train" else 128) % 10
    clean = patterns[labels].repeat(4, axis=1).repeat(4, axis=2)
    images = np.clip(clean * 255 + rng.normal(0, 64, clean.shape), 0, 255).astype(np.uint8)
    return from_arrays(images, labels, [f"pattern {i}" for i in range(10)])


# Functions of (split, folder); if the name has a colon, of (split, folder, path, preprocessing), and of test_split if
# test splits can be chosen. `resnet-jax list` shows the first lines of their docstrings.
DATASETS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "synthetic": synthetic,
    "folder:PATH": image_folder,
    "array_record:PATH": array_record,
    "tfds:NAME": tensorflow_datasets,
}
_EXAMPLES = {
    "folder:PATH": "folder:pets for pets/train/CLASS/*.jpg and pets/val/CLASS/*.jpg",
    "array_record:PATH": "array_record:packed for a folder that `resnet-jax prepare` wrote",
    "tfds:NAME": "tfds:mnist",
}


def open_split(
    name: str,
    split: str,
    folder: Path,
    validation: int = 0,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Open a split; `validation` training images, always the same ones, form the validation split.

    `preprocessing` resizes images, and `test_split` names the folder or split to test on. Raises InputError if a name
    is unknown, the data set takes no preprocessing or has one test split, or `validation` leaves no training images.
    """
    read = _reader(name, preprocessing, test_split)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return holdout_split(read("test" if split == "test" else "train", folder), split, validation, name)


def holdout_split(source: Source, split: str, validation: int, name: str) -> Source:
    """Return a split: the test images, the held-out training images, or the other training images."""
    if split == "test" or (split == "train" and not validation):
        return source
    if not 0 < validation < source.size:
        raise InputError(f"data.num_validation is {validation}; {name} has {source.size:,} training images")
    order = epoch_permutation(0, 0, source.size)
    return subset(source, np.sort(order[-validation:] if split == "validation" else order[:-validation]))


def _reader(name: str, preprocessing: Preprocessing, test_split: str | None) -> Callable[[str, Path], Source]:
    """Return the function of (split, folder) for a name."""
    key, path = _key(name), name.partition(":")[2]
    if test_split and DATASETS.get(key) not in (image_folder, tensorflow_datasets):
        raise InputError(f"data.test_split is {test_split}; {name} has one test split, leave data.test_split out")
    if key:
        if not path:
            what = key.partition(":")[2]
            raise InputError(f"data set {name!r} needs a {what.lower()}; give {key}, such as {_EXAMPLES[key]}")
        choice = {"test_split": test_split} if test_split else {}
        return partial(DATASETS[key], path=path, preprocessing=preprocessing, **choice)
    if name == "arrays":
        raise InputError("the data of this run were arrays in memory; give them again, data=SOURCE")
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    refuse_resizing(name, preprocessing)
    return DATASETS[name]


def refuse_resizing(name: str, preprocessing: Preprocessing) -> None:
    """Raise InputError if images that have one size would have to be resized or cropped."""
    for field, value in preprocessing.geometry().items():
        raise InputError(f"data.{field} is {value}; {name} has images of one size, leave data.{field} out")


def takes_preprocessing(name: str) -> bool:
    """Return whether a data set resizes its images on request; others have a fixed size."""
    return bool(_key(name))


def _key(name: str) -> str:
    """Return the key of a data set with a path or name after a colon; empty for all others."""
    kind = name.partition(":")[0]
    return next((key for key in DATASETS if key.startswith(f"{kind}:")), "")


def found_in(name: str, folder: Path) -> Path:
    """Return the folder in which a data set is found if it is looked up in `folder`."""
    return resolve_root(name.partition(":")[2], folder) if takes_preprocessing(name) else folder
