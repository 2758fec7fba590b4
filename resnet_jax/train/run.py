"""The training loop: a run is a pure function of its recipe, whatever interrupts it."""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh
from rich.console import Console

from resnet_jax.data.batches import batch_indices
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, MachineError
from resnet_jax.recipe import Recipe, check
from resnet_jax.train.begin import Begun, Cut, begin, concrete
from resnet_jax.train.checkpoint import Checkpoints, open_checkpoints, save
from resnet_jax.train.compiling import compiler
from resnet_jax.train.devices import data_mesh, on_first_host, replicate, signals
from resnet_jax.train.directory import add_metrics
from resnet_jax.train.drive import Ask, Run, Stopped, Take, Taken, drive, with_clock
from resnet_jax.train.evaluate import Metrics, divide
from resnet_jax.train.feed import training_items
from resnet_jax.train.habits import Feeding, Habits, require_sense
from resnet_jax.train.job import Job, Shard, Told, held_split, open_sources, step_key
from resnet_jax.train.lap import Lap, metrics_line, score
from resnet_jax.train.lock import hold
from resnet_jax.train.progress import AddBar, Lines, Say, describe, headline, progress, tell_bad
from resnet_jax.train.shared import Shared, open_while_compiling, share
from resnet_jax.train.state import TrainState, averaged
from resnet_jax.train.step import Sums, zero_sums
from resnet_jax.train.stop import obey, stop_requested, watched

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
    say = speaker(console)
    with hold(out), stop_requested() as stop_signal:
        sources = open_sources(recipe, data_dir, splits)
        obey(stop_signal())
        job, parts = concrete(recipe, sources, Cut(data_mesh(devices), accumulate, shard))
        begun = begin(job, out, say)
        obey(stop_signal())
        if done := already_done(begun, habits):
            return done
        tell_start(begun)
        bad: dict[int, str] = {}
        compiled = compiler(job, parts, say)
        shared = share(job, *open_while_compiling(begun, sources, feeding, bad, compiled), compiled)
        take = one_by_one(lambda mesh: shared)
        (ended,) = train_together([(begun, shared)], habits, bad, console, take, stop_signal)
        if isinstance(ended, Exception):
            raise ended
        return ended


def speaker(console: Console) -> Say:
    """Prints lines as they are."""
    return partial(console.print, highlight=False, soft_wrap=True, markup=False, emoji=False)


def already_done(begun: Begun, habits: Habits) -> Result | None:
    """How a run ended that has nothing left to do; raises InputError where it is to stop at a step that has passed."""
    job, step, stop_at = begun.job, begun.step, habits.stop_at
    split = held_split(job.recipe)
    if stop_at is not None and stop_at < step:
        raise InputError(f"--stop-at is {stop_at}; {begun.out} is already at step {step}")
    reached = reaching(begun.lines, split, habits.target)
    if step >= min(job.steps, stop_at or job.steps) or reached:
        return Result(begun.state, step, job.steps, split, begun.lines, reached=reached)
    return None


def tell_start(begun: Begun) -> None:
    """Says what is trained, and on which weights."""
    resuming = f"resuming at step {begun.step}"
    begun.say(f"{resuming if begun.step else 'training'}: {headline(begun.job, begun.out)}")
    for note in begun.notes:
        begun.say(note)


def one_by_one(shared_on: Callable[[Mesh], Shared]) -> Take:
    """Takes each step that is asked for by itself, on the devices of its run."""

    def take(asks: list[Ask]) -> list[Taken]:
        steps, seconds = zip(*(shared_on(ask.job.mesh).compiled(ask.step, ask.given) for ask in asks), strict=True)
        return [with_clock(step(*ask.given), sum(seconds)) for step, ask in zip(steps, asks, strict=True)]

    return take


def train_together(
    begun: Sequence[tuple[Begun, Shared]],
    habits: Habits,
    bad: dict[int, str],
    console: Console,
    take: Take,
    stop_signal: Callable[[], int],
    *,
    together: bool = False,
    stopped: Stopped = lambda number, error: None,
) -> list[Result | InputError | MachineError]:
    """Trains runs side by side, or one alone, to their ends: what each returned, or what stopped it."""
    told, most = 0, habits.max_bad_images * begun[0][0].job.dataset.train_size
    with watched(habits.stall) as alive, progress(console) as add_bar:

        def between() -> None:
            nonlocal told
            alive()
            told = tell_bad(bad, told, most, speaker(console))

        runs = [loop(one, shared, habits, stop_signal, add_bar) for one, shared in begun]
        return drive(runs, take, between, together=together, stopped=stopped)


def loop(begun: Begun, shared: Shared, habits: Habits, stop_signal: Callable[[], int], add_bar: AddBar) -> Run[Result]:
    """All steps of a run, with what is measured, said and saved between them; `drive` takes the steps."""
    job, out, state, step, sums, lines, _, say = begun
    recipe, split, key = job.recipe, held_split(job.recipe), step_key(job)
    last = min(job.steps, habits.stop_at or job.steps)
    with open_checkpoints(out / "checkpoints", keep=habits.keep, best=True) as checkpoints:
        show = add_bar(f"{out.name} step", recipe.batch_size, step, last, job.right is not None)
        steps = range(step, last)
        items = training_items(shared.train, recipe.seed, recipe.batch_size, steps, recipe.augment.repeats)
        lap, stop, reached, ahead = Lap(step), 0, None, deque[Told]()
        while step < last and not stop and not reached:
            taken = yield Ask(job, step, (state, sums, lap.next(items), key, signals(job.mesh, stop_signal())))
            assert taken is not None
            state, sums = taken.state, taken.sums
            lap.leave_out(taken.seconds)
            step += 1
            ahead.append(taken.told)
            look = due(job, step, habits.evaluate_every) or step == job.steps
            while len(ahead) > (0 if look else _AHEAD):  # or else a signal would wait for all that is queued
                told = ahead.popleft()
                require_finite(job, told, out, say)
                stop = stop or int(told.stop or 0)
            show(step, sums)
            if look:
                yield from measure(begun, shared, state, sums, step, lap)
                reached = reaching(lines[-1:], split, habits.target)
                sums, lap = replicate(zero_sums(), job.mesh), Lap(step)
            if jax.process_count() == 1:
                stop = stop_signal()
            end = bool(step == last or stop or reached)
            if due(job, step, habits.checkpoint_every) or end:
                metric = score(lines[-1], split) if lines and lines[-1]["step"] == step else None
                store(checkpoints, state, sums, metric, say, last=end)
    return Result(state, step, job.steps, split, lines, stop, reached)


def measure(begun: Begun, shared: Shared, state: TrainState, sums: Sums, step: int, lap: Lap) -> Run[None]:
    """Ends a lap, evaluates the held-out split, and writes and says the run's next line of metrics."""
    job, lines = begun.job, begun.lines
    trained = finite(divide(sums, answers=job.right is not None), step)
    lap.end(step)  # after the sums, which wait for the devices
    yield None  # the clocks of all others end as well before one of them compiles or evaluates
    held = {"": finite((yield from shared.evaluation(state, shared.held)), step)}
    if state.ema:
        held["ema_"] = yield from shared.evaluation(averaged(state), shared.held)
    lines.append(metrics_line(job, step, trained, held, lap, lines, int(sums.bad)))
    add_metrics(begun.out, lines[-1])
    begun.say(describe(lines[-1], held_split(job.recipe), job.steps))


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
