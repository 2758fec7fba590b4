"""The weights that a run starts from: of a file, the hub, a published entry, or another run."""

from itertools import cycle, islice
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from resnet_jax.data.image import Preprocessing, preprocessing_of
from resnet_jax.errors import InputError
from resnet_jax.models.backbone import Network, with_fields
from resnet_jax.recipe import Data, load_recipe
from resnet_jax.run_dir.files import is_run, read_dataset_info
from resnet_jax.run_dir.given import require_given
from resnet_jax.training.restore import restored_state
from resnet_jax.training.setup import TrainSetup, make_setup
from resnet_jax.training.state import TrainState, with_ema_params
from resnet_jax.weights.load import Loaded, load, match_tensors
from resnet_jax.weights.state_dict import TensorFile


def load_pretrained(setup: TrainSetup) -> Loaded | None:
    """Return the weights that the recipe starts from, if it names some; raise InputError if they do not fit."""
    where = setup.recipe.model.pretrained
    if not where:
        return None
    if not isinstance(setup.model, Network):
        raise InputError("model.pretrained is for published networks; leave it out for a network of your own")
    # The ranges of a quantised network start empty, whatever it starts from
    model = with_fields(setup.model, input_shape=setup.dataset.image_shape, quantize=False)
    best = setup.recipe.model.pretrained_best
    if best and not is_run(where):
        raise InputError(f"model.pretrained is {where}, which is not a run; leave model.pretrained_best out")
    loaded = _load_from_run(model, Path(where), best) if is_run(where) else load(model, where)
    return loaded._replace(notes=(*loaded.notes, *normalization_notes(where, loaded.preprocessing, setup.recipe.data)))


def normalization_notes(where: str, known: Preprocessing | None, data: Data) -> list[str]:
    """Return a note for mean and std if the weights were trained with others than the recipe's."""
    notes = []
    for name in ("mean", "std"):
        theirs, ours = getattr(known, name, None) or (), getattr(data, name)
        # One number stands for all channels
        count = max(len(theirs), len(ours)) if theirs else 0
        if any(abs(a - b) > 1e-3 for a, b in islice(zip(cycle(theirs), cycle(ours), strict=False), count)):
            notes.append(f"{where}: was trained with {name} {theirs}, the recipe has data.{name} {ours}")
    return notes


def restored_run(run: Path, *, best: bool = False) -> tuple[TrainSetup, TrainState]:
    """Return the setup and the newest or best state of a run, its EMA if it has one; raise InputError without one."""
    require_given(run, (), needed=("model", "task"))
    devices = 1 if jax.process_count() == 1 else None
    setup = make_setup(load_recipe(run), read_dataset_info(run), devices)
    return setup, with_ema_params(restored_state(setup, run, best=best, optimizer=False))


def _load_from_run(model: Network, run: Path, best: bool) -> Loaded:
    """Return the weights of the newest or best checkpoint of a run, its EMA if it has one, as evaluation takes them."""
    setup, state = restored_run(run, best=best)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    leaves = traverse_util.flatten_dict(variables, sep="/").items()
    tensors = {path: np.asarray(leaf) for path, leaf in leaves if "quant/" not in path}
    # The manifest has the digests of all files of the checkpoint
    manifest = run / "checkpoints" / str(int(state.step)) / "manifest.json"
    return match_tensors(model, TensorFile(run, tensors))._replace(
        file=manifest, preprocessing=preprocessing_of(setup.recipe.data)
    )
