"""A cache of compiled programs for the user's next commands, safe against killed processes.

JAX writes an entry in several pieces and never writes it again: if the process is killed meanwhile, half an entry
stays for good. So each process has its own folder with hard links to the shared entries, and publishes its new entries
by atomic renames when it ends. The next process clears the folder of a killed one: whole entries are kept.
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Bytes
_LIMIT = 4 * 2**30
# Programs that compile faster than this are not cached
_SECONDS = 0.1
# Prefix of the folder of one process
_OWN = "process-"


@functools.cache
def enable_compilation_cache() -> None:
    """Use the user's cache of compiled programs in this process; commands call it, the library does not.

    The cache is $XDG_CACHE_HOME/resnet-jax/compiled, by default in ~/.cache. JAX_ENABLE_COMPILATION_CACHE=false turns
    it off, JAX_COMPILATION_CACHE_MAX_SIZE limits its bytes, and JAX_COMPILATION_CACHE_DIR leaves everything to JAX. If
    the folder cannot be written, there is no cache.
    """
    import jax

    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return
    limit = settings["jax_compilation_cache_max_size"]
    try:
        home = cache_home()
        own, lock = join(home)
    # A folder that cannot be written, a file system without links, a user without home
    except (OSError, RuntimeError):
        return
    atexit.register(leave, home, own, lock, _LIMIT if limit < 0 else limit)
    jax.config.update("jax_compilation_cache_dir", str(own))
    # `leave` limits the size; JAX would need locks of another package
    jax.config.update("jax_compilation_cache_max_size", -1)
    # Otherwise the path of XLA's caches would be in the key of every entry
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


@contextlib.contextmanager
def cache_settings(**settings: Any) -> Iterator[None]:
    """Change settings of JAX on its cache, such as `jax_enable_compilation_cache`, and restore them at the end."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    def update(values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        # Otherwise JAX would keep the first cache that it used
        reset_cache()

    before = {name: jax.config.values[name] for name in settings}
    try:
        update(settings)
        yield
    finally:
        update(before)


def cache_home() -> Path:
    """Return the folder that the user's processes share on this kind of processor.

    A home on a network may be used by other processors, which may lack instructions of a compiled program. Raise
    RuntimeError if the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return folder / "resnet-jax" / "compiled" / f"{platform.machine()}-{_instructions()}"


def _instructions() -> str:
    """Return a name for the instruction set of this processor; "any" if the system does not list it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return hashlib.sha256(" ".join(sorted(value.split())).encode()).hexdigest()[:8]
    return "any"


def join(home: Path) -> tuple[Path, int]:
    """Return a new folder for this process with links to all shared entries, and its lock's descriptor.

    Folders of dead processes are cleared. Raise OSError if the folder cannot be made.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in home.glob(f"{_OWN}*"):
        with contextlib.suppress(OSError):
            _clear(home, folder)
    own = Path(tempfile.mkdtemp(dir=home, prefix=_OWN))
    try:
        lock = _lock(own)
        link_entries(home, own)
    except OSError:
        shutil.rmtree(own, ignore_errors=True)
        raise
    return own, lock


def link_entries(home: Path, own: Path) -> None:
    """Link all shared entries into the folder of a process."""
    for entry in home.glob("*-cache"):
        # Linked before, or removed by another process just now
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(entry, own / entry.name)


def leave(home: Path, own: Path, lock: int, limit: int = _LIMIT) -> None:
    """Publish new entries, remove the least recently used ones, and remove the folder of this process."""
    with contextlib.suppress(OSError):
        publish_entries(home, own)
        bound(home, limit)
    shutil.rmtree(own, ignore_errors=True)
    os.close(lock)


def publish_entries(home: Path, own: Path) -> None:
    """Move the new and complete entries of a folder to the shared ones."""
    for entry in own.glob("*-cache"):
        if entry.stat().st_nlink == 1 and is_whole(entry.read_bytes()):
            entry.replace(home / entry.name)


def is_whole(entry: bytes) -> bool:
    """Return whether a compressed entry can be read to its end by this Python."""
    try:
        try:
            # From Python 3.14
            from compression import zstd  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            try:
                # JAX uses it if it is installed
                import zstandard  # type: ignore[import-not-found, unused-ignore]
            except ImportError:
                zlib.decompress(entry)
            else:
                zstandard.ZstdDecompressor().decompress(entry)
        else:
            zstd.decompress(entry)
    # Each of the three libraries raises its own type
    except Exception:
        return False
    return True


def bound(home: Path, limit: int) -> None:
    """Remove the least recently used entries until the others have at most `limit` bytes."""
    found = []
    for entry in home.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):
            known = entry.stat()
            found.append((max(known.st_atime, known.st_mtime), known.st_size, entry))
    size = 0
    for _, bytes_of, entry in sorted(found, reverse=True):
        size += bytes_of
        if size > limit:
            entry.unlink(missing_ok=True)


def _lock(own: Path) -> int:
    """Lock a folder until the process ends, and return the descriptor; raise OSError if it is locked."""
    descriptor = os.open(own / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _clear(home: Path, folder: Path) -> None:
    """Publish and remove the folder of a dead process; raise OSError if the process is alive."""
    lock = _lock(folder)
    try:
        publish_entries(home, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
