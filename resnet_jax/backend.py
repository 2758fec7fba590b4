"""What has to be said to the compiler so that it computes what was written."""

from functools import lru_cache

import jax

# A family of fusions that XLA applies on CPUs since jaxlib 0.10.2. In 0.10.2 it returns wrong sums of products
# (jax-ml/jax#39103); in 0.11.2 and 0.12.0 a ResNet-20 in bfloat16 answers NaN (tests/test_backend.py). Without it the
# digits train 1 to 3 % slower on two cores, with any of the three.
_WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}


# Barriers, as of `resnet_jax.model.kernels.once`, hold until code is generated; on CPUs XLA drops them before it fuses.
_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@lru_cache
def compiler_options() -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=...)` of networks: on CPUs they keep faulty and slow fusions out.

    Empty on other backends; without an option that the compiler no longer knows.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for option in (_WITHOUT_YNN, _BARRIERS) if _is_known(option) for name, value in option.items()}


def _is_known(option: dict[str, str]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=option)()
    except jax.errors.JaxRuntimeError:
        return False
    return True
