"""The manifest of a checkpoint: its files with their digests, its leaves with their shapes.

Orbax restores a flipped byte without an error, so every file is compared with its SHA-256 before it is used.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from resnet_jax.runtime.safe_files import open_regular, read_regular
from resnet_jax.runtime.strict_json import parse_json

_NAME = "manifest.json"


class DamageError(Exception):
    """A folder is not the checkpoint that was saved there; the message starts with the damaged file."""


class CheckpointManifest(NamedTuple):
    """The content of manifest.json, which is written last."""

    step: int
    metric: float | None
    """Larger is better."""
    progress: dict[str, Any]
    """Small values of the run that are saved beside the state."""
    leaves: dict[str, str]
    """Path in the tree -> dtype and shape, "float32[3, 3, 16, 16]"."""
    files: dict[str, list[Any]]
    """Path in the folder -> [bytes, SHA-256]."""


def describe_leaves(tree: Any) -> dict[str, str]:
    """Return dtype and global shape of each leaf by path; leaves are arrays or abstract values."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def misfits(saved: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return a few words for each leaf that is missing or differs."""
    found = []
    for path in sorted(saved.keys() | expected.keys()):
        if path not in saved:
            found.append(f"{path} is missing")
        elif path not in expected:
            found.append(f"{path} is not expected")
        elif saved[path] != expected[path]:
            found.append(f"{path} is {saved[path]}, not {expected[path]}")
    return found


def write_manifest(
    folder: Path, step: int, *, metric: float | None, progress: dict[str, Any], leaves: dict[str, str]
) -> None:
    """Write the manifest of a folder whose files are complete, and flush all of them to the disk."""
    manifest = CheckpointManifest(step, metric, progress, leaves, _digests(folder, _files(folder)))
    (folder / _NAME).write_bytes(_encode(manifest))
    for path, _, files in os.walk(folder, topdown=False):
        for name in (*files, "."):
            to_disk(Path(path, name))


def update_manifest(folder: Path, spare: Path, **about: Any) -> None:
    """Replace fields of the manifest of an intact checkpoint atomically; `spare` is a folder to write it in."""
    manifest = read_manifest(folder)
    if (changed := manifest._replace(**about)) != manifest:
        spare.mkdir(parents=True, exist_ok=True)
        (spare / _NAME).write_bytes(_encode(changed))
        to_disk(spare / _NAME)
        os.replace(spare / _NAME, folder / _NAME)
        to_disk(folder)


def read_manifest(folder: Path) -> CheckpointManifest:
    """Return the manifest of a checkpoint without checking its files; raise DamageError if it is damaged."""
    try:
        content = read_regular(folder / _NAME)
        values = parse_json(content, nonfinite=True)
        manifest = CheckpointManifest(*(values[name] for name in CheckpointManifest._fields))
        changed = _encode(manifest) != content or not _is_sound(manifest)
    except FileNotFoundError as error:
        raise DamageError(f"no {_NAME}") from error
    except OSError as error:
        raise DamageError(f"{_NAME}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{_NAME} has changed") from error
    if changed:
        raise DamageError(f"{_NAME} has changed")
    return manifest


def verify(folder: Path) -> CheckpointManifest:
    """Return the manifest of an intact checkpoint; raise DamageError, naming the first wrong file."""
    manifest = read_manifest(folder)
    files = _files(folder)
    if folder.name != str(manifest.step):
        raise DamageError(f"{_NAME} is of step {manifest.step}")
    for name in sorted(manifest.files.keys() ^ set(files)):
        raise DamageError(f"{name} {'is missing' if name in manifest.files else 'does not belong there'}")
    try:
        for name, (size, _) in manifest.files.items():
            if (folder / name).stat().st_size != size:
                raise DamageError(f"{name} has {(folder / name).stat().st_size:,} bytes of {size:,}")
        found = _digests(folder, files)
    except OSError as error:
        raise DamageError(f"{Path(error.filename or folder).name}: {error.strerror}") from error
    for name in files:
        if found[name] != manifest.files[name]:
            raise DamageError(f"{name} has changed")
    return manifest


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_sound(manifest: CheckpointManifest) -> bool:
    """Return whether all values are of their types, which a manifest that somebody made need not be."""
    return (
        type(manifest.step) is int
        and isinstance(manifest.metric, float | None)
        and isinstance(manifest.progress, dict)
        and isinstance(manifest.leaves, dict)
        and isinstance(manifest.files, dict)
        and all(isinstance(of, list) and list(map(type, of)) == [int, str] for of in manifest.files.values())
    )


def _encode(manifest: CheckpointManifest) -> bytes:
    """Return the bytes of a manifest, including a digest of the rest."""
    body = json.dumps(manifest._asdict(), indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**manifest._asdict(), "sha256": digest}, indent=1).encode()


def _files(folder: Path) -> list[str]:
    def names() -> Iterator[str]:
        for path, _, files in os.walk(folder):
            yield from (str((Path(path) / file).relative_to(folder)) for file in files)

    return sorted(name for name in names() if name != _NAME)


def _digests(folder: Path, files: list[str]) -> dict[str, list[Any]]:
    """Return [bytes, SHA-256] by file; on threads, since hashing releases the GIL."""

    def digest(name: str) -> list[Any]:
        with open_regular(folder / name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            # The file was read to its end, so the position is its size
            return [file.tell(), found]

    with ThreadPoolExecutor() as threads:
        return dict(zip(files, threads.map(digest, files), strict=True))
