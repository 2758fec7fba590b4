"""A run between its steps, and how it ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import DeviceSplit
from resnet_jax.training.aot import CompiledStep
from resnet_jax.training.evaluate import Totals
from resnet_jax.training.options import RunOptions
from resnet_jax.training.progress import Log
from resnet_jax.training.rows import Row, best_without_progress, first_reaching
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.sources import eval_split
from resnet_jax.training.state import TrainState
from resnet_jax.weights.load import Loaded

# (step, row) -> None, called after each row of metrics
Logger = Callable[[int, Row], None]


class RunState(NamedTuple):
    """A run before its next step."""

    setup: TrainSetup
    out: Path
    state: TrainState
    step: int
    """That of the state, which may still be being computed."""
    totals: Totals
    """Sums since the last row."""
    timer: dict[str, Any]
    """Of the steps since the last row, as a checkpoint keeps it; empty after a row."""
    rows: list[Row]
    log: Log
    pretrained: Loaded | None = None
    """Weights that a new run starts from."""
    unevaluated: bool = False
    """The evaluation after the last step failed, so that its row is missing."""
    teacher: str = ""
    """Digest of the teacher of the steps so far, if the recipe has one."""


class RunPrograms(NamedTuple):
    """Data on the devices and compiled programs; seeds of a recipe share them."""

    train: DeviceSplit
    evaluation: DeviceSplit
    train_step: CompiledStep
    eval_step: Callable[..., Any]


class TrainResult(NamedTuple):
    """How a run ended."""

    state: TrainState
    step: int
    steps: int
    """Length of the recipe in steps."""
    split: str
    """Split that the run was evaluated on: "validation" or "test"."""
    rows: list[Row]
    """All of metrics.jsonl."""
    signal: int = 0
    """Number of the signal that stopped it early; 0 for none."""
    reached: Row | None = None
    """First row that reached the target."""
    early_stopped: Row | None = None
    """Best row, if too many others came after it."""

    def __repr__(self) -> str:
        """Show the last row, and neither the others nor any array."""
        last, reached = self.rows[-1] if self.rows else None, self.reached and self.reached["step"]
        shown = f"step={self.step}, steps={self.steps}, split={self.split!r}, rows=<{len(self.rows)}, last {last}>"
        return f"TrainResult({shown}, signal={self.signal}, reached={reached})"


def last_step(setup: TrainSetup, options: RunOptions) -> int:
    """Return the step at which a run ends or is to stop."""
    return min(setup.steps, options.stop_at or setup.steps)


def out_of_patience(run: RunState, options: RunOptions) -> Row | None:
    """Return the best row if the monitored value has not improved for `options.patience` rows."""
    return best_without_progress(run.rows, eval_split(run.setup.recipe), run.setup.task, options.patience)


def ended_result(run: RunState, options: RunOptions, signal: int = 0, reached: Row | None = None) -> TrainResult:
    """Return the result of a run at its step."""
    split, best = eval_split(run.setup.recipe), None
    if run.step < run.setup.steps and not signal and not reached:
        best = out_of_patience(run, options)
    return TrainResult(run.state, run.step, run.setup.steps, split, run.rows, signal, reached, best)


def finished_result(run: RunState, options: RunOptions) -> TrainResult | None:
    """Return the result of a run that has nothing left to do.

    Raises:
        InputError: The run is to stop at a step that has passed.
    """
    setup, step, stop_at, split = run.setup, run.step, options.stop_at, eval_split(run.setup.recipe)
    if stop_at is not None and stop_at < step:
        raise InputError(f"--stop-at is {stop_at}; {run.out} is already at step {step}")
    if run.unevaluated:
        return None
    reached = first_reaching(run.rows, split, setup.task, options.target_metric)
    if step >= last_step(setup, options) or reached or out_of_patience(run, options):
        return ended_result(run, options, reached=reached)
    return None
