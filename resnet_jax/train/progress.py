"""What one sees while a run trains: a live bar on a terminal, plain lines elsewhere."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_jax.errors import InputError
from resnet_jax.train.evaluate import divide
from resnet_jax.train.job import Job
from resnet_jax.train.step import Sums

_REFRESH = 0.25  # seconds between readings of the loss, each of which waits for the device

_TOLD = 10  # bad images that are named

# (line), to a person
Say = Callable[[str], None]
# (step, totals since the last line of metrics)
Show = Callable[[int, Sums], None]
# (name, images a step, step now, step at the end, whether there are right answers) -> what to call after each step
AddBar = Callable[[str, int, int, int, bool], Show]


class Lines(Console):
    """A console whose reader may go away, as `| head` does: the run then stops as if it had been asked to."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def progress(console: Console) -> Iterator[AddBar]:
    """Bars below what is said: yields the function that adds one."""
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TextColumn("{task.fields[speed]} images/s"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    live = console.is_terminal
    with Progress(*columns, console=console, disable=not live, transient=True, expand=True) as bar:

        def add(name: str, batch_size: int, step: int, steps: int, answers: bool) -> Show:
            task = bar.add_task(name, total=steps, completed=step, loss="-", accuracy="-", speed="-")
            shown = 0.0

            def show(step: int, sums: Sums) -> None:
                nonlocal shown
                if not live or time.perf_counter() - shown < _REFRESH:
                    return
                metrics = divide(sums, answers=answers)
                bar.update(task, completed=step)
                speed = batch_size * (bar.tasks[task].speed or 0)
                loss, accuracy = f"{metrics.loss:.3f}", "-" if metrics.accuracy is None else f"{metrics.accuracy:.1%}"
                bar.update(task, loss=loss, accuracy=accuracy, speed=f"{speed:,.0f}")
                shown = time.perf_counter()

            return show

        yield add


def headline(job: Job, out: Path) -> str:
    """What is trained, on what, where."""
    device, recipe = job.mesh.devices.flat[0].device_kind, job.recipe
    hosts = jax.process_count()
    how = f" on {hosts} hosts" if hosts > 1 else ""
    how += f", batches in {job.accumulate} parts" if job.accumulate > 1 else ""
    how += ", shards of params" if job.shard == "params" else ""
    return (
        f"{recipe.model.name} on {recipe.data.name}, {job.dataset.train_size:,} images,"
        f" {job.steps:,} steps of {recipe.batch_size}, {job.mesh.size} x {device}{how}, in {out}"
    )


def describe(line: dict[str, Any], split: str, steps: int) -> str:
    """One line of metrics for a person, under 90 characters; "data" is the share of the time spent waiting for it."""

    def part(name: str, prefix: str) -> str:
        accuracy = line.get(f"{prefix}_accuracy")
        return f"  {name} {line[f'{prefix}_loss']:.3f}" + ("" if accuracy is None else f" {accuracy:6.2%}")

    averages = part("ema", f"ema_{split}") if f"ema_{split}_loss" in line else ""
    return (
        f"{line['step']:>{len(str(steps))}}/{steps}  epoch {line['epoch']:6.2f}"
        f"{part('train', 'train')}{part(split, split)}{averages}"
        f"  {line['images_per_second']:,.0f}/s"
        + (f"  data {line['data_wait']:.0%}" if line["data_wait"] >= 0.01 else "")
        + (f"  skipped {line['skipped']}" if "skipped" in line else "")
    )


def tell_bad(bad: dict[int, str], told: int, most: float, say: Say) -> int:
    """Says which images were bad since the last call, and returns how many are; raises InputError over `most`."""
    messages = list(bad.values())
    for message in messages[told : max(told, _TOLD)]:
        say(f"{message}; the next one takes its place")
    if len(messages) > most:
        raise InputError(
            f"{messages[-1]}; so are {len(messages) - 1:,} others, more than --max-bad-images allows: mend the data"
        )
    return len(messages)
