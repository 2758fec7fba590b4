"""Quantisation-aware training: what is rounded, to which levels, gradients, ranges, and runs."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from runs import curve, quietly

from resnet_jax.errors import InputError
from resnet_jax.inference.convert import convert_weights
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.models.layers import Conv
from resnet_jax.models.quantize import FakeQuant, fake_quantize, fake_quantize_kernel
from resnet_jax.models.zoo import MODELS
from resnet_jax.training.init import init_train_state
from resnet_jax.training.network import resolve_field
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.setup import make_setup

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "name", ["resnet50d", "seresnext50_32x4d", "resnet50v2", "resnetv2_50x1_bit", "resnet9", "r2plus1d_18"]
)
def test_every_convolution_and_the_head_are_quantised(name):
    model, convolutions = MODELS[name], []
    model = model.clone(depths=(1,) * len(model.depths), quantize=True)

    def note(call, args, kwargs, context):
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            convolutions.append("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    paths = flatten_dict(shapes["batch_stats"], sep="/")
    ranges = {path.removesuffix("/quant/low") for path in paths if path.endswith("/quant/low")}
    assert ranges == set(convolutions)
    assert len(ranges) > len(model.depths)
    assert "head_quant/high" in paths


def test_weights_have_255_levels_for_each_channel_and_their_own_gradient():
    kernel = jnp.asarray(RANDOM.normal(size=(3, 3, 200, 4)) * [1, 10, 100, 0], jnp.float32)
    rounded, back = jax.vjp(fake_quantize_kernel, kernel)
    for channel in range(3):
        scale = np.abs(kernel[..., channel]).max() / 127
        levels = np.asarray(rounded[..., channel]) / scale
        np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
        assert 100 < len(np.unique(levels.round())) <= 255
        assert np.abs(rounded - kernel)[..., channel].max() <= scale * 0.501
    assert not rounded[..., 3].any()
    slope = jnp.asarray(RANDOM.normal(size=kernel.shape), jnp.float32)
    np.testing.assert_array_equal(back(slope)[0], slope)


def test_inputs_have_256_levels_with_zero_among_them_and_no_gradient_outside():
    x, low, high = jnp.linspace(-3, 9, 1201), jnp.float32(-1.3), jnp.float32(7.1)
    rounded, back = jax.vjp(lambda x: fake_quantize(x, low, high), x)
    scale = 8.4 / 255
    np.testing.assert_allclose(rounded / scale, np.round(rounded / scale), atol=1e-3)
    assert len(np.unique(np.round(rounded / scale))) == 256
    inside = (x > -1.3 + scale) & (x < 7.1 - scale)
    assert np.abs(rounded - x)[inside].max() <= scale * 0.501
    assert float(fake_quantize(jnp.zeros(1), low, high)[0]) == 0
    slope = back(jnp.ones_like(x))[0]
    assert slope[inside].all()
    assert not slope[(x < -1.4) | (x > 7.2)].any()


def test_a_range_is_the_mean_of_the_extremes_of_the_examples():
    """So that microbatches, whose ranges are averaged, give that of the batch."""
    layer, kernel = FakeQuant(use_running_average=False), jnp.ones((1, 1, 2, 3))
    x = jnp.asarray(RANDOM.normal(size=(8, 5, 5, 2)), jnp.float32)
    empty = {"batch_stats": {"low": jnp.float32(0), "high": jnp.float32(0)}}

    @jax.jit
    def ranges(variables, x):
        return layer.apply(variables, x, kernel, mutable=["batch_stats"])[1]

    first = ranges(empty, x)
    np.testing.assert_allclose(first["batch_stats"]["high"], x.max((1, 2, 3)).mean(), rtol=1e-6)
    second = ranges(first, 2 * x)["batch_stats"]
    np.testing.assert_allclose(second["low"], 1.01 * x.min((1, 2, 3)).mean(), rtol=1e-6)
    halves = [ranges(first, 2 * x[half])["batch_stats"] for half in (slice(4), slice(4, 8))]
    for name in ("low", "high"):
        np.testing.assert_allclose(np.mean([half[name] for half in halves]), second[name], rtol=1e-6)
    outputs, _ = layer.apply(empty, x, kernel, mutable=["batch_stats"])[0]
    np.testing.assert_array_equal(outputs, x)


@pytest.mark.slow
def test_a_quantised_run_resumes_on_the_same_bits_and_is_used_like_any(tiny, tiny_run, tmp_path):
    floats, _ = tiny_run
    model = replace(load_run(floats, 1)[0].recipe.model, quantize=True)
    recipe = replace(tiny, model=replace(model, pretrained=str(floats)), steps=6)
    quietly(recipe, tmp_path / "whole")
    quietly(recipe, tmp_path / "cut", stop_at=2)
    quietly(recipe, tmp_path / "cut")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    setup, state = load_run(tmp_path / "whole", 1)
    ranges = {path: leaf for path, leaf in flatten_dict(state.batch_stats, sep="/").items() if "quant/" in path}
    assert all(float(leaf) > 0 for path, leaf in ranges.items() if path.endswith("high"))
    # It started from the weights of the other run, with ranges of its own
    first = init_train_state(setup, load_pretrained(setup).variables)
    np.testing.assert_array_equal(
        first.params["stem"]["conv"]["kernel"], load_run(floats, 1)[1].params["stem"]["conv"]["kernel"]
    )
    assert float(first.batch_stats["stem"]["conv"]["quant"]["high"]) == 0
    # A float run can start from it
    again = replace(model, quantize=False, pretrained=str(tmp_path / "whole"))
    assert load_pretrained(make_setup(replace(recipe, model=again), setup.dataset, 1)).notes == ()
    with pytest.raises(InputError, match="timm has no such ranges of int8; use --to flax"):
        convert_weights(tmp_path / "whole", tmp_path / "w.safetensors", "timm")
    convert_weights(tmp_path / "whole", tmp_path / "w.safetensors", "flax")
    file = evaluate(tmp_path / "w.safetensors", weights=WeightsInfo(data="tiny"), devices=1).values
    assert file == evaluate(tmp_path / "whole", devices=1).values
    with pytest.raises(InputError, match="quantize cannot be set here; set model.quantize instead"):
        resolve_field(MODELS["resnet8"], "quantize", True)
