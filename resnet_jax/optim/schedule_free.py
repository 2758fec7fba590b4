"""Schedule-free optimisation: the parameters are averages, and gradients are taken between them and the last iterate.

Reference:
    Defazio et al. 2024, algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib


def schedule_free(
    base: optax.GradientTransformation, schedule: optax.Schedule, b1: float
) -> optax.GradientTransformation:
    """Return a schedule-free optimiser whose parameters are the averages x, those to evaluate.

    Its gradients are taken at `gradient_point`.
    """
    # optax's own keeps y and computes x from it, which moves x by rounding even if nothing else does
    init = contrib.schedule_free(base, schedule, b1=b1).init

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        # The count of this state starts at 1
        max_lr = jnp.maximum(state.max_lr, jnp.asarray(schedule(state.step_count - 1), state.max_lr.dtype))
        total = state.weight_sum + max_lr**2
        share = jnp.where(total > 0, max_lr**2 / jnp.where(total > 0, total, 1), 0)
        steps, base_state = base.update(grads, state.base_optimizer_state, _interpolate(state.z, params, b1))
        z = jax.tree.map(jnp.add, state.z, steps)
        state = contrib.ScheduleFreeState(state.b1, total, state.step_count + 1, max_lr, base_state, z)
        return jax.tree.map(lambda z, x: (share * (z - x)).astype(x.dtype), z, params), state

    return optax.GradientTransformation(init, update)


def gradient_point(state: optax.OptState, params: Any, b1: float) -> Any:
    """Return y, where a schedule-free optimiser takes its gradient."""
    return _interpolate(optax.tree.get(state, "z"), params, b1)


def _interpolate(z: Any, params: Any, b1: float) -> Any:
    """Return (1 - b1) z + b1 x; frozen parameters have no z."""

    def one(z: Any, x: Any) -> Any:
        return x if isinstance(z, optax.MaskedNode) else (1 - b1) * z + b1 * x

    return jax.tree.map(one, z, params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
