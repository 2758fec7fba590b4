"""The compiler computes what was written."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY

from resnet_jax.models import cpu_ops as kernels
from resnet_jax.runtime.compiler_options import ask_for_determinism, compiler_options
from resnet_jax.weights.load import create_model

# As users compile, whatever the other tests do: these are of the compiler
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def jitted(function):
    return jax.jit(function, compiler_options=compiler_options() | OPTIMIZED)


def test_the_compiler_knows_the_options():
    assert "xla_cpu_experimental_ynn_fusion_type" in compiler_options(), "see whether the fault is gone, too"


def test_determinism_is_asked_of_every_backend(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    ask_for_determinism()
    code = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "2\n"), "XLA ends the process for a flag that it does not know"
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"


def test_what_stands_before_a_barrier_is_computed_once():
    def shared(x, y):
        z = kernels.cpu_barrier(jax.nn.relu(x + y))
        return z.T * 2, z + 1

    x = jnp.ones((8, 8))
    text = jitted(shared).lower(x, x).compile().as_text()
    assert "opt-barrier" in text
    assert text.count("maximum(") == 1
    np.testing.assert_array_equal(jitted(shared)(x, x)[0], 4)


@pytest.mark.slow
def test_half_precision_resnet20_is_finite():
    """NaN under a plain jit with jaxlib 0.11.2 and 0.12.0; the fault needs this depth, size and shortcut."""
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    model = create_model("resnet20", dtype=jnp.bfloat16)
    v = jax.jit(model.init, compiler_options=QUICKLY)(jax.random.key(1), x)
    half = jitted(model.apply)(v, x)
    exact = jax.jit(create_model("resnet20").apply, compiler_options=compiler_options() | QUICKLY)(v, x)
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(v)} == {jnp.dtype(jnp.float32)}
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=0.02)


def test_sums_of_products_are_right():
    """Wrong by 0.8 % under a plain jit with jaxlib 0.10.2 (jax-ml/jax#39103)."""
    n = 32_769
    rows = jnp.arange(n, dtype=jnp.float32)[:, None] * jnp.array([[1.0, 0, 0]])
    norms = jitted(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    assert float(norms[-1]) == float(n - 1) ** 2
