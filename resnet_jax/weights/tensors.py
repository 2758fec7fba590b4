"""Read named tensors from safetensors and PyTorch files, and write safetensors files."""

import contextlib
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from resnet_jax.errors import InputError, first_line
from resnet_jax.runtime.safe_files import create_file, is_bare_name
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.weights.state_dict import TensorFile, find_state_dict, listed
from resnet_jax.weights.torch_file import LEGACY, ZIP, read_legacy, read_zip

MAX_HEADER, MAX_TENSORS = 16 << 20, 100_000
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read_tensor_file(path: Path) -> TensorFile:
    """Return the tensors of a safetensors or PyTorch file, or of the shards of an index, as read-only views.

    The content decides the format, not the name. In a checkpoint, the weights are under "state_dict", "model" and the
    like; averages ("state_dict_ema", "model_ema") are used only if these are missing. No code of the file is ever run.

    Raises InputError, with the path, for all other files and files without tensors.
    """
    try:
        found = _read(path)
        if found.tensors:
            return found
        hint = f", but under {listed(map(repr, found.beside))}" if found.beside else ""
        raise InputError(f"no tensors in it{hint}; name a file of weights, such as a saved state_dict")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file that you may read") from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file by name, as `read_tensor_file` does."""
    return read_tensor_file(path).tensors


def _read(path: Path, sharded: bool = True) -> TensorFile:
    if path.is_dir():
        raise InputError("a folder; name a weights file in it")
    if not path.is_file():
        raise InputError("no such file; check the path")
    if path.stat().st_size == 0:
        raise InputError("the file is empty; download it again")
    with path.open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        start = data[:64].tobytes()
        if start.startswith(ZIP):
            return find_state_dict(path, read_zip(file, data))
    if start.startswith(b"\x80") and LEGACY in start:
        return find_state_dict(path, read_legacy(data))
    if start[8:9] == b"{":
        return _read_safetensors(path, data)
    if sharded and start.startswith(b"{"):
        return TensorFile(path, _read_shards(path))
    if start.startswith(b"version https://git-lfs"):
        raise InputError("the file is a Git LFS pointer and not the weights; run `git lfs pull` or download them")
    raise InputError("neither a safetensors nor a PyTorch file; download it again, or name another file")


def shards_of(index: Path) -> dict[str, str]:
    """Return the file of each tensor by an index such as model.safetensors.index.json; files lie beside the index.

    Raises InputError, without the path, if it is no such index.
    """
    try:
        if index.stat().st_size > MAX_HEADER:
            raise ValueError(f"over {MAX_HEADER:,} bytes")
        shards = parse_json(index.read_bytes())["weight_map"]
        if not all(map(is_bare_name, shards.values())):
            raise ValueError("a shard that is not the name of a file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"no index of weights ({first_line(error)}); name a weights file") from error
    return dict(shards)


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    shards, tensors = shards_of(index), dict[str, np.ndarray]()
    for file in sorted(set(shards.values())):
        try:
            found = _read(index.with_name(file), sharded=False).tensors
        except InputError as error:
            raise InputError(f"shard {file[:100]!r}: {error}") from error
        for name in found.keys() ^ {name for name, shard in shards.items() if shard == file}:
            raise InputError(f"shard {file[:100]!r} and the index differ in {name[:200]!r}; download both again")
        tensors |= found
    return tensors


def _read_safetensors(path: Path, data: np.ndarray) -> TensorFile:
    """Read the format here: the library copies tensors and accepts a name twice."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER:
        raise InputError(f"a header of {length:,} bytes, over {MAX_HEADER:,}; not safetensors, or damaged")
    if 8 + length > data.size:
        raise InputError("the file is cut short in its header; download it again")
    header, body = data[8 : 8 + length].tobytes(), data[8 + length :]
    # Checked before parsing, which can take gigabytes
    if header.count(b"{") > MAX_TENSORS + 2:
        raise InputError(f"over {MAX_TENSORS:,} tensors; split the file")
    entries, metadata = _entries(header)
    places = {name: _place(name, entry) for name, entry in entries.items()}
    _check_places({name: (begin, end) for name, (_, _, begin, end) in places.items()}, body.size)
    tensors = {name: np.ndarray(shape, dtype, body[begin:end]) for name, (dtype, shape, begin, end) in places.items()}
    return TensorFile(path, tensors, metadata=metadata)


def _entries(header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the entries of the tensors, and the metadata."""
    try:
        entries: dict[str, Any] = parse_json(header)
    except ValueError as error:
        raise InputError(f"the header is damaged ({first_line(error)}); download it again") from error
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise InputError("the header's metadata is no table of strings; save the file again")
    return entries, metadata


def _place(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Return dtype, shape, and start and end of the bytes of an entry of the header."""
    where = f"tensor {name[:200]!r}:"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where} its header is not dtype, shape and data_offsets; save the file again")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise InputError(f"{where} dtype {str(kind)[:20]!r} is not read; save it as one of {', '.join(_DTYPES)}")
    if not all(isinstance(numbers, list) for numbers in (shape, offsets)) or len(offsets) != 2 or len(shape) > 64:
        raise InputError(f"{where} its shape or offsets are no lists of numbers; save the file again")
    if any(type(number) is not int or not 0 <= number < 1 << 60 for number in (*shape, *offsets)):
        raise InputError(f"{where} its shape or offsets are negative, too large or no whole numbers; download it again")
    size, (begin, end) = math.prod(shape) * _DTYPES[kind].itemsize, offsets
    if end - begin != size or math.prod(n or 1 for n in shape) >= 1 << 60:
        raise InputError(f"{where} {end - begin:,} bytes, but its shape and dtype need another size; download it again")
    return _DTYPES[kind], tuple(shape), begin, end


def _check_places(places: dict[str, tuple[int, int]], size: int) -> None:
    """Check that the places cover all bytes, each once."""
    position = 0
    for name, (begin, end) in sorted(places.items(), key=lambda place: place[1]):
        if begin != position:
            wrong = "leaves a hole before it" if begin > position else "overlaps another"
            raise InputError(f"tensor {name[:200]!r} {wrong}; download it again")
        if end > size:
            raise InputError(f"the file is cut short in tensor {name[:200]!r}; download it again")
        position = end
    if position != size:
        raise InputError(f"{size - position:,} bytes after the last tensor; download it again")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, completely or not at all.

    Raises InputError, with the path, if the file or the name or dtype of a tensor cannot be written.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    known = {dtype.name for dtype in _DTYPES.values()}
    for name, array in arrays.items():
        if name == "__metadata__" or array.dtype.name not in known:
            raise InputError(f"{path}: tensor {name!r} of dtype {array.dtype} cannot be written; rename or cast it")
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        create_file(partial)
        mode = partial.stat().st_mode
        save_file(arrays, partial, None if metadata is None else dict(metadata))
        # The library makes files that only their owner may read
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({first_line(error)}); name another file") from error
    finally:
        # The file may be missing
        with contextlib.suppress(OSError):
            partial.unlink()
