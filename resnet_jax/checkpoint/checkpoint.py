"""Save and restore the state of a run, with the progress since its last row of metrics.

The input pipeline has no state: the step is the position.

Orbax writes and reads the arrays of all hosts. A checkpoint is complete only with a manifest of its files, and is
used only if they still match it. On several hosts the first one writes and checks manifests, and chooses the step to
restore.
"""

import errno
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from resnet_jax.checkpoint.manifest import DamageError, describe_leaves, misfits, read_manifest, update_manifest
from resnet_jax.checkpoint.orbax_logging import quiet_orbax_logging
from resnet_jax.checkpoint.progress import decode_progress, encode_progress
from resnet_jax.checkpoint.store import (
    clear_incomplete,
    commit,
    incomplete,
    is_intact,
    latest_intact,
    prune,
    quarantine,
)
from resnet_jax.errors import InputError, MachineError, first_line
from resnet_jax.parallel.multihost import broadcast_from_host0, is_primary_host
from resnet_jax.runtime.terminal import log_to_stderr

# Instead of a step: no checkpoint, none intact
_NONE, _NO_GOOD = -1, -2
# Number of leaves or checkpoints that one message names
_NAMED = 3

# Orbax writes wrong files, or hangs, if two threads of a process save at the same time, as with one seed per device.
# The lock is held from the start of a save until its checkpoint is complete.
_ORBAX = threading.Lock()

Log = Callable[[str], None]


class Checkpoints:
    """The writer of a folder: one checkpoint at a time, written by a thread while training continues."""

    def __init__(self, folder: Path, keep: int, best: bool) -> None:
        self.folder, self.keep, self.best = folder.absolute(), keep, best
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def wait(self) -> None:
        """Wait until nothing is being written, on all hosts; raise MachineError if a save failed."""
        pending, self.pending = self.pending, None
        error = pending.exception() if pending else None
        if broadcast_from_host0(int(error is not None)) or error:
            if is_primary_host():
                # Again: other arrays were still being written when one failed
                clear_incomplete(self.folder)
            raise _unwritten(self.folder, error) from error


@contextmanager
def open_checkpoints(folder: Path, *, keep: int = 2, best: bool = False) -> Iterator[Checkpoints]:
    """Yield the writer of a folder, which one process may open; pending saves are awaited at the end.

    Args:
        folder: of the checkpoints.
        keep: number of newest checkpoints to keep. One is removed only after a newer one is complete.
        best: also keep the one saved with the largest metric (of equal ones the newest).

    Raises:
        MachineError: A checkpoint cannot be written.
    """
    quiet_orbax_logging()
    checkpoints = Checkpoints(folder, keep, best)
    if is_primary_host():
        clear_incomplete(checkpoints.folder)
    with checkpoints.thread:
        yield checkpoints
        checkpoints.wait()


def save(checkpoints: Checkpoints, state: Any, progress: dict[str, Any], *, metric: float | None = None) -> None:
    """Save a checkpoint in the background. All hosts call it.

    If there is an intact one of this step, only its progress and metric are replaced: a state whose evaluation failed
    is saved without them, and evaluated when the run resumes.

    The state may be donated as soon as this returns. A save that fails leaves earlier checkpoints as they are.

    Args:
        checkpoints: of `open_checkpoints`.
        state: a `TrainState`, saved at its own step.
        progress: small NumPy arrays and JSON values that go into the manifest.
        metric: how good the state is, larger is better; None or not finite if unknown.

    Raises:
        InputError: The state is not finite.
        MachineError: This or the previous checkpoint cannot be written.
    """
    step = int(state.step)
    if not _all_finite(jax.tree.leaves((state.params, state.batch_stats, state.ema))):
        raise InputError(f"the parameters are no longer finite at step {step} and are not saved; lower optimizer.lr")
    checkpoints.wait()
    folder, tree = checkpoints.folder, {"state": state}
    if metric is not None:
        metric = float(metric) if math.isfinite(metric) else None
    about = {"metric": metric, "progress": encode_progress(progress), "leaves": describe_leaves(tree)}
    if broadcast_from_host0(is_primary_host() and is_intact(folder, step)):
        if is_primary_host():
            _update(folder, step, about)
        return
    if is_primary_host():
        clear_incomplete(folder)
    _ORBAX.acquire()
    try:
        # A new writer each time: after a failure it may not recover
        writer = ocp.StandardCheckpointer()
        writer.save(incomplete(folder, step), tree)
    except BaseException as error:
        _ORBAX.release()
        if not isinstance(error, Exception):
            raise
        # A full disk raises one of many types
        raise _unwritten(folder, error) from error
    checkpoints.pending = checkpoints.thread.submit(_finish, checkpoints, writer, step, about)


def restore(
    folder: Path,
    abstract_state: Any,
    *,
    quarantine: bool = False,
    best: bool = False,
    partial: bool = False,
    foreign: Callable[[dict[str, Any]], str] = lambda progress: "",
    log: Log = log_to_stderr,
) -> tuple[Any, dict[str, Any]] | None:
    """Return state and progress of the newest intact checkpoint, or None if there is no checkpoint.

    Args:
        folder: of the checkpoints.
        abstract_state: shapes, dtypes and shardings of the state; its devices may differ from those that saved it.
        quarantine: move damaged checkpoints away, as only the process that trains there may do.
        best: the one with the largest metric instead of the newest; InputError if none has a metric.
        partial: read the leaves of `abstract_state` only; others may have been saved with them.
        foreign: returns why a checkpoint with this progress is that of another run, or ""; it counts as damaged.
        log: called with a line for each damaged checkpoint that is skipped.

    Raises:
        InputError: No checkpoint is intact, or it does not fit.
    """
    while (step := _choose(folder, best, foreign, quarantine, log)) is not None:
        try:
            manifest = read_manifest(folder / str(step))
            if best and manifest.metric is None:
                raise InputError(
                    f"{folder}: no checkpoint has been evaluated yet, so none is the best; to use the newest, of step"
                    f" {step}, leave out --best"
                )
            tree = _read(folder / str(step), {"state": abstract_state}, partial)
            return tree["state"], decode_progress(manifest.progress)
        except (DamageError, InputError):
            # Otherwise the run that writes there has removed it meanwhile, for a newer one
            if (folder / str(step)).exists():
                raise
    return None


def _choose(
    folder: Path, best: bool, foreign: Callable[[dict[str, Any]], str], quarantine: bool, log: Log
) -> int | None:
    """Return the step that all hosts restore, or None; raise InputError if there are checkpoints and none is intact."""
    found, damaged = latest_intact(folder, best, foreign) if is_primary_host() else (None, {})
    step = broadcast_from_host0((_NO_GOOD if damaged else _NONE) if found is None else found)
    if step == _NONE:
        return None
    if step == _NO_GOOD:
        reasons = _first([f"step {other}: {damage}" for other, damage in damaged.items()]) or "see the first host"
        raise InputError(
            f"{folder}: no intact checkpoint ({reasons});"
            " restore one from a backup, or move this folder away to start over"
        )
    for other, damage in damaged.items():
        path = folder / str(other)
        how = f"moved to {_quarantine(path)}" if quarantine else "skipped"
        log(f"{path}: damaged checkpoint ({damage}), {how}; step {step} is used instead")
    return step


_quarantine = quarantine


def _update(folder: Path, step: int, about: dict[str, Any]) -> None:
    try:
        update_manifest(folder / str(step), incomplete(folder, step), **about)
    except OSError as error:
        raise _unwritten(folder, error) from error
    finally:
        clear_incomplete(folder)


def _finish(checkpoints: Checkpoints, writer: ocp.StandardCheckpointer, step: int, about: dict[str, Any]) -> None:
    """Wait until Orbax has written a step, turn it into a checkpoint, and remove superfluous ones."""
    try:
        with closing(writer):
            writer.wait_until_finished()
        if is_primary_host():
            commit(checkpoints.folder, step, **about)
            prune(checkpoints.folder, checkpoints.keep, checkpoints.best)
    finally:
        _ORBAX.release()
        if is_primary_host():
            clear_incomplete(checkpoints.folder)


def _read(folder: Path, like: Any, partial: bool) -> Any:
    """Return the tree, or a part, of an intact checkpoint; raise InputError, naming leaves, if it is not `like`."""
    try:
        saved, wanted = read_manifest(folder).leaves, describe_leaves(like)
        wrong = misfits({path: saved[path] for path in saved if path in wanted or not partial}, wanted)
        if not wrong:
            how = ocp.checkpoint_utils.construct_restore_args(like)
            args = ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=partial)
            with _ORBAX, closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
                return reader.restore(folder.absolute(), args)
    # Orbax raises bare exceptions
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"{folder}: this checkpoint cannot be read ({reason}); repeat the command") from error
    raise InputError(
        f"{folder}: does not fit this network and optimiser ({_first(wrong)}); another version of them saved it:"
        " choose another --out"
    )


def _first(reasons: list[str]) -> str:
    return "; ".join(reasons[:_NAMED]) + (f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else "")


def _unwritten(folder: Path, error: BaseException | None) -> MachineError:
    reason = "on the first host" if error is None else first_line(error)
    for known in (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)):
        if known in str(error):
            # Orbax names the cause only at the end of a long line
            reason = known
    return MachineError(
        f"{folder}: a checkpoint cannot be written ({reason});"
        " free disk space and repeat the same command: earlier checkpoints are kept"
    )


def _all_finite(leaves: list[Array]) -> bool:
    """Return whether all leaves are finite, the same on all hosts."""
    # In the memory of this process: a program for hundreds of leaves is traced for longer than they are read
    if all(map(_is_on_host, leaves)):
        return all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)
    return bool(_all_finite_on_devices(leaves))


def _is_on_host(leaf: Array | np.ndarray) -> bool:
    """Return whether a leaf is in the memory of this process: NumPy's, or JAX's on the CPU."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and next(iter(leaf.devices())).platform == "cpu"


@jax.jit
def _all_finite_on_devices(leaves: list[Array]) -> Array:
    """Return () bool over all leaves, by one transfer."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
