"""Read and write files of directories that others may have prepared: never through a link, never from a device."""

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

# Bytes of a name on common file systems
_LONGEST = 255


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let the error of a full disk name the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def create_file(path: Path) -> None:
    """Create an empty file; what has its name, such as a link to a file elsewhere, is removed first."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def write_atomic(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a file atomically: a reader sees all of it or the old one. A link is replaced, and not followed.

    Args:
        path: the file.
        content: text is written as UTF-8.
        durable: flush it to the disk, so that it survives a power loss.
    """
    partial = path.with_name(path.name + ".tmp")
    create_file(partial)
    with _naming(path), partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)


def append(path: Path, text: str) -> None:
    """Append text to a file, created if missing; raise OSError if it is a link."""
    with _naming(path), open(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as file:
        file.write(text)


def is_bare_name(name: object) -> bool:
    """Return whether a value that a file names is the name of a file beside it, and not a path elsewhere."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        return False
    return len(name.encode(errors="surrogatepass")) <= _LONGEST


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; raise OSError for a pipe or device, which may have no end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file", str(path))
    return file


def read_regular(path: Path) -> bytes:
    """Return the content of a file; raise OSError for a pipe or device."""
    with open_regular(path) as file:
        return file.read()


def numbered(path: Path) -> Iterator[Path]:
    """Yield PATH, PATH-2, PATH-3, ... without end."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
