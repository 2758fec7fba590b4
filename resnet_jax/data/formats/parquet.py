"""Read data sets of images in Parquet files, as the Hugging Face hub has them.

Parquet is compressed in groups of rows. So its images are copied once into a file beside it, one after the other, and
are read from there at random.
"""

import logging
import os
import re
from collections import Counter
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_jax.data.formats.extents import (
    Extents,
    make_extents,
    read_index,
    source_of_extents,
    stamp_of,
    write_index,
)
from resnet_jax.data.formats.globs import files_of_split
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, first_line
from resnet_jax.runtime.strict_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

# Images that are copied at a time
_ROWS = 256


def parquet_files(
    split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing(), test_split: str | None = None
) -> Source:
    """Parquet files with a column of images and one of labels, such as parquet:data/{split}-*.parquet.

    {split} is as in tar:PATTERN. An image is the bytes of a file, or a struct of `bytes` and `path`, as the library
    `datasets` writes it; labels are numbers or names, and classes have the names that `datasets` keeps in the file.
    Needs pyarrow.

    Raises:
        InputError: pyarrow or the files are missing, damaged, or without such columns, or a row has no image or label.
    """
    files, train = files_of_split("parquet", split, folder, path, test_split), None
    if split != "train":
        # A set that is only evaluated on has none
        with suppress(InputError):
            train = files_of_split("parquet", "train", folder, path)
    return _source(files, train or files, preprocessing)


def hub_dataset(
    split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing(), test_split: str | None = None
) -> Source:
    """Images on the Hugging Face hub: hf:OWNER/NAME[@REVISION][/FOLDER].

    Its Parquet files are downloaded unless they are in the cache of the hub. FOLDER chooses one of several. Needs
    huggingface_hub and pyarrow.

    Raises:
        InputError: It cannot be downloaded, has no Parquet files or several folders of them; or as `parquet_files`.
    """
    found = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^/@]+))?(?:/([^@]+))?", path)
    if not found:
        raise InputError(f"hf:{path}: not a data set of the hub; write hf:OWNER/NAME")
    folders = sorted({file.parent for file in _downloaded(*found.groups(""))})
    if len(folders) > 1:
        names = ", ".join(home.name for home in folders)
        raise InputError(f"hf:{path}: has Parquet files in {names}; name one of them, hf:{found[1]}/FOLDER")
    return parquet_files(split, folder, str(folders[0] / "{split}-*.parquet"), preprocessing, test_split)


def _downloaded(name: str, revision: str, inside: str) -> list[Path]:
    """Return the Parquet files of a data set, or of a folder in it, in the cache of the hub."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(f"hf:{name}: needs huggingface_hub; pip install huggingface_hub") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    wanted: dict[str, Any] = {"repo_type": "dataset", "revision": revision or None}
    wanted["allow_patterns"] = f"{inside}/*.parquet" if inside else "*.parquet"
    # The cache is tried first: it needs no network
    for local in (True, False):
        try:
            home = Path(snapshot_download(name, local_files_only=local, **wanted))
        # Many types: no network, no such data set, no permission
        except Exception as error:
            if local:
                continue
            raise InputError(f"hf:{name}: cannot be downloaded from the hub ({first_line(error)})") from error
        files = sorted(home.glob(f"{inside or '**'}/*.parquet"))
        # A download that was interrupted leaves some of them
        if files and _are_complete(files):
            return files
    raise InputError(f"hf:{name}: has no Parquet files, or not all that their names count; name another data set")


def _are_complete(files: list[Path]) -> bool:
    """Return whether none is missing of files with names such as train-00000-of-00002.parquet."""
    counted = [re.fullmatch(r"(.*-)\d+(-of-(\d+)\.parquet)", str(file)) for file in files]
    numbers = Counter((match[1], int(match[3])) for match in counted if match)
    return all(count == total for (_, total), count in numbers.items())


def _source(files: list[Path], train: list[Path], preprocessing: Preprocessing) -> Source:
    """Return the images of some files; the classes are those of the training files."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise InputError(f"{files[0]}: needs pyarrow; pip install pyarrow") from error
    try:
        labels = [_labels(file) for file in files]
        classes = _names(train[0]) or _classes(np.concatenate([_labels(file) for file in train]))
        if not sum(map(len, labels)):
            raise InputError(f"{files[0]}: no images; name other files")
        numbers = [_numbers(values, classes, file) for values, file in zip(labels, files, strict=True)]
        shards = [_copied(file)._replace(labels=own) for file, own in zip(files, numbers, strict=True)]
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{files[0]}: cannot be read or copied ({first_line(error)})") from error
    return source_of_extents(shards, classes, preprocessing)


def _labels(file: Path) -> np.ndarray:
    """Return the labels of a file: (n,) int64, or strings."""
    import pyarrow as pa
    from pyarrow import parquet

    _, name = _columns(parquet.read_schema(file), file)
    column = parquet.read_table(file, columns=[name]).column(name)
    if column.null_count:
        raise InputError(f"{file}: a row has no label; remove such rows")
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return np.array(column.to_pylist(), np.str_ if is_text else np.int64)


def _classes(labels: np.ndarray) -> tuple[str, ...]:
    """Return the classes of labels without names: all numbers up to the largest, or all names, sorted."""
    if labels.dtype.kind == "i":
        return tuple(map(str, range(1 + int(labels.max(initial=0)))))
    return tuple(sorted(set(labels.tolist())))


def _numbers(labels: np.ndarray, classes: tuple[str, ...], file: Path) -> np.ndarray:
    """Return labels as numbers of their classes."""
    if labels.dtype.kind == "i":
        return labels
    number = {name: index for index, name in enumerate(classes)}
    for name in labels.tolist():
        if name not in number:
            raise InputError(f"{file}: no training image has the label {name[:100]!r}; remove such rows")
    return np.array([number[name] for name in labels.tolist()], np.int64)


def _copied(file: Path) -> Extents:
    """Return the images of a Parquet file, copied by an earlier call or now; labels are not known here."""
    copy, known = file.with_name(f"{file.name}.images"), stamp_of(file.stat())
    index = copy.with_name(f"{copy.name}.index.npy")
    rows = read_index(index, known)
    if rows is not None:
        # The copy may be gone, or another
        with suppress(InputError, OSError):
            if copy.stat().st_size == rows[:, 1].sum():
                return make_extents(copy, rows[:, :2], rows[:, 2])
    rows = _copy(file, copy)
    extents = make_extents(copy, rows[:, :2], rows[:, 2])
    write_index(index, known, rows)
    return extents


def _copy(file: Path, copy: Path) -> np.ndarray:
    """Copy the images of a Parquet file, one after the other, and return where they are: (n, 3), the last is 0."""
    from pyarrow import parquet

    # Another process may copy it too
    new, lengths = copy.with_name(f"{copy.name}.{os.getpid()}.tmp"), [0]
    try:
        with parquet.ParquetFile(file) as rows, new.open("xb") as out:
            image, _ = _columns(rows.schema_arrow, file)
            for batch in rows.iter_batches(batch_size=_ROWS, columns=[image]):
                for value in batch.column(image).to_pylist():
                    content = value["bytes"] if isinstance(value, dict) else value
                    if not content:
                        raise InputError(f"{file}: image {len(lengths) - 1} has no bytes; remove such rows")
                    out.write(content)
                    lengths.append(len(content))
        new.replace(copy)
    finally:
        new.unlink(missing_ok=True)
    begins = pairwise(accumulate(lengths))
    return np.array([(begin, end - begin, 0) for begin, end in begins], np.int64).reshape(-1, 3)


def _columns(schema: "pa.Schema", file: Path) -> tuple[str, str]:
    """Return the names of the columns of images and labels."""
    import pyarrow as pa

    def is_image(kind: Any) -> bool:
        named = [field.name for field in kind] if pa.types.is_struct(kind) else []
        return "bytes" in named or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_label(kind: Any) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)

    images = [field.name for field in schema if is_image(field.type)]
    labels = [name for name in ("label", "labels") if name in schema.names] or [*_features(schema)]
    if len(images) != 1 or len(labels) != 1 or not is_label(schema.field(labels[0]).type):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(f"{file}: has the columns {found[:300]}; expected one of images and one called label")
    return images[0], labels[0]


def _features(schema: "pa.Schema") -> dict[str, list[str]]:
    """Return the names of the classes of each column of labels for which `datasets` has kept them."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
        return {name: [str(known) for known in kind["names"]] for name, kind in kinds.items() if name in schema.names}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _names(file: Path) -> tuple[str, ...]:
    """Return the names of the classes that a file keeps; empty if it keeps none."""
    from pyarrow import parquet

    schema = parquet.read_schema(file)
    return tuple(_features(schema).get(_columns(schema, file)[1], ()))
