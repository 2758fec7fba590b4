"""Several seeds in one program: `jax.vmap` over a leading axis of seeds.

The states stay stacked between steps. Each seed equals its single run up to rounding.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.checkpoint.checkpoint import open_checkpoints
from resnet_jax.errors import InputError, MachineError
from resnet_jax.input_pipeline.device_input import IndexedBatch, StepInput, training_batches
from resnet_jax.parallel.sharding import replicated
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.aot import device_memory_limit, step_bytes
from resnet_jax.training.evaluate import Totals
from resnet_jax.training.loop import (
    Logger,
    RunPrograms,
    RunState,
    TrainResult,
    drain,
    evaluate_and_log,
    is_due,
    save_or_continue,
)
from resnet_jax.training.options import RunOptions
from resnet_jax.training.progress import Tick
from resnet_jax.training.rows import first_reaching, is_best, train_values
from resnet_jax.training.setup import TrainSetup, eval_split, make_train_step, shardings, train_size_at
from resnet_jax.training.state import TrainState
from resnet_jax.training.timer import StepTimer

_QUEUED = 2

Ended = TrainResult | InputError | MachineError


def make_stacked_step(setup: TrainSetup, image_size: int | None = None) -> jax.stages.Wrapped:
    """Return the jitted (stacked states, step inputs, keys (seeds, 2)) -> (stacked states, stacked statuses).

    The states are donated.
    """
    step = make_train_step(setup, image_size, jit=False)
    everywhere = replicated(setup.mesh)

    @partial(jax.jit, donate_argnums=0, out_shardings=everywhere, compiler_options=compiler_options())
    def stacked_step(states: TrainState, inputs: Sequence[StepInput], keys: Array) -> Any:
        batch, axes = _stack_inputs(inputs)
        return jax.vmap(step, in_axes=(0, axes, 0))(states, batch, keys)

    return stacked_step


def stack_trees(trees: Sequence[Any]) -> Any:
    """Stack trees of arrays along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _stack_inputs(inputs: Sequence[StepInput]) -> tuple[StepInput, Any]:
    """Return inputs as one, and which arrays have an axis of seeds: all but the split that lies on the devices."""
    first = inputs[0]
    if not isinstance(first, IndexedBatch):
        return stack_trees(inputs), 0
    indices = jnp.stack([jnp.asarray(one.indices) for one in inputs])
    return IndexedBatch(first.data, indices, None), IndexedBatch(None, 0, None)  # type: ignore[arg-type]


def seed_of(tree: Any, place: int) -> Any:
    """Return one seed's part of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[place], tree)


def seeds_that_fit(setup: TrainSetup, abstract: Any, inputs: StepInput, key: Array, count: int) -> int:
    """Return how many seeds, up to `count`, fit into the memory of a device at once, as the compiler says; or 1."""
    limit = device_memory_limit(setup.mesh)
    if math.isinf(limit):
        return count
    step = make_stacked_step(setup)
    while count > 1:
        states = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), abstract)  # noqa: B023
        keys, used = jax.ShapeDtypeStruct((count, *key.shape), key.dtype), math.inf
        try:
            used = step_bytes(step.lower(states, [inputs] * count, keys).compile())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        if used <= limit:
            return count
        count = min(count - 1, max(count // 2, int(count * limit / used)))
    return 1


def train_stacked(
    runs: Sequence[RunState],
    programs: RunPrograms,
    options: RunOptions,
    *,
    keys: Sequence[Array],
    loggers: Sequence[Sequence[Logger]],
    stop: Callable[[], int],
    ticks: Sequence[Tick],
    ended: Callable[[int, InputError | MachineError], None],
) -> list[Ended]:
    """Train several seeds, all at the same step, in one program, as `train_loop` trains one.

    A seed that ends between two evaluations is computed on but ignored, and taken out at the next evaluation.

    Args:
        runs: before their next step, which is the same for all.
        programs: data and programs that they share.
        options: when to evaluate, save and stop.
        keys: `step_key` of each.
        loggers: of each.
        stop: returns the number of a signal that asked to stop, or 0.
        ticks: called after each step, one per seed.
        ended: told of an error as soon as it ends a seed.
    """
    setup, step = runs[0].setup, runs[0].step
    last = min(setup.steps, options.stop_at or setup.steps)
    results: dict[int, Ended] = {}
    totals: list[Totals] = [run.totals for run in runs]
    timers = [StepTimer(**{"first_step": step, **run.timer}) for run in runs]
    pending: list[deque[Any]] = [deque() for _ in runs]
    # Places of the seeds in the stacked state; the input of a seed that has ended is still read until it is taken out
    active, states = list(range(len(runs))), stack_trees([run.state for run in runs])
    batches = [training_batches(programs.train, run.setup.recipe, range(step, last)) for run in runs]
    compiled: dict[tuple[int, int | None], Any] = {}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_checkpoints(run.out / "checkpoints", keep=options.keep_checkpoints, best=True))
            for run in runs
        ]

        def attempt(number: int, call: Callable[[], None]) -> None:
            try:
                call()
            except (InputError, MachineError) as error:
                results[number] = error
                ended(number, error)

        while step < last and len(results) < len(runs):
            inputs = [timers[number].wait(batches[number]) for number in active]
            size = train_size_at(setup.recipe, setup.dataset.train_size, step)
            with ExitStack() as paused:
                if (len(active), size) not in compiled:
                    compiled[len(active), size] = make_stacked_step(setup, size)
                    # The first call compiles
                    pause(paused, timers)
                stacked = compiled[len(active), size]
                states, statuses = stacked(states, inputs, jnp.stack([keys[number] for number in active]))
            step, signal = step + 1, stop()
            evaluate_now = is_due(setup, step, options.eval_every) or step == setup.steps
            save_now = is_due(setup, step, options.checkpoint_every) or step == last or bool(signal)
            keep = 0 if evaluate_now or save_now else _QUEUED
            alive = [(place, number) for place, number in enumerate(active) if number not in results]
            for place, number in alive:
                pending[number].append((step, seed_of(statuses, place), None))
                attempt(number, partial(_drain, runs, totals, pending, number, keep))
                values = partial(train_values, setup, totals[number])
                attempt(number, partial(ticks[number], step, values))
            for place, number in alive:
                if number not in results and (evaluate_now or save_now):
                    one = partial(
                        _between, runs, programs, options, loggers, writers, totals, timers, results, number=number
                    )
                    state = seed_of(states, place)
                    with ExitStack() as paused:
                        pause(paused, timers[:number] + timers[number + 1 :])
                        attempt(number, partial(one, state, step, last, signal, evaluate_now, save_now))
            if evaluate_now:
                left = [(place, number) for place, number in alive if number not in results]
                if left and len(left) < len(active):
                    states = jax.tree.map(lambda leaf: leaf[jnp.array([place for place, _ in left])], states)  # noqa: B023
                active = [number for _, number in left]
            if signal:
                break
    return [results[number] for number in range(len(runs))]


def pause(stack: ExitStack, timers: Sequence[StepTimer]) -> None:
    """Pause timers until the stack is left."""
    for timer in timers:
        stack.enter_context(timer.paused())


def _drain(runs: Sequence[RunState], totals: list[Totals], pending: list[deque[Any]], number: int, keep: int) -> None:
    totals[number], _ = drain(runs[number], totals[number], pending[number], keep=keep)


def _between(
    runs: Sequence[RunState],
    programs: RunPrograms,
    options: RunOptions,
    loggers: Sequence[Sequence[Logger]],
    writers: Sequence[Any],
    totals: list[Totals],
    timers: list[StepTimer],
    results: dict[int, Ended],
    state: TrainState,
    step: int,
    last: int,
    signal: int,
    evaluate_now: bool,
    save_now: bool,
    *,
    number: int,
) -> None:
    """Evaluate and save one seed after a step; note its result if it ends there."""
    run, task = runs[number], runs[number].setup.task
    split, reached = eval_split(run.setup.recipe), None
    if evaluate_now:
        try:
            evaluate_and_log(run, programs, state, step, totals[number], timers[number], loggers[number])
        except InputError:
            save_or_continue(
                writers[number], run, state, step, totals[number], timers[number], last=True, unevaluated=True
            )
            raise
        totals[number], timers[number] = {}, StepTimer(step)
        reached = first_reaching(run.rows[-1:], split, task, options.target_metric)
    end = step == last or bool(signal) or reached is not None
    if save_now or end or (evaluate_now and is_best(run.rows, split, task)):
        save_or_continue(writers[number], run, state, step, totals[number], timers[number], last=end)
    if end:
        state = jax.device_put(state, shardings(run.setup))
        results[number] = TrainResult(state, step, run.setup.steps, split, run.rows, signal, reached)
