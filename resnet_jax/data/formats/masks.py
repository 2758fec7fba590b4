"""Read images with masks: folders of both, CamVid's layout, and Pascal VOC's."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.data.formats.folder import CHOOSE, SUFFIXES, TEST_NAMES, files_digest, resolve_root
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.masks import IGNORE, MaskFile
from resnet_jax.data.source import MissingSplitError, RawExample, Source, from_raw, require_one_size
from resnet_jax.errors import InputError

CLASSES = "classes.txt"
# Names in classes.txt of values that are not labelled
UNLABELLED = ("void", "ignore", "unlabeled", "unlabelled")
_LAYOUT = (
    "expected images/train/*.jpg with masks/train/*.png and images/val/ with masks/val/ (or test/), or CamVid's train/"
    " with trainannot/"
)
# Of SegNet's version of CamVid, which has no file of names
_CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist void"
_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person"
    " pottedplant sheep sofa train tvmonitor"
)


class _Pair(NamedTuple):
    """Files of an example below the root; an empty one is missing."""

    image: str
    mask: str


def mask_folder(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Images and masks as PATH/images/train/*.jpg and PATH/masks/train/*.png, or in CamVid's folders.

    An image and its mask have one name. A mask is a grey or palette PNG whose values are the classes from 0, and 255
    where there is no label. PATH/classes.txt has their names, one on a line in the order of the values; a value named
    void is not labelled. CamVid's layout is PATH/train/ with PATH/trainannot/ and so on; its names are known. The test
    split is `test_split`, by default the first of test, val, valid and validation.

    Raises:
        InputError: A folder or the names of the classes are missing. An image without mask, or a mask without image, is
            found when the example is read.
    """
    root = (resolve_root(path, folder) / Path(path).expanduser()).resolve()
    camvid = (root / "trainannot").is_dir()
    known = [name for name in ("train", *TEST_NAMES) if _folders(root, name, camvid)[0].is_dir()]
    if "train" not in known:
        what = "no images/train/ in this folder" if root.is_dir() else f"no such folder, here or below {folder}"
        raise InputError(f"{root}: {what}; {_LAYOUT}")
    chosen, notes = _choose(root, split, [name for name in known if name != "train"], test_split)
    images, masks = (_by_stem(root, home) for home in _folders(root, chosen, camvid))
    pairs = [_Pair(images.get(stem, ""), masks.get(stem, "")) for stem in sorted({*images, *masks})]
    return _source(root, pairs, read_names(root, _CAMVID if camvid else ""), preprocessing)._replace(notes=notes)


def voc_segmentation(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Pascal VOC: PATH/JPEGImages, PATH/SegmentationClass and PATH/ImageSets/Segmentation.

    The lists train.txt and val.txt, or that of `test_split`, are the training and the test split. Classes are VOC's 21,
    or those of PATH/classes.txt; the border, 255, is not labelled. Raises InputError if a list is missing.
    """
    root = (resolve_root(path, folder) / Path(path).expanduser()).resolve()
    chosen = "train" if split == "train" else test_split or "val"
    listed = root / "ImageSets" / "Segmentation" / f"{chosen}.txt"
    if not listed.is_file():
        kind = MissingSplitError if split == "test" else InputError
        raise kind(f"{listed}: no such list; expected VOC's JPEGImages, SegmentationClass and ImageSets/Segmentation")
    stems = listed.read_text(errors="replace").split()
    pairs = [_Pair(f"JPEGImages/{stem}.jpg", f"SegmentationClass/{stem}.png") for stem in stems]
    return _source(root, pairs, read_names(root, _VOC), preprocessing)


def _folders(root: Path, split: str, camvid: bool) -> tuple[Path, Path]:
    """Return the folders of images and of masks."""
    return (root / split, root / f"{split}annot") if camvid else (root / "images" / split, root / "masks" / split)


def _choose(root: Path, split: str, tests: list[str], asked: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the name of the folders of a split, and a note on the choice between several."""
    if split == "train":
        return "train", ()
    if asked:
        return asked, ()
    if not tests:
        raise MissingSplitError(f"{root}: no test or val images; {_LAYOUT}, or hold some out with data.num_validation")
    others = " or ".join(tests[1:])
    return tests[0], (f"the test split is {tests[0]} of {root}: not {others}; {CHOOSE}",) if others else ()


def _by_stem(root: Path, home: Path) -> dict[str, str]:
    """Return the image files in a folder, at any depth, by their path in it without suffix."""
    if not home.is_dir():
        raise InputError(f"{home}: no such folder; {_LAYOUT}")
    files = sorted(file for file in home.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    found: dict[str, str] = {}
    for file in files:
        stem = file.relative_to(home).with_suffix("").as_posix()
        if stem in found:
            raise InputError(f"{file}: {Path(found[stem]).name} has the same name; remove one of them")
        found[stem] = file.relative_to(root).as_posix()
    return found


def read_names(root: Path, known: str = "") -> list[str]:
    """Return the names in classes.txt, or those that are `known`, separated by spaces; raise InputError without any."""
    file = root / CLASSES
    if file.is_file():
        names = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
        if not names or len(names) > IGNORE or len(set(names)) < len(names):
            raise InputError(f"{file}: {len(names)} names; give 1 to {IGNORE} different ones, each on a line")
        return names
    if not known:
        raise InputError(f"{root}: no {CLASSES}; name the classes in it, one on a line, in the order of their values")
    return known.split(" ")


def classes_and_values(names: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
    """Return the classes among the names of values, and the class of each value; 255 if it is not labelled.

    Example:
        >>> classes_and_values(["sky", "void", "road"])
        (['sky', 'road'], (0, 255, 1))
    """
    classes = [name for name in names if name not in UNLABELLED]
    return classes, tuple(IGNORE if name in UNLABELLED else classes.index(name) for name in names)


def _source(root: Path, pairs: list[_Pair], names: list[str], preprocessing: Preprocessing) -> Source:
    if not pairs:
        raise InputError(f"{root}: no images in this split; {_LAYOUT}")
    classes, values = classes_and_values(names)
    digest = partial(files_digest, root, [file for pair in pairs for file in pair if file], np.array(values))
    raw = partial(_read_pair, root, tuple(pairs), values)
    source = from_raw(len(pairs), classes, raw, preprocessing, digest=digest)
    require_one_size(source, root, preprocessing)
    return source


def _read_pair(root: Path, pairs: tuple[_Pair, ...], values: tuple[int, ...], index: int) -> RawExample:
    image, mask = pairs[index]
    if not mask:
        raise InputError(f"{root / image}: has no mask of this name; add it, or remove the image")
    if not image:
        raise InputError(f"{root / mask}: has no image of this name; add it, or remove the mask")
    target = MaskFile(root / mask, values, str(root / mask))
    return RawExample(root / image, target, image, str(root / image))
