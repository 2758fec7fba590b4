"""Exact evaluation: every example once, padding masked, sums divided once."""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax.data.augment import normalize
from resnet_jax.input_pipeline.device_input import DeviceSplit, StepInput, evaluation_batches
from resnet_jax.parallel.sharding import replicated
from resnet_jax.recipe import Data
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tasks.metric import Metric, add, compute_all, empty
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import eval_step

# Batches that may be queued on the devices
_QUEUED = 2

Totals = dict[str, Any]


def make_eval_step(model: nn.Module, data: Data, mesh: Mesh, metrics: Mapping[str, Metric]) -> jax.stages.Wrapped:
    """Return the jitted (state, step input) -> sums of one batch, which all hosts get, of the examples of all."""
    step = partial(eval_step, model=model, metrics=metrics, normalize=partial(normalize, mean=data.mean, std=data.std))
    return jax.jit(step, out_shardings=replicated(mesh), compiler_options=compiler_options())


def add_sums(totals: Totals, sums: Mapping[str, Any]) -> Totals:
    """Add the sums of a batch to totals on the host; a name without a total yet starts at zero."""
    sums = jax.device_get(sums)
    return {name: add(totals[name] if name in totals else empty(new), new) for name, new in sums.items()}


def add_batch(totals: Totals, batch: Mapping[str, Any], per_example: Collection[str]) -> Totals:
    """Add the sums of a batch to totals on the host, and append what is kept of each example."""
    batch = jax.device_get(batch)
    count = int(batch["count"])
    # Padding is at the end of a batch
    kept = {name: jax.tree.map(lambda leaf: leaf[:count], batch[name]) for name in per_example}
    lists = {name: [*totals.get(name, ()), new] for name, new in kept.items()}
    return {**add_sums(totals, {name: new for name, new in batch.items() if name not in kept}), **lists}


def evaluate_split(
    batch_sums: Callable[[TrainState, StepInput], Any],
    metrics: Mapping[str, Metric],
    state: TrainState,
    split: DeviceSplit,
    batch_size: int = 500,
    *,
    done: tuple[int, Totals] = (0, {}),
    save: Callable[[int, Totals], None] | None = None,
) -> dict[str, Any]:
    """Return the values of metrics over a whole split, and the number of examples as "count".

    The result depends on `batch_size` and devices by the rounding of floats alone. Arguments are those of
    `measure_split`.
    """
    totals = measure_split(batch_sums, metrics, state, split, batch_size, done=done, save=save)
    return {**compute_all(metrics, totals, split.source.classes), "count": int(totals["count"])}


def measure_split(
    batch_sums: Callable[[TrainState, StepInput], Any],
    metrics: Mapping[str, Metric],
    state: TrainState,
    split: DeviceSplit,
    batch_size: int = 500,
    *,
    done: tuple[int, Totals] = (0, {}),
    save: Callable[[int, Totals], None] | None = None,
) -> Totals:
    """Return the totals of metrics over a whole split: sums, or what is kept of each example.

    Args:
        batch_sums: of `make_eval_step`.
        metrics: by name.
        state: whose parameters and statistics are evaluated.
        split: the examples.
        batch_size: examples per call.
        done: number of batches that an earlier process has evaluated, and their totals.
        save: is given both after each batch.
    """
    batches, totals = done
    per_example = [name for name, metric in metrics.items() if metric.per_example]
    pending: deque[Any] = deque()
    for inputs in evaluation_batches(split, batch_size, batches):
        pending.append(batch_sums(state, inputs))
        if len(pending) > _QUEUED:
            totals, batches = add_batch(totals, pending.popleft(), per_example), batches + 1
            if save:
                save(batches, totals)
    for batch in pending:
        totals = add_batch(totals, batch, per_example)
    count, size = int(totals["count"]), split.source.size
    assert count == size, f"evaluated {count} of {size} examples"
    return totals | {name: jax.tree.map(lambda *parts: np.concatenate(parts), *totals[name]) for name in per_example}
