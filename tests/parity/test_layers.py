"""Single layers against torch.nn and timm.layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm.layers
import torch
from torch.nn import functional

from resnet_jax.models.layers import Conv, SqueezeExcite, StandardizedConv, average_pool, blur_pool, max_pool
from resnet_jax.models.norm import BatchNorm, group_norm

SHAPES = {1: (2, 13, 8), 2: (2, 9, 12, 8), 3: (2, 5, 7, 6, 8)}
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
AVERAGES = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def images(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def channels_last(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def kernel_to_torch(kernel):
    return torch.tensor(np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1)).copy())


def assert_near(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "fields"),
    [
        (1, {"kernel": 7, "stride": 2, "bias": True}),
        (1, {"dilation": 3, "groups": 2}),
        (2, {"kernel": 1, "stride": 2}),
        (2, {"kernel": 7, "stride": 2, "dilation": 2, "groups": 4, "bias": True}),
        (2, {"kernel": (3, 5), "stride": (2, 1), "dilation": 2}),
        (2, {"groups": 8, "dilation": 4}),
        (3, {"kernel": (3, 7, 7), "stride": (1, 2, 2)}),
        (3, {"stride": 2, "dilation": 2, "groups": 2, "bias": True}),
    ],
    ids=str,
)
def test_conv(rank, fields):
    x = images(SHAPES[rank])
    module = Conv(16, **fields)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = {key: images(leaf.shape, seed=1) / 8 for key, leaf in params.items()}
    assert ("bias" in params) is fields.get("bias", False)
    kernel, dilation = params["kernel"], fields.get("dilation", 1)
    theirs = CONVOLUTIONS[rank](
        channels_first(x),
        kernel_to_torch(kernel),
        torch.tensor(params["bias"]) if "bias" in params else None,
        stride=fields.get("stride", 1),
        padding=tuple(dilation * (k // 2) for k in kernel.shape[:-2]),
        dilation=dilation,
        groups=fields.get("groups", 1),
    )
    assert_near(module.apply({"params": params}, x), channels_last(theirs))


@pytest.mark.parametrize("scale", [1e-4, 1.0])  # at the smaller the epsilon is as large as the variance
def test_standardized_conv_and_its_gradient(scale):
    x, kernel = images((2, 9, 12, 8)), scale * images((3, 3, 4, 16), seed=1)
    theirs = timm.layers.StdConv2d(8, 16, 3, stride=2, groups=2, eps=1e-8)
    theirs.load_state_dict({"weight": kernel_to_torch(kernel)})
    module = StandardizedConv(16, stride=2, groups=2)
    expected = theirs(channels_first(x))
    expected.sin().sum().backward()
    assert_near(module.apply({"params": {"kernel": kernel}}, x), channels_last(expected))
    gradient = jax.jit(jax.grad(lambda k: jnp.sin(module.apply({"params": {"kernel": k}}, x)).sum()))(kernel)
    expected = np.moveaxis(theirs.weight.grad.numpy(), (0, 1), (-1, -2))
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("channels", "ratio"), [(16, 1 / 16), (64, 1 / 16), (200, 1 / 16), (64, 0.25), (72, 0.25)])
def test_squeeze_excite(channels, ratio, randomize):
    theirs = randomize(timm.layers.SqueezeExcite(channels, rd_ratio=ratio))
    x, state = images((2, 5, 6, channels)), theirs.state_dict()
    params = {
        layer: {
            "kernel": state[f"{layer}.weight"].numpy()[..., 0, 0].T,
            "bias": state[f"{layer}.bias"].numpy(),
        }
        for layer in ("fc1", "fc2")
    }
    module = SqueezeExcite(ratio)
    expected = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)  # as many hidden channels
    assert_near(module.apply({"params": params}, x), channels_last(theirs(channels_first(x))))


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 9, 3), (2, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_blur_pool(shape, stride):
    x = images(shape)
    blur = timm.layers.BlurPool2d(3, stride=2)
    blur.stride = stride  # timm pads by the stride as well, by one pixel whatever it is
    assert blur.padding == [1] * 4
    assert_near(blur_pool(x, stride), channels_last(blur(channels_first(x))))


@pytest.mark.parametrize(("rank", "size"), [(r, s) for r in (1, 2, 3) for s in (1, 2, 5, 6) if (r, s) != (3, 1)])
def test_average_pool(rank, size):
    x = images((2, *(size + axis for axis in range(rank)), 3))
    theirs = AVERAGES[rank](channels_first(x), 2, 2, ceil_mode=True, count_include_pad=False)
    assert_near(average_pool(x, 2), channels_last(theirs))


def test_average_pool_at_every_pixel():
    x = images((2, 5, 6, 3))
    theirs = functional.pad(channels_first(x), (0, 1, 0, 1), mode="replicate")  # a pair past the end is twice the last
    assert_near(average_pool(x, 1), channels_last(functional.avg_pool2d(theirs, 2, 1)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("window", [(3, 2, 1), (3, 1, 1), (2, 2, 0), (3, 2, 0)], ids=str)
def test_max_pool(rank, window):
    x = images(SHAPES[rank]) - 3  # below zero, so that padding by zeros would be seen
    np.testing.assert_array_equal(max_pool(x, *window), channels_last(MAXIMA[rank](channels_first(x), *window)))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_group_norm(rank):
    # Two channels to a group; some of their variances are no larger than epsilon
    x, scale, bias = images(SHAPES[rank]) * np.geomspace(1e-3, 1, 8, dtype=np.float32), images(8, 1), images(8, 2)
    module = group_norm(use_running_average=False, num_groups=4)
    theirs = functional.group_norm(channels_first(x), 4, torch.tensor(scale), torch.tensor(bias), 1e-5)
    assert_near(module.apply({"params": {"scale": scale, "bias": bias}}, x), channels_last(theirs))


def test_group_norm_has_the_groups_of_big_transfer():
    x = images((2, 3, 3, 64))
    module = group_norm(use_running_average=True)
    theirs = timm.layers.GroupNormAct(64, 32, apply_act=False)
    assert theirs.eps == module.epsilon
    ours = module.apply({"params": {"scale": np.ones(64), "bias": np.zeros(64)}}, x)
    assert_near(ours, channels_last(theirs(channels_first(x))))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm(rank, train):
    layer = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)[rank - 1](8).train(train)
    sizes = np.geomspace(1e-3, 1, 8, dtype=np.float32)  # some variances are no larger than epsilon
    x = sizes * (images(SHAPES[rank]) + 1)
    scale, bias, mean, var = images(8, 1), images(8, 2), images(8, 3) / 4 + 1, sizes**2 * (1 + images(8, 4) ** 2)
    v = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    with torch.no_grad():
        for name, value in {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}.items():
            getattr(layer, name).copy_(torch.tensor(value))
    inputs = channels_first(x).requires_grad_()
    theirs = layer(inputs)
    theirs.sin().sum().backward()

    module = BatchNorm(use_running_average=not train)

    def loss(params, x):
        y, updated = module.apply({**v, "params": params}, x, mutable=["batch_stats"])
        return jnp.sin(y).sum(), (y, updated["batch_stats"])

    (grad, grad_x), (y, updated) = jax.grad(loss, (0, 1), has_aux=True)(v["params"], x)
    np.testing.assert_allclose(y, channels_last(theirs), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(updated["mean"], layer.running_mean, rtol=1e-5)
    np.testing.assert_allclose(updated["var"], layer.running_var, rtol=1e-4)
    assert bool(np.array_equal(updated["mean"], mean)) is not train
    for ours, expected in (
        (grad["scale"], layer.weight.grad.numpy()),
        (grad["bias"], layer.bias.grad.numpy()),
        (grad_x, channels_last(inputs.grad)),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
