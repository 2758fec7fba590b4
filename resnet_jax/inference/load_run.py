"""Open a run directory."""

from pathlib import Path

from resnet_jax.checkpoint.checkpoint import Log
from resnet_jax.recipe import load_recipe
from resnet_jax.run_dir.files import read_dataset_info, require_given, require_run
from resnet_jax.runtime.terminal import log_to_stderr
from resnet_jax.training.restore import restored_state
from resnet_jax.training.setup import Parts, TrainSetup, make_setup
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
    return setup, restored_state(setup, run, best=best, log=log)
