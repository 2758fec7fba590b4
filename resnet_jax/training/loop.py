"""The training loop: a run is a pure function of its recipe, whatever interrupts it."""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from resnet_jax.checkpoint.checkpoint import Checkpoints, open_checkpoints, save
from resnet_jax.errors import InputError, MachineError
from resnet_jax.input_pipeline.device_input import training_batches
from resnet_jax.input_pipeline.sampler import batch_indices
from resnet_jax.parallel.multihost import host_signals, is_primary_host
from resnet_jax.run_dir.files import append_metrics, identity
from resnet_jax.runtime.safe_files import append
from resnet_jax.training.evaluate import Totals, add_sums, evaluate_split
from resnet_jax.training.options import RunOptions
from resnet_jax.training.progress import Log, Tick
from resnet_jax.training.rows import (
    Row,
    first_reaching,
    format_row,
    has_rate_factor,
    is_best,
    metrics_row,
    rate_factor,
    score,
    train_values,
)
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
from resnet_jax.training.state import TrainState, with_ema_params
from resnet_jax.training.timer import StepTimer

# Steps that may be queued on the devices while one is computed
_QUEUED = 2


def train_loop(
    run: RunState,
    programs: RunPrograms,
    options: RunOptions,
    *,
    constants: Sequence[Any],
    loggers: Sequence[Logger],
    stop: Callable[[], int],
    tick: Tick,
) -> TrainResult:
    """Take all steps of a run, with what is evaluated, logged and saved between them.

    Args:
        run: before its next step.
        programs: data and compiled programs.
        options: when to evaluate, save and stop.
        constants: `step_constants` of the run.
        loggers: called with each row.
        stop: returns the number of a signal that asked to stop, or 0.
        tick: called after each step.
    """
    setup, (state, step, totals, rows) = run.setup, (run.state, run.step, run.totals, run.rows)
    recipe, split, last = setup.recipe, eval_split(setup.recipe), last_step(setup, options)
    timer, signal, reached = StepTimer(**{"first_step": step, **run.timer}), 0, None
    pending: deque[tuple[int, Totals, Array | None]] = deque()
    batches = training_batches(programs.train, recipe, range(step, last))
    with open_checkpoints(run.out / "checkpoints", keep=options.keep_checkpoints, best=True) as checkpoints:
        if run.unevaluated:
            state = evaluate_and_log(run, programs, state, step, totals, timer, loggers)
            totals, timer, reached = {}, StepTimer(step), _reached(rows, setup, options)
            save_or_continue(checkpoints, run, state, step, totals, timer, last=step == last or bool(reached))
        while step < last and not reached and not (run.unevaluated and out_of_patience(run, options)):
            inputs = timer.wait(batches)
            train_step, seconds = programs.train_step(step, (state, inputs, *constants))
            timer.exclude(seconds)
            state, sums = train_step(state, inputs, *constants)
            step += 1
            signal = signal or (stop() if jax.process_count() == 1 else 0)
            pending.append((step, sums, host_signals(setup.mesh, stop())))
            evaluate_now = is_due(setup, step, options.eval_every) or step == setup.steps
            save_now = is_due(setup, step, options.checkpoint_every) or step == last or bool(signal)
            totals, asked = drain(run, totals, pending, keep=0 if evaluate_now or save_now else _QUEUED)
            if asked and not signal:
                signal = asked
                totals, _ = drain(run, totals, pending, keep=0)
            tick(step, lambda totals=totals: train_values(setup, totals))  # type: ignore[misc]
            if evaluate_now:
                try:
                    state = evaluate_and_log(run, programs, state, step, totals, timer, loggers)
                except InputError:
                    # The other hosts are still evaluating, and cannot save
                    if jax.process_count() > 1:
                        raise
                    save_or_continue(checkpoints, run, state, step, totals, timer, last=True, unevaluated=True)
                    raise
                totals, timer, reached = {}, StepTimer(step), _reached(rows, setup, options)
            end = step == last or bool(signal or reached or (evaluate_now and out_of_patience(run, options)))
            if save_now or end or (evaluate_now and is_best(rows, split, setup.task)):
                with timer.paused():
                    save_or_continue(checkpoints, run, state, step, totals, timer, last=end)
            if end:
                break
    return ended_result(run._replace(state=state, step=step), options, signal, reached)


def _reached(rows: Sequence[Row], setup: TrainSetup, options: RunOptions) -> Row | None:
    return first_reaching(rows[-1:], eval_split(setup.recipe), setup.task, options.target_metric)


def with_rate_factor(run: RunState, state: TrainState) -> TrainState:
    """Return a state whose learning rate follows the rows so far, if the schedule does."""
    if not has_rate_factor(run.setup):
        return state
    old = optax.tree.get(state.opt_state, "factor")
    new = jax.device_put(np.asarray(rate_factor(run.setup, run.rows), old.dtype), old.sharding)
    return state.replace(opt_state=optax.tree.set(state.opt_state, factor=new))


def is_due(setup: TrainSetup, step: int, every: int | None) -> bool:
    """Return whether something happens after a step: every `every` steps or, if None, at the end of each epoch."""
    if every:
        return step % every == 0
    batch, size = setup.recipe.batch_size, setup.dataset.train_size
    return step * batch // size > (step - 1) * batch // size


def drain(
    run: RunState, totals: Totals, pending: deque[tuple[int, Totals, Array | None]], *, keep: int
) -> tuple[Totals, int]:
    """Read the sums of all but the `keep` newest steps, which waits for the devices.

    Returns:
        The totals with the sums of these steps, and the largest signal number that any host received.

    Raises:
        InputError: The loss or gradient of a step was not finite, and the recipe stops at such a step.
    """
    signal = 0
    while len(pending) > keep:
        step, sums, asked = pending.popleft()
        check_finite(run, step, sums)
        totals = add_sums(totals, sums)
        signal = signal or (0 if asked is None else int(asked))
    return totals, signal


def check_finite(run: RunState, step: int, sums: Mapping[str, Any]) -> None:
    """Write down the examples of a step that was not finite; raise InputError unless the recipe skips such steps."""
    if not int(sums["nonfinite_steps"]):
        return
    recipe, size, repeats = run.setup.recipe, run.setup.dataset.train_size, run.setup.recipe.augment.aug_repeats
    indices = batch_indices(recipe.seed, step - 1, recipe.batch_size, size, repeats, run.setup.draws)
    if is_primary_host():
        append(run.out / "nonfinite.jsonl", json.dumps({"step": step, "indices": indices.tolist()}) + "\n")
    what = f"loss or gradient of step {step} is not finite; its examples are in {run.out / 'nonfinite.jsonl'}"
    if recipe.on_nonfinite == "stop":
        raise InputError(
            f"{what}; lower optimizer.lr, lengthen schedule.warmup or set on_nonfinite to skip"
            " (earlier checkpoints are kept)"
        )
    run.log(f"{what}; the step is skipped")


def evaluate_and_log(
    run: RunState,
    programs: RunPrograms,
    state: TrainState,
    step: int,
    totals: Totals,
    timer: StepTimer,
    loggers: Sequence[Logger],
) -> TrainState:
    """Evaluate the network and its EMA, write, log and print the next row, and return the state with the next rate."""
    setup, split = run.setup, eval_split(run.setup.recipe)
    with timer.paused():
        loss = train_values(setup, totals)["loss"]
        if loss is not None:
            require_finite_loss(loss, step, trained=bool(totals["count"]))
        evaluated = {"": evaluate_split(programs.eval_step, setup.metrics, state, programs.evaluation)}
        require_finite_loss(evaluated[""]["loss"], step)
        if state.ema:
            ema = with_ema_params(state)
            evaluated["ema/"] = evaluate_split(programs.eval_step, setup.metrics, ema, programs.evaluation)
    run.rows.append(metrics_row(setup, step, totals, evaluated, timer, run.rows))
    append_metrics(run.out, run.rows[-1])
    for logger in loggers:
        logger(step, run.rows[-1])
    run.log(format_row(run.rows[-1], split, setup.task, setup.steps))
    return with_rate_factor(run, state)


def require_finite_loss(loss: float, step: int, *, trained: bool = True) -> None:
    """Raise InputError if the loss is not finite, or if every step since the last row was skipped."""
    if not math.isfinite(loss) or not trained:
        what = f"the loss is {loss} at" if trained else "every step was skipped before"
        raise InputError(
            f"{what} step {step}; lower optimizer.lr or lengthen schedule.warmup (earlier checkpoints are kept)"
        )


def save_or_continue(
    checkpoints: Checkpoints,
    run: RunState,
    state: TrainState,
    step: int,
    totals: Totals,
    timer: StepTimer,
    *,
    last: bool,
    unevaluated: bool = False,
) -> None:
    """Save a checkpoint; if it or the one before cannot be written, say so and continue to the next.

    Raises:
        MachineError: There is no next one.
    """
    split, task = eval_split(run.setup.recipe), run.setup.task
    has_row = bool(run.rows) and run.rows[-1]["step"] == step and not unevaluated
    metric = score(run.rows[-1], split, task) if has_row else None
    progress = {"totals": totals, "timer": timer.saved() if totals else {}, "unevaluated": unevaluated}
    # A copy, since the manifest is written in the background
    progress |= {"rows": list(run.rows), **identity(run.setup.recipe, run.setup.dataset)}
    progress |= {"teacher": teacher.digest} if (teacher := run.setup.teacher) else {}
    try:
        save(checkpoints, state, progress, metric=metric)
    except MachineError as error:
        # Mostly of the save before, which was written in the background
        if jax.process_count() > 1:
            raise
        run.log(f"{error}; {'this step is saved instead' if last else 'training continues to the next checkpoint'}")
        if last:
            save(checkpoints, state, progress, metric=metric)


def guarded_loggers(loggers: Sequence[Logger], log: Log) -> list[Logger]:
    """Return loggers of which one that fails is reported once and then left out; none stops or changes a run."""
    failed: set[int] = set()

    def guard(number: int, logger: Logger) -> Logger:
        def write(step: int, row: Row) -> None:
            if number in failed:
                return
            try:
                logger(step, dict(row))
            except Exception as error:
                failed.add(number)
                log(f"logger {getattr(logger, '__name__', number)} failed and is not called again: {error!r}")

        return write

    return [guard(number, logger) for number, logger in enumerate(loggers)]
