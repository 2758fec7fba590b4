"""Read both formats of torch.save: a zip archive (since torch 1.6) and a row of pickles (before)."""

import itertools
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from resnet_jax.errors import InputError, first_line
from resnet_jax.weights.pickle_values import Storage, Tensor, refuse_foreign
from resnet_jax.weights.pickled import MAX_BYTES, Machine, interpret

ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Found within the first bytes of a file
LEGACY = _MAGIC.to_bytes(10, "little")
# About 100,000 entries
_MAX_DIRECTORY = 8 << 20
# NumPy's limit
_MAX_RANK = 64
_CUT = "the file is cut short; download it again"


@dataclass(frozen=True)
class TorchFile:
    """The saved value, with a `Tensor` for each tensor, and its storages as views of the file."""

    value: Any
    storages: dict[str, np.ndarray]


def view(file: TorchFile, tensor: Tensor) -> np.ndarray:
    """Return the numbers of a tensor as a read-only view of the file.

    Raises InputError, without the file name, if its storage does not hold all of them, or holds fewer numbers.
    """
    storage, offset, size, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
    if type(size) is not tuple or type(stride) is not tuple or not len(size) == len(stride) <= _MAX_RANK:
        raise InputError("its shape and strides are no two tuples of one length up to 64; save it again")
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise InputError("its shape, strides or offset are no numbers from 0; save it again")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel or (0 not in size and last >= storage.numel):
        raise InputError(f"it needs more numbers than the {storage.numel:,} of its storage; save a contiguous copy")
    # Only an empty tensor can be this large
    if math.prod(n or 1 for n in size) >= 1 << 60:
        raise InputError("its shape is larger than any array; save it again")
    dtype = storage.dtype
    strides = [step * dtype.itemsize if n > 1 and 0 not in size else 0 for n, step in zip(size, stride, strict=True)]
    start = 0 if 0 in size else offset * dtype.itemsize
    # NumPy checks the bounds again
    return np.ndarray(size, dtype, file.storages[storage.key], start, strides)


def read_zip(file: BinaryIO, data: np.ndarray) -> TorchFile:
    """Read the zip archive in an open file with the bytes `data`; InputErrors do not name the file."""
    infos, end = _directory(file, data)
    top = _top([info.filename for info in infos])
    entries = _entries(infos, end, data)
    if entries.get(f"{top}byteorder", np.frombuffer(b"little", np.uint8)).tobytes() != b"little":
        raise InputError("written on a big-endian machine; save it as safetensors there")
    content = entries[f"{top}data.pkl"][: MAX_BYTES + 1].tobytes()
    machine = interpret(content)
    if machine.length != len(content):
        raise InputError("bytes after the end of its data.pkl; download it again")
    storages = {key: entries.get(f"{top}data/{key}") for key in machine.storages}
    return TorchFile(machine.value, {key: _sized(machine.storages[key], raw) for key, raw in storages.items()})


def _top(names: list[str]) -> str:
    """Return the folder, with its slash, that contains everything in the archive."""
    tops = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise InputError("a zip archive, but not one of torch.save (no data.pkl); name a weights file")
    if any(name == f"{tops[0]}constants.pkl" or name.startswith(f"{tops[0]}code/") for name in names):
        raise InputError("a TorchScript archive, which is a program; save its state_dict, or ask for safetensors")
    return tops[0]


def _sized(storage: Storage, raw: np.ndarray | None) -> np.ndarray:
    found = -1 if raw is None else raw.size
    if raw is None or found != storage.numel * storage.dtype.itemsize:
        wrong = "missing" if raw is None else f"{found:,} bytes, not {storage.numel:,} numbers of {storage.dtype}"
        raise InputError(f"storage {storage.key[:100]!r} is {wrong}; download it again")
    return raw


def _directory(file: BinaryIO, data: np.ndarray) -> tuple[list[zipfile.ZipInfo], int]:
    """Return the entries of a zip archive, and the offset at which their bytes must have ended."""
    _check_end(data[-98:].tobytes(), data.size)
    try:
        with zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OSError, ValueError, EOFError) as error:
        raise InputError(f"the zip archive is damaged ({first_line(error)}); download it again") from error
    if len({info.filename for info in infos}) != len(infos):
        raise InputError("two entries of the zip archive have one name; save it again")
    return infos, end


def _entries(infos: list[zipfile.ZipInfo], end: int, data: np.ndarray) -> dict[str, np.ndarray]:
    """Return the bytes of all entries by name; they must be uncompressed and must not overlap."""
    spans = {info.filename: (info.header_offset, *_span(info, data)) for info in infos}
    edges = [edge for first, _, last in sorted(spans.values()) for edge in (first, last)]
    if any(one > other for one, other in itertools.pairwise([*edges, end])):
        raise InputError("entries of the zip archive overlap or lie outside; download it again")
    return {name: data[start:last] for name, (_, start, last) in spans.items()}


def _check_end(tail: bytes, size: int) -> None:
    """Check the end records of a zip archive: its directory must be small and where readers expect it."""
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise InputError("the zip archive is cut short or followed by other bytes; download it again")
    length = int.from_bytes(tail[-10:-6], "little")
    if tail[-42:-38] == b"PK\6\7":
        if int.from_bytes(tail[-34:-26], "little") != size - 98 or tail[:4] != b"PK\6\6":
            raise InputError("the zip archive's end is damaged; download it again")
        length = int.from_bytes(tail[40:48], "little")
    if length > _MAX_DIRECTORY:
        raise InputError(f"a zip directory of over {_MAX_DIRECTORY >> 20} MiB, which no weights need; use safetensors")


def _span(info: zipfile.ZipInfo, data: np.ndarray) -> tuple[int, int]:
    """Return start and end of the bytes of an entry in the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise InputError(f"{info.filename[:100]!r} in it is compressed, which torch.save does not do; save it again")
    start = max(info.header_offset, 0)
    header = data[start : start + 30].tobytes()
    if len(header) < 30 or header[:4] != ZIP or header[8:10] != b"\0\0":
        raise InputError(f"{info.filename[:100]!r} in the zip archive is damaged; download it again")
    name, extra = struct.unpack("<HH", header[26:])
    encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
    if data[start + 30 : start + 30 + name].tobytes() != info.orig_filename.encode(encoding):
        raise InputError(f"{info.filename[:100]!r} in the zip archive has two names; download it again")
    return start + 30 + name + extra, start + 30 + name + extra + info.file_size


def read_legacy(data: np.ndarray) -> TorchFile:
    """Read the row of pickles in the bytes of a file; InputErrors do not name the file."""
    magic, at = _pickle(data, 0, 4096)
    protocol, at = _pickle(data, at, 4096)
    system, at = _pickle(data, at, 4096)
    if magic.value != _MAGIC or protocol.value != _PROTOCOL or not isinstance(system.value, dict):
        raise InputError("not the beginning that torch.save writes; download it again")
    if system.value.get("little_endian") is not True:
        raise InputError("written on a big-endian machine; save it as safetensors there")
    saved, at = _pickle(data, at, MAX_BYTES + 1)
    keys, at = _pickle(data, at, MAX_BYTES + 1)
    if type(keys.value) is not list or any(type(key) is not str for key in keys.value):
        raise InputError("the list of its storages is damaged; download it again")
    if len(keys.value) != len(saved.storages) or set(keys.value) != set(saved.storages):
        # Storages of unknown numbers, for example
        refuse_foreign(saved.value)
        raise InputError("the list of its storages does not fit its tensors; download it again")
    storages = {}
    for key in keys.value:
        storages[key], at = _storage(saved.storages[key], data, at)
    if at != data.size:
        raise InputError(f"{data.size - at:,} bytes after its end; download it again")
    return TorchFile(saved.value, storages)


def _pickle(data: np.ndarray, at: int, limit: int) -> tuple[Machine, int]:
    machine = interpret(data[at : at + limit].tobytes())
    return machine, at + machine.length


def _storage(storage: Storage, data: np.ndarray, at: int) -> tuple[np.ndarray, int]:
    """Return a storage, whose length precedes it, and the offset of its end."""
    start = at + 8
    end = start + storage.numel * storage.dtype.itemsize
    if end > data.size:
        raise InputError(_CUT)
    if int.from_bytes(data[at:start].tobytes(), "little", signed=True) != storage.numel:
        raise InputError(f"storage {storage.key[:100]!r} is not of the size that its tensors need; download it again")
    return data[start:end], end
