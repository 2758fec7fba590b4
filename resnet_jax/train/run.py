"""The training loop: a run is a pure function of its recipe, whatever interrupts it."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from resnet_jax.data.source import to_arrays
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, check
from resnet_jax.train.checkpoint import open_checkpoints, restore, save
from resnet_jax.train.devices import replicate, require_even_split
from resnet_jax.train.directory import add_metrics, keep_metrics, open_run
from resnet_jax.train.evaluate import Metrics, divide, make_evaluate, place
from resnet_jax.train.job import Job, held_split, initial, make_advance, open_sources, prepare, step_indices
from resnet_jax.train.progress import describe, progress
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import zero_sums
from resnet_jax.train.stop import stop_requested


class Result(NamedTuple):
    """How a call to `train_recipe` ended."""

    state: TrainState
    step: int
    steps: int  # of the whole recipe
    batch_size: int
    split: str  # that the run was measured on: "validation" or "test"
    lines: list[dict[str, Any]]  # all of metrics.jsonl
    compile_seconds: float
    signal: int  # that stopped it early; 0 for none


def train_recipe(
    recipe: Recipe,
    out: Path,
    *,
    data_dir: Path = Path("data"),
    devices: int | None = None,
    stop_at: int | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    console: Console | None = None,
) -> Result:
    """Trains a recipe in a run directory, from its newest checkpoint if it has one, and returns the final state.

    Args:
        recipe: everything that decides the result.
        out: the run directory: new, empty or of this very recipe.
        data_dir: where data sets are looked for.
        devices: how many to use; None is all.
        stop_at: step at which to stop, with a checkpoint, before the recipe ends.
        evaluate_every: steps between lines of metrics; None is an epoch.
        checkpoint_every: steps between checkpoints; None is an epoch.
        console: where progress is shown; None is standard output.

    Raises InputError where recipe, data, devices or directory do not fit each other, having written nothing, and where
    the loss is no longer finite, having kept the checkpoints from before.
    """
    for name, value in (
        ("--stop-at", stop_at),
        ("--evaluate-every", evaluate_every),
        ("--checkpoint-every", checkpoint_every),
    ):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be positive")
    sources = open_sources(check(recipe), data_dir)
    job, split = prepare(recipe, sources.dataset, devices), held_split(recipe)
    require_even_split(recipe.batch_size, job.mesh)
    console = console or Console()
    open_run(out, recipe, sources.dataset)
    state, sums = restore(out / "checkpoints", job) or initial(job)
    start, last = int(state.step), min(job.steps, stop_at or job.steps)
    lines = keep_metrics(out, start)
    if start >= last:
        return Result(state, start, job.steps, recipe.batch_size, split, lines, 0.0, 0)

    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"{f'resuming at step {start}' if start else 'training'}: {headline(job, out)}")
    data, held = (place(to_arrays(source), job.mesh) for source in (sources.train, sources.held))
    evaluate = make_evaluate(job.model, recipe.data, job.mesh, sources.held.size)
    before = time.perf_counter()
    advance = make_advance(job).lower(state, sums, data, step_indices(job, start)).compile()
    compile_seconds = time.perf_counter() - before
    say(f"compiled in {compile_seconds:.1f} s")

    trained, since, since_step = seconds_so_far(lines), time.perf_counter(), start
    with (
        open_checkpoints(out / "checkpoints") as checkpoints,
        stop_requested() as stop_signal,
        progress(console, recipe.batch_size, start, last) as show,
    ):
        for step in range(start + 1, last + 1):
            state, sums = advance(state, sums, data, step_indices(job, step - 1))
            show(step, sums)
            if due(job, step, evaluate_every) or step == job.steps:
                metrics = finite(divide(sums), step)
                elapsed = time.perf_counter() - since
                trained += elapsed
                speed = (step - since_step) * recipe.batch_size / elapsed
                line = metrics_line(job, step, metrics, evaluate(state, held), trained, speed)
                add_metrics(out, line)
                lines.append(line)
                say(describe(line, split, job.steps))
                sums = replicate(zero_sums(), job.mesh)
                since, since_step = time.perf_counter(), step
            stop = stop_signal()
            if due(job, step, checkpoint_every) or step == last or stop:
                finite(divide(sums), step)
                save(checkpoints, state, sums)
            if stop:
                break
    return Result(state, step, job.steps, recipe.batch_size, split, lines, compile_seconds, stop)


def headline(job: Job, out: Path) -> str:
    """What is trained, on what, where."""
    device = job.mesh.devices.flat[0].device_kind
    return (
        f"{job.recipe.model.name} on {job.recipe.data.name},"
        f" {job.dataset.train_size:,} images, {job.steps:,} steps of {job.recipe.batch_size},"
        f" {job.mesh.size} x {device}, in {out}"
    )


def due(job: Job, step: int, every: int | None) -> bool:
    """Whether something happens after a step: `every` so many steps, or, if None, where the step ends an epoch."""
    if every:
        return step % every == 0
    batch, size = job.recipe.batch_size, job.dataset.train_size
    return step * batch // size > (step - 1) * batch // size


def seconds_so_far(lines: list[dict[str, Any]]) -> float:
    """Training time, without compilation and evaluation, up to the last line of metrics."""
    return lines[-1]["seconds"] if lines else 0.0


def finite(metrics: Metrics, step: int) -> Metrics:
    """The metrics themselves; raises InputError where the loss is no longer a number, so that it is never saved."""
    if not math.isfinite(metrics.loss):
        raise InputError(
            f"the loss is {metrics.loss} at step {step}; lower optimizer.lr or lengthen schedule.warmup"
            " (checkpoints from before are kept)"
        )
    return metrics


def metrics_line(
    job: Job, step: int, trained: Metrics, held: Metrics, seconds: float, images_per_second: float
) -> dict[str, Any]:
    """One line of metrics.jsonl: averages since the line before, the held split now, and the speed in between."""
    return {
        "step": step,
        "epoch": step * job.recipe.batch_size / job.dataset.train_size,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        **{f"{held_split(job.recipe)}_{name}": value for name, value in held._asdict().items()},
        "lr": float(job.schedule(step - 1)),
        "images_per_second": images_per_second,
        "seconds": seconds,
    }
