"""Rows of metrics.jsonl: what is measured, under which keys, and what a row is worth.

Keys are "train/loss", "test/accuracy", "ema/test/accuracy" and so on, in the words of the task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.optim.schedules import plateau_factor
from resnet_jax.tasks.metric import compute_all
from resnet_jax.tasks.metrics import display_of, format_value
from resnet_jax.tasks.task import Task
from resnet_jax.training.evaluate import Totals
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.sources import eval_split
from resnet_jax.training.timer import StepTimer

Row = dict[str, Any]
_TINY = 1e-9


def train_values(setup: TrainSetup, totals: Totals) -> dict[str, float | None]:
    """Return the averages over training images since the last row; None for what is not known."""
    metrics = {name: setup.task.metrics[name] for name in setup.task.train_metrics}
    values = compute_all(metrics, totals, setup.dataset.classes)
    loss, weight = totals.get("loss"), totals.get("weight")
    known = loss is not None and weight is not None
    return {"loss": float(loss) / max(float(weight), _TINY) if known else None, **values}  # type: ignore[arg-type]


def metrics_row(
    setup: TrainSetup,
    step: int,
    totals: Totals,
    evaluated: Mapping[str, Mapping[str, Any]],
    timer: StepTimer,
    rows: Sequence[Row],
) -> Row:
    """Return the next row of metrics.jsonl.

    Args:
        setup: of the run.
        step: steps taken.
        totals: sums over the training images since the last row.
        evaluated: values on the evaluation split by prefix: "" for the network, "ema/" for its EMA.
        timer: since the last row.
        rows: before it.
    """
    split, seconds, batch = eval_split(setup.recipe), max(timer.seconds, _TINY), setup.recipe.batch_size
    display, values = setup.task.facts.display, train_values(setup, totals)
    train = {f"train/{name}": value for name, value in values.items() if display_of(name, display).shown}
    measured = {f"{prefix}{split}/{k}": v for prefix, found in evaluated.items() for k, v in found.items()}
    nonfinite = int(totals.get("nonfinite_steps") or 0)
    return {
        "step": step,
        "epoch": step * batch / setup.dataset.train_size,
        **train,
        **measured,
        "lr": float(setup.schedule(step - 1)) * rate_factor(setup, rows),
        **({"nonfinite_steps": nonfinite} if nonfinite else {}),
        "images_per_second": (step - timer.first_step) * batch / seconds,
        "data_wait_fraction": min(timer.waited / seconds, 1.0),
        "train_seconds": (rows[-1]["train_seconds"] if rows else 0.0) + seconds,
    }


def has_rate_factor(setup: TrainSetup) -> bool:
    """Return whether the learning rate follows the rows of metrics."""
    return setup.recipe.schedule.name == "plateau" and not {"schedule", "optimizer"} & {*setup.given}


def rate_factor(setup: TrainSetup, rows: Sequence[Row]) -> float:
    """Return the factor on the learning rate after these rows; 1 unless the schedule follows them."""
    if not has_rate_factor(setup):
        return 1.0
    return plateau_factor([row[f"{eval_split(setup.recipe)}/loss"] for row in rows], setup.recipe.schedule)


def monitored_value(row: Mapping[str, Any], split: str, task: Task) -> float:
    """Return the value that picks the best checkpoint: that of the EMA, if there is one."""
    key = f"{split}/{task.monitor}"
    return row[f"ema/{key}" if f"ema/{key}" in row else key]


def score(row: Mapping[str, Any], split: str, task: Task) -> float:
    """Return the monitored value as a number of which larger is better, as checkpoints keep it."""
    value = monitored_value(row, split, task)
    return value if task.mode == "max" else -value


def is_best(rows: Sequence[Row], split: str, task: Task) -> bool:
    """Return whether the last row is the best so far."""
    scores = [score(row, split, task) for row in rows]
    return len(scores) == 1 or scores[-1] > max(scores[:-1])


def first_reaching(rows: Sequence[Row], split: str, task: Task, target: float | None) -> Row | None:
    """Return the first row whose monitored value is at least as good as `target`, or None."""
    if target is None:
        return None
    return next((row for row in rows if task.reaches(monitored_value(row, split, task), target)), None)


def best_without_progress(rows: Sequence[Row], split: str, task: Task, patience: int | None) -> Row | None:
    """Return the best row if the last `patience` rows are no better, so that training may stop; otherwise None."""
    if patience is None or not rows:
        return None
    scores = [score(row, split, task) for row in rows]
    best = scores.index(max(scores))
    return rows[best] if len(rows) - 1 - best >= patience else None


def heading(split: str, task: Task) -> str:
    """Return a line that says what `format_row` writes."""
    monitored = "" if task.monitor == "loss" else f" and {task.monitor.replace('_', ' ')}"
    return f"columns: step, epoch, train and {split} loss{monitored}, images per second"


def format_row(row: Mapping[str, Any], split: str, task: Task, steps: int) -> str:
    """Return a row as a line for people, under 90 characters for most tasks.

    "data" is the fraction of the time spent waiting for data.
    """

    def part(title: str, prefix: str) -> str:
        loss, monitored = row.get(f"{prefix}/loss"), row.get(f"{prefix}/{task.monitor}")
        text = "-" if loss is None else f"{loss:.3f}"
        if task.monitor != "loss" and monitored is not None:
            text += f" {format_value(task.monitor, monitored, task.facts.display):>6}"
        return f"  {title} {text}"

    ema = part("ema", f"ema/{split}") if f"ema/{split}/loss" in row else ""
    wait = row["data_wait_fraction"]
    return (
        f"{row['step']:>{len(str(steps))}}/{steps}  epoch {row['epoch']:6.2f}"
        f"{part('train', 'train')}{part(split, split)}{ema}  {row['images_per_second']:,.0f}/s"
        + (f"  data {wait:.0%}" if wait >= 0.01 else "")
        + (f"  skipped {row['nonfinite_steps']}" if "nonfinite_steps" in row else "")
    )
