"""One step of training and of evaluation: pure functions of the state and a batch."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from resnet_jax.input_pipeline.preprocess import Preprocess
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.parallel.grad_accumulation import Accumulate
from resnet_jax.tasks.metrics import Metric, measure_all
from resnet_jax.training.state import TrainState

# (params, batch_stats, batch, rngs) -> losses (b,), or numerators and weights (b,); and (outputs, batch_stats)
Objective = Callable[[dict, dict, Batch, dict[str, Array]], tuple[Any, tuple[Any, dict]]]

# Folded into the key of a step like the number of a row; no row has this one
_DROPOUT = 2**32 - 1


class MicrobatchGrads(NamedTuple):
    """What a microbatch adds to the batch; sum it over all microbatches."""

    grads: dict
    """Gradients of the sum of the losses."""
    batch_stats: dict
    """Running statistics, updated by these examples alone."""
    sums: dict[str, Any]
    """Sums of the metrics, of the loss and of its weights."""
    count: Array  # type: ignore[assignment]
    """() float32, 1 per microbatch."""


class StepStatus(NamedTuple):
    """What the loop reads of a step."""

    sums: dict[str, Any]
    """Sums over the batch: "loss", "weight", "count", "nonfinite_steps" and the task's train metrics."""
    nonfinite: Array
    """() int32, 1 if the loss or gradient was not finite."""


def make_objective(model: nn.Module, loss: Callable[[Any, Any], Any]) -> Objective:
    """Return the objective of a network: its loss on a batch, with outputs and updated statistics.

    A network whose `__call__` takes `rows` is given the places of the examples in the whole batch, so that what it
    draws for an example does not depend on the devices.

    Example:
        >>> objective = make_objective(nn.Dense(2), lambda outputs, targets: jnp.square(outputs - targets).sum(-1))
    """
    takes_rows = "rows" in inspect.signature(type(model).__call__).parameters

    def objective(params: dict, batch_stats: dict, batch: Batch, rngs: dict[str, Array]) -> tuple[Any, Any]:
        rows: dict[str, Any] = {"rows": batch.rows} if takes_rows else {}
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.image,
            train=True,
            mutable=["batch_stats"],
            rngs=rngs,
            **rows,
        )
        return loss(outputs, batch.target), (outputs, updated.get("batch_stats", {}))

    return objective


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    key: Array,
    metrics: Mapping[str, Metric] = {},
    accumulate: Accumulate | None = None,
    frozen: Any = None,
    skip_nonfinite: bool = False,
    ema_decay: float = 0.0,
    ema_update_every: int = 1,
    ema_warmup: bool = False,
) -> tuple[TrainState, StepStatus]:
    """Take one step of gradient descent on the mean of the losses.

    Randomness comes from `key`, `state.step` and the rows of the batch alone.

    Args:
        state: before the step.
        batch: the whole batch of the step; its mask says what is padding.
        objective: losses, outputs and updated statistics of a batch.
        optimizer: of the parameters.
        preprocess: raw to network input.
        key: of everything random.
        metrics: measured on the training images too.
        accumulate: sums over microbatches and devices; None is the whole batch at once.
        frozen: a tree of bools like the parameters: those that the optimiser ignores need no gradient.
        skip_nonfinite: if the loss or gradient is not finite, change nothing but the clocks: `step`, and the count of a
            schedule in the optimiser.
        ema_decay: of the EMA, if the state has one.
        ema_update_every: steps between its updates.
        ema_warmup: take min(ema_decay, (1 + n) / (10 + n)) as the decay of its n-th update.

    Returns:
        The state after the step, and the sums over the batch under the parameters before it.

    Example:
        >>> model, optimizer, key = nn.Dense(2), optax.sgd(0.1), jax.random.key(0)
        >>> def objective(params, batch_stats, batch, rngs):
        ...     outputs = model.apply({"params": params}, batch.image)
        ...     return optax.losses.squared_error(outputs, batch.target).mean(-1), (outputs, batch_stats)
        >>> batch = Batch(jnp.ones((4, 3)), jnp.zeros((4, 2)), jnp.ones(4, bool), rows=jnp.arange(4))
        >>> params = model.init(key, batch.image)["params"]
        >>> state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), {})
        >>> options = {"optimizer": optimizer, "preprocess": lambda key, step, batch: batch, "key": key}
        >>> state, status = train_step(state, batch, objective=objective, **options)
        >>> int(state.step), int(status.sums["count"])
        (1, 4)
    """
    rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, state.step), _DROPOUT)}

    def microbatch_grads(fixed: tuple[dict, dict, Array], batch: Batch) -> MicrobatchGrads:
        params, batch_stats, step = fixed
        batch, mask = preprocess(key, step, batch), jnp.asarray(batch.mask)
        losses, vjp, (outputs, updated) = jax.vjp(
            lambda p: objective(p if frozen is None else _stop_gradient(p, frozen), batch_stats, batch, rngs),
            params,
            has_aux=True,
        )
        weighted = isinstance(losses, tuple)
        numerators, weights = losses if weighted else (losses, mask.astype(jnp.int32))
        ones = mask.astype(numerators.dtype)
        (grads,) = vjp((ones, jnp.zeros_like(weights)) if weighted else ones)
        sums = measure_all(metrics, outputs, batch.target, mask)
        sums |= {"loss": jnp.where(mask, numerators, 0).sum(), "weight": jnp.where(mask, weights, 0).sum()}
        return MicrobatchGrads(grads, updated, sums, jnp.float32(1))

    fixed = state.params, state.batch_stats, state.step
    total = microbatch_grads(fixed, batch) if accumulate is None else accumulate(microbatch_grads, fixed, batch)
    grads = jax.tree.map(lambda g: g / total.sums["weight"], total.grads)
    batch_stats = jax.tree.map(lambda s: s / total.count, total.batch_stats)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    after = TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state, state.ema)
    if state.ema:
        after = after.replace(ema=_update_ema(after, ema_decay, ema_update_every, ema_warmup))
    finite = jnp.isfinite(total.sums["loss"]) & jnp.isfinite(optax.tree.norm(grads))
    sums = total.sums
    if skip_nonfinite:
        unchanged = state.replace(step=after.step, opt_state=_advance_schedules(state.opt_state, opt_state))
        nothing = jax.tree.map(jnp.zeros_like, sums)
        after, sums = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (after, sums), (unchanged, nothing))
    nonfinite = jnp.where(finite, 0, 1)
    return after, StepStatus({**sums, "nonfinite_steps": nonfinite}, nonfinite)


def _advance_schedules(before: Any, after: Any) -> Any:
    """Return the optimiser state before a step with the schedules of the one after it.

    The learning rate follows the step, skipped or not; momenta and the counts that correct their bias stay.
    """
    injected = optax.schedules.InjectStatefulHyperparamsState

    def one(old: Any, new: Any) -> Any:
        if isinstance(old, optax.ScaleByScheduleState):
            return new
        if isinstance(old, injected):
            return new._replace(inner_state=_advance_schedules(old.inner_state, new.inner_state))
        return old

    kinds = (optax.ScaleByScheduleState, injected)
    return jax.tree.map(one, before, after, is_leaf=lambda node: isinstance(node, kinds))


def _stop_gradient(params: dict, frozen: Any) -> dict:
    return jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)


def _update_ema(state: TrainState, decay: float, every: int, warmup: bool) -> dict:
    updates = state.step // every
    decay_now = jnp.minimum(decay, (1 + updates) / (10 + updates)) if warmup else decay
    decay_now = jnp.where(state.step % every == 0, decay_now, 1.0)
    now = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(lambda old, new: (decay_now * old + (1 - decay_now) * new).astype(old.dtype), state.ema, now)


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    metrics: Mapping[str, Metric],
    normalize: Callable[[Array], Array],
) -> dict[str, Any]:
    """Return the sums of metrics over a batch under the running statistics; padding does not count.

    Args:
        state: whose parameters and statistics are evaluated.
        batch: uint8 images, targets and mask.
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
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    outputs = model.apply(variables, normalize(jnp.asarray(batch.image)), train=False)
    return measure_all(metrics, outputs, batch.target, jnp.asarray(batch.mask))
