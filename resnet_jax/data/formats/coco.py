"""Read boxes of COCO: one JSON file of instances, and a folder of images (Lin et al. 2014)."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.formats.folder import CHOOSE, TEST_NAMES, files_digest, resolve_root
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.objects import StoredObjects
from resnet_jax.data.source import MissingSplitError, RawExample, Source, from_raw, require_one_size
from resnet_jax.errors import InputError, first_line, short_repr
from resnet_jax.models.detection.objects import NO_OBJECT, make_objects
from resnet_jax.runtime.strict_json import parse_json

_LAYOUT = "expected annotations/instances_train*.json with train*/, and instances_val*.json with val*/"


class _Instances(NamedTuple):
    """The annotations of a split: those of image i are rows starts[i] to starts[i + 1]."""

    files: tuple[str, ...]
    starts: np.ndarray  # (images + 1,) int64
    boxes: np.ndarray  # (n, 4) float32, corners
    labels: np.ndarray  # (n,) int32; -1 for a category that is not there
    crowd: np.ndarray  # (n,) bool
    area: np.ndarray  # (n,) float32
    ids: np.ndarray  # (n,) int64


def coco_boxes(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """COCO's boxes: PATH/annotations/instances_train2017.json with PATH/train2017/, and val2017 alike.

    Images may also lie in PATH/images/train2017/. Classes are the categories in the order of their ids. The test split
    is `test_split`, such as val2017, by default the first of test*, val* and so on that has instances. Crowds are
    neither learned nor missed.

    Raises:
        InputError: A file is missing or damaged, or an annotation is of an image that is not there. A box outside its
            image and a category that is not there are found when the example is read.
    """
    root = (resolve_root(path, folder) / Path(path).expanduser()).resolve()
    train, held = _splits(root, ("train",)), _splits(root, TEST_NAMES)
    if split == "test" and not (test_split or held):
        raise MissingSplitError(f"{root}: no instances of a test split; {_LAYOUT}")
    if not train:
        raise InputError(f"{root}: no instances of a training split; {_LAYOUT}")
    chosen = train[0] if split == "train" else test_split or held[0]
    file = root / "annotations" / f"instances_{chosen}.json"
    home = next((place for place in (root / chosen, root / "images" / chosen) if place.is_dir()), root / chosen)
    classes, found = read_instances(file)
    raw = partial(_read, home, file, found, len(classes))
    digest = partial(files_digest, home, found.files, np.column_stack([found.boxes, found.labels, found.crowd]))
    source = from_raw(len(found.files), classes, raw, preprocessing, digest=digest)
    require_one_size(source, root, preprocessing)
    others = train[1:] if split == "train" else [] if test_split else held[1:]
    note = f"the {split} split is {chosen} of {root}: not {' or '.join(others)}"
    return source._replace(notes=(f"{note}; {CHOOSE}" if split == "test" else note,) if others else ())


def _splits(root: Path, kinds: tuple[str, ...]) -> list[str]:
    """Return the names of splits of which there are instances, such as train2017."""
    found = sorted(file.stem.removeprefix("instances_") for file in (root / "annotations").glob("instances_*.json"))
    return [name for kind in kinds for name in found if name.rstrip("0123456789") == kind]


# Boxes are checked with their images
@np.errstate(over="ignore", invalid="ignore")
def read_instances(file: Path) -> tuple[tuple[str, ...], _Instances]:
    """Return classes and annotations of a file of instances.

    Raises:
        InputError: It is missing, not what COCO writes, or an annotation is of an image that it does not list.
    """
    try:
        values = parse_json(file.read_bytes())
        categories = sorted(values["categories"], key=lambda category: int(category["id"]))
        classes, images, rows = tuple(str(c["name"]) for c in categories), values["images"], values["annotations"]
        label_of = {int(category["id"]): place for place, category in enumerate(categories)}
        place_of = {int(image["id"]): place for place, image in enumerate(images)}
        names = tuple(str(image["file_name"]) for image in images)
        ids = np.array([int(row.get("id", place)) for place, row in enumerate(rows)], np.int64)
        owners = np.array([place_of.get(int(row["image_id"]), -1) for row in rows], np.int64)
        labels = np.array([label_of.get(int(row["category_id"]), NO_OBJECT) for row in rows], np.int32)
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], bool)
        areas = [row.get("area", box[2] * box[3]) for row, box in zip(rows, boxes, strict=True)]
        area = np.array(areas, np.float32).reshape(len(rows))
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; {_LAYOUT}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(f"{file}: not COCO's instances ({first_line(error) or type(error).__name__})") from error
    for place in np.flatnonzero(owners < 0):
        image = short_repr(rows[place]["image_id"])
        raise InputError(f"{file}: annotation {ids[place]} is of image {image}, which is not listed; remove it")
    if not classes or not names or len(label_of) < len(classes) or len(place_of) < len(names):
        raise InputError(f"{file}: no images or categories, or duplicate ids")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise InputError(f"{file}: names an image outside its folder; correct file_name")
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(len(names) + 1))
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).astype(np.float32)
    found = (leaf[order] for leaf in (corners, labels, crowd, area, ids))
    return classes, _Instances(names, starts, *found)


def _read(home: Path, file: Path, instances: _Instances, classes: int, index: int) -> RawExample:
    name, part = instances.files[index], slice(*instances.starts[index : index + 2])
    objects: Any = make_objects(
        instances.boxes[part], instances.labels[part], instances.crowd[part], instances.area[part]
    )
    ids = instances.ids[part]
    for place in np.flatnonzero(objects.labels == NO_OBJECT):
        raise InputError(f"{file}: annotation {ids[place]} of {name} has a category that the file does not list")
    target = StoredObjects(objects, f"{file}: {name}", tuple(f"annotation {number}" for number in ids))
    return RawExample(home / name, target, name, str(home / name))
