"""Files of a data set in a folder, or in a zip archive that is read as it is."""

import os
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from os.path import isfile
from pathlib import Path
from typing import NamedTuple

from resnet_jax.data.source import ChangedDataError
from resnet_jax.errors import InputError, first_line
from resnet_jax.runtime.checksum import sha256_of

# Bytes of an image, unpacked
MAX_FILE = 2**28


class Files(NamedTuple):
    """A folder, or a folder in an archive; it can be pickled."""

    root: Path
    """Folder or archive."""
    inside: str = ""
    """Folder in the archive, with a slash at its end; empty for the whole of it."""
    changed: int = 0
    """When an archive was changed, in nanoseconds."""


def open_files(root: Path) -> Files:
    """Return the files of a folder or archive.

    Raises:
        InputError: There is no such folder, or the archive is damaged.
    """
    if not root.is_file():
        if not root.is_dir():
            raise InputError(f"{root}: no such folder or archive")
        return Files(root)
    files = Files(root, "", root.stat().st_mtime_ns)
    _archive(files)
    return files


def in_only_folder(files: Files) -> Files:
    """Return the files in the folder that an archive has beside nothing else, as most are packed."""
    if not files.root.is_file():
        return files
    tops = {name.partition("/")[0] for name in archived(files)}
    return files._replace(inside=f"{tops.pop()}/") if len(tops) == 1 else files


def archived(files: Files) -> list[str]:
    """Return the names of the files in an archive, sorted, without those that are hidden or that macOS adds."""
    return visible(sorted(name for name in _archive(files).NameToInfo if not name.endswith("/")))


def visible(names: Iterable[str]) -> list[str]:
    """Return the names of files that are not hidden, nor in a hidden folder or in those that macOS adds."""
    return [n for n in names if not any(part.startswith(".") or part == "__MACOSX" for part in n.split("/"))]


def has_file(files: Files, name: str) -> bool:
    """Return whether there is a file of this name, a POSIX path."""
    if files.root.is_file():
        return files.inside + name in _archive(files).NameToInfo
    # Unlike `Path.is_file` without an error for names that are too long
    return isfile(files.root / name)


def where_is(files: Files, name: str) -> str:
    """Return the path of a file, for messages."""
    return f"{files.root}/{files.inside}{name}"


def read_file(files: Files, name: str, most: int = MAX_FILE) -> bytes:
    """Return the content of a file; raise InputError if it is missing, damaged or of more than `most` bytes."""
    where = where_is(files, name)
    try:
        if not files.root.is_file():
            size = (files.root / name).stat().st_size
            content = (files.root / name).read_bytes() if size <= most else b""
        else:
            archive = _archive(files)
            # The size is also where unpacking ends
            info = archive.getinfo(files.inside + name)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("not compressed with deflate")
            size = info.file_size
            content = archive.read(files.inside + name) if size <= most else b""
    except ChangedDataError:
        raise
    except (KeyError, FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{where}: no such file") from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({first_line(error)})") from error
    if size > most:
        raise InputError(f"{where}: {size:,} bytes, over {most:,}")
    return content


def image_content(files: Files, name: str) -> Path | bytes:
    """Return an image file for decoding: a path, or the bytes of one in an archive."""
    return read_file(files, name, MAX_FILE) if files.root.is_file() else files.root / name


def digest_of(files: Files, names: list[str]) -> str:
    """Return the SHA-256 of names and sizes, and in an archive also of the checksums that it has; -1 is missing."""
    if not files.root.is_file():
        paths = [files.root / name for name in names]
        return sha256_of([names, [path.stat().st_size if isfile(path) else -1 for path in paths]])
    known = _archive(files).NameToInfo
    found = [known.get(files.inside + name) for name in names]
    return sha256_of([names, [[info.file_size, info.CRC] if info else -1 for info in found]])


def _archive(files: Files) -> zipfile.ZipFile:
    """Return the open archive; raise ChangedDataError if it was replaced since the data set was opened."""
    if files.root.stat().st_mtime_ns != files.changed:
        raise ChangedDataError(f"{files.root}: changed since this data set was opened; start again")
    return _opened(str(files.root), files.changed, os.getpid())


@lru_cache(maxsize=64)
def _opened(path: str, changed: int, process: int) -> zipfile.ZipFile:
    """Return an archive, which threads may share; each process opens its own."""
    try:
        return zipfile.ZipFile(path)
    # Damage raises errors of many types
    except Exception as error:
        raise InputError(f"{path}: not a zip archive that can be read ({first_line(error)})") from error
