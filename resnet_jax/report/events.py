"""The scalars of runs as TensorBoard event files, without TensorFlow."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.errors import InputError
from resnet_jax.report.runs import Run

# Always the same, so that it replaces the file of an earlier report
_NAME = "events.out.tfevents.0.resnet-jax"


def event_files(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return an event file for each run with metrics, by path below the report.

    Tags are the keys of metrics.jsonl. The time of an event is the training time in seconds from 0, so TensorBoard's
    relative time is training time. Raise InputError if tensorboardX is not installed.
    """
    try:
        from tensorboardX.writer import FileWriter
    except ImportError as error:
        raise InputError("--tensorboard: needs tensorboardX; pip install tensorboardX") from error
    from tensorboardX.summary import scalar

    files = {}
    for run in runs:
        if not run.rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            writer = FileWriter(folder)
            for line in run.rows:
                for field, value in line.items():
                    if field != "step" and isinstance(value, int | float):
                        event = scalar(field, float(value))
                        writer.add_summary(event, line["step"], line["train_seconds"])
            writer.close()
            (written,) = Path(folder).iterdir()
            files[f"tensorboard/{run.name}/{_NAME}"] = written.read_bytes()
    return files
