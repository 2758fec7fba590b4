"""Checkpoints: the state, and the totals since the last line of metrics, so that a resumed run writes the same lines.

Nothing of the input pipeline is kept: the step is the position.

Orbax writes and reads the arrays, from and to the devices of all hosts. What it does not do is done here: a state
counts as saved only with a manifest of what was written, and is used only while that holds. On several hosts the first
does this for all, and says which step is restored.
"""

import errno
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array

from resnet_jax.errors import InputError, MachineError, first_line
from resnet_jax.train.devices import on_first_host, said_by_first_host
from resnet_jax.train.directory import read_dataset, read_recipe
from resnet_jax.train.job import Job, abstract, prepare
from resnet_jax.train.manifest import describe_leaves, misfits, read_manifest
from resnet_jax.train.progress import Say
from resnet_jax.train.quiet import quiet_orbax
from resnet_jax.train.sealed import (
    clear,
    first_intact,
    incomplete,
    is_intact,
    make_checkpoint,
    put_aside,
    remove_superfluous,
)
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Sums

_NONE, _NO_GOOD = -1, -2  # in place of a step
_TOLD = 3  # leaves or checkpoints that are named in one line


def to_stderr(line: str) -> None:
    """Says a line where the caller has no better place for it."""
    print(line, file=sys.stderr)


class Checkpoints:
    """Where a run saves: one checkpoint at a time, written and sealed by a thread while training goes on."""

    def __init__(self, folder: Path, keep: int, best: bool) -> None:
        self.folder, self.keep, self.best = folder.absolute(), keep, best
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def wait(self) -> None:
        """Until nothing is being written. All hosts wait; raises MachineError where what was saved is not written."""
        pending, self.pending = self.pending, None
        error = pending.exception() if pending else None
        if said_by_first_host(int(error is not None)) or error:
            if on_first_host():
                clear(self.folder)  # again, for when one array failed the others were still being written
            raise _unwritten(self.folder, error) from error


@contextmanager
def open_checkpoints(folder: Path, *, keep: int = 2, best: bool = False) -> Iterator[Checkpoints]:
    """The writer of a folder, which only one process may have; waits for what is pending in the end.

    Kept are the newest `keep` and, with `best`, the one saved with the largest metric (of equal ones the newest). One
    is removed only after a newer one is sealed.

    Raises MachineError, with the folder, where what was saved cannot be written.
    """
    quiet_orbax()
    checkpoints = Checkpoints(folder, keep, best)
    if on_first_host():
        clear(checkpoints.folder)
    with checkpoints.thread:
        yield checkpoints
        checkpoints.wait()


def save(checkpoints: Checkpoints, state: TrainState, sums: Sums, *, metric: float | None = None) -> None:
    """Writes a checkpoint in the background, unless there is an intact one of this step. All hosts call it.

    The state may be donated as soon as this returns. A save that fails leaves the checkpoints before it as they are,
    and nothing behind; the next one begins anew.

    Args:
        checkpoints: of `open_checkpoints`.
        state: what is saved, at its own step.
        sums: totals since the last line of metrics.
        metric: how good the state is, larger is better; None, or not finite, where that is not known.

    Raises InputError where the state is not finite, and MachineError where it, or the one before, cannot be written.
    """
    step = int(state.step)
    if not _all_finite(jax.tree.leaves((state.params, state.batch_stats, state.ema))):
        raise InputError(f"the parameters are no longer finite at step {step}, and not saved; lower optimizer.lr")
    checkpoints.wait()
    folder, tree = checkpoints.folder, {"state": state, "sums": sums}
    if said_by_first_host(on_first_host() and is_intact(folder, step)):
        return
    if on_first_host():
        clear(folder)
    if metric is not None:
        metric = float(metric) if math.isfinite(metric) else None
    writer = ocp.StandardCheckpointer()  # a new one each time, for one that has failed may not recover
    try:
        writer.save(incomplete(folder, step), tree)
    except Exception as error:  # a full disk shows as one of many types
        raise _unwritten(folder, error) from error
    finish = checkpoints.thread.submit
    checkpoints.pending = finish(_finish, checkpoints, writer, step, metric, describe_leaves(tree))


def restore(
    folder: Path, job: Job, *, quarantine: bool = False, best: bool = False, say: Say = to_stderr
) -> tuple[TrainState, Sums] | None:
    """State and totals of the newest intact checkpoint, on the devices of the job; None where there is none at all.

    Args:
        folder: of the checkpoints.
        job: what the state must fit; its devices may be others than those that it was saved from.
        quarantine: put damaged checkpoints aside, as only the process may that trains there.
        best: the one with the largest metric instead of the newest.
        say: is told, a line each, of the damaged checkpoints that were passed over.

    Raises InputError, with the path, where none is intact, or where it does not fit the job.
    """
    found, bad = first_intact(folder, best) if on_first_host() else (None, {})
    step = said_by_first_host((_NO_GOOD if bad else _NONE) if found is None else found)
    if step == _NONE:
        return None
    if step == _NO_GOOD:
        reasons = _first([f"step {other}: {damage}" for other, damage in bad.items()]) or "as the first host says"
        raise InputError(
            f"{folder}: no checkpoint is intact ({reasons});"
            " put one back from a copy, or move this folder away to begin anew"
        )
    for other, damage in bad.items():
        path = folder / str(other)
        aside = f"put aside as {put_aside(path)}" if quarantine else "passed over"
        say(f"{path}: damaged checkpoint ({damage}), {aside}; step {step} is used instead")
    state, sums = abstract(job)
    tree = _read(folder / str(step), {"state": state, "sums": sums})
    return tree["state"], tree["sums"]


def load_run(
    run: Path, devices: int | None = None, *, best: bool = False, say: Say = to_stderr
) -> tuple[Job, TrainState]:
    """Network and newest (or best) state of a run directory, without its data; changes nothing there.

    Raises InputError where there is none.
    """
    recipe = read_recipe(run)
    job = prepare(recipe, read_dataset(run), devices)
    restored = restore(run / "checkpoints", job, best=best, say=say)
    if restored is None:
        raise InputError(f"{run}: no checkpoint yet; `resnet-jax train {run}` makes one")
    return job, restored[0]


def _finish(
    checkpoints: Checkpoints, writer: ocp.StandardCheckpointer, step: int, metric: float | None, leaves: dict[str, str]
) -> None:
    """Waits until Orbax has written a step, makes a checkpoint of it, and then removes the superfluous ones."""
    try:
        with closing(writer):
            writer.wait_until_finished()
        if on_first_host():
            make_checkpoint(checkpoints.folder, step, metric, leaves)
            remove_superfluous(checkpoints.folder, checkpoints.keep, checkpoints.best)
    finally:
        if on_first_host():
            clear(checkpoints.folder)


def _read(folder: Path, like: Any) -> Any:
    """The tree of an intact checkpoint; raises InputError, with the first wrong leaves, where it is not `like`."""
    try:
        wrong = misfits(read_manifest(folder).leaves, describe_leaves(like))
        if not wrong:
            with closing(ocp.StandardCheckpointer()) as reader:
                return reader.restore(folder.absolute(), like)
    except Exception as error:  # Orbax raises bare ones
        reason = first_line(error)
        raise InputError(f"{folder}: this checkpoint cannot be read ({reason}); give the command again") from error
    raise InputError(
        f"{folder}: does not fit this network and optimiser ({_first(wrong)}); it was saved by another version of them:"
        " choose another --out"
    )


def _first(reasons: list[str]) -> str:
    return "; ".join(reasons[:_TOLD]) + (f"; and {len(reasons) - _TOLD} more" if len(reasons) > _TOLD else "")


def _unwritten(folder: Path, error: BaseException | None) -> MachineError:
    reason = "on the first host" if error is None else first_line(error)
    for known in (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)):
        if known in str(error):
            reason = known  # which Orbax says only at the end of a long line
    return MachineError(
        f"{folder}: a checkpoint cannot be written ({reason});"
        " make room and give the same command again: the checkpoints before it are kept"
    )


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    """() bool over all leaves: one transfer, and one answer for all hosts."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
