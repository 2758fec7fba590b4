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
    setup: TrainSetup, run: Path, *, best: bool = False, quarantine: bool = False, log: Log = log_to_stderr
) -> tuple[TrainState, dict[str, Any]] | None:
    """Return the newest (or best) state of a run and its progress, or None if there is no checkpoint, as `restore`."""
    return _restore(setup, run, abstract_train_state(setup), quarantine=quarantine, best=best, log=log)


def restored_state(
    setup: TrainSetup, run: Path, *, best: bool = False, optimizer: bool = True, log: Log = log_to_stderr
) -> TrainState:
    """Return the newest (or best) state of a run, or all but `opt_state`; raise InputError without a checkpoint."""
    abstract = abstract_train_state(setup)
    like = abstract if optimizer else {name: leaf for name, leaf in vars(abstract).items() if name != "opt_state"}
    restored = _restore(setup, run, like, best=best, partial=not optimizer, log=log)
    if restored is None:
        raise InputError(f"{run}: no checkpoint yet; `resnet-jax train {run}` creates one")
    return restored[0] if optimizer else TrainState(**restored[0], opt_state=())


def _restore(setup: TrainSetup, run: Path, like: Any, **options: Any) -> Any:
    foreign = partial(foreign_reason, recipe=setup.recipe, dataset=setup.dataset)
    return restore(run / "checkpoints", like, foreign=foreign, **options)
