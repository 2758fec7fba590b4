"""Exact evaluation: every example once, padding masked, totals divided at the end."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from resnet_jax.backend import compiler_options
from resnet_jax.data.augment import normalize
from resnet_jax.data.batches import Batch, evaluation_indices
from resnet_jax.model.resnet import ResNet
from resnet_jax.recipe import Data
from resnet_jax.train.devices import replicated, split
from resnet_jax.train.loss import cross_entropy
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Sums, add_sums, eval_step, zero_sums


class Metrics(NamedTuple):
    """Averages over a number of examples."""

    loss: float  # nats
    accuracy: float  # 0 to 1
    wrong: int
    examples: int


def divide(sums: Sums) -> Metrics:
    """Totals to averages: the one division."""
    examples, correct = int(sums.examples), int(sums.correct)
    return Metrics(float(sums.loss) / max(examples, 1), correct / max(examples, 1), examples - correct, examples)


# (state, resident split) -> metrics
Evaluate = Callable[[TrainState, "Resident"], Metrics]


class Resident(NamedTuple):
    """A split that lies on the devices as a whole."""

    image: Array  # (n, h, w, c) uint8
    label: Array  # (n,) int32


def gather(data: Resident, indices: Array, mask: Array) -> Batch:
    """The examples at `indices` (b,)."""
    return Batch(data.image[indices], data.label[indices], mask)


def make_evaluate(model: ResNet, data: Data, mesh: Mesh, size: int, batch_size: int = 500) -> Evaluate:
    """A function (state, resident split of `size`) -> Metrics, compiled once.

    The result does not depend on `batch_size` but for the rounding of the loss.
    """
    devices = mesh.size
    batch_size = -(-min(batch_size, size) // devices) * devices
    step = partial(
        eval_step, model=model, loss=cross_entropy, normalize=partial(normalize, mean=data.mean, std=data.std)
    )

    @partial(jax.jit, out_shardings=replicated(mesh), compiler_options=compiler_options())
    def add(state: TrainState, sums: Sums, resident: Resident, indices: Array, mask: Array) -> Sums:
        return add_sums(sums, step(state, gather(resident, indices, mask)))

    def evaluate(state: TrainState, resident: Resident) -> Metrics:
        sums = jax.device_put(zero_sums(), replicated(mesh))
        for indices, mask in evaluation_indices(size, batch_size):
            sums = add(state, sums, resident, *jax.device_put((indices, mask), split(mesh)))
        metrics = divide(sums)
        assert metrics.examples == size, f"evaluated {metrics.examples} of {size} examples"
        return metrics

    return evaluate


def place(arrays: tuple[np.ndarray, np.ndarray], mesh: Mesh) -> Resident:
    """Puts all images and labels of a split on every device of the mesh."""
    return Resident(*jax.device_put(arrays, replicated(mesh)))
