"""The feature pyramid against torchvision's."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork

from resnet_jax.models import fpn

CHANNELS = (4, 8, 16)


@pytest.mark.parametrize(
    "shapes",
    [((16, 24), (8, 12), (4, 6)), ((17, 21), (9, 11), (5, 6)), ((13, 7), (7, 4), (4, 2)), ((9, 9), (9, 9), (3, 2))],
    ids=str,
)
def test_pyramid(shapes, randomize):
    random = np.random.default_rng(0)
    maps = [random.normal(size=(2, *s, c)).astype(np.float32) for s, c in zip(shapes, CHANNELS, strict=True)]
    theirs = randomize(FeaturePyramidNetwork(list(CHANNELS), 6))
    params = {}
    for ours, name in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
        for i in range(len(maps)):
            layer = getattr(theirs, name)[i][0]
            kernel, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            params[f"{ours}{i + 1}"] = {"kernel": np.moveaxis(kernel, (0, 1), (-1, -2)), "bias": bias}
    model = fpn.FPN(6)
    shape_of = jax.tree.map(np.shape, params)
    assert shape_of == jax.tree.map(np.shape, jax.eval_shape(model.init, jax.random.key(0), maps)["params"])
    expected = theirs({str(i): torch.tensor(np.moveaxis(x, -1, 1).copy()) for i, x in enumerate(maps)})
    for result, reference in zip(model.apply({"params": params}, maps), expected.values(), strict=True):
        np.testing.assert_allclose(result, np.moveaxis(reference.detach().numpy(), 1, -1), rtol=1e-4, atol=1e-5)


def test_enlarging_takes_the_pixels_that_torch_takes(monkeypatch):
    """At every size that stages of stride two give, and at some that they do not."""
    monkeypatch.setattr(fpn, "jnp", np)  # five hundred shapes, none of them to be compiled
    for size in range(1, 130):
        for smaller in {-(-size // 2), size // 2 or 1, -(-size // 4), size, -(-size * 2 // 3)}:
            x = np.arange(smaller, dtype=np.float32)
            theirs = functional.interpolate(torch.tensor(x)[None, None], size=size, mode="nearest")[0, 0]
            ours = fpn.enlarge(x[None, :, None], (size,))[0, :, 0]
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{smaller} to {size}")
