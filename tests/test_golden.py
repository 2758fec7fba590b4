"""The mathematics stands still: parameters, batches and random numbers as a golden file has them.

`RESNET_JAX_OPTIMIZE=1 python tests/test_golden.py` writes the file again, with the versions and processor it holds for.
Parameters after 20 steps in float64 equal it to 1e-12; on another processor or jax, which sum in another order, to
1e-8. Bits are compared only if versions and processor are the same.
"""

import hashlib
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import conftest  # sets what JAX reads when it is imported
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.input_pipeline.device_input import gather_batch, open_device_split, training_batches
from resnet_jax.input_pipeline.preprocess import make_preprocess
from resnet_jax.input_pipeline.sampler import batch_indices
from resnet_jax.recipe import Augment, Model, Recipe
from resnet_jax.training.init import init_train_state, random_keys
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources

GOLDEN = Path(__file__).parent / "golden" / "mathematics.json"
STEPS = 20
MIXED = replace(
    Recipe(),
    model=Model(name="resnet8", norm_group_size=32, drop_path=0.1),
    augment=Augment(crop_padding=1, hflip=True, mixup_alpha=0.2),
    ema_decay=0.9,
    ema_warmup=False,
)
# And the microbatches of a step
RECIPES = {
    "small": (replace(Recipe(), model=Model(name="resnet8")), 1),
    "small_mixed": (MIXED, 2),
    "default": (Recipe(), 1),
}
# Numbers that are kept of a leaf
_SAMPLES = 12


def where() -> dict[str, str]:
    """Versions and processor."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return {
        "jax": jax.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "processor": hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:12],
    }


def digest(*arrays: Any) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def summary(leaf: np.ndarray) -> list[float]:
    """Some numbers of an array from its first to its last, its sum, and the sum of its squares."""
    flat = np.asarray(leaf, np.float64).ravel()
    places = np.unique(np.linspace(0, flat.size - 1, _SAMPLES).astype(int))
    return [*flat[places].tolist(), float(flat.sum()), float(np.square(flat).sum())]


def trained(recipe: Recipe, parts: int) -> dict[str, list[float]]:
    """The state after some steps of a recipe on one device, in float64, by path."""
    sources = open_sources(recipe, Path("data"))
    setup = make_setup(recipe, sources.dataset, 1, grad_accum_steps=parts)
    state = jax.device_get(init_train_state(setup))
    with jax.enable_x64(True):
        setup = setup._replace(model=setup.model.clone(dtype=jnp.float64))
        state = jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, state)
        state = jax.device_put(state, setup.mesh.devices.flat[0])
        step, key = make_train_step(setup), step_key(setup)
        for inputs in training_batches(open_device_split(sources.train, setup.mesh), recipe, range(STEPS)):
            state, _ = step(state, inputs, key)
        kept = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(kept))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): summary(leaf) for path, leaf in leaves}


def bits(recipe: Recipe) -> dict[str, str]:
    """Digests of what is random: the order of the images, the initial parameters, the keys, a batch for the network."""
    sources = open_sources(recipe, Path("data"))
    setup = make_setup(recipe, sources.dataset, 1)
    size, batch = sources.train.size, recipe.batch_size
    _, key = random_keys(recipe)
    inputs = next(training_batches(open_device_split(sources.train, setup.mesh), recipe, range(21, 22)))
    preprocess = make_preprocess(recipe, size, len(sources.train.classes), setup.task.targets.to_soft)
    seen = jax.jit(lambda inputs: preprocess(key, jnp.int32(21), gather_batch(inputs)))(inputs)
    return {
        "indices": digest(*(batch_indices(recipe.seed, step, batch, size) for step in range(60))),
        "key": digest(jax.random.key_data(key), jax.random.bits(key, (64,))),
        "params": digest(*jax.tree.leaves(jax.device_get(init_train_state(setup).params))),
        "batch": digest(seen.image, seen.target),
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_parameters_after_20_steps(golden, name):
    tolerance = 1e-12 if golden["where"] == where() else 1e-8
    found = trained(*RECIPES[name])
    assert found.keys() == golden["trained"][name].keys()
    for path, numbers in golden["trained"][name].items():
        np.testing.assert_allclose(found[path], numbers, rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("name", ["small", "small_mixed"])
def test_batches_and_random_numbers(golden, name):
    known, found = golden["bits"][name], bits(RECIPES[name][0])
    assert found["indices"] == known["indices"]
    assert found["key"] == known["key"]
    if golden["where"] != where() or not conftest.OPTIMIZE:
        pytest.skip(f"floats are compared bit by bit on {golden['where']} alone, compiled as users do")
    assert found == known


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    content = {
        "where": where(),
        "trained": {name: trained(*recipe) for name, recipe in RECIPES.items()},
        "bits": {name: bits(recipe) for name, (recipe, _) in RECIPES.items()},
    }
    GOLDEN.write_text(json.dumps(content, indent=0) + "\n")
