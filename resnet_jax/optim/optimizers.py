"""The optimiser of a recipe, from optax: a pure function of gradients, optimiser state and parameters.

The state holds arrays only. Masks are functions, because they must also fit the partial trees that `optax.partition`
passes on.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import contrib

from resnet_jax.errors import unknown
from resnet_jax.optim.masks import decay_mask, frozen_mask, keys, rate_factors
from resnet_jax.optim.schedule_free import schedule_free
from resnet_jax.recipe import Optimizer

Rule = Callable[[Optimizer, optax.Schedule], optax.GradientTransformation]
Mask = Callable[[Any], Any]

# Root mean square of a Muon update, about that of AdamW (Liu et al. 2025, section 2.2)
_MUON_SCALE = 0.2


def make_optimizer(
    optimizer: Optimizer, schedule: optax.Schedule, params: Any, *, plateau: bool = False
) -> optax.GradientTransformation:
    """Return the gradient transformation of a recipe.

    Frozen parameters have no optimiser state, and their gradients are ignored.

    Args:
        optimizer: name and hyperparameters.
        schedule: step -> learning rate.
        params: the tree of parameters, or of their shapes and dtypes.
        plateau: keep a factor on the rate in the state, under the name "factor", which is 1 until it is set.

    Raises:
        InputError: The name is unknown, a pattern to freeze matches nothing, or all parameters are frozen.
    """
    if optimizer.name not in RULES:
        raise unknown("optimizer.name", optimizer.name, RULES)
    if plateau:
        # A parameter of this name, since its values are injected by name
        return optax.inject_hyperparams(
            lambda factor: make_optimizer(optimizer, lambda step: factor * schedule(step), params)
        )(factor=1.0)
    parts = [*_clips(optimizer), RULES[optimizer.name](optimizer, schedule)]
    if (optimizer.layer_decay, optimizer.head_lr_mult) != (1.0, 1.0):
        parts.append(_scaled(rate_factors(params, optimizer)))
    chain = optax.chain(*parts)
    if not optimizer.freeze:
        return chain
    frozen = frozen_mask(params, optimizer.freeze)
    labels = jax.tree.map(lambda still: "frozen" if still else "trained", frozen)
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def advance_schedules(before: Any, after: Any) -> Any:
    """Return the optimiser state before a step with the schedules of the one after it.

    The learning rate follows the step, skipped or not; momenta and the counts that correct their bias stay.
    """
    injected, averaged = optax.schedules.InjectStatefulHyperparamsState, contrib.ScheduleFreeState

    def one(old: Any, new: Any) -> Any:
        if isinstance(old, optax.ScaleByScheduleState):
            return new
        if isinstance(old, injected):
            return new._replace(inner_state=advance_schedules(old.inner_state, new.inner_state))
        if isinstance(old, averaged):
            base = advance_schedules(old.base_optimizer_state, new.base_optimizer_state)
            return old._replace(step_count=new.step_count, base_optimizer_state=base)
        return old

    kinds = (optax.ScaleByScheduleState, injected, averaged)
    return jax.tree.map(one, before, after, is_leaf=lambda node: isinstance(node, kinds))


def _scaled(factors: Any) -> optax.GradientTransformation:
    """Multiply each update by its factor; masked parts of the tree are skipped."""
    by_path = {tuple(keys(path)): factor for path, factor in jax.tree_util.tree_leaves_with_path(factors)}

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, u: by_path[tuple(keys(path))] * u, updates)

    return optax.stateless(scale)


def _clips(optimizer: Optimizer) -> list[optax.GradientTransformation]:
    clips = []
    if optimizer.clip_grad_norm:
        clips.append(optax.clip_by_global_norm(optimizer.clip_grad_norm))
    if optimizer.agc_clipping:
        clips.append(_clip_adaptive(optimizer.agc_clipping))
    return clips


def _clip_adaptive(clipping: float) -> optax.GradientTransformation:
    """Clip gradients by the norm of each output channel, the last axis of a kernel of any rank.

    Scales and biases are one unit. The axes are given because optax misreads kernels of sequences.

    Reference:
        Brock et al. 2021, section 4.1.
    """

    def rank(path: tuple[Any, ...], leaf: Any) -> str:
        return "head" if "head" in keys(path) else str(leaf.ndim)

    by_rank = {str(n): optax.adaptive_grad_clip(clipping, axis=tuple(range(n - 1)) or None) for n in range(1, 6)}
    labels = partial(jax.tree_util.tree_map_with_path, rank)
    return optax.partition({**by_rank, "head": optax.identity()}, labels)


def _scope(optimizer: Optimizer) -> Mask:
    return partial(decay_mask, scope=optimizer.weight_decay_mask)


def _decay(optimizer: Optimizer) -> optax.GradientTransformation:
    return optax.add_decayed_weights(optimizer.weight_decay, mask=_scope(optimizer))


def _sgd(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return SGD as in PyTorch: decay is added to the gradient, momentum precedes the learning rate."""
    sgd = optax.sgd(schedule, momentum=optimizer.momentum or None, nesterov=optimizer.nesterov)
    return optax.chain(_decay(optimizer), sgd)


def _rmsprop(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return RMSProp as in TensorFlow and timm's RMSpropTF: momentum follows the learning rate."""
    rmsprop = optax.rmsprop(
        schedule, decay=optimizer.b2, eps=optimizer.eps, initial_scale=1.0, momentum=optimizer.momentum or None
    )
    return optax.chain(_decay(optimizer), rmsprop)


def _adam(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Adam as in PyTorch: decay is added to the gradient."""
    return optax.chain(_decay(optimizer), optax.adam(schedule, optimizer.b1, optimizer.b2, optimizer.eps))


def _lion(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(schedule, optimizer.b1, optimizer.b2, weight_decay=optimizer.weight_decay, mask=_scope(optimizer))


def _adafactor(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Adafactor without momentum; decay is decoupled and follows the learning rate, as in AdamW."""
    adafactor = optax.adafactor(None, weight_decay_rate=optimizer.weight_decay, weight_decay_mask=_scope(optimizer))
    # Without a rate of its own, it returns updates to be subtracted, already with their sign
    return optax.chain(adafactor, optax.scale_by_schedule(schedule))


def _schedule_free_sgd(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    return schedule_free(optax.chain(_decay(optimizer), optax.sgd(schedule)), schedule, optimizer.b1)


def _schedule_free_adamw(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    return schedule_free(_adamw(replace(optimizer, b1=0.0), schedule), schedule, optimizer.b1)


def _adamw(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        mask=_scope(optimizer),
    )


def _lamb(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return LAMB; parameters that do not decay follow Adam, without a trust ratio.

    Reference:
        You et al. 2020, algorithm 2.
    """
    return optax.chain(
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps),
        _decay(optimizer),
        optax.masked(optax.scale_by_trust_ratio(), _scope(optimizer)),
        optax.scale_by_learning_rate(schedule),
    )


def _lars(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return LARS; parameters that do not decay follow SGD, without a trust ratio.

    Reference:
        You et al. 2017, algorithm 1.
    """
    return optax.chain(
        optax.masked(_layer_rates(optimizer), _scope(optimizer)),
        optax.scale_by_learning_rate(schedule),
        optax.trace(optimizer.momentum, optimizer.nesterov) if optimizer.momentum else optax.identity(),
    )


def _layer_rates(optimizer: Optimizer) -> optax.GradientTransformation:
    """Add the decay to each gradient and multiply the sum by the layer's trust ratio.

    The ratio divides by the sum of both norms; `optax.lars` divides by the norm of the sum. It is 1 if a norm is 0.

    Reference:
        You et al. 2017, equation 6.
    """
    decay, trust, eps = optimizer.weight_decay, optimizer.trust_coefficient, optimizer.eps

    def one(gradient: Array, param: Array) -> Array:
        weight, slope = jnp.linalg.norm(param.ravel()), jnp.linalg.norm(gradient.ravel())
        both = (weight > 0) & (slope > 0)
        rate = trust * weight / jnp.where(both, slope + decay * weight + eps, 1.0)
        return jnp.where(both, rate, 1.0) * (gradient + decay * param)

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params))


def _muon(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon for convolutions, as matrices (inputs, outputs), and AdamW for the rest and the head.

    Reference:
        Jordan et al. 2024; decay as in Liu et al. 2025, section 2.2.
    """
    orthogonal = contrib.scale_by_muon(
        beta=optimizer.momentum,
        eps=optimizer.eps,
        nesterov=optimizer.nesterov,
        weight_dimension_numbers=partial(jax.tree.map, _matrix),
    )
    rate = optax.scale_by_learning_rate(schedule)
    muon = optax.chain(orthogonal, optax.stateless(_sized), _decay(optimizer), rate)
    return optax.partition({"muon": muon, "adamw": _adamw(optimizer, schedule)}, _muon_or_adamw)


def _muon_or_adamw(params: Any) -> Any:
    def rule(path: tuple[Any, ...], leaf: Any) -> str:
        return "muon" if leaf.ndim > 2 and "head" not in keys(path) else "adamw"

    return jax.tree_util.tree_map_with_path(rule, params)


def _matrix(kernel: Array) -> contrib.MuonDimensionNumbers:
    """Return the input and output axes of a kernel (spatial..., in, out) as a matrix."""
    return contrib.MuonDimensionNumbers(tuple(range(kernel.ndim - 1)), (kernel.ndim - 1,))


def _sized(updates: Any, params: Any) -> Any:
    """Scale orthogonal updates to the same root mean square for any shape (Liu et al. 2025, equation 4)."""
    return jax.tree.map(lambda u: u * _MUON_SCALE * max(u.shape[-1], u.size // u.shape[-1]) ** 0.5, updates)


RULES: dict[str, Rule] = {
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "lamb": _lamb,
    "lars": _lars,
    "muon": _muon,
    "schedule_free_sgd": _schedule_free_sgd,
    "schedule_free_adamw": _schedule_free_adamw,
}
