"""Several seeds in one program: `jax.vmap` over a leading axis of seeds.

The states stay stacked between steps. Each seed equals its single run up to rounding.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from resnet_jax.checkpoint.checkpoint import Checkpoints, open_checkpoints
from resnet_jax.errors import InputError, MachineError
from resnet_jax.input_pipeline.device_input import IndexedBatch, StepInput, training_batches
from resnet_jax.parallel.sharding import replicated
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.aot import device_memory_limit, step_bytes
from resnet_jax.training.evaluate import Totals
from resnet_jax.training.init import shardings
from resnet_jax.training.loop import drain, evaluate_and_log, is_due, save_or_continue
from resnet_jax.training.make_step import make_train_step, train_size_at
from resnet_jax.training.options import RunOptions
from resnet_jax.training.progress import Tick
from resnet_jax.training.rows import first_reaching, has_rate_factor, is_best, rate_factor, train_values
from resnet_jax.training.run_state import (
    Logger,
    RunPrograms,
    RunState,
    TrainResult,
    ended_result,
    last_step,
    out_of_patience,
)
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.sources import eval_split
from resnet_jax.training.state import TrainState
from resnet_jax.training.timer import StepTimer

_QUEUED = 2

Ended = TrainResult | InputError | MachineError


def make_stacked_step(setup: TrainSetup, image_size: int | None = None) -> jax.stages.Wrapped:
    """Return the jitted (stacked states, step inputs, keys (seeds, 2), *teacher) -> (stacked states, stacked sums).

    The states are donated; the teacher's variables, if any, are those of `step_constants`.
    """
    step = make_train_step(setup, image_size, jit=False)
    everywhere = replicated(setup.mesh)

    @partial(jax.jit, donate_argnums=0, out_shardings=everywhere, compiler_options=compiler_options())
    def stacked_step(states: TrainState, inputs: Sequence[StepInput], keys: Array, *teacher: Any) -> Any:
        batch, axes = _stack_inputs(inputs)
        return jax.vmap(lambda *each: step(*each, *teacher), in_axes=(0, axes, 0))(states, batch, keys)

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


def seeds_that_fit(
    setup: TrainSetup, abstract: Any, inputs: StepInput, key: Array, count: int, teacher: Sequence[Any] = ()
) -> int:
    """Return how many seeds, up to `count`, fit into the memory of a device at once, as the compiler says; or 1."""
    limit = device_memory_limit(setup.mesh)
    if math.isinf(limit):
        return count
    step = make_stacked_step(setup)
    while count > 1:
        states = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), abstract)  # noqa: B023
        keys, used = jax.ShapeDtypeStruct((count, *key.shape), key.dtype), math.inf
        try:
            used = step_bytes(step.lower(states, [inputs] * count, keys, *teacher).compile())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        if used <= limit:
            return count
        count = min(count - 1, max(count // 2, int(count * limit / used)))
    return 1


@dataclass(eq=False)
class _Seed:
    """One of the seeds, between two steps of all."""

    run: RunState
    key: Array
    loggers: Sequence[Logger]
    tick: Tick
    batches: Iterator[StepInput]
    checkpoints: Checkpoints
    totals: Totals
    timer: StepTimer
    pending: deque[Any] = field(default_factory=deque)
    result: Ended | None = None
    """Once it has ended."""


def train_stacked(
    runs: Sequence[RunState],
    programs: RunPrograms,
    step_for: Callable[[int | None], jax.stages.Wrapped],
    options: RunOptions,
    *,
    constants: Sequence[Any],
    loggers: Sequence[Logger],
    stop: Callable[[], int],
    ticks: Sequence[Tick],
    ended: Callable[[int, InputError | MachineError], None],
) -> list[Ended]:
    """Train several seeds, all at the same step, in one program, as `train_loop` trains one.

    A seed that ends between two evaluations is computed on but ignored, and taken out at the next evaluation.

    Args:
        runs: before their next step, which is the same for all.
        programs: data and programs that they share.
        step_for: image size -> `make_stacked_step` of it, the same each time.
        options: when to evaluate, save and stop.
        constants: `step_constants` of each.
        loggers: called with each row of any of them.
        stop: returns the number of a signal that asked to stop, or 0.
        ticks: called after each step, one per seed.
        ended: called with the number of a seed and its error as soon as the error ends it.
    """
    setup, step = runs[0].setup, runs[0].step
    last = last_step(setup, options)
    compiled: set[tuple[int, int | None]] = set()
    _, *teacher = constants[0]
    with ExitStack() as stack:
        seeds = [
            _open_seed(stack, run, programs, options, last, key=key, loggers=loggers, tick=tick)
            for run, (key, *_), tick in zip(runs, constants, ticks, strict=True)
        ]

        def attempt(seed: _Seed, call: Callable[..., None], *args: Any) -> None:
            try:
                call(seed, *args)
            except (InputError, MachineError) as error:
                seed.result = error
                ended(seeds.index(seed), error)

        # The input of a seed that has ended is still read until it is taken out of the stacked states
        active, states = seeds, stack_trees([run.state for run in runs])
        while step < last and any(seed.result is None for seed in seeds):
            inputs = [seed.timer.wait(seed.batches) for seed in active]
            program = len(active), train_size_at(setup.recipe, setup.dataset.train_size, step)
            # The first call compiles
            with _paused(() if program in compiled else active):
                keys = jnp.stack([seed.key for seed in active])
                states, sums = step_for(program[1])(states, inputs, keys, *teacher)
            compiled.add(program)
            step, signal = step + 1, stop()
            evaluate_now = is_due(setup, step, options.eval_every) or step == setup.steps
            save_now = is_due(setup, step, options.checkpoint_every) or step == last or bool(signal)
            for place, seed in enumerate(active):
                if seed.result is None:
                    attempt(seed, _read_sums, step, seed_of(sums, place), 0 if evaluate_now or save_now else _QUEUED)
            for place, seed in enumerate(active):
                if seed.result is None and (evaluate_now or save_now):
                    due = step == last or bool(signal), evaluate_now, save_now
                    with _paused(other for other in active if other is not seed):
                        attempt(seed, _between, programs, options, seed_of(states, place), step, signal, *due)
            if evaluate_now and has_rate_factor(setup):
                factors = jnp.array([rate_factor(setup, seed.run.rows) for seed in active], jnp.float32)
                states = states.replace(opt_state=optax.tree.set(states.opt_state, factor=factors))
            if evaluate_now:
                left = [place for place, seed in enumerate(active) if seed.result is None]
                if left and len(left) < len(active):
                    states = jax.tree.map(lambda leaf: leaf[jnp.array(left)], states)  # noqa: B023
                active = [active[place] for place in left]
            if signal:
                break
    return [seed.result for seed in seeds if seed.result is not None]


def _open_seed(
    stack: ExitStack, run: RunState, programs: RunPrograms, options: RunOptions, last: int, **about: Any
) -> _Seed:
    return _Seed(
        run=run,
        batches=training_batches(programs.train, run.setup.recipe, range(run.step, last)),
        checkpoints=stack.enter_context(
            open_checkpoints(run.out / "checkpoints", keep=options.keep_checkpoints, best=True)
        ),
        totals=run.totals,
        timer=StepTimer(**{"first_step": run.step, **run.timer}),
        **about,
    )


@contextmanager
def _paused(seeds: Iterable[_Seed]) -> Iterator[None]:
    """Pause the timers of these seeds."""
    with ExitStack() as stack:
        for seed in seeds:
            stack.enter_context(seed.timer.paused())
        yield


def _read_sums(seed: _Seed, step: int, sums: Totals, keep: int) -> None:
    """Queue the sums of a step, and read all but the newest."""
    seed.pending.append((step, sums, None))
    seed.totals, _ = drain(seed.run, seed.totals, seed.pending, keep=keep)
    seed.tick(step, partial(train_values, seed.run.setup, seed.totals))


def _between(
    seed: _Seed,
    programs: RunPrograms,
    options: RunOptions,
    state: TrainState,
    step: int,
    signal: int,
    end: bool,
    evaluate_now: bool,
    save_now: bool,
) -> None:
    """Evaluate and save one seed after a step; note its result if it ends there."""
    run, task, split, reached = seed.run, seed.run.setup.task, eval_split(seed.run.setup.recipe), None
    keep = partial(save_or_continue, seed.checkpoints, run, state, step)
    if evaluate_now:
        try:
            state = evaluate_and_log(run, programs, state, step, seed.totals, seed.timer, seed.loggers)
        except InputError:
            keep(seed.totals, seed.timer, last=True, unevaluated=True)
            raise
        seed.totals, seed.timer = {}, StepTimer(step)
        reached = first_reaching(run.rows[-1:], split, task, options.target_metric)
    end = end or reached is not None or out_of_patience(run, options) is not None
    if save_now or end or (evaluate_now and is_best(run.rows, split, task)):
        keep(seed.totals, seed.timer, last=end)
    if end:
        state = jax.device_put(state, shardings(run.setup))
        seed.result = ended_result(run._replace(state=state, step=step), options, signal, reached)
