"""Shards: folders of packed images that `resnet-jax prepare` writes and `array_record:PATH` reads.

A folder holds `SPLIT-00000-of-0000N.array_record` files and dataset.json, which has the classes, the settings, and the
number of examples, bytes and SHA-256 of each shard. It is written last; until then unfinished.json has the same of the
complete shards. The examples of a split are those of its shards, one shard after the other.

A record, version 1, is a header of little-endian unsigned integers, the name of the image in UTF-8, and its content:

    version (16 bits), kind (16), label (32), bytes of the name (16), height (16), width (16), channels (16)

Kind 0 is an image file, such as a JPEG, to be decoded to that number of channels; height and width are 0. Kind 1 is
pixels of 8 bits each, in the order (height, width, channels). Kinds 2 and 3 are 0 and 1 with a mask, a PNG of classes
between name and content; its length in bytes is in the place of the label. Kinds 4 and 5 have objects there: for each
four float32 of a box (x1, y1, x2, y2 in pixels), int32 label, one byte for a crowd, and float32 area, little-endian.
ArrayRecord itself adds a checksum to each record.
"""

import json
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from resnet_jax.data.masks import IGNORE, MaskFile
from resnet_jax.data.objects import StoredObjects, decode_object_bytes, encode_objects
from resnet_jax.data.source import ChangedDataError, RawExample
from resnet_jax.errors import InputError, MachineError, first_line, short_repr
from resnet_jax.models.detection.objects import Objects
from resnet_jax.runtime.safe_files import create_file, is_bare_name, write_atomic
from resnet_jax.runtime.strict_json import parse_json

VERSION = 1
FORMAT = "resnet-jax shards"
MANIFEST, UNFINISHED = "dataset.json", "unfinished.json"
# Per split; each shard is a file that stays open
MAX_SHARDS = 512
_HEADER = struct.Struct("<HHIHHHH")
_FILE, _PIXELS = 0, 1
# Added to these if the target is a mask, or objects
_MASK, _OBJECTS = 2, 4
_REMOVE = "remove its folder, and pack the data into a new one"
_AGAIN = "repeat the same `resnet-jax prepare`, or pack again"


class Shard(NamedTuple):
    """A file of records."""

    file: str
    examples: int
    """Number of examples."""
    bytes: int
    sha256: str
    last_label: int
    """Largest label; -1 if there are no examples."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Names of images that could not be read, and why."""


class ShardIndex(NamedTuple):
    """The content of dataset.json."""

    settings: dict[str, Any]
    """Settings of the packing."""
    classes: tuple[str, ...]
    splits: dict[str, tuple[Shard, ...]]


def pack(item: RawExample) -> bytes:
    """Return the record of an example, of bytes or pixels, with a class, the bytes of a mask, or `Objects`."""
    name, target, label, kind = item.name.encode(errors="replace")[:65535], b"", item.target, 0
    if isinstance(item.target, MaskFile):
        assert isinstance(item.target.content, bytes)
        target, kind = item.target.content, _MASK
    elif isinstance(item.target, Objects):
        target, kind = encode_objects(item.target), _OBJECTS
    if kind:
        label = len(target)
    if isinstance(item.content, np.ndarray):
        header = VERSION, kind + _PIXELS, label, len(name), *item.content.shape
        return _HEADER.pack(*header) + name + target + item.content.tobytes()
    assert isinstance(item.content, bytes)
    return _HEADER.pack(VERSION, kind + _FILE, label, len(name), 0, 0, item.channels) + name + target + item.content


def unpack(record: bytes, where: str, classes: int = IGNORE) -> RawExample:
    """Return the example in a record; raise InputError, with `where`, for another version or length.

    `classes` is the number of classes of a mask or of objects.
    """
    if len(record) < _HEADER.size:
        raise InputError(f"{where} is not a record of this format; {_AGAIN}")
    version, kind, label, length, height, width, channels = _HEADER.unpack_from(record)
    if version != VERSION or kind not in range(3 * _MASK):
        raise InputError(f"{where} is of version {version}, kind {kind}, expected version {VERSION}; {_AGAIN}")
    start = _HEADER.size + length
    name, content = record[_HEADER.size : start].decode(errors="replace"), record[start:]
    where, target = f"{where} ({name})" if name else where, label
    if kind >= _MASK:
        stored, content = content[:label], content[label:]
        target = _objects(stored, where, classes) if kind >= _OBJECTS else MaskFile(stored, (*range(classes),), where)
    if kind % _MASK == _FILE:
        return RawExample(content, target, name, where, channels)
    if len(content) != height * width * channels:
        raise InputError(f"{where} has {len(content):,} bytes for {height} x {width} x {channels} pixels; {_AGAIN}")
    return RawExample(np.frombuffer(content, np.uint8).reshape(height, width, channels), target, name, where, channels)


def _objects(content: bytes, where: str, classes: int) -> StoredObjects:
    try:
        return StoredObjects(decode_object_bytes(content), where, classes=classes)
    except ValueError as error:
        raise InputError(f"{where} has {len(content):,} bytes of objects; {_AGAIN}") from error


def read_record(home: Path, shard: Shard, position: int, classes: int = IGNORE, *, indexed: bool = True) -> RawExample:
    """Return an example of a shard, of `classes`.

    Raises:
        InputError: The record is damaged, with file and position.
        ChangedDataError: `indexed`, and the index of the folder no longer has this shard when it is opened.
    """
    path = home / shard.file
    try:
        record = _reader(str(path), shard.sha256, shard.examples, os.getpid(), indexed).read([position])[0]
    except (RuntimeError, IndexError, OSError) as error:
        raise InputError(f"{path}: record {position} is damaged ({first_line(error)}); {_AGAIN}") from error
    return unpack(record, f"{path}: record {position}", classes)


@lru_cache(maxsize=MAX_SHARDS)
def _reader(path: str, sha256: str, examples: int, process: int, indexed: bool) -> ArrayRecordReader:
    """Return the open shard; threads share it, but each process and each new content opens its own."""
    # ArrayRecord would report no records
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such shard; {_AGAIN}")
    reader = ArrayRecordReader(path, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32768)
    if reader.num_records() != examples:
        raise InputError(f"{path}: damaged, {reader.num_records():,} records instead of {examples:,}; {_AGAIN}")
    # After it is open: what is packed into the same folder later has another file
    if indexed and not _is_indexed(Path(path), sha256):
        raise ChangedDataError(f"{path}: packed again since this data set was opened; start again")
    return reader


def _is_indexed(path: Path, sha256: str) -> bool:
    try:
        splits = read_index(path.parent / MANIFEST).splits
    except InputError:
        return False
    return any(shard.file == path.name and shard.sha256 == sha256 for shards in splits.values() for shard in shards)


def close_readers() -> None:
    """Close all open shards of this process; reading opens them again."""
    _reader.cache_clear()


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a file of records and flush it to disk; raise MachineError if that fails."""
    with written_to(path):
        create_file(path)
        # JPEG and noise do not compress
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for record in records:
            with written_to(path):
                writer.write(record)
        with written_to(path):
            writer.close()
            _to_disk(path)
    except BaseException:
        # Closing repeats the failure
        with suppress(Exception):
            writer.close()
        path.unlink(missing_ok=True)
        raise


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Raise MachineError for errors while a file is written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise MachineError(
            f"{path}: cannot be written ({first_line(error)}); free disk space and repeat the same command:"
            " complete shards are kept"
        ) from error


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_index(path: Path, manifest: ShardIndex) -> None:
    """Write dataset.json or unfinished.json, completely or not at all."""
    splits = {
        split: {
            "examples": sum(shard.examples for shard in shards),
            "skipped": sum(len(shard.skipped) for shard in shards),
            "shards": [shard._asdict() for shard in shards],
        }
        for split, shards in manifest.splits.items()
    }
    values = {"format": FORMAT, "version": VERSION, "settings": manifest.settings}
    text = json.dumps({**values, "classes": manifest.classes, "splits": splits}, indent=1)
    with written_to(path):
        write_atomic(path, text + "\n", durable=True)


def read_index(path: Path) -> ShardIndex:
    """Read dataset.json or unfinished.json; raise InputError if it is damaged or of another version."""
    try:
        values = parse_json(path.read_bytes())
        if values["format"] != FORMAT:
            raise ValueError(f"format {short_repr(values['format'])}")
        version = values["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what `resnet-jax prepare` writes ({first_line(error)}); {_REMOVE}") from error
    if version != VERSION:
        raise InputError(f"{path}: version {short_repr(version)}, this release reads version {VERSION}; {_REMOVE}")
    try:
        splits = {split: tuple(map(_shard, of["shards"])) for split, of in values["splits"].items()}
        return ShardIndex(dict(values["settings"]), tuple(map(str, values["classes"])), splits)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)}); {_REMOVE}") from error


def _shard(values: dict[str, Any]) -> Shard:
    skipped = tuple((str(name), str(why)) for name, why in values.pop("skipped"))
    shard = Shard(**values, skipped=skipped)
    numbers = (shard.examples, shard.bytes, shard.last_label)
    if not is_bare_name(shard.file) or type(shard.sha256) is not str or any(type(n) is not int for n in numbers):
        raise ValueError(f"shard {short_repr(shard.file)}")
    return shard
