"""Shards: folders of packed images that `resnet-jax prepare` writes and `array_record:PATH` reads.

A folder holds `SPLIT-00000-of-0000N.array_record` files and dataset.json, which has the classes, the settings, and the
number of examples, bytes and SHA-256 of each shard. It is written last; until then unfinished.json has the same of the
complete shards. The examples of a split are those of its shards, one shard after the other.

A record, version 1, is a header of little-endian unsigned integers, the name of the image in UTF-8, and its content:

    version (16 bits), kind (16), label (32), bytes of the name (16), height (16), width (16), channels (16)

Kind 0 is an image file, such as a JPEG, to be decoded to that number of channels; height and width are 0. Kind 1 is
pixels of 8 bits each, in the order (height, width, channels). ArrayRecord itself adds a checksum to each record.
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

from resnet_jax.data.source import RawExample
from resnet_jax.errors import InputError, MachineError, first_line
from resnet_jax.runtime.safe_files import create_file, write_atomic
from resnet_jax.runtime.strict_json import parse_json

VERSION = 1
FORMAT = "resnet-jax shards"
MANIFEST, UNFINISHED = "dataset.json", "unfinished.json"
# Per split; each shard is a file that stays open
MAX_SHARDS = 512
_HEADER = struct.Struct("<HHIHHHH")
_FILE, _PIXELS = 0, 1
_REMOVE = "remove its folder, and pack the data into a new one"
_AGAIN = "give the same `resnet-jax prepare` again, or pack again"


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
    """Return the record of an example, whose content is bytes or pixels."""
    name = item.name.encode(errors="replace")[:65535]
    if isinstance(item.content, np.ndarray):
        header = VERSION, _PIXELS, item.target, len(name), *item.content.shape
        return _HEADER.pack(*header) + name + item.content.tobytes()
    assert isinstance(item.content, bytes)
    return _HEADER.pack(VERSION, _FILE, item.target, len(name), 0, 0, item.channels) + name + item.content


def unpack(record: bytes, where: str) -> RawExample:
    """Return the example in a record; raise InputError, with `where`, for another version or length."""
    if len(record) < _HEADER.size:
        raise InputError(f"{where} is no record of this format; {_AGAIN}")
    version, kind, label, length, height, width, channels = _HEADER.unpack_from(record)
    if version != VERSION or kind not in (_FILE, _PIXELS):
        raise InputError(f"{where} is of version {version}, kind {kind}, expected version {VERSION}; {_AGAIN}")
    start = _HEADER.size + length
    name, content = record[_HEADER.size : start].decode(errors="replace"), record[start:]
    where = f"{where} ({name})" if name else where
    if kind == _FILE:
        return RawExample(content, label, name, where, channels)
    if len(content) != height * width * channels:
        raise InputError(f"{where} has {len(content):,} bytes for {height} x {width} x {channels} pixels; {_AGAIN}")
    return RawExample(np.frombuffer(content, np.uint8).reshape(height, width, channels), label, name, where, channels)


def read_record(home: Path, shard: Shard, position: int) -> RawExample:
    """Return an example of a shard; raise InputError, with file and position, if it is damaged."""
    path = home / shard.file
    try:
        record = _reader(str(path), shard.sha256, shard.examples, os.getpid()).read([position])[0]
    except (RuntimeError, IndexError, OSError) as error:
        raise InputError(f"{path}: record {position} is damaged ({first_line(error)}); {_AGAIN}") from error
    return unpack(record, f"{path}: record {position}")


@lru_cache(maxsize=MAX_SHARDS)
def _reader(path: str, sha256: str, examples: int, process: int) -> ArrayRecordReader:
    """Return the open shard; threads share it, but each process and each new content opens its own."""
    # ArrayRecord would report no records
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such shard; {_AGAIN}")
    reader = ArrayRecordReader(path, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32768)
    if reader.num_records() != examples:
        raise InputError(f"{path}: damaged, {reader.num_records():,} records instead of {examples:,}; {_AGAIN}")
    return reader


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
            f"{path}: cannot be written ({first_line(error)}); make room and give the same command again:"
            " shards that are whole are kept"
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
            raise ValueError(f"format {values['format']!r}")
        version = values["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what `resnet-jax prepare` writes ({first_line(error)}); {_REMOVE}") from error
    if version != VERSION:
        raise InputError(f"{path}: version {version}, this release reads version {VERSION}; {_REMOVE}")
    try:
        splits = {split: tuple(map(_shard, of["shards"])) for split, of in values["splits"].items()}
        return ShardIndex(dict(values["settings"]), tuple(map(str, values["classes"])), splits)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)}); {_REMOVE}") from error


def _shard(values: dict[str, Any]) -> Shard:
    skipped = tuple((str(name), str(why)) for name, why in values.pop("skipped"))
    shard = Shard(**values, skipped=skipped)
    numbers = (shard.examples, shard.bytes, shard.last_label)
    if Path(shard.file).name != shard.file or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"shard {shard.file!r}")
    return shard
