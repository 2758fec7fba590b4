"""Folding is the same function, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY
from flax import linen as nn

from resnet_jax.inference.export.fold import fold_batch_norm
from resnet_jax.models.blocks import PreActBasicBlock
from resnet_jax.models.layers import StandardizedConv
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import AverageShortcut
from resnet_jax.models.stems import CifarStem, PreActCifarStem


def noisy(variables):
    draw = np.random.default_rng(0).uniform
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + draw(0.01, 0.3, leaf.shape), leaf.dtype), variables)


class Shared(nn.Module):
    """A network of flax's layers, in which one convolution is called twice, and one output is used twice."""

    @nn.compact
    def __call__(self, x, *, train=False):
        twice, alone, both = (nn.Conv(3, (3, 3), name=name) for name in ("twice", "alone", "both"))
        norm = [nn.BatchNorm(not train, name=f"norm{n}") for n in range(4)]
        x = norm[1](twice(norm[0](twice(x))))
        y = both(norm[2](alone(x)))
        return (norm[3](y) + y).mean((1, 2))


NETWORKS = {
    "post-activation": (ResNet((1, 1), stem=CifarStem, shortcut=AverageShortcut, width=4, num_classes=3), 6),
    "standardised": (ResNet((1,), stem=CifarStem, conv=StandardizedConv, width=4, num_classes=3), 3),
    "pre-activation": (ResNet((1,), block=PreActBasicBlock, stem=PreActCifarStem, width=4, num_classes=3), 1),
    "of flax": (Shared(), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_are_the_same_function(name):
    model, folded_norms = NETWORKS[name]
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3), jnp.float64)
        variables = jax.jit(model.init, compiler_options=QUICKLY)(jax.random.key(1), images)
        variables = noisy(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables))
        folded = fold_batch_norm(model, variables, (8, 8, 3))
        expected = jax.jit(model.apply, compiler_options=QUICKLY)(variables, images)
        found = jax.jit(folded.apply, compiler_options=QUICKLY)(folded.variables, images)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert len(folded.norms) == folded_norms
    assert "batch_stats" not in folded.variables
    assert not any(path in folded.variables["params"] for (path, *rest) in folded.norms if not rest)
