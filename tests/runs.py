"""What tests of whole runs share."""

import io

from rich.console import Console

from resnet_jax.run_dir.files import read_metrics
from resnet_jax.training.options import RunOptions
from resnet_jax.training.run import train

CLOCKS = {"train_seconds", "images_per_second", "data_wait_fraction"}


def quietly(recipe, out, *, data=None, log=(), **options):
    """Train on one device unless `options` say otherwise; return the result and what was printed."""
    parts = {
        name: options.pop(name) for name in ("model", "task", "optimizer", "schedule", "transform") if name in options
    }
    printed = io.StringIO()
    chosen = RunOptions(**{"devices": 1, **options})
    console = Console(file=printed, width=500)
    result = train(recipe, out, options=chosen, data=data, log=log, console=console, **parts)
    return result, printed.getvalue()


def without_clocks(row):
    return {key: value for key, value in row.items() if key not in CLOCKS}


def curve(run):
    return [without_clocks(row) for row in read_metrics(run)]
