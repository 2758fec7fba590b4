"""3x3 convolutions with and without machine code: derivatives, transformations, and where machine code is called."""

import concurrent.futures
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from resnet_jax.models import cpu_conv3x3, cpu_ops
from resnet_jax.models.cpu_conv3x3 import conv3x3, plain

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
P = jax.P
needs_llvmlite = pytest.mark.skipif(find_spec("llvmlite") is None, reason="needs llvmlite")


def normal(*shape, dtype=np.float64):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def ours(x, kernel, stride=1):
    return conv3x3(x, kernel, stride)


def xla(x, kernel, stride=1):
    return plain(x, kernel, want="y", size=x.shape[-3:-1], stride=stride)


@pytest.fixture(
    params=["formulas", *(pytest.param(kind, marks=needs_llvmlite) for kind in ("machine code", "both"))],
)
def machine_code(request, monkeypatch):
    # Small networks test all formulas
    monkeypatch.setattr(cpu_conv3x3, "FEWEST_CHANNELS", dict.fromkeys("yxk", 24))
    if request.param == "both":
        monkeypatch.setattr(cpu_conv3x3, "CHANNELS_BEYOND_CODE", dict.fromkeys("yxk", 24))
        monkeypatch.setattr(cpu_conv3x3, "PIXELS_PER_CHANNEL", 1)
    if request.param == "formulas":
        monkeypatch.setattr(cpu_conv3x3, "machine_code", lambda: None)
    jax.clear_caches()
    yield request.param != "formulas"
    jax.clear_caches()


def loss(convolve, x, kernel):
    y = convolve(x, kernel)
    return (jnp.sin(y) * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()


def assert_same(transformed, *inputs):
    """A function of a convolution, made with ours and with XLA's, compiled together."""
    both = jax.jit(lambda *inputs: [transformed(way)(*inputs) for way in (ours, xla)], compiler_options=QUICKLY)
    chex.assert_trees_all_close(*both(*inputs), **FLOAT64)


@needs_llvmlite
def test_without_avx512(monkeypatch):
    """The code for processors with 16 registers of half the size."""
    from resnet_jax.models import cpu_codegen, cpu_tiles

    monkeypatch.setattr(cpu_tiles, "registers", lambda: cpu_codegen.Registers(256, 16))
    with jax.enable_x64(True):
        x, kernel = normal(2, 4, 9, 8), normal(3, 3, 8, 20)
        for stride in (1, 2):
            assert_same(
                lambda way, s=stride: jax.value_and_grad(partial(loss, partial(way, stride=s)), (0, 1)), x, kernel
            )
    jax.clear_caches()


@pytest.mark.parametrize(
    "sizes",
    [
        # One pixel; two; odd; features in one vector, in two and in ten; a stem; tiles of several widths; Winograd
        (1, 1, 1, 16, 16),
        (5, 2, 1, 24, 16),
        (3, 2, 2, 8, 16),
        (2, 3, 4, 8, 16),
        (3, 5, 7, 3, 16),
        (2, 9, 13, 32, 80),
        (2, 3, 58, 5, 32),
        (17, 2, 3, 24, 32),
        (2, 4, 4, 3, 5),
        (1, 14, 15, 24, 40),
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_results_and_gradients(machine_code, sizes, stride):
    batch, height, width, channels, features = sizes
    with jax.enable_x64(True):
        x, kernel = normal(batch, height, width, channels), normal(3, 3, channels, features)
        assert_same(lambda way: jax.value_and_grad(partial(loss, partial(way, stride=stride)), (0, 1)), x, kernel)


def test_float32_is_as_exact_as_xla(machine_code):
    """Largest errors against float64, of the result, the gradient of the image and that of the kernel."""
    x, kernel = normal(2, 14, 14, 32, dtype=np.float32), normal(3, 3, 32, 32, dtype=np.float32) / 17

    def everything(way, x, kernel):
        y, transpose = jax.vjp(way, x, kernel)
        return y, *transpose(jnp.cos(y))

    found = jax.jit(lambda *inputs: [everything(way, *inputs) for way in (ours, xla)])(x, kernel)
    with jax.enable_x64(True):
        exact = jax.device_get(jax.jit(partial(everything, xla))(x.astype(float), kernel.astype(float)))
    for mine, plainly, true in zip(*jax.device_get(found), exact, strict=True):
        errors = [np.abs(each - true).max() / np.abs(true).max() for each in (mine, plainly)]
        assert errors[0] < max(2 * errors[1], 2e-6)


def test_derivatives_of_every_order(machine_code):
    with jax.enable_x64(True):
        x, kernel = normal(2, 4, 5, 8), normal(3, 3, 8, 16)
        moved = jnp.cos(x), jnp.cos(kernel)

        def forward_over_reverse(way):
            return lambda *inputs: jax.jvp(jax.grad(partial(loss, way), (0, 1)), inputs, moved)

        def reverse_over_reverse(way):
            inner = jax.grad(partial(loss, way), 1)
            return jax.grad(lambda *inputs: jnp.sin(inner(*inputs)).sum(), (0, 1))

        assert_same(forward_over_reverse, x, kernel)
        assert_same(reverse_over_reverse, x, kernel)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 2)])
def test_under_vmap(machine_code, axes):
    with jax.enable_x64(True):
        shapes = [(2, 4, 5, 8), (3, 3, 8, 16)]
        inputs = [
            normal(*shape) if axis is None else np.moveaxis(normal(3, *shape), 0, axis)
            for shape, axis in zip(shapes, axes, strict=True)
        ]
        assert_same(lambda way: jax.vmap(jax.value_and_grad(partial(loss, way), (0, 1)), axes), *inputs)


def test_under_shard_map(machine_code):
    """Each device its own images and the same kernel, whose gradients are summed."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def on_device(way, x, kernel):
        value, (of_x, of_kernel) = jax.value_and_grad(lambda *i: jnp.sin(way(*i)).sum(), (0, 1))(x, kernel)
        return jax.lax.psum(value, "data"), of_x, of_kernel

    specs = {"in_specs": (P("data"), P()), "out_specs": (P(), P("data"), P())}
    with jax.enable_x64(True):
        x, kernel = normal(8, 4, 5, 8), normal(3, 3, 8, 16)
        assert_same(lambda way: jax.shard_map(partial(on_device, way), mesh=mesh, **specs), x, kernel)


def convolved(x, kernel):
    return cpu_ops.convolve(x, kernel, (1, 1))


def strided(x, kernel):
    return cpu_ops.convolve(x, kernel, (2, 2))


def targets(lowered):
    return lowered.as_text().count("@resnet_jax_conv3x3")


@needs_llvmlite
def test_machine_code_is_called_on_one_cpu_alone():
    x, kernel = normal(8, 6, 7, 16, dtype=np.float32), normal(3, 3, 16, 16, dtype=np.float32)
    step = jax.jit(jax.grad(partial(loss, convolved), (0, 1)))
    assert targets(step.lower(x, kernel)) == 3
    assert targets(jax.jit(strided).lower(x, kernel)) == 1
    for platform in ("tpu", "cuda"):
        assert targets(step.trace(x, kernel).lower(lowering_platforms=(platform,))) == 0
    with cpu_ops.cpu_kernels(False):
        assert targets(jax.jit(lambda x: convolved(x, kernel)).lower(x)) == 0
    exported = jax.export.export(jax.jit(ours))(x, kernel)
    assert "@resnet_jax_conv3x3" not in exported.mlir_module()


@needs_llvmlite
def test_a_program_that_xla_partitions_has_none():
    """XLA would gather all images for it on every device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(normal(8, 4, 5, 16, dtype=np.float32), jax.NamedSharding(mesh, P("data")))
    kernel = jax.device_put(normal(3, 3, 16, 16, dtype=np.float32), jax.NamedSharding(mesh, P()))
    lowered = jax.jit(ours).lower(x, kernel)
    assert targets(lowered) == 0
    assert "all-gather" not in lowered.compile().as_text()


def test_elsewhere_the_program_is_xlas():
    x, kernel = normal(2, 4, 5, 16, dtype=np.float32), normal(3, 3, 16, 16, dtype=np.float32)

    def operations(way):
        traced = jax.jit(jax.grad(partial(loss, way), (0, 1))).trace(x, kernel)
        lines = traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
        # Without the names of values
        return sorted(line.split(")", 1)[1] for line in lines if "convolution(" in line)

    assert len(operations(ours)) == 3
    assert operations(ours) == operations(xla)


@needs_llvmlite
def test_calls_overlap():
    """From several threads, and two in one program; each result is the same every time."""
    x, kernel = normal(16, 9, 9, 32, dtype=np.float32), normal(3, 3, 32, 32, dtype=np.float32)

    @jax.jit
    def two(x, kernel):
        return ours(x, kernel), jax.grad(partial(loss, ours), 1)(x + 1, kernel)

    first = jax.device_get(two(x, kernel))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: jax.device_get(two(x, kernel)), range(64)):
            chex.assert_trees_all_equal(found, first)


FORKED = """
import os, sys
import jax, numpy as np
from resnet_jax.models.cpu_conv3x3 import conv3x3
x, kernel = np.ones((4, 5, 6, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
child = os.fork()
total = float(jax.jit(conv3x3)(x, kernel).sum())
assert total == 4 * 16 * 16 * (3 * 5 - 2) * (3 * 6 - 2), total
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_llvmlite
@pytest.mark.slow
def test_after_a_fork():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)
