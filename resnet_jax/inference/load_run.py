"""Open a run directory."""

from pathlib import Path

from resnet_jax.checkpoint.checkpoint import Log
from resnet_jax.recipe import load_recipe
from resnet_jax.run_dir.files import read_dataset_info, read_recipe, require_run
from resnet_jax.run_dir.given import require_given
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
    optimizer: bool = True,
    log: Log = log_to_stderr,
) -> tuple[TrainSetup, TrainState]:
    """Return the setup and the newest state of a run, without its data; nothing in the directory changes.

    Args:
        run: the run directory.
        devices: number of devices; None is all.
        best: use the checkpoint with the best evaluation instead of the newest.
        network: your own network, `package.module:network`, if the recipe names one; imported only if you name it.
        parts: parts that were passed to the run as values and that the state depends on: model, task, optimizer.
        optimizer: read the state of the optimiser as well; without it, `opt_state` is ().
        log: called with a line about each damaged checkpoint.

    Raises:
        InputError: There is no run or checkpoint, or a part is missing.

    Example:
        >>> setup, state = load_run("runs/digits")  # doctest: +SKIP
        >>> logits = setup.model.apply({"params": state.params, "batch_stats": state.batch_stats}, x)  # doctest: +SKIP
    """
    run = Path(run)
    require_run(run)
    require_given(run, parts.given(), needed=("model", "task", *(["optimizer"] if optimizer else [])))
    # The network is opened without its data
    setup = make_setup(
        load_recipe(run, network=network, data=read_recipe(run).data.name), read_dataset_info(run), devices, parts=parts
    )
    return setup, restored_state(setup, run, best=best, optimizer=optimizer, log=log)
