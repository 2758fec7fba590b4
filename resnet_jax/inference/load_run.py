"""Open a run directory."""

from functools import partial
from pathlib import Path

from resnet_jax.checkpoint.checkpoint import Log, restore
from resnet_jax.errors import InputError
from resnet_jax.recipe import load_recipe
from resnet_jax.run_dir.files import foreign_reason, read_dataset_info, require_given, require_run
from resnet_jax.runtime.terminal import log_to_stderr
from resnet_jax.training.setup import Parts, TrainSetup, abstract_train_state, make_setup
from resnet_jax.training.state import TrainState


def load_run(
    run: Path | str,
    devices: int | None = None,
    *,
    best: bool = False,
    network: str | None = None,
    parts: Parts = Parts(),
    log: Log = log_to_stderr,
) -> tuple[TrainSetup, TrainState]:
    """Return the setup and the newest state of a run, without its data; nothing in the directory changes.

    Args:
        run: the run directory.
        devices: number of devices; None is all.
        best: the checkpoint with the best evaluation instead of the newest.
        network: name of a network of your own, if the recipe names one; nothing is imported unless you name it.
        parts: values that the run was given and the state depends on: model, task, optimizer.
        log: is told of damaged checkpoints.

    Raises:
        InputError: There is no run or checkpoint, or a part is missing.

    Example:
        >>> setup, state = load_run("runs/digits")  # doctest: +SKIP
        >>> logits = setup.model.apply({"params": state.params, "batch_stats": state.batch_stats}, x)  # doctest: +SKIP
    """
    run = Path(run)
    require_run(run)
    require_given(run, parts.given(), needed=("model", "task", "optimizer"))
    setup = make_setup(load_recipe(run, network=network), read_dataset_info(run), devices, parts=parts)
    foreign = partial(foreign_reason, recipe=setup.recipe, dataset=setup.dataset)
    restored = restore(run / "checkpoints", abstract_train_state(setup), best=best, foreign=foreign, log=log)
    if restored is None:
        raise InputError(f"{run}: no checkpoint yet; `resnet-jax train {run}` makes one")
    return setup, restored[0]
