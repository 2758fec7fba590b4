"""Send the rows of a run to TensorBoard, Weights & Biases or MLflow; whatever a tracker misses is sent later.

How far each tracker is stands in RUN/trackers.json, so sending again sends what is missing. A row may be sent twice if
the process is killed between sending and writing that down.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.errors import InputError, first_line
from resnet_jax.parallel.multihost import is_primary_host
from resnet_jax.recipe import fields_of
from resnet_jax.run_dir.environment import read_environments
from resnet_jax.run_dir.files import is_finished, read_metrics, read_recipe, require_run
from resnet_jax.runtime.safe_files import read_regular, write_atomic
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.training.progress import Log
from resnet_jax.training.run_state import Logger

# Experiment or project, unless the tracker's own environment variable names one
_PROJECT = "resnet_jax"
# Seconds that the end of a run waits for its trackers
_PATIENCE = 30.0
# MLflow takes up to this number of parameters at once, and this length of each
_PARAMS, _PARAM_LENGTH = 100, 500


class Connection(NamedTuple):
    """An open tracker."""

    id: str
    """Of the run there, under which it is found again; "" if there is none."""
    send_row: Callable[[int, Mapping[str, float]], None]
    send_picture: Callable[[Path], None]
    close: Callable[[bool], None]
    """Takes whether the run has ended."""


def _open_tensorboard(run: Path, known: str) -> Connection:
    from tensorboardX import SummaryWriter

    # Its own names have seconds, and two of one second would overwrite each other
    writer = SummaryWriter(str(run / "tensorboard"), filename_suffix=f".{time.time_ns()}")
    if not known:
        writer.add_text("about", f"```\n{json.dumps(describe(run), indent=2)}\n```", 0)

    def send_row(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def send_picture(path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            writer.add_image(path.stem, np.asarray(image.convert("RGB")), 0, dataformats="HWC")

    return Connection("tensorboard", send_row, send_picture, lambda ended: writer.close())


def _open_wandb(run: Path, known: str) -> Connection:
    import wandb

    if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.api.api_key:
        # It would ask on the terminal
        raise InputError("not logged in; `wandb login`, or WANDB_MODE=offline")
    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=run.name,
        id=known or None,
        resume="allow",
        dir=str(run),
        config=describe(run),
        settings=wandb.Settings(console="off", silent=True, init_timeout=60),
    )

    def send_picture(path: Path) -> None:
        tracked.log({path.stem: wandb.Image(str(path))})

    def send_row(step: int, values: Mapping[str, float]) -> None:
        tracked.log(dict(values), step=step)

    return Connection(tracked.id, send_row, send_picture, lambda ended: tracked.finish())


def _open_mlflow(run: Path, known: str) -> Connection:
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    if not known:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        known = client.create_run(number, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in describe(run).items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(known, params=params[start : start + _PARAMS])
        for file in ("recipe.json", "environment.json"):
            client.log_artifact(known, str(run / file))

    def send_row(step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(known, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(ended: bool) -> None:
        if ended:
            client.set_terminated(known)

    return Connection(known, send_row, lambda path: client.log_artifact(known, str(path)), close)


# Name -> package to install, and what opens it: (run, id there or "") -> connection
TRACKERS: dict[str, tuple[str, Callable[[Path, str], Connection]]] = {
    "tensorboard": ("tensorboardX", _open_tensorboard),
    "wandb": ("wandb", _open_wandb),
    "mlflow": ("mlflow", _open_mlflow),
}


def describe(run: Path) -> dict[str, Any]:
    """Return the fields of the recipe of a run, and where it was started last, as JSON values."""
    start = (read_environments(run) or [{}])[-1]
    about = {f"environment/{name}": start.get(name) for name in ("packages", "backend", "devices", "git_commit")}
    return {**dict(fields_of(read_recipe(run))), **about}


def require_trackers(names: Sequence[str]) -> None:
    """Raise InputError if a tracker is unknown or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
        package, _ = TRACKERS[name]
        try:
            # A folder of this name is no package
            installed = getattr(__import__(package), "__file__", None)
        except ImportError:
            installed = None
        if not installed:
            raise InputError(f"tracker {name}: needs {package}; pip install {package}")


def read_sent(run: Path) -> dict[str, dict[str, Any]]:
    """Return the id and the last step that each tracker of a run has; empty if nothing is known."""
    try:
        found = parse_json(read_regular(run / "trackers.json"))
        return {str(k): {"id": str(v["id"]), "step": int(v["step"])} for k, v in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


# Trackers of a run write the same file
_WRITING = threading.Lock()


def _note_sent(run: Path, name: str, known: str, step: int) -> None:
    with _WRITING:
        write_atomic(run / "trackers.json", json.dumps(read_sent(run) | {name: {"id": known, "step": step}}) + "\n")


def send_rows(run: Path, name: str, connection: Connection) -> int:
    """Send the rows that a tracker does not have yet, and return their number."""
    sent = read_sent(run).get(name, {}).get("step", 0)
    missing = [row for row in read_metrics(run) if row["step"] > sent]
    for row in missing:
        numbers = {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        connection.send_row(row["step"], {k: v for k, v in numbers.items() if math.isfinite(v)})
        _note_sent(run, name, connection.id, row["step"])
    return len(missing)


def connect(run: Path, name: str) -> Connection:
    """Open a tracker for a run, the same run there as before."""
    sent = read_sent(run).get(name, {"id": "", "step": 0})
    connection = TRACKERS[name][1](run, sent["id"])
    _note_sent(run, name, connection.id, sent["step"])
    return connection


def pictures_of(run: Path) -> list[Path]:
    """Return the pictures of a run and of its report."""
    return [path for path in (run / "curves.png", *sorted((run / "report").glob("*.png"))) if path.is_file()]


def send_run(run: Path | str, name: str) -> tuple[int, int]:
    """Send the rows that a tracker does not have, and all pictures; return the numbers of both.

    Raises:
        InputError: There is no run, or the tracker is not installed or refuses.

    Example:
        >>> send_run("runs/digits", "tensorboard")  # doctest: +SKIP
        (30, 1)
    """
    run = Path(run)
    require_run(run)
    require_trackers([name])
    try:
        connection, pictures = connect(run, name), pictures_of(run)
        try:
            rows = send_rows(run, name, connection)
            for picture in pictures:
                connection.send_picture(picture)
        finally:
            connection.close(is_finished(run))
    # Each tracker raises its own types
    except Exception as error:
        raise InputError(f"{run}: {name} failed: {first_line(error)}") from error
    return rows, len(pictures)


@contextmanager
def tracking(names: Sequence[str], run: Path | str, log: Log) -> Iterator[list[Logger]]:
    """Yield a logger for each tracker, for the `log` of `train`; each sends on a thread of its own.

    Training never waits for a tracker. One that fails is reported once, and tries again at the next row. The end waits
    half a minute for what is still to be sent.

    Raises:
        InputError: A tracker is unknown or not installed.

    Example:
        >>> with tracking(["tensorboard"], "runs/digits", print) as loggers:  # doctest: +SKIP
        ...     train(Recipe(), "runs/digits", log=loggers)
    """
    require_trackers(names)
    senders = [_Sender(Path(run), name, log) for name in names if is_primary_host()]
    try:
        yield [sender.log for sender in senders]
    finally:
        for sender in senders:
            sender.finish()


class _Sender:
    """A thread that sends what is missing whenever there is a new row."""

    def __init__(self, run: Path, name: str, say: Log) -> None:
        self.run, self.name, self.say = run, name, say
        self.changed, self.ending, self.failed = threading.Event(), False, False
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {name}")
        self.thread.start()

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Note that there is a new row; it is read from metrics.jsonl."""
        self.changed.set()

    def finish(self) -> None:
        """Send the rest and the pictures, for a while."""
        self.ending = True
        self.changed.set()
        self.thread.join(_PATIENCE)
        if self.thread.is_alive() or self.failed:
            self.say(f"{self.name} may lack rows or pictures; `resnet-jax log {self.run} --to {self.name}` sends them")

    def _work(self) -> None:
        connection, ending = None, False
        while not ending:
            self.changed.wait()
            self.changed.clear()
            # `finish` sets this first, so that there is another round after it
            ending = self.ending
            if not (self.run / "recipe.json").is_file():
                continue
            try:
                connection = connection or connect(self.run, self.name)
                send_rows(self.run, self.name, connection)
                if ending:
                    for picture in pictures_of(self.run):
                        connection.send_picture(picture)
                    connection.close(is_finished(self.run))
                self.failed = False
            # Each tracker raises its own types; none may stop the run
            except Exception as error:
                connection = None
                if not self.failed:
                    self.say(f"{self.name} failed and is tried again at the next row: {first_line(error)}")
                self.failed = True
