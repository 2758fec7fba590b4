"""Compiled programs that are kept for the user's next commands, which then neither trace nor compile them.

JAX's own cache skips the compiler only: a ResNet-50 step is traced and lowered for seconds before its key is known.
Here the key is made of what the program is made of: the recipe, shapes and shardings of the arguments, devices,
versions, settings, and the sources of this package. Loading a program unpickles it, so entries are read from a folder
of the user alone, and only if they have the digest with which they were written.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import re
import stat
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from resnet_jax.models.cpu_conv3x3 import machine_code
from resnet_jax.runtime.compilation_cache import bound, cache_home
from resnet_jax.runtime.safe_files import open_regular, write_atomic

# Bytes
_LIMIT = 2**30
_DIGEST = hashlib.sha256().digest_size
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "llvmlite")
# Settings of JAX that say where and when something is cached or logged, and not what is compiled
_NOT_COMPILED = re.compile("jax_(compilation_cache|persistent_cache|log|logging|raise_persistent)")


def load_or_compile(
    make: Callable[[], jax.stages.Wrapped], arguments: tuple[Any, ...], mesh: Mesh, identity: object
) -> jax.stages.Compiled:
    """Return a compiled function: one kept by an earlier process, or one that is compiled and kept now.

    Args:
        make: returns the jitted function.
        arguments: what it is compiled for, arrays or their shapes and shardings.
        mesh: devices on which it runs.
        identity: what decides, with the arguments, which function `make` returns; its repr is part of the key. None:
            nothing does, so nothing is kept.
    """
    home = None if identity is None else _home(mesh)
    if home is None:
        return make().lower(*arguments).compile()
    entry = home / f"{key_of(ingredients(arguments, mesh) | {'identity': repr(identity)})}-cache"
    known = _load(entry, mesh)
    if known is not None:
        return known
    compiled, is_new = _compile(make, arguments)
    # A program that cannot be kept is compiled again
    with contextlib.suppress(Exception):
        if is_new:
            _store(entry, compiled)
    return compiled


def _compile(make: Callable[[], jax.stages.Wrapped], arguments: tuple[Any, ...]) -> tuple[jax.stages.Compiled, bool]:
    """Return a compiled function, and whether it was compiled now: XLA cannot write what JAX's cache has read."""
    hits = _cache_hits()
    before = hits.get(threading.get_ident(), 0)
    compiled = make().lower(*arguments).compile()
    return compiled, hits.get(threading.get_ident(), 0) == before


@functools.cache
def _cache_hits() -> dict[int, int]:
    """Return the number of programs that JAX's cache had, by thread; counted from the first call on."""
    counts: dict[int, int] = {}

    def count(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            counts[threading.get_ident()] = counts.get(threading.get_ident(), 0) + 1

    jax.monitoring.register_event_listener(count)
    return counts


def keep(function: jax.stages.Wrapped, mesh: Mesh, identity: object) -> Callable[..., Any]:
    """Return a function of (state, inputs) that is compiled by `load_or_compile` once per layout of its inputs."""
    if identity is None or _home(mesh) is None:
        return function
    known: dict[Any, jax.stages.Compiled] = {}

    def call(state: Any, inputs: Any) -> Any:
        layout = tuple((leaf.shape, getattr(leaf, "sharding", None)) for leaf in jax.tree.leaves(inputs))
        if layout not in known:
            known[layout] = load_or_compile(lambda: function, (state, inputs), mesh, identity)
        return known[layout](state, inputs)

    return call


def key_of(parts: Mapping[str, object]) -> str:
    """Return the SHA-256 of all ingredients of a program, in hexadecimal digits."""
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def ingredients(arguments: tuple[Any, ...], mesh: Mesh) -> dict[str, object]:
    """Return all but its identity on which a program depends: arguments, devices, versions, settings, our sources."""
    leaves, tree = jax.tree.flatten(arguments)
    devices = mesh.devices.flat
    settings = {name: getattr(jax.config, name, value) for name, value in jax.config.values.items()}
    return {
        "arguments": (str(tree), [(str(jax.typeof(leaf)), str(getattr(leaf, "sharding", ""))) for leaf in leaves]),
        "devices": [(device.id, device.platform, device.device_kind) for device in devices],
        "mesh": str(mesh),
        "backend": devices[0].client.platform_version,
        "versions": (platform.python_version(), [_version(name) for name in _PACKAGES]),
        "settings": sorted((name, repr(value)) for name, value in settings.items() if not _NOT_COMPILED.match(name)),
        "environment": sorted(item for item in os.environ.items() if item[0].startswith(("XLA_", "RESNET_JAX_"))),
        "sources": _sources(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _sources() -> str:
    """Return a digest of all modules of this package."""
    sha256, home = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        sha256.update(f"{path.relative_to(home)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return sha256.hexdigest()


def _home(mesh: Mesh) -> Path | None:
    """Return the folder of kept programs; None if this process keeps none, or others might write there.

    Only commands keep what they compile, on CPUs, and in one process: elsewhere this was never tried.
    """
    own = jax.config.values["jax_compilation_cache_dir"]
    if jax.process_count() > 1 or mesh.devices.flat[0].platform != "cpu" or not own:
        return None
    with contextlib.suppress(OSError, RuntimeError):
        if Path(own).parent == cache_home():
            home = cache_home() / "executables"
            home.mkdir(mode=0o700, exist_ok=True)
            found = home.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
                return home
    return None


def _load(entry: Path, mesh: Mesh) -> jax.stages.Compiled | None:
    """Return the program in an entry; None if there is none, or it is damaged or does not fit this machine."""
    try:
        with open_regular(entry) as file:
            content = file.read()
            if os.fstat(file.fileno()).st_uid != os.getuid() or content[:_DIGEST] != _digest(content[_DIGEST:]):
                return None
        payload, in_tree, out_tree, codes = pickle.loads(content[_DIGEST:])
        if codes and (kernels := machine_code()):
            kernels.register_called(codes)
        devices = [*mesh.devices.flat]
        return serialize_executable.deserialize_and_load(payload, in_tree, out_tree, execution_devices=devices)
    # XLA, pickle and the modules that it imports have errors of their own; the program is compiled again
    except Exception:
        return None


def _store(entry: Path, compiled: jax.stages.Compiled) -> None:
    kernels = machine_code()
    codes = kernels.called_code(compiled.as_text() or "") if kernels else {}
    content = pickle.dumps((*serialize_executable.serialize(compiled), codes))
    write_atomic(entry, _digest(content) + content)
    bound(entry.parent, _LIMIT)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
