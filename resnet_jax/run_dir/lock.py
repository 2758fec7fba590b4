"""One trainer per run directory: a lock of the operating system, freed when its process ends."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resnet_jax.errors import InputError
from resnet_jax.parallel.multihost import broadcast_from_host0, is_primary_host
from resnet_jax.runtime.terminal import log_to_stderr

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Lock a run directory, created if missing, for this process. All hosts call it, the first one locks.

    The lock is flock(2) on OUT/lock, which the end of the process frees, even `kill -9`. On NFS it holds between hosts.
    If the file system has no locks, a warning goes to standard error.

    Raises:
        InputError: Another process holds the lock, or the directory cannot be written.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    refused: InputError | None = None
    descriptor: int | None = None
    try:
        if is_primary_host():
            try:
                descriptor = _lock(out)
            except InputError as error:
                refused = error
        if broadcast_from_host0(int(refused is not None)):
            raise refused or InputError(f"{out}: the first host cannot have it; see what it says")
        yield
    finally:
        if descriptor is not None:
            _free(descriptor, out)
            # New folders are empty only if the run was refused; rmdir fails on the others
            with suppress(OSError):
                for folder in new:
                    folder.rmdir()


def _free(descriptor: int, out: Path) -> None:
    with suppress(OSError):
        # Before it is freed: otherwise it could be the file of the next holder
        (out / "lock").unlink()
    os.close(descriptor)


def _lock(out: Path) -> int:
    """Return the descriptor of a locked OUT/lock, which names this process."""
    path = out / "lock"
    try:
        while True:
            out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                _lock_now(descriptor, out)
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
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another --out") from error


def _lock_now(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
        raise InputError(f"{out}: {holder} is training there; wait for it, or choose another --out") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log_to_stderr(f"{out}: its file system has no locks; make sure that nothing else trains there")


def _is(path: Path, descriptor: int) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
