"""Read data sets of TensorFlow Datasets that are prepared as ArrayRecord, without TensorFlow."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.formats.folder import CHOOSE, resolve_root
from resnet_jax.data.formats.masks import classes_and_values, read_names
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.masks import MaskFile
from resnet_jax.data.objects import StoredObjects
from resnet_jax.data.source import (
    MissingSplitError,
    RawExample,
    Source,
    from_raw,
    probe_indices,
    require_labels,
    require_one_size,
    sample_digest,
)
from resnet_jax.errors import InputError, first_line, nearest
from resnet_jax.models.detection.objects import make_objects
from resnet_jax.runtime.checksum import sha256_of

# The first existing split is used
_SPLITS = {"train": ("train",), "test": ("test", "validation")}
_MOST_CLASSES = 1_000_000
# Modules of the library's own feature classes
_OWN_FEATURES = "tensorflow_datasets.core.features."

# (folder, information) -> keys of image and target, the classes, and the class of each value of a mask; () for labels
_Choose = Callable[[Path, Any], tuple[str, str, list[str], tuple[int, ...]]]
# Features of an object that count it as a crowd
_CROWDS = ("is_crowd", "is_difficult")


class _Part(NamedTuple):
    """Origin of examples, opened by each process itself, since open files cannot be pickled."""

    home: str
    """Folder of dataset_info.json."""
    split: str
    image: str
    """Key of the image among the features."""
    label: str
    """Key of the label, of the mask, or of the objects."""
    channels: int
    classes: int
    values: tuple[int, ...] = ()
    """Class of each value of a mask; () for labels."""


def tensorflow_datasets(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """TensorFlow Datasets as ArrayRecord: tfds:mnist, tfds:cifar10:3.0.2, or tfds:PATH of a version.

    A name is looked up in `folder`; PATH is the folder of a version, as in `folder:PATH`. The features must be one
    image and one class label, or `supervised_keys` must name them. The test split is `test_split`, by default "test",
    or "validation" if that is missing or has no labels. Raises InputError if the data set is not prepared, is in
    TFRecord format, or has other features.
    """
    return _source(path, split, folder, preprocessing, test_split, _labels_of)


def tensorflow_masks(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """TensorFlow Datasets with masks of classes, such as tfds_masks:oxford_iiit_pet.

    The features must be one RGB image and one image of one channel, the mask. The names of its values are those of a
    LabeledImage, or the lines of classes.txt in the folder of the version, as in `masks:PATH`. The rest is as for tfds.
    """
    return _source(path, split, folder, preprocessing, test_split, _masks_of)


def tensorflow_boxes(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """TensorFlow Datasets with boxes, such as tfds_boxes:voc/2012.

    The features must be one RGB image and a sequence of objects, each with a `BBoxFeature` "bbox" and a class label
    "label". Those that are a crowd or difficult are neither learned nor missed. The rest is as for tfds.
    """
    return _source(path, split, folder, preprocessing, test_split, _objects_of)


def _source(
    path: str, split: str, folder: Path, preprocessing: Preprocessing, test_split: str | None, choose: _Choose
) -> Source:
    """Return the source of a split; `choose` finds its input and target among the features."""
    home = _home(path, folder).resolve()
    with _refusing(home):
        return _split_of(home, split, folder, preprocessing, test_split, choose)


def _split_of(
    home: Path, split: str, folder: Path, preprocessing: Preprocessing, test_split: str | None, choose: _Choose
) -> Source:
    """Return the source of a split of the data set in a folder; the package's errors, and its files, may be any."""
    info = _builder(home).info
    if info.file_format is None or info.file_format.value != "array_record":
        kind = info.file_format.value if info.file_format else "something else"
        raise InputError(
            f"{home}: prepared as {kind}, but only array_record can be read; {_prepare(info.name, folder)}"
        )
    wanted = (test_split,) if test_split and split == "test" else _SPLITS[split]
    present = [name for name in wanted if name in info.splits]
    if not present:
        raise MissingSplitError(f"{home}: no {' or '.join(wanted)} split, only {', '.join(info.splits)}")
    image, label, names, values = choose(home, info)
    part = _Part(str(home), present[0], image, label, _channels(home, info.features[image]), len(names), values)
    size, notes = _size(part, info.splits[part.split]), tuple[str, ...]()
    if len(present) > 1 and choose is _labels_of:
        part, notes = _labelled(part, size, present[1])
        size = _size(part, info.splits[part.split])
    raw = partial(_example, part)
    for index in probe_indices(size):
        # Labels that are all out of range are found here
        raw(int(index))
    files = [[Path(file).name, Path(file).stat().st_size] for file in info.splits[part.split].filepaths]
    source = from_raw(size, names, raw, preprocessing)
    source = source._replace(digest=partial(_digest, files, source))
    require_one_size(source, home, preprocessing)
    return source._replace(notes=notes)


def _digest(files: list[list[Any]], source: Source) -> str:
    """Return the SHA-256 of names and sizes of the files and of a sample: other labels may take as many bytes."""
    return sha256_of([files, sample_digest(source)])


def _labels_of(home: Path, info: Any) -> tuple[str, str, list[str], tuple[int, ...]]:
    image, label = _keys(home, info.features, info.supervised_keys)
    return image, label, list(_class_names(home, info.features[label])), ()


def _masks_of(home: Path, info: Any) -> tuple[str, str, list[str], tuple[int, ...]]:
    pictures = {name: f for name, f in info.features.items() if isinstance(f, _library().features.Image)}
    found = [[name for name, f in pictures.items() if f.shape[-1] == channels] for channels in (3, 1)]
    if [len(names) for names in found] != [1, 1]:
        has = ", ".join(f"{name} {feature.shape}" for name, feature in sorted(pictures.items()))
        raise InputError(f"{home}: needs one image of 3 channels and one mask of 1, has {has or 'no images'}")
    (image,), (mask,) = found
    names = getattr(pictures[mask], "names", None) or read_names(home)
    return image, mask, *classes_and_values(names)


def _objects_of(home: Path, info: Any) -> tuple[str, str, list[str], tuple[int, ...]]:
    kinds, known = _library().features, dict(info.features.items())
    pictures = [name for name, feature in known.items() if isinstance(feature, kinds.Image)]
    lists = {name: feature.feature for name, feature in known.items() if isinstance(feature, kinds.Sequence)}
    parts = {name: dict(each.items()) for name, each in lists.items() if isinstance(each, kinds.FeaturesDict)}
    wanted = {"bbox": kinds.BBoxFeature, "label": kinds.ClassLabel}
    found = [
        name for name, each in parts.items() if all(isinstance(each.get(key), kind) for key, kind in wanted.items())
    ]
    if len(pictures) != 1 or len(found) != 1:
        has = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(known.items()))
        raise InputError(f"{home}: needs one image and a sequence of objects with bbox and label, has {has}")
    return pictures[0], found[0], list(_class_names(home, parts[found[0]]["label"])), ()


def _size(part: _Part, split: Any) -> int:
    """Return the number of examples; raise InputError if there are none or a shard is missing."""
    for file in split.filepaths:
        if not Path(file).is_file():
            raise InputError(f"{file}: no such shard; prepare the data set again")
    size = len(_opened(part)[0])
    if not size:
        raise InputError(f"{part.home}: no examples in the {part.split} split; prepare the data set again")
    return size


def _labelled(part: _Part, size: int, other: str) -> tuple[_Part, tuple[str, ...]]:
    """Return a split, or the other one if it has no labels, as in a competition, and a note on the choice."""
    if all(int(_features(part, int(index))[part.label]) < 0 for index in probe_indices(size)):
        return part._replace(split=other), (f"the test split is {other} of {part.home}: {part.split} has no labels",)
    return part, (f"the test split is {part.split} of {part.home}: not {other}; {CHOOSE}",)


@cache
def _library() -> Any:
    """Return the package with its warnings silenced; our own errors say what matters."""
    import tensorflow_datasets as library

    logging.getLogger("absl").setLevel(logging.ERROR)
    return library


@contextmanager
def _refusing(home: Path) -> Iterator[None]:
    """Raise InputError for every error of the package, which has many types."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{home}: cannot be read ({first_line(error)}); prepare the data set again") from error


def _builder(home: Path) -> Any:
    """Return the library's builder; raise InputError if a file names a feature class whose module it would import."""
    for file in (home / "features.json", home / "dataset_info.json"):
        # As the library parses it
        for name in _feature_classes(json.loads(file.read_text()) if file.is_file() else None):
            if not name.startswith(_OWN_FEATURES):
                raise InputError(f"{file}: names the feature class {name}, which is not TFDS's own: it is not imported")
    return _library().builder_from_directory(str(home))


def _feature_classes(value: Any) -> Iterator[str]:
    """Yield the names of feature classes in JSON, also in strings that are JSON themselves."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with suppress(ValueError):
            yield from _feature_classes(json.loads(value))
    elif isinstance(value, dict):
        legacy = ("type",) if "content" in value else ()
        keys = ("pythonClassName", "python_class_name", *legacy)
        yield from (value[key] for key in keys if isinstance(value.get(key), str))
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _feature_classes(item)


def _home(path: str, folder: Path) -> Path:
    """Return the folder of a version of a data set, by its path or its name."""
    home = resolve_root(path, folder) / Path(path).expanduser()
    if (home / "dataset_info.json").is_file():
        return home
    if path.startswith(("/", ".", "~")):
        what = "no dataset_info.json in this folder" if home.is_dir() else "no such folder"
        raise InputError(f"{home}: {what}; name the folder of a version, such as mnist/3.0.1")
    library = _library()
    try:
        # Not `builder_from_files`, which opens the features that it finds
        with library.core.utils.error_utils.record_error_context():
            found = library.core.read_only_builder._find_builder_dir(path, data_dir=str(folder))
    except ImportError as error:
        raise InputError(f"tfds:{path}: needs {error.name}; install it, or give the path of a version") from error
    except (ValueError, AssertionError) as error:
        raise InputError(f"tfds:{path}: not the name of a data set ({first_line(error)}); give NAME:VERSION") from error
    if found is None:
        known = library.list_builders(with_community_datasets=False)
        name = path.partition(":")[0].partition("/")[0]
        hint = "" if name in known else nearest(name, known)
        raise InputError(f"{folder}: no data set {path!r} prepared here{hint}; {_prepare(path, folder)}")
    return Path(str(found))


def _prepare(name: str, folder: Path) -> str:
    command = f"tfds build {name} --file_format=array_record --data_dir={folder}"
    return f"prepare it with `{command}` (that command needs tensorflow)"


def _keys(home: Path, features: Any, supervised: Any) -> tuple[str, str]:
    """Return the keys of the image and of the label."""
    kinds = _library().features.Image, _library().features.ClassLabel
    known = dict(features.items())
    if isinstance(supervised, tuple) and len(supervised) == 2:
        image, label = map(str, supervised)
        if isinstance(known.get(image), kinds[0]) and isinstance(known.get(label), kinds[1]):
            return image, label
    found = [[name for name, feature in known.items() if type(feature) is kind] for kind in kinds]
    for names, what in zip(found, ("Image", "ClassLabel"), strict=True):
        if len(names) != 1:
            has = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(known.items()))
            raise InputError(f"{home}: needs one {what} feature, has {has}; choose a data set of labelled images")
    return found[0][0], found[1][0]


def _channels(home: Path, feature: Any) -> int:
    channels = feature.shape[-1] or 3
    if channels not in (1, 3) or feature.np_dtype != "uint8":
        raise InputError(
            f"{home}: images of {channels} channels, {feature.np_dtype}; only grey and RGB of 8 bits are read"
        )
    return channels


def _class_names(home: Path, feature: Any) -> tuple[str, ...]:
    if not feature.num_classes:
        raise InputError(f"{home}: the number of classes is not known; choose a data set that defines it")
    if feature.num_classes > _MOST_CLASSES:
        raise InputError(f"{home}: {feature.num_classes:,} classes, over {_MOST_CLASSES:,}; prepare the data set again")
    return tuple(feature.int2str(label) for label in range(feature.num_classes))


@cache
def _opened(part: _Part) -> tuple[Any, Callable[[bytes], dict[str, Any]]]:
    """Return random access to the records, which threads may share, and the parser of the two features.

    The image stays the bytes of its file, since tfds decodes differently.
    """
    library = _library()
    builder = _builder(Path(part.home))
    raw = library.decode.DeserializeMethod.RAW_BYTES
    features = library.features.FeaturesDict({key: builder.info.features[key] for key in (part.image, part.label)})
    pictures = (part.image, part.label) if part.values else (part.image,)
    decoders = dict.fromkeys(pictures, library.decode.SkipDecoding())
    parse = partial(features.deserialize_example_np, decoders=decoders)
    return builder.as_data_source(part.split, deserialize_method=raw), parse


def _features(part: _Part, index: int) -> dict[str, Any]:
    """Return image and label of an example, by their keys."""
    try:
        records, parse = _opened(part)
        return parse(records[index])
    except Exception as error:
        # The type depends on the place of the damage
        raise InputError(
            f"{_where(part, index)} is damaged ({first_line(error)}); prepare the data set again"
        ) from error


def _where(part: _Part, index: int) -> str:
    return f"{part.home}: {part.split} example {index}"


def _example(part: _Part, index: int) -> RawExample:
    where, values = _where(part, index), _features(part, index)
    if part.values:
        target = MaskFile(bytes(values[part.label]), part.values, where)
        return RawExample(bytes(values[part.image]), target, "", where, part.channels)
    if isinstance(values[part.label], dict):
        return RawExample(bytes(values[part.image]), _objects(values[part.label], where), "", where, part.channels)
    label = int(values[part.label])
    require_labels(label, part.classes, where)
    return RawExample(bytes(values[part.image]), label, "", where, part.channels)


def _objects(values: dict[str, Any], where: str) -> StoredObjects:
    """Return the objects of an example; boxes are y1, x1, y2, x2 as fractions of the image."""
    boxes = np.asarray(values["bbox"], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
    crowd = np.any([np.asarray(values.get(name, np.zeros(len(boxes))), bool) for name in _CROWDS], 0)
    return StoredObjects(make_objects(boxes, values["label"], crowd), where, relative=True)
