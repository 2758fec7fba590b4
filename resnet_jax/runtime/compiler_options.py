"""Compiler options that keep faulty optimisations of XLA out, and the flag of determinism."""

import os
from functools import lru_cache

import jax

# Fusions that XLA applies on CPUs since jaxlib 0.10.2. In 0.10.2 they return wrong sums of products
# (jax-ml/jax#39103); in 0.11.2 and 0.12.0 a ResNet-20 in bfloat16 returns NaN (tests/runtime/test_backend.py).
# Without them the digits train 1 to 3 % slower on two cores, with each of these versions.
_WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
# Without this XLA drops `resnet_jax.models.cpu_ops.cpu_barrier` before it fuses
_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@lru_cache
def compiler_options() -> dict[str, str]:
    """Return `compiler_options` of `jax.jit` for networks: on CPUs they prevent faulty and slow fusions.

    Empty on other backends. Options unknown to the compiler are left out.

    Example:
        >>> import jax
        >>> from resnet_jax import compiler_options
        >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options())
        >>> int(step(1))
        2
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for option in (_WITHOUT_YNN, _BARRIERS) if _is_known(option) for name, value in option.items()}


def ask_for_determinism() -> None:
    """Let XLA compile programs that return the same bits each time on a GPU too; before the first use of a device.

    Added to XLA_FLAGS. XLA then chooses neither kernels that add in varying order nor the fastest by trial.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def _is_known(option: dict[str, str]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=option)()
    except jax.errors.JaxRuntimeError:
        return False
    return True
