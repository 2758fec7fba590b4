"""One step of training and of evaluation: pure functions of the state and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from resnet_jax.data.batches import Batch
from resnet_jax.model.resnet import ResNet
from resnet_jax.train.state import TrainState

# (key of the run, step, batch of uint8 images) -> float32 images, labels or shares of the classes (b, k) float32.
# What is random in it is a function of key, step and the rows of the batch.
Preprocess = Callable[[Array, Array, Batch], tuple[Array, Array]]
# (logits (b, k), labels (b,) or shares of the classes (b, k)) -> (b,)
LossFn = Callable[[Array, Array], Array]
# (logits (b, k), labels) -> (b,) bool
Right = Callable[[Array, Array], Array]

_DROPOUT = 2**32 - 1  # folded into the key of a step, as the number of a row is; no row has this one


class Sums(NamedTuple):
    """Totals over examples: add them over batches, divide once."""

    loss: Array  # () float32
    correct: Array  # () int32
    examples: Array  # () int32
    bad: Array  # () int32, steps whose loss or gradient was not finite


class Totals(NamedTuple):
    """What some examples of a batch add to it; add them over all parts of the batch."""

    grads: dict  # of the sum of their losses
    batch_stats: dict  # the running statistics, moved by these examples alone
    sums: Sums
    parts: Array  # () float32, 1 for each


# (function (fixed, batch) -> Totals, fixed, batch) -> its sum over the parts of the batch
Sweep = Callable[[Callable[[Any, Batch], Totals], Any, Batch], Totals]


def at_once(function: Callable[[Any, Batch], Totals], fixed: Any, batch: Batch) -> Totals:
    """The sweep that takes the batch as one part."""
    return function(fixed, batch)


def zero_sums() -> Sums:
    return Sums(jnp.zeros((), jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3)))


def add_sums(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(jnp.add, a, b)


def largest_is_right(logits: Array, label: Array) -> Array:
    """Whether the largest logit is that of the class; of several classes, of the one with the largest share."""
    return jnp.argmax(logits, -1) == (label if label.ndim == 1 else jnp.argmax(label, -1))


def summed(logits: Array, losses: Array, batch: Batch, right: Right | None = largest_is_right) -> Sums:
    """Totals over the examples of the batch that are not padding; without `right`, none is counted as correct."""
    mask, label = jnp.asarray(batch.mask), jnp.asarray(batch.label)
    correct = mask & right(logits, label) if right else jnp.zeros_like(mask)
    return Sums(
        jnp.where(mask, losses, 0).sum().astype(jnp.float32),
        correct.sum(dtype=jnp.int32),
        mask.sum(dtype=jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def totals_of(
    fixed: tuple[dict, dict, Array],
    batch: Batch,
    *,
    model: ResNet,
    loss: LossFn,
    preprocess: Preprocess,
    key: Array,
    frozen: Any = None,
    right: Right | None = largest_is_right,
) -> Totals:
    """What a part of a batch adds to it, under parameters, running statistics and step number: `fixed` in a sweep."""
    params, batch_stats, step = fixed
    images, label = preprocess(key, step, batch)
    dropout = jax.random.fold_in(jax.random.fold_in(key, step), _DROPOUT)

    def objective(params: dict) -> tuple[Array, tuple[Array, Array, dict]]:
        if frozen is not None:
            params = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rows=batch.rows,
            mutable=["batch_stats"],
            rngs={"dropout": dropout},
        )
        losses = loss(logits, label)
        return jnp.where(jnp.asarray(batch.mask), losses, 0).sum(), (logits, losses, updated.get("batch_stats", {}))

    grads, (logits, losses, moved) = jax.grad(objective, has_aux=True)(params)
    return Totals(grads, moved, summed(logits, losses, batch._replace(label=label), right), jnp.float32(1))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ResNet,
    optimizer: optax.GradientTransformation,
    loss: LossFn,
    preprocess: Preprocess,
    key: Array,
    frozen: Any = None,
    sweep: Sweep = at_once,
    right: Right | None = largest_is_right,
    skip: bool = False,
    ema: float = 0.0,
    ema_every: int = 1,
) -> tuple[TrainState, Sums]:
    """The state after one step of gradient descent, and the totals of the batch before it.

    Randomness comes from `key`, `state.step` and the rows of the batch alone. Parameters and running statistics move
    together.

    Args:
        state: before the step.
        batch: the whole batch of the step; its mask says what is padding.
        model: the network.
        optimizer: of its parameters.
        loss: of each example; the mean is minimised.
        preprocess: makes of the batch what the network is given.
        key: of everything random.
        frozen: a tree like the parameters of bools: which the optimiser leaves alone, and which need no gradient.
        sweep: how the batch is gone through, on whatever devices: it changes nothing but rounding.
        right: which answers are counted as correct.
        skip: whether a step with a loss or gradient that is not finite leaves all but `step` alone.
        ema: share of the averages of parameters and statistics that a step keeps, where the state has such.
        ema_every: steps from one such average to the next.
    """
    totals = partial(totals_of, model=model, loss=loss, preprocess=preprocess, key=key, frozen=frozen, right=right)
    grads, batch_stats, sums, parts = sweep(totals, (state.params, state.batch_stats, state.step), batch)
    grads = jax.tree.map(lambda g: g / sums.examples, grads)
    batch_stats = jax.tree.map(lambda s: s / parts, batch_stats)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(state.step + 1, params, batch_stats, opt_state, state.ema)
    if state.ema:
        after = after.replace(ema=_averaged(after, ema, ema_every))
    finite = jnp.isfinite(sums.loss) & jnp.isfinite(optax.tree.norm(grads))
    if skip:
        unchanged = state.replace(step=after.step)
        after, sums = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (after, sums), (unchanged, zero_sums())
        )
    return after, sums._replace(bad=jnp.where(finite, 0, 1))


def _averaged(state: TrainState, keep: float, every: int) -> dict:
    """The averages after a step: parameters and statistics, moved where it is time."""
    keep_now = jnp.where(state.step % every == 0, keep, 1.0)
    now = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(lambda old, new: (keep_now * old + (1 - keep_now) * new).astype(old.dtype), state.ema, now)


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ResNet,
    loss: LossFn,
    normalize: Callable[[Array], Array],
    right: Right | None = largest_is_right,
) -> Sums:
    """Totals of a batch under the running statistics; padding does not count."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = model.apply(variables, normalize(jnp.asarray(batch.image)), train=False)
    assert isinstance(logits, Array)
    return summed(logits, loss(logits, jnp.asarray(batch.label)), batch, right)
