"""The training loop: a run is a pure function of its recipe, whatever interrupts it."""

import json
import math
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from rich.console import Console

from resnet_jax.data.batches import batch_indices
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, MachineError
from resnet_jax.recipe import Recipe, check
from resnet_jax.train.checkpoint import Checkpoints, open_checkpoints, restore, save
from resnet_jax.train.compiling import compiler
from resnet_jax.train.devices import on_first_host, replicate, require_even_split, split_rows
from resnet_jax.train.directory import add_metrics, keep_metrics, open_run, require_same_run
from resnet_jax.train.evaluate import Metrics, divide, make_evaluate
from resnet_jax.train.feed import supply, training_items
from resnet_jax.train.habits import Feeding, Habits, require_sense
from resnet_jax.train.job import (
    Job,
    Shard,
    Sources,
    Told,
    held_split,
    initial,
    load_pretrained,
    open_sources,
    prepare,
)
from resnet_jax.train.lap import Lap, metrics_line, score
from resnet_jax.train.lock import hold
from resnet_jax.train.preprocess import original_crop
from resnet_jax.train.progress import Lines, Say, describe, headline, progress, tell_bad
from resnet_jax.train.state import TrainState, averaged
from resnet_jax.train.step import Sums, zero_sums
from resnet_jax.train.stop import stop_requested, watched
from resnet_jax.train.sweep import possible_parts, require_parts, unit_of

_AHEAD = 2  # steps that may be queued on the devices while one is computed


class Result(NamedTuple):
    """How a call to `train_recipe` ended."""

    state: TrainState
    step: int
    steps: int  # of the whole recipe
    split: str  # that the run was measured on: "validation" or "test"
    lines: list[dict[str, Any]]  # all of metrics.jsonl
    signal: int = 0  # that stopped it early; 0 for none
    reached: dict[str, Any] | None = None  # the first line of metrics that reached the target


class Begun(NamedTuple):
    """A run before its next step."""

    job: Job
    sources: Sources
    state: TrainState
    sums: Sums
    lines: list[dict[str, Any]]
    notes: tuple[str, ...]  # on the weights that it starts from
    parts: list[int]  # into which a batch may be cut


def train_recipe(
    recipe: Recipe,
    out: Path,
    *,
    data_dir: Path = Path("data"),
    devices: int | None = None,
    accumulate: int | Literal["auto"] = 1,
    shard: Shard = "nothing",
    habits: Habits = Habits(),
    feeding: Feeding = Feeding(),
    splits: tuple[Source, Source] | None = None,
    console: Console | None = None,
) -> Result:
    """Trains a recipe in a run directory, from its newest checkpoint if it has one, and returns the final state.

    Args:
        recipe: everything that decides the result.
        out: the run directory: new, empty or of this very recipe.
        data_dir: where data sets are looked for.
        devices: how many to use; None is all.
        accumulate: parts into which a batch is cut, one after the other; "auto" takes as few as the memory allows.
        shard: what is spread over the devices in place of being on each: "nothing" or "params", with what the optimiser
            and the averages keep of them.
        habits: when the run looks, saves and stops.
        feeding: how data gets to the devices.
        splits: train and test in place of the data set that the recipe names.
        console: where progress is shown; None is standard output.

    Raises InputError where recipe, data, devices or directory do not fit each other, having written nothing, and where
    the loss is no longer finite, having kept the checkpoints from before; MachineError where the last checkpoint cannot
    be written.
    """
    require_sense(habits, feeding)
    recipe, console = check(recipe), console or Lines(quiet=not on_first_host())
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False, emoji=False)
    with hold(out):
        begun = begin(recipe, out, data_dir, devices, accumulate, shard, splits, say)
        step, reached = int(begun.state.step), reaching(begun.lines, held_split(recipe), habits.target)
        stop_at = habits.stop_at
        if stop_at is not None and stop_at < step:
            raise InputError(f"--stop-at is {stop_at}; {out} is already at step {step}")
        if step >= min(begun.job.steps, stop_at or begun.job.steps) or reached:
            return Result(begun.state, step, begun.job.steps, held_split(recipe), begun.lines, reached=reached)
        say(f"{f'resuming at step {step}' if step else 'training'}: {headline(begun.job, out)}")
        for note in begun.notes:
            say(note)
        return loop(begun, out, habits, feeding, console, say)


def loop(begun: Begun, out: Path, habits: Habits, feeding: Feeding, console: Console, say: Say) -> Result:
    """All steps of a run, with what is measured, said and saved between them."""
    job, sources, state, sums, lines, _, parts = begun
    recipe, step, split = job.recipe, int(state.step), held_split(job.recipe)
    last = min(job.steps, habits.stop_at or job.steps)
    with (
        open_checkpoints(out / "checkpoints", keep=habits.keep, best=True) as checkpoints,
        stop_requested() as stop_signal,
        watched(habits.stall) as alive,
        progress(console, recipe.batch_size, step, last, answers=job.right is not None) as show,
    ):
        bad: dict[int, str] = {}
        train = supply(sources.train, job.mesh, feeding, bad, original_crop(recipe, sources.train))
        held = supply(sources.held, job.mesh, feeding)
        evaluate = make_evaluate(job.model, recipe.data, job.mesh, loss=job.measure, right=job.right, alive=alive)
        items = training_items(train, recipe.seed, recipe.batch_size, range(step, last), recipe.augment.repeats)
        compiled, lap, told_bad, stop, reached = compiler(job, parts, say), Lap(step), 0, 0, None
        ahead: deque[Told] = deque()
        while step < last and not stop and not reached:
            given = (state, sums, lap.next(items), signals(job, stop_signal()))
            advance, seconds = compiled(step, given)
            lap.leave_out(seconds)
            state, sums, told = advance(*given)
            step += 1
            ahead.append(told)
            look = due(job, step, habits.evaluate_every) or step == job.steps
            while len(ahead) > (0 if look else _AHEAD):  # or else a signal would wait for all that is queued
                told = ahead.popleft()
                require_finite(job, told, out, say)
                stop = stop or int(told.stop or 0)
            alive()
            show(step, sums)
            told_bad = tell_bad(bad, told_bad, habits.max_bad_images * sources.train.size, say)
            if look:
                trained = finite(divide(sums, answers=job.right is not None), step)
                lap.end(step)  # after the sums, which wait for the devices
                measured = {"": finite(evaluate(state, held), step)}
                if state.ema:
                    measured["ema_"] = evaluate(averaged(state), held)
                lines.append(metrics_line(job, step, trained, measured, lap, lines, int(sums.bad)))
                add_metrics(out, lines[-1])
                say(describe(lines[-1], split, job.steps))
                reached = reaching(lines[-1:], split, habits.target)
                sums, lap = replicate(zero_sums(), job.mesh), Lap(step)
            if jax.process_count() == 1:
                stop = stop_signal()
            end = bool(step == last or stop or reached)
            if due(job, step, habits.checkpoint_every) or end:
                metric = score(lines[-1], split) if lines and lines[-1]["step"] == step else None
                store(checkpoints, state, sums, metric, say, last=end)
    return Result(state, step, job.steps, split, lines, stop, reached)


def begin(
    recipe: Recipe,
    out: Path,
    data_dir: Path,
    devices: int | None,
    accumulate: int | Literal["auto"],
    shard: Shard,
    splits: tuple[Source, Source] | None,
    say: Say,
) -> Begun:
    """Opens data and directory, and restores or makes the state; raises InputError before anything is written."""
    sources = open_sources(recipe, data_dir, splits)
    job = prepare(recipe, sources.dataset, devices, shard=shard)
    require_even_split(recipe.batch_size, job.mesh)
    unit, size = unit_of(recipe, job.model.norm), job.mesh.size
    if accumulate != "auto":
        require_parts(recipe.batch_size, unit, size, accumulate)
        job = job._replace(accumulate=accumulate)
    parts = possible_parts(recipe.batch_size, unit, size) if accumulate == "auto" else [accumulate]
    require_same_run(out, recipe, sources.dataset)
    meet("looked at the directory")
    restored = restore(out / "checkpoints", job, quarantine=True, say=say)
    pretrained = None if restored else load_pretrained(job)
    if on_first_host():
        open_run(out, recipe, sources.dataset, pretrained and pretrained.file)
    state, sums = restored or initial(job, pretrained and pretrained.variables)
    lines = keep_metrics(out, int(state.step))
    meet("opened the run")
    return Begun(job, sources, state, sums, lines, pretrained.notes if pretrained else (), parts)


def meet(where: str) -> None:
    """Waits until all hosts are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def signals(job: Job, signal: int) -> Array | None:
    """What each host was asked, an entry a device, for all to stop at the same step; None on a single host."""
    if jax.process_count() == 1:
        return None
    return split_rows(np.full(len(job.mesh.local_devices), signal, np.int32), job.mesh)


def reaching(lines: list[dict[str, Any]], split: str, target: float | None) -> dict[str, Any] | None:
    """The first line of metrics with an accuracy, or less loss, of so much; None where there is none."""
    return next((line for line in lines if target is not None and score(line, split) >= target), None)


def store(
    checkpoints: Checkpoints, state: TrainState, sums: Sums, metric: float | None, say: Say, *, last: bool
) -> None:
    """Writes a checkpoint; where it or the one before cannot be written, says it and goes on to the next.

    Raises MachineError where there is no next.
    """
    try:
        save(checkpoints, state, sums, metric=metric)
    except MachineError as error:  # mostly of the save before, which was written in the background
        if jax.process_count() > 1:
            raise
        say(f"{error}; this step is saved in its place" if last else f"{error}; the run goes on to its next checkpoint")
        if last:
            save(checkpoints, state, sums, metric=metric)


def require_finite(job: Job, told: Told, out: Path, say: Say) -> None:
    """Writes down the examples of a step that was not finite; raises InputError unless the recipe skips such steps."""
    if not int(told.bad):
        return
    recipe, step = job.recipe, int(told.step)
    size, repeats = job.dataset.train_size, recipe.augment.repeats
    indices = batch_indices(recipe.seed, step - 1, recipe.batch_size, size, repeats).tolist()
    if on_first_host():
        with (out / "nonfinite.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "indices": indices}) + "\n")
    what = f"loss or gradient of step {step} is not finite, its examples are in {out / 'nonfinite.jsonl'}"
    if recipe.nonfinite == "stop":
        raise InputError(
            f"{what}; lower optimizer.lr, lengthen schedule.warmup or set nonfinite to skip"
            " (checkpoints from before are kept)"
        )
    say(f"{what}; it changes nothing")


def due(job: Job, step: int, every: int | None) -> bool:
    """Whether something happens after a step: `every` so many steps, or, if None, where the step ends an epoch."""
    if every:
        return step % every == 0
    batch, size = job.recipe.batch_size, job.dataset.train_size
    return step * batch // size > (step - 1) * batch // size


def finite(metrics: Metrics, step: int) -> Metrics:
    """The metrics themselves; raises InputError where the loss is not a number, or nothing was trained."""
    if not math.isfinite(metrics.loss) or not metrics.examples:
        what = f"the loss is {metrics.loss} at" if metrics.examples else "every step was skipped before"
        raise InputError(
            f"{what} step {step}; lower optimizer.lr or lengthen schedule.warmup (checkpoints from before are kept)"
        )
    return metrics
