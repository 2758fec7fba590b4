"""One trainer per run directory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from resnet_jax.errors import InputError
from resnet_jax.parallel.multihost import broadcast_from_host0, is_primary_host
from resnet_jax.runtime.directory_lock import directory_lock


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Lock a run directory, created if missing, for this process. All hosts call it, the first one locks.

    Raises:
        InputError: Another process holds the lock, or the directory cannot be written.
    """
    refused: InputError | None = None
    with ExitStack() as lock:
        if is_primary_host():
            try:
                lock.enter_context(directory_lock(out, "is training there"))
            except InputError as error:
                refused = error
        if broadcast_from_host0(int(refused is not None)):
            raise refused or InputError(f"{out}: the first host cannot lock it; see its error")
        yield
