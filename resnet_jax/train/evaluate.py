"""Exact evaluation: every example once, padding masked, totals divided at the end."""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from resnet_jax.backend import compiler_options
from resnet_jax.data.augment import normalize
from resnet_jax.model.resnet import ResNet
from resnet_jax.recipe import Data
from resnet_jax.train.devices import replicate, replicated
from resnet_jax.train.feed import Item, Supply, batch_of, evaluation_items
from resnet_jax.train.loss import cross_entropy
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import LossFn, Right, Sums, add_sums, eval_step, largest_is_right, zero_sums


class Metrics(NamedTuple):
    """Averages over a number of examples."""

    loss: float  # nats
    accuracy: float | None  # 0 to 1; None where no answer is right or wrong, as in regression
    wrong: int | None
    examples: int


def divide(sums: Sums, *, answers: bool = True) -> Metrics:
    """Totals to averages: the one division. Without `answers` none is right or wrong."""
    examples, correct = int(sums.examples), int(sums.correct)
    loss = float(sums.loss) / max(examples, 1)
    if not answers:
        return Metrics(loss, None, None, examples)
    return Metrics(loss, correct / max(examples, 1), examples - correct, examples)


# (state, split) -> metrics; yields after each batch: the devices are at work, and other runs may give theirs some
Evaluation = Callable[[TrainState, Supply], Generator[None, Any, Metrics]]


def make_add(
    model: ResNet, data: Data, mesh: Mesh, *, loss: LossFn = cross_entropy, right: Right | None = largest_is_right
) -> jax.stages.Wrapped:
    """Jitted (state, totals, item of the feed) -> totals: one batch of an evaluation."""
    scaled = partial(normalize, mean=data.mean, std=data.std)
    step = partial(eval_step, model=model, loss=loss, normalize=scaled, right=right)

    @partial(jax.jit, out_shardings=replicated(mesh), compiler_options=compiler_options())
    def add(state: TrainState, sums: Sums, item: Item) -> Sums:
        return add_sums(sums, step(state, batch_of(item)))

    return add


def make_evaluation(
    model: ResNet,
    data: Data,
    mesh: Mesh,
    batch_size: int = 500,
    *,
    loss: LossFn = cross_entropy,
    right: Right | None = largest_is_right,
) -> Evaluation:
    """A function (state, split) that is compiled once, and evaluates batch by batch.

    The result does not depend on `batch_size` but for the rounding of the loss.
    """
    add = make_add(model, data, mesh, loss=loss, right=right)

    def evaluation(state: TrainState, data: Supply) -> Generator[None, Any, Metrics]:
        sums = replicate(zero_sums(), mesh)
        for item in evaluation_items(data, batch_size):
            sums = add(state, sums, item)
            yield
        metrics, size = divide(sums, answers=right is not None), data.source.size
        assert metrics.examples == size, f"evaluated {metrics.examples} of {size} examples"
        return metrics

    return evaluation


def to_the_end(evaluation: Generator[None, Any, Metrics]) -> Metrics:
    """What an evaluation returns, with nothing done between its batches."""
    while True:
        try:
            next(evaluation)
        except StopIteration as end:
            metrics: Metrics = end.value
            return metrics
