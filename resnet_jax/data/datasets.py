"""The data sets, one entry each in DATASETS; a split is "train" or "test"."""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from resnet_jax.data.formats.array_record import array_record
from resnet_jax.data.formats.cifar import cifar10, cifar100
from resnet_jax.data.formats.coco import coco_boxes
from resnet_jax.data.formats.folder import image_folder, resolve_root
from resnet_jax.data.formats.imagenet import imagenet, imagenet_present, imagenet_real
from resnet_jax.data.formats.masks import mask_folder, voc_segmentation
from resnet_jax.data.formats.parquet import hub_dataset, parquet_files
from resnet_jax.data.formats.pattern import base_of, files_by_pattern, zip_folder
from resnet_jax.data.formats.published import flowers102, imagenette, oxford_iiit_pet
from resnet_jax.data.formats.table import csv_file, resolve_file
from resnet_jax.data.formats.tar import tar_shards
from resnet_jax.data.formats.tfds import tensorflow_boxes, tensorflow_datasets, tensorflow_masks
from resnet_jax.data.formats.voc import voc_boxes
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.mixed import mix_sources
from resnet_jax.data.own import is_own, own_reader
from resnet_jax.data.permutation import epoch_permutation
from resnet_jax.data.selection import Selection, select
from resnet_jax.data.source import Source, from_arrays
from resnet_jax.errors import InputError, short_repr, unknown

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


def folder_or_zip(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Images as PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, RGB; PATH may be a zip archive."""
    if path.lower().endswith(".zip") and (resolve_file(path, folder) / Path(path).expanduser()).is_file():
        return zip_folder(split, folder, path, preprocessing, test_split)
    return image_folder(split, folder, path, preprocessing, test_split)


# Functions of (split, folder); if the name has a colon, of (split, folder, path, preprocessing), and of test_split if
# test splits can be chosen. `resnet-jax list` shows the first lines of their docstrings.
DATASETS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenette": imagenette,
    "flowers102": flowers102,
    "oxford_iiit_pet": oxford_iiit_pet,
    "synthetic": synthetic,
    "folder:PATH": folder_or_zip,
    "files:PATTERN": files_by_pattern,
    "csv:FILE": csv_file,
    "tar:PATTERN": tar_shards,
    "parquet:PATTERN": parquet_files,
    "hf:OWNER/NAME": hub_dataset,
    "masks:PATH": mask_folder,
    "voc:PATH": voc_segmentation,
    "coco:PATH": coco_boxes,
    "voc_boxes:PATH": voc_boxes,
    "array_record:PATH": array_record,
    "imagenet:PATH": imagenet,
    "imagenet_real:PATH": imagenet_real,
    "imagenet_v2:PATH": imagenet,
    "imagenet_a:PATH": imagenet_present,
    "imagenet_r:PATH": imagenet_present,
    "imagenet_sketch:PATH": imagenet,
    "tfds:NAME": tensorflow_datasets,
    "tfds_masks:NAME": tensorflow_masks,
    "tfds_boxes:NAME": tensorflow_boxes,
}
_EXAMPLES = {
    "folder:PATH": "folder:pets for pets/train/CLASS/*.jpg and pets/val/CLASS/*.jpg",
    "files:PATTERN": "files:dogs/train/{class}.*.jpg for dogs/train/cat.0.jpg",
    "tar:PATTERN": "tar:shards/{split}-*.tar for WebDataset's train-000.tar",
    "parquet:PATTERN": "parquet:data/{split}-*.parquet for data/train-00000-of-00001.parquet",
    "hf:OWNER/NAME": "hf:zalando-datasets/fashion_mnist",
    "csv:FILE": "csv:photos.csv with the columns path and label",
    "masks:PATH": "masks:camvid for camvid/images/train/*.jpg and camvid/masks/train/*.png, or CamVid's own folders",
    "voc:PATH": "voc:VOCdevkit/VOC2012",
    "coco:PATH": "coco:coco for coco/annotations/instances_train2017.json and coco/train2017/*.jpg",
    "voc_boxes:PATH": "voc_boxes:VOCdevkit/VOC2012, or an archive of such a folder, voc_boxes:bccd.zip",
    "array_record:PATH": "array_record:packed for a folder that `resnet-jax prepare` wrote",
    "imagenet:PATH": "imagenet:ILSVRC2012 for ILSVRC2012/val/n01440764/*.JPEG",
    "imagenet_real:PATH": "imagenet_real:ILSVRC2012, with ILSVRC2012/real.json",
    "imagenet_v2:PATH": "imagenet_v2:imagenetv2-matched-frequency-format-val",
    "imagenet_a:PATH": "imagenet_a:imagenet-a",
    "imagenet_r:PATH": "imagenet_r:imagenet-r",
    "imagenet_sketch:PATH": "imagenet_sketch:sketch",
    "tfds:NAME": "tfds:mnist",
    "tfds_masks:NAME": "tfds_masks:oxford_iiit_pet",
    "tfds_boxes:NAME": "tfds_boxes:voc/2012",
}
# Those of which a test split can be chosen
_CHOOSING = (
    folder_or_zip,
    files_by_pattern,
    csv_file,
    tar_shards,
    parquet_files,
    hub_dataset,
    flowers102,
    mask_folder,
    voc_segmentation,
    coco_boxes,
    voc_boxes,
    tensorflow_datasets,
    tensorflow_masks,
    tensorflow_boxes,
)
# Those without a path whose images differ in size
_SIZED = (imagenette, flowers102, oxford_iiit_pet)


def open_split(
    name: str,
    split: str,
    folder: Path,
    selection: Selection = Selection(),
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
    *,
    trusted: bool = False,
) -> Source:
    """Open a split, of which `selection` holds out, leaves out or renames some.

    `preprocessing` resizes images, and `test_split` names the folder or split to test on. `trusted` says that the
    caller names the data set, and no file that somebody else wrote: only then is a source of one's own imported. Raises
    InputError if a name is unknown, the data set takes no preprocessing or has one test split, or the selection does
    not fit.
    """
    if is_own(name):
        refuse_resizing(name, preprocessing)
    read = own_reader(name, trusted) if is_own(name) else _reader(name, preprocessing, test_split)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    source = select(read("test" if split == "test" else "train", folder), split, selection, name)
    if split != "train" or not selection.mix:
        return source
    own = Selection(class_map=selection.class_map, sampling=selection.sampling)
    others = [open_split(other, "train", folder, own, preprocessing) for other, _ in selection.mix]
    weights = [1.0, *(weight for _, weight in selection.mix)]
    return mix_sources([source, *others], weights, [name, *(other for other, _ in selection.mix)])


def _reader(name: str, preprocessing: Preprocessing, test_split: str | None) -> Callable[[str, Path], Source]:
    """Return the function of (split, folder) for a name."""
    key, path = _key(name), name.partition(":")[2]
    if test_split and DATASETS.get(key or name) not in _CHOOSING:
        raise InputError(f"data.test_split is {test_split}; {name} has only one test split; leave data.test_split out")
    if key:
        if not path:
            what = key.partition(":")[2]
            raise InputError(f"data set {name!r} needs a {what.lower()}; give {key}, such as {_EXAMPLES[key]}")
        choice = {"test_split": test_split} if test_split else {}
        return partial(DATASETS[key], path=path, preprocessing=preprocessing, **choice)
    if name == "arrays":
        raise InputError("this run was trained on arrays in memory; pass them again: data=SOURCE")
    if name not in DATASETS:
        if os.path.isdir(name):
            raise InputError(f"unknown data set {short_repr(name)}; for a folder of images, give folder:{name}")
        raise unknown("data set", name, DATASETS)
    if DATASETS[name] in _SIZED:
        return partial(
            DATASETS[name], preprocessing=preprocessing, **({"test_split": test_split} if test_split else {})
        )
    refuse_resizing(name, preprocessing)
    return DATASETS[name]


def refuse_resizing(name: str, preprocessing: Preprocessing) -> None:
    """Raise InputError if images that have one size would have to be resized or cropped."""
    for field, value in preprocessing.geometry().items():
        raise InputError(f"data.{field} is {value}; all images of {name} have the same size; leave data.{field} out")


def takes_preprocessing(name: str) -> bool:
    """Return whether a data set resizes its images on request; others have a fixed size."""
    return bool(_key(name)) or DATASETS.get(name) in _SIZED


def _key(name: str) -> str:
    """Return the key of a data set with a path or name after a colon; empty for all others."""
    kind = name.partition(":")[0]
    return next((key for key in DATASETS if key.startswith(f"{kind}:")), "")


def found_in(name: str, folder: Path) -> Path:
    """Return the folder in which a data set is found if it is looked up in `folder`."""
    key, path = _key(name), name.partition(":")[2]
    if key in ("files:PATTERN", "csv:FILE", "tar:PATTERN", "parquet:PATTERN") or path.lower().endswith(".zip"):
        return base_of(path, folder)
    return resolve_root(path, folder) if key else folder
