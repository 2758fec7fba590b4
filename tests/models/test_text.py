"""VDCNN: parameters by arithmetic, its pool, and the bytes that it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.text import decode_text, encode_text
from resnet_jax.models.layers import k_max_pool
from resnet_jax.models.summary import model_cost
from resnet_jax.models.zoo import MODELS


@pytest.mark.parametrize(
    ("name", "blocks"), [("vdcnn9", (1, 1, 1, 1)), ("vdcnn17", (2, 2, 2, 2)), ("vdcnn29", (5, 5, 2, 2))]
)
def test_parameters_are_those_of_its_layers(name, blocks):
    """Conneau et al. 2017, section 3: as many convolutions as its name says, of width 3."""
    assert 1 + 2 * sum(blocks) == int(name[5:])
    widths, count = (64, 128, 256, 512), 256 * 16 + 3 * 16 * 64
    before = 64
    for depth, width in zip(blocks, widths, strict=True):
        # Each convolution has a scale and a bias of its normalisation, and so has the shortcut that widens
        count += 3 * before * width + (2 * depth - 1) * 3 * width**2 + 2 * depth * 2 * width
        count += before * width + 2 * width if before != width else 0
        before = width
    # The eight largest values of each channel, and one layer for the two classes
    assert model_cost(MODELS[name]).parameters == count + 8 * 512 * 2 + 2


def test_the_pool_keeps_the_order_of_the_largest():
    x = jnp.asarray([[[3.0, 0.0], [1.0, 5.0], [2.0, 1.0], [9.0, 4.0]]])
    assert k_max_pool(x, 2).tolist() == [[3.0, 9.0, 5.0, 4.0]]
    assert k_max_pool(x, 9).shape == (1, 8)


def test_bytes_of_a_text():
    assert encode_text("Ab", 4)[:, 0].tolist() == [97, 98, 0, 0]
    assert encode_text("abcdef", 3)[:, 0].tolist() == [97, 98, 99]
    assert decode_text(encode_text("naïve \N{SNOWMAN}", 20)) == "naïve \N{SNOWMAN}"
    # Half a letter at the cut, and half a surrogate pair, as a command line may have it
    assert decode_text(encode_text("naï", 3)) == "na\N{REPLACEMENT CHARACTER}"
    assert decode_text(encode_text("a\udce9", 4)) == "a?"


def test_what_is_read_decides_what_is_said():
    model = MODELS["vdcnn9"].clone(width=8)
    texts = jnp.asarray(np.stack([encode_text(text, 64) for text in ("good", "bad", "good")]))
    variables = jax.jit(model.init)(jax.random.key(0), texts)
    good, bad, again = jax.jit(model.apply)(variables, texts)
    np.testing.assert_allclose(good, again, atol=1e-6)
    assert np.abs(good - bad).max() > 1e-4
