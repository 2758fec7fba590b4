"""The folder of a run's checkpoints: list, commit, choose, prune.

    checkpoints/STEP         a checkpoint: the files of Orbax and the manifest
    checkpoints/incomplete   being written or removed; never read, cleared at the next start
    checkpoints/damaged      damaged checkpoints; never removed

A folder is renamed to its number after its manifest is on the disk, so every numbered folder was once complete. It is
used only if its files still match the manifest.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.checkpoint.manifest import (
    CheckpointManifest,
    DamageError,
    read_manifest,
    to_disk,
    verify,
    write_manifest,
)
from resnet_jax.errors import InputError
from resnet_jax.runtime.safe_files import numbered

_INCOMPLETE, _DAMAGED = "incomplete", "damaged"


def incomplete(folder: Path, step: int) -> Path:
    """Return the folder in which a step is written before it is complete."""
    return folder / _INCOMPLETE / str(step)


def clear_incomplete(folder: Path) -> None:
    """Remove the remains of a killed or failed save, which would keep a full disk full."""
    shutil.rmtree(folder / _INCOMPLETE, ignore_errors=True)


def committed(folder: Path) -> dict[int, CheckpointManifest]:
    """Return the manifests of the checkpoints by step; their files are not checked."""
    found = {}
    for step in _numbered(folder):
        try:
            manifest = read_manifest(folder / str(step))
        except DamageError:
            continue
        if manifest.step == step:
            found[step] = manifest
    return found


def is_intact(folder: Path, step: int) -> bool:
    """Return whether the checkpoint of a step exists and matches its manifest."""
    try:
        verify(folder / str(step))
    except DamageError:
        return False
    return True


def commit(folder: Path, step: int, **about: Any) -> None:
    """Turn a completely written step into a checkpoint; `about` are arguments of `write_manifest`."""
    write_manifest(incomplete(folder, step), step, **about)
    final = folder / str(step)
    if final.exists():
        # It is damaged; otherwise this step would not be saved again
        quarantine(final)
    incomplete(folder, step).rename(final)
    to_disk(folder)


def prune(folder: Path, keep: int, best: bool) -> None:
    """Remove all checkpoints except the newest `keep` and, with `best`, the one with the largest metric."""
    manifests = committed(folder)
    kept = set(sorted(manifests)[-keep:])
    scores = {step: manifest.metric for step, manifest in manifests.items() if manifest.metric is not None}
    if best and scores:
        kept.add(max(scores, key=lambda step: (scores[step], step)))
    for step in manifests.keys() - kept:
        # Renamed first, so that a reader sees all of it or nothing
        away = incomplete(folder, step)
        away.parent.mkdir(exist_ok=True)
        shutil.rmtree(away, ignore_errors=True)
        (folder / str(step)).rename(away)
        shutil.rmtree(away)


def latest_intact(
    folder: Path, best: bool, foreign: Callable[[dict[str, Any]], str] = lambda progress: ""
) -> tuple[int | None, dict[int, DamageError]]:
    """Return the newest (or best) intact step, or None, and the damaged or foreign steps that were passed over.

    `foreign` returns why a checkpoint with this progress is that of another run, or "".
    """
    bad: dict[int, DamageError] = {}
    steps = _in_order(folder, best)
    for step in steps:
        try:
            if reason := foreign(verify(folder / str(step)).progress):
                raise DamageError(reason)
        except DamageError as damage:
            if not (folder / str(step)).exists():
                # The run that writes there has removed it meanwhile, for a newer one
                return latest_intact(folder, best, foreign)
            bad[step] = damage
        else:
            return step, bad
    # The run has written another one meanwhile
    if set(_numbered(folder)) - set(steps):
        return latest_intact(folder, best, foreign)
    return None, bad


def quarantine(path: Path) -> Path:
    """Move the folder of a step to `damaged`, and return its new path."""
    aside = next(other for other in numbered(path.parent / _DAMAGED / path.name) if not other.exists())
    try:
        aside.parent.mkdir(exist_ok=True)
        return path.rename(aside)
    except OSError as error:
        raise InputError(f"{path}: damaged, and cannot be moved ({error.strerror}); move it away yourself") from error


def _numbered(folder: Path) -> list[int]:
    """Return the steps after which subfolders are named; the folder may be missing."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def _in_order(folder: Path, best: bool) -> list[int]:
    """Return the steps, the newest first or, with `best`, the one with the largest metric."""
    steps = sorted(_numbered(folder), reverse=True)
    if not best:
        return steps
    metrics = {step: manifest.metric for step, manifest in committed(folder).items()}

    def goodness(step: int) -> float:
        # A manifest that cannot be read comes first, so that it is reported
        metric = metrics.get(step, math.inf)
        return -math.inf if metric is None else metric

    # Stable: of equal ones the newest comes first
    return sorted(steps, key=goodness, reverse=True)
