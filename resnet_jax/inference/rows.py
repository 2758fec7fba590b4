"""Rows of results, a row an image: kept as they come, and written as a file when all are there.

Until then they are in FILE.part, one JSON object a line after a line that says what they are of, and in FILE.values,
plain float32. A process that was killed leaves both, and the next one goes on behind the last whole row.
"""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.runtime.safe_files import create_file, open_regular
from resnet_jax.runtime.strict_json import parse_json

# Rows that are in memory at a time
_CHUNK = 10_000
Row = dict[str, Any]


class Rows(NamedTuple):
    """Rows that are being written."""

    out: Path
    header: Row
    """What the rows are of."""
    shape: tuple[int, ...]
    """Shape of the values of a row; (0,) if there are none."""
    known: int
    """Rows that an earlier process has written."""
    last: Row | None
    """The last of them."""
    lines: IO[bytes]
    values: IO[bytes]


def require_writable(out: Path, known: Sequence[str]) -> None:
    """Raise InputError if a file has none of the known endings, needs a package, or exists."""
    if out.suffix not in known:
        raise InputError(f"{out}: the ending must be one of {', '.join(known)}")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InputError(f"{out}: needs pyarrow; pip install pyarrow")
    if out.exists():
        raise InputError(f"{out}: exists; remove it, or name another file")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it, or name another file")


@contextmanager
def open_rows(out: Path, header: Row, shape: tuple[int, ...] = (0,)) -> Iterator[Rows]:
    """Open the rows of a file, behind those that are there; raise InputError if these are of something else."""
    part, values = _parts(out)
    first = json.dumps(header, sort_keys=True).encode() + b"\n"
    if not part.exists():
        create_file(part)
        part.write_bytes(first)
    if not values.exists():
        create_file(values)
    width = 4 * int(np.prod(shape))
    with open_regular(part) as file:
        if file.readline() != first:
            raise InputError(f"{part}: holds rows of other images, weights or options; remove it to start over")
        whole = values.stat().st_size // width if width else None
        count, end, last = 0, file.tell(), None
        for line in itertools.islice(file, whole):
            if not line.endswith(b"\n"):
                break
            count, end, last = count + 1, end + len(line), line
    os.truncate(part, end)
    os.truncate(values, count * width)
    with part.open("ab") as more, values.open("ab") as floats:
        yield Rows(out, header, shape, count, parse_json(last) if last else None, more, floats)


def _parts(out: Path) -> tuple[Path, Path]:
    return out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.values")


def append_rows(rows: Rows, new: Iterable[Row], values: Iterable[np.ndarray] = ()) -> None:
    """Append rows with their values, which are written first: a row is there when its values are."""
    for value in values:
        rows.values.write(np.ascontiguousarray(value, np.float32).tobytes())
    rows.values.flush()
    rows.lines.write("".join(json.dumps(row) + "\n" for row in new).encode())
    rows.lines.flush()


def finish_rows(rows: Rows) -> None:
    """Write the file, and remove what it was made of."""
    part, values = _parts(rows.out)
    partial_file = rows.out.with_name(f"{rows.out.name}.tmp")
    create_file(partial_file)
    _WRITERS[rows.out.suffix](partial_file, rows)
    if rows.out.suffix == ".npy":
        write_lines(rows, named := names_path(rows.out).with_suffix(".tmp"))
        os.replace(named, names_path(rows.out))
    os.replace(partial_file, rows.out)
    part.unlink()
    values.unlink()


def names_path(out: Path) -> Path:
    """Return the file beside features.npy that says of which images they are."""
    return out.with_suffix(".jsonl")


def write_lines(rows: Rows, file: Path) -> None:
    """Write what the rows are of and the rows themselves as JSON lines."""
    with file.open("w") as to:
        to.write(json.dumps(rows.header) + "\n")
        to.writelines(json.dumps(row) + "\n" for row in _read(rows))


def _read(rows: Rows) -> Iterator[Row]:
    with _parts(rows.out)[0].open("rb") as file:
        file.readline()
        yield from map(parse_json, file)


def _write_jsonl(file: Path, rows: Rows) -> None:
    with file.open("w") as to:
        to.writelines(json.dumps(row) + "\n" for row in _read(rows))


def _write_csv(file: Path, rows: Rows) -> None:
    found = _read(rows)
    first = next(found, None)
    with file.open("w", newline="", encoding="utf-8") as to:
        if first is not None:
            table = csv.DictWriter(to, list(first))
            table.writeheader()
            table.writerow(first)
            table.writerows(found)


def _write_npy(file: Path, rows: Rows) -> None:
    count = sum(1 for _ in _read(rows))
    with file.open("wb") as to, _parts(rows.out)[1].open("rb") as values:
        shape = (count, *rows.shape)
        np.lib.format.write_array_header_1_0(to, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for chunk in iter(partial(values.read, 1 << 22), b""):
            to.write(chunk)


def _write_parquet(file: Path, rows: Rows) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    found, width = _read(rows), int(np.prod(rows.shape))
    first = next(found, None)
    kinds: dict[type, Any] = {float: pa.float64(), int: pa.int64(), str: pa.string(), type(None): pa.string()}
    fields = [(name, _kind(name, value, kinds)) for name, value in (first or {}).items()]
    fields += [("features", pa.list_(pa.float32(), width))] if width else []
    schema = pa.schema(fields).with_metadata({"resnet_jax": json.dumps(rows.header)})
    with parquet.ParquetWriter(file, schema) as table, _parts(rows.out)[1].open("rb") as values:
        everything = itertools.chain([first] if first else [], found)
        while chunk := list(itertools.islice(everything, _CHUNK)):
            arrays = [pa.array([row[name] for row in chunk], kind) for name, kind in fields[: len(first or ())]]
            if width:
                flat = np.frombuffer(values.read(4 * width * len(chunk)), np.float32)
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), width))
            table.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _kind(name: str, value: Any, kinds: Mapping[type, Any]) -> Any:
    # A number is missing in the row of an image that cannot be read, which may be the first
    return kinds[float] if name.startswith(("probability", "output")) else kinds[type(value)]


_WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".npy": _write_npy, ".parquet": _write_parquet}
