"""Restore the state of a run from its checkpoints, none of which may be that of another run."""

from functools import partial
from pathlib import Path
from typing import Any

from resnet_jax.checkpoint.checkpoint import Log, restore
from resnet_jax.errors import InputError
from resnet_jax.run_dir.files import foreign_reason
from resnet_jax.runtime.terminal import log_to_stderr
from resnet_jax.training.init import abstract_train_state
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.state import TrainState


def restore_run(
    setup: TrainSetup,
    run: Path,
    *,
    best: bool = False,
    quarantine: bool = False,
    optimizer: bool = True,
    log: Log = log_to_stderr,
) -> tuple[TrainState, dict[str, Any]] | None:
    """Return the newest (or best) state of a run and its progress, or None if there is no checkpoint, as `restore`.

    Without `optimizer`, `opt_state` is () and not read.
    """
    foreign = partial(foreign_reason, recipe=setup.recipe, dataset=setup.dataset)
    abstract = abstract_train_state(setup)
    # Left out, not empty: Orbax compares the structures of all that is named
    like = abstract if optimizer else {name: tree for name, tree in vars(abstract).items() if name != "opt_state"}
    where, part = run / "checkpoints", not optimizer
    restored = restore(where, like, quarantine=quarantine, best=best, partial=part, foreign=foreign, log=log)
    if restored is None or optimizer:
        return restored
    return TrainState(**restored[0], opt_state=()), restored[1]


def restored_state(
    setup: TrainSetup, run: Path, *, best: bool = False, optimizer: bool = True, log: Log = log_to_stderr
) -> TrainState:
    """Return the newest (or best) state of a run as `restore_run`; raise InputError if there is no checkpoint."""
    restored = restore_run(setup, run, best=best, optimizer=optimizer, log=log)
    if restored is None:
        raise InputError(f"{run}: no checkpoint yet; `resnet-jax train {run}` creates one")
    return restored[0]
