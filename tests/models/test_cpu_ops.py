"""Each fast formula against the plain one: values and gradients, shapes, transformations, and where it is taken."""

from functools import partial

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from resnet_jax.models import cpu_ops as kernels
from resnet_jax.models.layers import Conv, SpaceToDepthConv, extents, max_pool

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}  # sums in another order
P = jax.P

# groups, batch, spatial axes, channels
GROUPED = [(1, 8, 3), (2, 1, 7, 3), (1, 4, 7, 6, 3), (3, 2, 5, 5, 2), (1, 1, 1, 1, 3), (2, 2, 3, 4, 5, 3)]
# shape of the images, window, strides, padding
WINDOWS = [
    ((2, 9, 3), (3,), (2,), (1,)),
    ((1, 7, 8, 3), (3, 3), (2, 2), (1, 1)),
    ((2, 6, 7, 3), (3, 3), (1, 1), (1, 1)),
    ((2, 7, 6, 3), (2, 2), (2, 2), (0, 0)),
    ((2, 8, 9, 3), (3, 3), (2, 2), (0, 0)),
    ((1, 4, 5, 6, 2), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
]


def normal(shape, seed, dtype):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def seen(function, fast):
    """A function of arrays to value, derivative along a direction and gradients of one."""

    def loss(*inputs):
        y = function(*inputs)
        return (y * jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum(), y

    def everything(*inputs):
        with kernels.cpu_kernels(fast):
            (_, y), grads = jax.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True)(*inputs)
            return y, grads, jax.jvp(function, inputs, jax.tree.map(jnp.cos, inputs))[1]

    return everything


def comparison(function):
    """Both formulas of a function, compiled together: with one call of the compiler, which costs most here."""
    ways = [seen(function, fast) for fast in (True, False)]
    both = jax.jit(lambda *inputs: [way(*inputs) for way in ways], compiler_options=QUICKLY)

    def compare(*inputs):
        chex.assert_trees_all_close(*both(*inputs), **(FLOAT64 if inputs[0].dtype == np.float64 else FLOAT32))

    return compare


def assert_same(function, *inputs):
    comparison(function)(*inputs)


def assert_all_same(*cases):
    """As `assert_same` of each case, a function and its input, compiled together."""
    ways = [[seen(function, fast) for function, _ in cases] for fast in (True, False)]
    inputs = [x for _, x in cases]
    both = jax.jit(
        lambda *inputs: [[one(x) for one, x in zip(way, inputs, strict=True)] for way in ways],
        compiler_options=QUICKLY,
    )
    chex.assert_trees_all_close(*both(*inputs), **(FLOAT64 if inputs[0].dtype == np.float64 else FLOAT32))


# Every day in float64, in which an error of a formula shows; float32 is what all other tests compute in
@pytest.fixture(params=[pytest.param("float32", marks=pytest.mark.slow), "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.mark.parametrize("shape", GROUPED)
def test_mean_and_spread(shape, dtype):
    x = 3 + normal(shape, 0, dtype)
    assert_all_same(
        (kernels.mean, x),
        (lambda m: kernels.broadcast_stats(m, shape), x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)),
        (lambda x: jnp.square(x - kernels.broadcast_stats(kernels.mean(x), shape)), x),
    )


def test_once(dtype):
    x = normal((2, 4, 3), 0, dtype)
    assert_same(lambda x: kernels.cpu_barrier(jnp.sin(x)) * x, x)
    with kernels.cpu_kernels(True):
        chex.assert_trees_all_equal(jax.vmap(kernels.cpu_barrier)(x), x)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("shape", [(3, 7, 2), (2, 5, 6, 3), (1, 3, 4, 5, 2), (1, 1, 1, 3)])
def test_kernels_of_one_tap(shape, strides, dtype):
    x, kernel = normal(shape, 0, dtype), normal((*(1,) * (len(shape) - 2), shape[-1], 4), 1, dtype)
    strides = (strides,) * (len(shape) - 2)
    assert_same(lambda x, kernel: kernels.convolve(x, kernel, strides), x, kernel)
    formulas = (kernels.matrix_of_pixels, kernels.padded)
    both = jax.jit(lambda x, kernel: [formula(x, kernel, strides) for formula in formulas])(x, kernel)
    np.testing.assert_allclose(*both, **FLOAT32)


@pytest.mark.parametrize(("size", "window"), [(4, 1), (2, 3)])
def test_convolutions_have_second_derivatives(size, window):
    x, kernel = normal((2, size, size, 3), 0, "float32"), normal((window, window, 3, 2), 1, "float32")

    def loss(formula, x, kernel):
        return jnp.sin(formula(x, kernel, (2, 2))).sum()

    formulas = (kernels.convolve, kernels.padded)
    hessians = jax.jit(lambda x, kernel: [jax.hessian(partial(loss, f), 1)(x, kernel) for f in formulas])
    chex.assert_trees_all_close(*hessians(x, kernel), rtol=1e-4, atol=1e-5)


def test_what_stands_still_on_a_small_map_takes_no_gradient():
    x, kernel = normal((2, 2, 2, 3), 0, "float32"), normal((3, 3, 3, 2), 1, "float32")
    with kernels.cpu_kernels(False):
        text = str(jax.make_jaxpr(jax.grad(lambda kernel: kernels.convolve(x, kernel, (1, 1)).sum()))(kernel))
    assert text.count("conv_general_dilated[") == 2  # forward and the kernel's; none for x


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), WINDOWS)
def test_max_pool(shape, window, strides, padding, dtype):
    """Without ties, and with them."""
    compare, x = comparison(lambda x: kernels.max_pool(x, window, strides, padding)), normal(shape, 0, dtype)
    compare(x)
    compare(np.round(x))


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [
        ((2, 2, 3), 3, 1),
        ((2, 4, 3), 3, 2),
        ((2, 2, 2, 3), 3, 1),
        ((2, 2, 3, 3), 3, 1),
        ((2, 1, 2, 3), 5, 1),
        ((2, 3, 4, 3), 3, 2),
        ((1, 4, 6, 3), 7, 2),
        ((1, 2, 2, 2, 3), 3, 1),
        ((1, 2, 3, 4, 3), 3, 2),
    ],
)
def test_small_maps(shape, window, stride, dtype):
    x = normal(shape, 0, dtype)
    rank = len(shape) - 2
    kernel, strides = normal((*(window,) * rank, 3, 5), 1, dtype), (stride,) * rank
    assert_same(lambda x, kernel: kernels.convolve(x, kernel, strides), x, kernel)
    with kernels.cpu_kernels(True):
        text = str(jax.make_jaxpr(jax.grad(lambda x: kernels.convolve(x, kernel, strides).sum()))(x))
    assert "optimization_barrier" in text


def test_strided_convolutions_are_plain_but_in_the_gradient_of_a_map():
    x, kernel = normal((1, 8, 8, 3), 0, "float32"), normal((7, 7, 3, 2), 1, "float32")

    def loss(x, kernel):
        return jnp.sin(kernels.convolve(x, kernel, (2, 2))).sum()

    with kernels.cpu_kernels(True):
        assert "optimization_barrier" not in str(jax.make_jaxpr(jax.grad(loss, 1))(x, kernel))
        assert "optimization_barrier" in str(jax.make_jaxpr(jax.grad(loss))(x, kernel))


def test_a_size_that_is_not_known_yet_can_be_exported():
    conv = Conv(4)
    v = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    height, width = jax.export.symbolic_shape("h, w")
    exported = jax.export.export(jax.jit(conv.apply))(v, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
    x = normal((1, 2, 2, 3), 0, "float32")
    np.testing.assert_allclose(exported.call(v, x), conv.apply(v, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [
        ((1, 15, 3), 7, 2),
        ((2, 9, 8, 3), 7, 2),
        ((1, 8, 9, 3), 3, 2),
        ((2, 7, 8, 1), 5, 2),
        ((1, 8, 11, 2), 3, 3),
        ((1, 7, 8, 4), 2, 2),
        ((1, 4, 7, 9, 3), (3, 7, 7), (1, 2, 2)),
    ],
)
def test_space_to_depth(shape, window, stride, dtype):
    """With the same parameters, and really in blocks."""

    def convolved(kind):
        return lambda x, kernel: kind(5, window, stride).apply({"params": {"kernel": kernel}}, x)

    x = normal(shape, 0, dtype)
    kernel = normal((*extents(window, x.ndim - 2), shape[-1], 5), 1, dtype)
    blocked, plain = convolved(SpaceToDepthConv), convolved(Conv)
    tolerance = FLOAT64 if dtype == jnp.float64 else FLOAT32
    ways = [seen(way, True) for way in (blocked, plain)]
    both = jax.jit(lambda *inputs: [way(*inputs) for way in ways], compiler_options=QUICKLY)
    chex.assert_trees_all_close(*both(x, kernel), **tolerance)
    assert f"window_strides={(1,) * (x.ndim - 2)}" in str(jax.make_jaxpr(blocked)(x, kernel))


@pytest.mark.parametrize("fast", [True, False])
def test_of_equal_values_the_first_is_taken(fast):
    with kernels.cpu_kernels(fast):
        grad = jax.grad(lambda x: kernels.max_pool(x, (3, 3), (3, 3), (0, 0)).sum())(jnp.ones((1, 3, 3, 1)))
    assert np.flatnonzero(grad).tolist() == [0]


def test_what_is_not_a_number_is_passed_on():
    x = normal((1, 9, 9, 1), 0, "float32")
    x[0, 4, 4, 0] = np.nan
    shape = (3, 3), (1, 1), (1, 1)
    ways = (kernels.largest_of_slices, kernels.largest_in_windows)
    fast, plain = jax.jit(lambda x: [way(x, *shape) for way in ways])(x)
    assert np.isnan(fast).sum() == 9
    np.testing.assert_array_equal(fast, plain)


def network(kernel, x):
    y = jnp.sin(Conv(3, 1).apply({"params": {"kernel": kernel}}, x))
    grouped = y[:, None]  # each image by itself, so that no device needs another's
    y = (grouped - kernels.broadcast_stats(kernels.mean(grouped), grouped.shape))[:, 0]
    return jnp.sin(max_pool(y))


@pytest.mark.slow
def test_second_derivatives():
    with jax.enable_x64(True):
        x, kernel = normal((1, 5, 6, 2), 0, jnp.float64), normal((1, 1, 2, 3), 1, jnp.float64)
        assert_same(lambda kernel: jax.jvp(jax.grad(lambda k: network(k, x).sum()), (kernel,), (kernel,))[1], kernel)


def test_under_vmap():
    with jax.enable_x64(True):
        x, kernel = normal((3, 2, 5, 6, 2), 0, jnp.float64), normal((3, 1, 1, 2, 3), 1, jnp.float64)
        assert_same(jax.vmap(network), kernel, x)
        assert_same(lambda kernel: jax.vmap(network, (None, 0))(kernel, x), kernel[0])


@pytest.mark.slow
def test_under_shard_map():
    """As in a step of training: each device has its own images, and its share of the gradient."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def on_device(kernel, x):
        kernel = jax.lax.pcast(kernel, "data", to="varying")
        loss, grads = jax.value_and_grad(lambda *inputs: network(*inputs).sum(), (0, 1))(kernel, x)
        return jax.lax.psum((loss, grads[0]), "data"), grads[1]

    with jax.enable_x64(True):
        x, kernel = normal((8, 5, 6, 2), 0, jnp.float64), normal((1, 1, 2, 3), 1, jnp.float64)
        shards = jax.jit(
            jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P("data")), check_vma=True)
        )
        with kernels.cpu_kernels(False):
            loss, grads = jax.value_and_grad(lambda *inputs: network(*inputs).sum(), (0, 1))(kernel, x)
        chex.assert_trees_all_close(shards(kernel, x), ((loss, grads[0]), grads[1]), **FLOAT64)


def operations(fast, platform):
    def loss(x):
        with kernels.cpu_kernels(fast):
            return (max_pool(x) * kernels.mean(x)).sum()

    text = jax.jit(jax.grad(loss)).trace(jnp.zeros((2, 8, 8, 4))).lower(lowering_platforms=(platform,)).as_text()
    return {name for name in ("dot_general", "select_and_scatter") if f"stablehlo.{name}" in text}


@pytest.mark.parametrize(
    ("fast", "platform", "expected"),
    [
        (True, "cpu", {"dot_general"}),
        (True, "tpu", {"select_and_scatter"}),
        (True, "cuda", set()),
        (False, "cpu", {"select_and_scatter"}),
    ],
)
def test_the_platform_chooses(fast, platform, expected):
    assert operations(fast, platform) == expected


def test_the_environment_switches_them_off(monkeypatch):
    assert kernels.used()
    monkeypatch.setenv("RESNET_JAX_KERNELS", "off")
    assert not kernels.used()
    with kernels.cpu_kernels(True):
        assert kernels.used()
