"""Where a step takes its gradient: at the parameters, at a point that the optimiser names, or up the slope."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.optim.schedule_free import gradient_point
from resnet_jax.recipe import Optimizer

# Parameters -> a NamedTuple with the gradients there under "grads", and anything else
GradientOf = Callable[[Any], Any]
# (gradients by parameters, optimiser state, parameters) -> the gradients of the step
GradientRule = Callable[[GradientOf, optax.OptState, Any], Any]

# Norm below which a gradient has no direction
_TINY = 1e-12


def make_gradient_rule(optimizer: Optimizer, *, given: bool = False) -> GradientRule | None:
    """Return where the steps of an optimiser take their gradient; None is at the parameters.

    Args:
        optimizer: of the recipe.
        given: the optimiser is a value of the caller, and the recipe's name and b1 are not its own.
    """
    schedule_free = optimizer.name.startswith("schedule_free") and not given
    if not schedule_free and not optimizer.sam_rho:
        return None

    def rule(gradient_of: GradientOf, opt_state: optax.OptState, params: Any) -> Any:
        point = gradient_point(opt_state, params, optimizer.b1) if schedule_free else params
        return sharpness_aware(gradient_of, point, optimizer.sam_rho) if optimizer.sam_rho else gradient_of(point)

    return rule


def sharpness_aware(gradient_of: GradientOf, params: Any, rho: float) -> Any:
    """Return what is computed at the parameters, with the gradients at a distance `rho` up the slope from them.

    Reference:
        Foret et al. 2021, equations 2 and 3.
    """
    here = gradient_of(params)
    scale = rho / jnp.maximum(optax.tree.norm(here.grads), _TINY)
    above = jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), params, here.grads)
    return here._replace(grads=gradient_of(above).grads)
