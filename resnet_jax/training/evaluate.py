"""Exact evaluation: every example once, padding masked, sums divided once."""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax.data.augment import normalize
from resnet_jax.input_pipeline.device_input import DeviceSplit, StepInput, evaluation_batches, gather_batch
from resnet_jax.parallel.sharding import replicated
from resnet_jax.recipe import Data
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tasks.metrics import Metric, add, compute_all, empty
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import eval_step

# Batches that may be queued on the devices
_QUEUED = 2

Totals = dict[str, Any]


def make_eval_step(model: nn.Module, data: Data, mesh: Mesh, metrics: Mapping[str, Metric]) -> jax.stages.Wrapped:
    """Return the jitted (state, step input) -> sums of one batch."""
    step = partial(eval_step, model=model, metrics=metrics, normalize=partial(normalize, mean=data.mean, std=data.std))

    @partial(jax.jit, out_shardings=replicated(mesh), compiler_options=compiler_options())
    def batch_sums(state: TrainState, inputs: StepInput) -> Totals:
        return step(state, gather_batch(inputs))

    return batch_sums


def add_sums(totals: Totals, sums: Mapping[str, Any]) -> Totals:
    """Add the sums of a batch to totals on the host; a name without a total yet starts at zero."""
    sums = jax.device_get(sums)
    return {name: add(totals[name] if name in totals else empty(new), new) for name, new in sums.items()}


def evaluate_split(
    batch_sums: Callable[[TrainState, StepInput], Any],
    metrics: Mapping[str, Metric],
    state: TrainState,
    split: DeviceSplit,
    batch_size: int = 500,
) -> dict[str, Any]:
    """Return the values of metrics over a whole split, and the number of examples as "count".

    The result depends on `batch_size` and devices by the rounding of floats alone.
    """
    totals: Totals = {}
    pending: deque[Any] = deque()
    for inputs in evaluation_batches(split, batch_size):
        pending.append(batch_sums(state, inputs))
        if len(pending) > _QUEUED:
            totals = add_sums(totals, pending.popleft())
    for sums in pending:
        totals = add_sums(totals, sums)
    count, size = int(totals["count"]), split.source.size
    assert count == size, f"evaluated {count} of {size} examples"
    return {**compute_all(metrics, totals), "count": count}
