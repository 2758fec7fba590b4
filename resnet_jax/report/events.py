"""The scalars of runs as event files of TensorBoard, without TensorFlow."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.errors import InputError
from resnet_jax.report.runs import Run

_NAME = "events.out.tfevents.0.resnet-jax"  # always the same, so that it replaces the one before


def event_files(runs: Sequence[Run]) -> dict[str, bytes]:
    """A file for each run that has numbers, by its path below the report.

    Tags are the fields of metrics.jsonl, with a slash after "train", the split or "ema_SPLIT". The time of an event is
    that of training, in seconds from 0, so that TensorBoard's relative time is what training took. Raises InputError
    where tensorboardX is not installed.
    """
    try:
        from tensorboardX.writer import FileWriter
    except ImportError as error:
        raise InputError("--tensorboard: needs tensorboardX; pip install 'resnet-jax[tensorboard]'") from error
    from tensorboardX.summary import scalar

    files = {}
    for run in runs:
        if not run.lines:
            continue
        with tempfile.TemporaryDirectory() as folder:
            writer = FileWriter(folder)
            for line in run.lines:
                for field, value in line.items():
                    if field != "step" and isinstance(value, int | float):
                        event = scalar(_tag(field, run.split), float(value))
                        writer.add_summary(event, line["step"], line["seconds"])
            writer.close()
            (written,) = Path(folder).iterdir()
            files[f"tensorboard/{run.name}/{_NAME}"] = written.read_bytes()
    return files


def _tag(field: str, split: str) -> str:
    """Loss and accuracy of training images and held split, under a heading of their own."""
    for part in ("train", f"ema_{split}", split):
        if field.startswith(f"{part}_"):
            return f"{part}/{field.removeprefix(f'{part}_')}"
    return field
