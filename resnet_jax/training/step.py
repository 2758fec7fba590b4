"""One step of training and of evaluation: pure functions of the state and a batch."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from resnet_jax.input_pipeline.device_input import StepInput, gather_batch
from resnet_jax.input_pipeline.preprocess import Preprocess
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.optim.gradient import GradientRule
from resnet_jax.optim.optimizers import advance_schedules
from resnet_jax.parallel.grad_accumulation import Accumulate
from resnet_jax.tasks.metric import Metric, measure_all
from resnet_jax.training.state import TrainState

# (params, batch_stats, batch, rngs) -> losses (b,), or numerators and weights (b,); and (outputs, batch_stats)
Objective = Callable[[dict[str, Any], dict[str, Any], Batch, dict[str, Array]], tuple[Any, tuple[Any, dict[str, Any]]]]

# Folded into the key of a step like the number of a row; no row has this one
_DROPOUT = 2**32 - 1


class MicrobatchGrads(NamedTuple):
    """What a microbatch adds to the batch; sum it over all microbatches."""

    grads: dict[str, Any]
    """Gradients of the sum of the losses."""
    batch_stats: dict[str, Any]
    """Running statistics, updated by these examples alone."""
    sums: dict[str, Any]
    """Sums of the metrics, of the loss and of its weights."""
    count: Array  # type: ignore[assignment]
    """() float32, 1 per microbatch."""


def make_objective(model: nn.Module, loss: Callable[[Any, Any], Any], frozen: Any = None) -> Objective:
    """Return the objective of a network: its loss on a batch, with outputs and updated statistics.

    A network whose `__call__` takes `rows` is given the places of the examples in the whole batch, so that what it
    draws for an example does not depend on the devices. One that takes `targets`, such as Faster R-CNN, is given them.

    Args:
        model: the network.
        loss: (outputs, targets) -> losses (b,), or numerators and weights (b,).
        frozen: a tree of bools like the parameters: those that the optimiser ignores need no gradient.

    Example:
        >>> objective = make_objective(nn.Dense(2), lambda outputs, targets: jnp.square(outputs - targets).sum(-1))
    """
    takes = inspect.signature(type(model).__call__).parameters

    def objective(
        params: dict[str, Any], batch_stats: dict[str, Any], batch: Batch, rngs: dict[str, Array]
    ) -> tuple[Any, Any]:
        if frozen is not None:
            params = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)
        known = {"rows": batch.rows, "targets": batch.target}
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.image,
            train=True,
            mutable=["batch_stats"],
            rngs=rngs,
            **{name: value for name, value in known.items() if name in takes},
        )
        return loss(outputs, batch.target), (outputs, updated.get("batch_stats", {}))

    return objective


def microbatch_grads(
    fixed: tuple[dict[str, Any], dict[str, Any], Array],
    batch: Batch,
    *,
    objective: Objective,
    preprocess: Preprocess,
    metrics: Mapping[str, Metric],
    key: Array,
) -> MicrobatchGrads:
    """Return gradients and sums of some rows of a batch; `fixed` is parameters, statistics and number of the step."""
    params, batch_stats, step = fixed
    batch, mask = preprocess(key, step, batch), jnp.asarray(batch.mask)
    rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, step), _DROPOUT)}
    losses, vjp, (outputs, updated) = jax.vjp(lambda p: objective(p, batch_stats, batch, rngs), params, has_aux=True)
    weighted = isinstance(losses, tuple)
    numerators, weights = losses if weighted else (losses, mask.astype(jnp.int32))
    ones = mask.astype(numerators.dtype)
    (grads,) = vjp((ones, jnp.zeros_like(weights)) if weighted else ones)
    sums = measure_all(metrics, outputs, batch.target, mask)
    sums |= {"loss": jnp.where(mask, numerators, 0).sum(), "weight": jnp.where(mask, weights, 0).sum()}
    return MicrobatchGrads(grads, updated, sums, jnp.float32(1))


def train_step(
    state: TrainState,
    inputs: StepInput,
    key: Array,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    metrics: Mapping[str, Metric] = {},
    accumulate: Accumulate | None = None,
    gradient_rule: GradientRule | None = None,
    update_ema: Callable[[TrainState], dict[str, Any]] | None = None,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
    """Take a step of gradient descent on the mean loss of a batch.

    Args:
        state: the state before the step; donate it.
        inputs: the whole batch; its mask marks padding.
        key: random key, combined with `state.step` and the rows of the batch.
        objective: returns losses, outputs and updated statistics of a batch.
        optimizer: updates the parameters.
        preprocess: raw batch to network input.
        metrics: metrics to measure on the training images.
        accumulate: sums over microbatches and devices; None takes the whole batch at once.
        gradient_rule: point at which the gradient is taken; None is the parameters.
        update_ema: the state after the step -> its EMA; None keeps the old one.
        skip_nonfinite: if the loss or gradient is not finite, change nothing but the clocks.

    Returns:
        The state after the step, and sums computed with the state before it: those of `metrics`, "loss", "weight",
        "count" and "nonfinite_steps".

    Example:
        >>> def objective(params, batch_stats, batch, rngs):
        ...     return jnp.square(batch.image @ params - batch.target), (batch.image, batch_stats)
        >>> parts = {"objective": objective, "optimizer": optax.sgd(0.1), "preprocess": lambda key, step, batch: batch}
        >>> state = TrainState(jnp.int32(0), jnp.ones(3), {}, optax.sgd(0.1).init(jnp.ones(3)))
        >>> state, sums = train_step(state, Batch(jnp.ones((4, 3)), jnp.zeros(4), None), jax.random.key(0), **parts)
        >>> int(state.step), int(sums["count"])
        (1, 4)
    """
    batch, fixed = gather_batch(inputs), (state.batch_stats, state.step)
    grads_of = partial(microbatch_grads, objective=objective, preprocess=preprocess, metrics=metrics, key=key)
    if accumulate is not None:
        grads_of = partial(accumulate, grads_of)
    if gradient_rule is None:
        total = grads_of((state.params, *fixed), batch)
    else:
        total = gradient_rule(lambda params: grads_of((params, *fixed), batch), state.opt_state, state.params)
    # A batch without any label has no gradient, and not 0 / 0
    weight = jnp.where(total.sums["weight"] == 0, 1, total.sums["weight"])
    grads = jax.tree.map(lambda g: g / weight, total.grads)
    batch_stats = jax.tree.map(lambda s: s / total.count, total.batch_stats)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    after = TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state, state.ema)
    after = after if update_ema is None else after.replace(ema=update_ema(after))
    finite = jnp.isfinite(total.sums["loss"]) & jnp.isfinite(optax.tree.norm(grads))
    after, sums = _unless_nonfinite(finite, state, after, total.sums) if skip_nonfinite else (after, total.sums)
    return after, {**sums, "nonfinite_steps": jnp.where(finite, 0, 1)}


def _unless_nonfinite(
    finite: Array, before: TrainState, after: TrainState, sums: dict[str, Any]
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state after a step and its sums; if it was not finite, the one before it with the clocks moved on."""
    opt_state = advance_schedules(before.opt_state, after.opt_state)
    unchanged = before.replace(step=after.step, opt_state=opt_state), jax.tree.map(jnp.zeros_like, sums)
    kept: tuple[TrainState, dict[str, Any]] = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (after, sums), unchanged
    )
    return kept


def eval_step(
    state: TrainState,
    inputs: StepInput,
    *,
    model: nn.Module,
    metrics: Mapping[str, Metric],
    normalize: Callable[[Array], Array],
) -> dict[str, Any]:
    """Return the metric sums of a batch, using the running statistics; padding does not count.

    Args:
        state: parameters and statistics to evaluate.
        inputs: uint8 images, targets and mask.
        model: the network.
        metrics: by name.
        normalize: uint8 images to network input.

    Example:
        >>> class Identity(nn.Module):
        ...     def __call__(self, x, *, train):
        ...         return x
        >>> state = TrainState(jnp.int32(0), {}, {}, (), {})
        >>> batch = Batch(jnp.eye(3), jnp.array([0, 1, 0]), jnp.array([True, True, False]))
        >>> options = {"model": Identity(), "metrics": {}, "normalize": lambda x: x}
        >>> int(eval_step(state, batch, **options)["count"])
        2
    """
    batch, variables = gather_batch(inputs), {"params": state.params, "batch_stats": state.batch_stats}
    outputs = model.apply(variables, normalize(jnp.asarray(batch.image)), train=False)
    return measure_all(metrics, outputs, batch.target, jnp.asarray(batch.mask))
