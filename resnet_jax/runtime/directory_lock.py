"""One writer per directory: a lock of the operating system, freed when its process ends."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resnet_jax.errors import InputError
from resnet_jax.runtime.terminal import log_to_stderr

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def directory_lock(out: Path, doing: str) -> Iterator[None]:
    """Lock a directory, created if missing, for this process.

    The lock is flock(2) on OUT/lock, which the end of the process frees, even `kill -9`. On NFS it holds between hosts.
    If the file system has no locks, a warning goes to standard error.

    Args:
        out: the directory.
        doing: what the holder of the lock does, such as "is training there".

    Raises:
        InputError: Another process holds the lock, or the directory cannot be written.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    descriptor = _lock(out, doing)
    try:
        yield
    finally:
        _free(descriptor, out)
        # New folders are empty only if the block was refused; rmdir fails on the others
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def _free(descriptor: int, out: Path) -> None:
    with suppress(OSError):
        # Before it is freed: otherwise it could be the file of the next holder
        (out / "lock").unlink()
    os.close(descriptor)


def _lock(out: Path, doing: str) -> int:
    """Return the descriptor of a locked OUT/lock, which names this process."""
    path = out / "lock"
    try:
        while True:
            out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                _lock_now(descriptor, out, doing)
                if _is(path, descriptor):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # The previous holder has removed the file since it was opened
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another directory") from error


def _lock_now(descriptor: int, out: Path, doing: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
        raise InputError(f"{out}: {holder} {doing}; wait for it, or choose another directory") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log_to_stderr(f"{out}: its file system has no locks; make sure that nothing else {doing}")


def _is(path: Path, descriptor: int) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
