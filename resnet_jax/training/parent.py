"""Continue a run as a new one: from its newest state, with another length, rate or data."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from resnet_jax.checkpoint.checkpoint import restore
from resnet_jax.errors import InputError
from resnet_jax.optim.schedules import learning_rate
from resnet_jax.recipe import Recipe, differences
from resnet_jax.run_dir.files import foreign_reason, read_dataset_info, read_recipe
from resnet_jax.run_dir.given import require_given
from resnet_jax.training.init import abstract_train_state
from resnet_jax.training.rows import has_rate_factor
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.state import TrainState
from resnet_jax.weights.load import Loaded

# Fields that may differ without a note
_OWN = ("parent", "model.pretrained ", "model.pretrained_best")


def load_parent(setup: TrainSetup) -> tuple[TrainState, Loaded]:
    """Return the newest state of the parent of a run, and the file that identifies it with notes on what changes.

    Raises:
        InputError: There is no such run, its state does not fit this recipe, or it is already as long as this one.
    """
    run = Path(setup.recipe.parent or "").expanduser()
    before, dataset = read_recipe(run), read_dataset_info(run)
    require_given(run, setup.given, needed=("model", "task", "optimizer"))
    foreign = partial(foreign_reason, recipe=before, dataset=dataset)
    try:
        found = restore(run / "checkpoints", abstract_train_state(setup), foreign=foreign)
    except InputError as error:
        hint = f"to start from its weights alone: --model.pretrained {run}"
        raise InputError(f"parent: {str(error).removesuffix(': choose another --out')}; {hint}") from error
    if found is None:
        raise InputError(f"parent {run}: no checkpoint yet; `resnet-jax train {run}` creates one")
    state, step = found[0], int(found[0].step)
    if step >= setup.steps:
        raise InputError(f"parent {run} is at step {step}, and this run has {setup.steps}: raise --epochs or --steps")
    if has_rate_factor(setup):
        # The rows that it follows begin here
        one = jax.tree.map(jnp.ones_like, optax.tree.get(state.opt_state, "factor"))
        state = state.replace(opt_state=optax.tree.set(state.opt_state, factor=one))
    manifest = run / "checkpoints" / str(step) / "manifest.json"
    return state, Loaded({}, tuple(_notes(setup, before, dataset.train_size, step)), manifest)


def _notes(setup: TrainSetup, before: Recipe, train_size: int, step: int) -> Sequence[str]:
    """Return what differs from the parent, and what that means for the learning rate."""
    changed = [line for line in differences(before, setup.recipe) if not line.startswith(_OWN)]
    notes = [f"parent {setup.recipe.parent}: {'; '.join(changed) or 'nothing changes'}"]
    if "schedule" not in setup.given:
        old, new = (float(rate(step)) for rate in (learning_rate(before, train_size), setup.schedule))
        was = float(learning_rate(before, train_size)(max(step - 1, 0)))
        shape = f"{setup.recipe.schedule.name} over {setup.steps:,} steps"
        how = f"continues at {new:.4g}" if new == old else f"is {new:.4g} from here on"
        notes.append(f"learning rate: was {was:.4g} at step {step}, {how} ({shape}, counted from the parent's start)")
    return notes
