"""Pruning: the channels that are kept, the network that is left, and the whole of it at a reduced size."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Recipe, Schedule
from resnet_jax.run_dir.files import read_recipe

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def drawn():
    """A network of two blocks, whose values are all random, and its variables."""
    model, random = MODELS["resnet8"].clone(depths=(1, 1), width=8), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return model, jax.tree.map(lambda leaf: random.uniform(0.2, 1, leaf.shape).astype(np.float32), shapes)


def test_channels_without_effect_are_pruned_first(script, drawn):
    """With three quarters of the scales and biases at zero, a quarter of the channels computes the same."""
    pruning, (model, variables) = script("compression", "pruning.py"), drawn
    for block in ("stage1_block1", "stage2_block1"):
        norm = variables["params"][block]["norm1"]
        off = np.arange(len(norm["scale"])) % 4 != 1
        norm["scale"][off], norm["bias"][off] = 0, 0
    pruned = pruning.prune(variables, 16, pruning.by_scale)
    small = model.clone(base_width=16)
    shapes = jax.eval_shape(small.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert jax.tree.map(np.shape, pruned) == jax.tree.map(lambda leaf: leaf.shape, dict(shapes))
    expected = model.apply(variables, IMAGES)
    np.testing.assert_allclose(small.apply(pruned, IMAGES), expected, rtol=1e-5)
    assert not np.allclose(small.apply(pruning.prune(variables, 16, lambda s: np.arange(len(s))), IMAGES), expected)


def test_the_penalty_is_on_the_scales_that_prune(script, drawn):
    pruning, params = script("compression", "pruning.py"), drawn[1]["params"]
    optimizer, plain = pruning.sparse_sgd(lambda step: 0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)
    plain = optax.chain(optax.add_decayed_weights(5e-4), plain)
    zeros = jax.tree.map(jnp.zeros_like, params)
    with_penalty, without = (o.update(zeros, o.init(params), params)[0] for o in (optimizer, plain))
    more = jax.tree.map(lambda a, b: np.abs(a - b).max(), with_penalty, without)
    changed = {path for path, size in jax.tree_util.tree_leaves_with_path(more) if size > 1e-6}
    names = {tuple(key.key for key in path) for path in changed}
    assert names == {("stage1_block1", "norm1", "scale"), ("stage2_block1", "norm1", "scale")}


@pytest.mark.slow
def test_the_table_of_one_seed(script, tmp_path, monkeypatch, capsys):
    pruning = script("compression", "pruning.py")
    monkeypatch.setattr(pruning, "BASE_WIDTHS", (32,))
    recipe = replace(Recipe(), model=TINY, schedule=Schedule(warmup=0), epochs=0.1)
    pruning.compare(1, tmp_path, recipe, recipe)
    head, _, whole, half, last = capsys.readouterr().out.splitlines()
    assert head.count("|") == half.count("|") == 6
    assert float(whole.split("|")[2].split("%")[0]) >= 0
    assert [float(cell.split("%")[0]) >= 0 for cell in half.split("|")[2:6]] == [True] * 4
    assert last.endswith("n = 1")
    # What is left is a network that its own directory describes
    assert dict(read_recipe(tmp_path / "by-scale-32-0").model.fields)["base_width"] == 32
