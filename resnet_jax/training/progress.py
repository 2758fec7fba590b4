"""What people see while a run trains: a live bar on a terminal, plain lines elsewhere."""

import html
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from resnet_jax.errors import InputError, MachineError
from resnet_jax.runtime.terminal import Terminal, log_to_stderr, printable, silence
from resnet_jax.tasks.metric import Display
from resnet_jax.tasks.metrics import format_value
from resnet_jax.training.setup import TrainSetup, network_name

_REFRESH = 0.25  # seconds
_WIDE = 90  # columns of a terminal from which a bar has room for its values
# Corrupt images that are named
_NAMED = 10

# Takes one line for people
Log = Callable[[str], None]
# Called after each step with the steps taken and the averages since the last row
Tick = Callable[[int, Callable[[], dict[str, Any]]], None]
# (name, images per step, step now, step at the end) -> what to call after each step
AddBar = Callable[[str, int, int, int], Tick]


class RunConsole(Terminal):
    """Console of a run, which stops with a checkpoint if it cannot be written: a closed pipe, a full disk."""

    error: OSError | None = None
    """Why it cannot be written, if its reader has not simply closed it."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; if that fails, stop the run with SIGTERM."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.quiet = True
            silence(self.file)
            if not isinstance(error, BrokenPipeError):
                self.error = error
                log_to_stderr(f"standard output: {error.strerror}; stopping with a checkpoint")
            signal.raise_signal(signal.SIGTERM)


def require_written(console: Console) -> None:
    """Raise MachineError if a run was stopped because its console cannot be written."""
    if isinstance(console, RunConsole) and console.error:
        raise MachineError(
            f"standard output: {console.error.strerror}; the run is saved: free disk space, and repeat the same command"
        )


def console_log(console: Console) -> Log:
    """Return a function that prints lines as they are."""
    return partial(console.print, highlight=False, soft_wrap=True, markup=False, emoji=False)


@contextmanager
def progress(console: Console, display: Mapping[str, Display] = MappingProxyType({})) -> Iterator[AddBar]:
    """Yield a function that adds a progress bar, with values shown as `display` says, below what is printed."""
    # Step, speed and time are never cut
    wide = (BarColumn(bar_width=None), TextColumn("{task.fields[values]}")) if console.width >= _WIDE else ()
    columns = (
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        *wide,
        TextColumn("{task.fields[speed]} images/s"),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("left"),
    )
    live = console.is_terminal
    if console.is_jupyter:
        with _notebook_bars(display) as bars:
            yield bars
        return
    with Progress(*columns, console=console, disable=not live, transient=True, expand=True) as bar:

        def add(name: str, batch_size: int, step: int, steps: int) -> Tick:
            task = bar.add_task(printable(name, console.encoding), total=steps, completed=step, values="", speed="-")
            shown = 0.0

            def tick(step: int, values: Callable[[], dict[str, Any]]) -> None:
                nonlocal shown
                if not live or time.perf_counter() - shown < _REFRESH:
                    return
                bar.update(task, completed=step)
                speed = batch_size * (bar.tasks[task].speed or 0)
                text = "  ".join(f"{name} {format_value(name, value, display)}" for name, value in values().items())
                bar.update(task, values=text, speed=f"{speed:,.0f}")
                shown = time.perf_counter()

            return tick

        yield add


@contextmanager
def _notebook_bars(shown_as: Mapping[str, Display]) -> Iterator[AddBar]:
    """Yield a function that adds a bar to the output of a notebook cell, which is redrawn in place and then removed."""
    from IPython.display import HTML, display

    handles = []

    def add(name: str, batch_size: int, step: int, steps: int) -> Tick:
        handle = display(HTML(""), display_id=True)
        handles.append(handle)
        first, start, shown = step, time.perf_counter(), 0.0

        def tick(step: int, values: Callable[[], dict[str, Any]]) -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown < _REFRESH:
                return
            shown, rate = now, (step - first) / (now - start)
            text = "  ".join(f"{name} {format_value(name, value, shown_as)}" for name, value in values().items())
            left = f"{(steps - step) / rate:,.0f} s left" if rate else ""
            words = html.escape(f"{name} {step}/{steps}  {text}  {batch_size * rate:,.0f} images/s  {left}")
            handle.update(HTML(f"<progress value='{step}' max='{steps}'></progress> <code>{words}</code>"))

        return tick

    try:
        yield add
    finally:
        for handle in handles:
            handle.update(HTML(""))


def headline(setup: TrainSetup, out: Path) -> str:
    """Return what is trained, on what, where."""
    device, recipe, hosts = setup.mesh.devices.flat[0].device_kind, setup.recipe, jax.process_count()
    how = f" on {hosts} hosts" if hosts > 1 else ""
    how += f", {setup.grad_accum_steps} microbatches per step" if setup.grad_accum_steps > 1 else ""
    how += ", sharded parameters" if setup.param_sharding == "sharded" else ""
    how += f", passed as values: {', '.join(setup.given)}" if setup.given else ""
    return (
        f"{network_name(setup)} on {recipe.data.name}, {setup.dataset.train_size:,} images,"
        f" {setup.steps:,} steps of {recipe.batch_size}, {setup.mesh.size} x {device}{how}, in {out}"
    )


def corrupt_log(corrupt: dict[int, str], most: float, log: Log) -> Callable[[], None]:
    """Return a function that logs images found corrupt since its last call; safe to call from several threads.

    Args:
        corrupt: messages by index of the image.
        most: number of corrupt images above which the function raises InputError.
        log: is told of the first ten.
    """
    told, lock = 0, threading.Lock()

    def log_corrupt() -> None:
        nonlocal told
        with lock:
            messages = list(corrupt.values())
            for message in messages[told:_NAMED]:
                log(f"{message}; replaced by the next image")
            told = len(messages)
        if len(messages) > most:
            others = f", and {len(messages) - 1:,} others" if len(messages) > 1 else ""
            raise InputError(
                f"{messages[-1]}{others}, more than --max-corrupt-fraction allows: repair or remove these images"
            )

    return log_corrupt
