"""The learning rate schedule of a recipe, from optax if it has the shape."""

from collections.abc import Sequence
from typing import get_args

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from resnet_jax.errors import unknown
from resnet_jax.recipe import Recipe, Schedule, in_steps, total_steps


def learning_rate(recipe: Recipe, train_size: int) -> optax.Schedule:
    """Return the learning rate by step: a linear warm-up, then the schedule that the recipe names.

    Step s comes after s steps. The rate changes with every step; a library that changes it once per epoch, as
    torchvision does, has the same rate at the first step of each epoch. Raise InputError for an unknown name.

    Reference:
        Goyal et al. 2017, section 2.2 (warm-up).
    """
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    if schedule.name == "onecycle":
        return one_cycle(schedule, peak, total_steps(recipe, train_size))
    warmup = round(in_steps(recipe, schedule.warmup, train_size))
    after = _shape(recipe, train_size, warmup)
    if warmup == 0:
        return after
    rise = optax.linear_schedule(schedule.warmup_start_factor * peak, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _shape(recipe: Recipe, train_size: int, warmup: int) -> optax.Schedule:
    """Return the learning rate by step, counted from the end of the warm-up."""
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    rest = max(1, total_steps(recipe, train_size) - warmup)
    match schedule.name:
        # The factor of a plateau is in the optimiser state
        case "constant" | "plateau":
            return optax.constant_schedule(peak)
        case "steps":
            return optax.piecewise_constant_schedule(peak, _drops(recipe, train_size, warmup))
        # Loshchilov and Hutter 2017, section 3, without restarts
        case "cosine":
            return optax.cosine_decay_schedule(peak, rest, schedule.end_factor)
        case "cosine_restarts":
            first = in_steps(recipe, schedule.restart_every, train_size)
            return cosine_restarts(peak, _cycles(first, schedule.restart_mult, rest), schedule.end_factor)
        case "linear":
            return optax.linear_schedule(peak, schedule.end_factor * peak, rest)
        case "polynomial":
            return optax.polynomial_schedule(peak, schedule.end_factor * peak, schedule.power, rest)
        # Tan and Le 2019, section 5.2: gamma 0.97 every 2.4 epochs
        case "exponential":
            every = in_steps(recipe, schedule.decay_every, train_size)
            return optax.exponential_decay(peak, every, schedule.gamma, staircase=schedule.staircase)
    raise unknown("schedule.name", schedule.name, get_args(Schedule.__annotations__["name"]))


def _cycles(first: float, factor: float, total: int) -> list[int]:
    """Return lengths in steps, each `factor` times the one before, that cover a total."""
    lengths: list[int] = []
    while sum(lengths) < total:
        lengths.append(max(1, round(first * factor ** len(lengths))))
    return lengths


def cosine_restarts(peak: float, lengths: Sequence[int], end_factor: float) -> optax.Schedule:
    """Return a cosine decay that starts again at the peak after each of these lengths in steps.

    Reference:
        Loshchilov and Hutter 2017, section 3.
    """
    starts, sizes = np.cumsum([0, *lengths[:-1]]), np.asarray(lengths)

    def rate(step: Array | int) -> Array:
        cycle = jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1
        fraction = jnp.minimum((step - jnp.asarray(starts)[cycle]) / jnp.asarray(sizes)[cycle], 1.0)
        return _between(peak, end_factor * peak, fraction, "cosine")

    return rate


# Relative improvement of a loss that counts, as in torch
_IMPROVEMENT = 1e-4


def plateau_factor(losses: Sequence[float], schedule: Schedule) -> float:
    """Return the factor on the rate after these losses, oldest first, as torch's ReduceLROnPlateau has it.

    Example:
        >>> plateau_factor([1.0, 1.0, 1.0], Schedule(name="plateau", plateau_patience=1, gamma=0.5))
        0.5
    """
    factor, best, bad = 1.0, float("inf"), 0
    for loss in losses:
        better = loss < best * (1 - _IMPROVEMENT)
        best, bad = (loss, 0) if better else (best, bad + 1)
        if bad > schedule.plateau_patience:
            factor, bad = max(factor * schedule.gamma, schedule.end_factor), 0
    return factor


def _drops(recipe: Recipe, train_size: int, warmup: int) -> dict[int, float]:
    """Return factors by step after the warm-up; in a very short run two milestones may share a step."""
    drops: dict[int, float] = {}
    for time in recipe.schedule.milestones:
        step = round(in_steps(recipe, time, train_size)) - warmup
        drops[step] = drops.get(step, 1.0) * recipe.schedule.gamma
    return drops


def one_cycle(schedule: Schedule, peak: float, steps: int) -> optax.Schedule:
    """Return the one-cycle schedule of torch's OneCycleLR: up to the peak, then down to almost 0.

    The peak is at step pct_start * steps - 1, whole or not, and the last rate at step steps - 1. optax rounds the
    first and puts the other a step later.

    Reference:
        Smith and Topin 2018, section 3.
    """
    first = peak / schedule.div_factor
    top, last = schedule.pct_start * steps - 1, steps - 1

    def rate(step: Array | int) -> Array:
        now = jnp.minimum(jnp.asarray(step, jnp.float32), last)
        up = _between(first, peak, now / (top or 1), schedule.anneal_strategy)
        down = _between(
            peak, first / schedule.final_div_factor, (now - top) / (last - top or 1), schedule.anneal_strategy
        )
        return jnp.where(now <= top, up, down)

    return rate


def _between(start: float, end: float, fraction: Array, anneal: str) -> Array:
    """Interpolate from `start` to `end`, at a fraction 0 to 1 of the way."""
    fraction = (1 - jnp.cos(jnp.pi * fraction)) / 2 if anneal == "cosine" else fraction
    return start * (1 - fraction) + end * fraction
