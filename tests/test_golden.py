"""The mathematics stands still: parameters, batches and random numbers as a golden file has them.

`python tests/test_golden.py` writes the file anew, with the versions and the processor that it holds for. Parameters
after 20 steps in float64 equal it to 1e-12; on another processor or another jax, whose sums are in another order,
rounding grows over the steps, and 1e-8 is asked for. Bits are compared where versions and processor are the same.
"""

import hashlib
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import conftest  # noqa: F401  # sets what JAX reads when it is imported
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.batches import batch_indices
from resnet_jax.recipe import Augment, Model, Recipe
from resnet_jax.train.feed import batch_of, supply, training_items
from resnet_jax.train.job import initial, make_advance, open_sources, prepare, random_keys, step_key
from resnet_jax.train.preprocess import make_preprocess

GOLDEN = Path(__file__).parent / "golden" / "mathematics.json"
STEPS = 20
MIXED = replace(
    Recipe(),
    model=Model(norm_group=32, drop_path=0.1),
    augment=Augment(pad=1, flip=True, mixup=0.2),
    ema=0.9,
)
RECIPES = {"default": (Recipe(), 1), "mixed": (MIXED, 2)}  # and the parts of a batch
_SAMPLES = 12  # numbers that are kept of a leaf


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
    job = prepare(recipe, sources.dataset, 1, accumulate=parts)
    state, sums = jax.device_get(initial(job))
    with jax.enable_x64(True):
        job = job._replace(model=job.model.clone(dtype=jnp.float64))
        state = jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, state)
        state, sums = jax.device_put((state, sums), job.mesh.devices.flat[0])
        step, key = make_advance(job), step_key(job)
        for item in training_items(supply(sources.train, job.mesh), recipe.seed, recipe.batch_size, range(STEPS)):
            state, sums, _ = step(state, sums, item, key, None)
        kept = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(kept))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): summary(leaf) for path, leaf in leaves}


def bits(recipe: Recipe) -> dict[str, str]:
    """Digests of what is random: the order of the images, the first parameters, the keys, a batch as it is trained on."""
    sources = open_sources(recipe, Path("data"))
    job = prepare(recipe, sources.dataset, 1)
    size, batch = sources.train.size, recipe.batch_size
    _, key = random_keys(recipe)
    data = supply(sources.train, job.mesh)
    item = next(training_items(data, recipe.seed, batch, range(21, 22)))
    preprocess = make_preprocess(recipe, size, len(sources.train.classes))
    images, label = jax.jit(lambda item: preprocess(key, jnp.int32(21), batch_of(item)))(item)
    return {
        "indices": digest(*(batch_indices(recipe.seed, step, batch, size) for step in range(60))),
        "key": digest(jax.random.key_data(key), jax.random.bits(key, (64,))),
        "params": digest(*jax.tree.leaves(jax.device_get(initial(job)[0].params))),
        "batch": digest(images, label),
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_after_20_steps(golden, name):
    tolerance = 1e-12 if golden["where"] == where() else 1e-8
    found = trained(*RECIPES[name])
    assert found.keys() == golden["trained"][name].keys()
    for path, numbers in golden["trained"][name].items():
        np.testing.assert_allclose(found[path], numbers, rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("name", RECIPES)
def test_batches_and_random_numbers(golden, name):
    known, found = golden["bits"][name], bits(RECIPES[name][0])
    assert found["indices"] == known["indices"]
    assert found["key"] == known["key"]
    if golden["where"] != where():
        pytest.skip(f"floats are compared bit by bit on {golden['where']} alone")
    assert found == known


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    content = {
        "where": where(),
        "trained": {name: trained(*recipe) for name, recipe in RECIPES.items()},
        "bits": {name: bits(recipe) for name, (recipe, _) in RECIPES.items()},
    }
    GOLDEN.write_text(json.dumps(content, indent=0) + "\n")
