"""Trackers get every row once, whatever they and the run go through, and change nothing."""

import struct
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import curve, quietly

from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.training import trackers
from resnet_jax.training.trackers import Connection, read_sent, send_run, tracking


class Fake:
    """A tracker in memory, which fails on demand."""

    def __init__(self):
        self.rows, self.pictures, self.ids, self.broken, self.ended = [], [], [], False, []

    def open(self, run, known):
        self.ids.append(known)

        def send_row(step, values):
            if self.broken:
                raise ConnectionError("no route to host\nsecond line")
            self.rows.append((step, values))

        return Connection("id7", send_row, lambda path: self.pictures.append(path.name), self.ended.append)


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("json", fake.open))
    return fake


def test_every_row_is_sent_once_over_interruptions_and_failures(tiny, tmp_path, fake):
    said = []
    for stop, broken in ((3, False), (6, True), (12, False)):
        fake.broken = broken
        with tracking(["wandb"], tmp_path / "run", said.append) as loggers:
            quietly(tiny, tmp_path / "run", log=loggers, stop_at=stop, eval_every=3)
    rows = curve(tmp_path / "run")
    assert [step for step, _ in fake.rows] == [row["step"] for row in rows] == [3, 6, 9, 12]
    assert [values["test/accuracy"] for _, values in fake.rows] == [row["test/accuracy"] for row in rows]
    assert said == [
        "wandb failed and is tried again at the next row: no route to host",
        f"wandb may lack rows or pictures; `resnet-jax log {tmp_path / 'run'} --to wandb` sends them",
    ]
    assert set(fake.ids) == {"", "id7"}
    assert fake.ended == [False, True]
    quietly(tiny, tmp_path / "plain", eval_every=3)
    assert curve(tmp_path / "plain") == rows


def test_a_tracker_that_hangs_does_not_hold_up_the_run(tiny, tmp_path, fake, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(trackers, "_PATIENCE", 0.1)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("json", lambda run, known: release.wait()))
    said = []
    with tracking(["wandb"], tmp_path / "run", said.append) as loggers:
        result, _ = quietly(tiny, tmp_path / "run", log=loggers, stop_at=3, eval_every=3)
        ended = time.monotonic()
    assert time.monotonic() - ended < 5
    assert result.step == 3
    assert ["wandb may lack rows" in line for line in said] == [True]
    release.set()


def test_the_command_sends_what_is_missing_and_the_pictures(tiny_run, fake, capsys):
    assert main(["log", "run", "--to", "wandb"]) == 0
    steps = [row["step"] for row in curve(Path("run"))]
    assert capsys.readouterr().out == f"run: {len(steps)} rows and 1 picture sent to wandb\n"
    assert [step for step, _ in fake.rows] == steps
    assert fake.pictures == ["curves.png"]
    assert main(["log", "run", "--to", "wandb"]) == 0
    assert "run: 0 rows and 1 picture sent to wandb" in capsys.readouterr().out
    fake.broken = True
    Path("run/trackers.json").write_text("{")
    assert main(["log", "run", "--to", "wandb"]) == 2
    assert capsys.readouterr().err == "resnet-jax: run: wandb failed: no route to host\n"
    assert main(["log", "nowhere", "--to", "wandb"]) == 2


def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with (
        pytest.raises(InputError, match="tracker mlflow: needs mlflow; pip install mlflow"),
        tracking(["mlflow"], tmp_path / "run", print),
    ):
        pass
    with pytest.raises(InputError, match="unknown tracker 'neptune'; known: tensorboard, wandb, mlflow"):
        trackers.require_trackers(["neptune"])
    assert not (tmp_path / "run").exists()
    # A folder that wandb leaves behind is no package
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__file__=None))
    with pytest.raises(InputError, match="pip install wandb"):
        trackers.require_trackers(["wandb"])


def test_tensorboard_files_hold_the_rows(tiny_run):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    run = Path("run")
    rows, pictures = send_run(run, "tensorboard")
    assert (rows, pictures) == (len(curve(run)), 1)
    assert send_run(run, "tensorboard")[0] == 0
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            place += 12 + length + 4
    losses = [(step, pytest.approx(value)) for step, tag, value in found if tag == "test/loss"]
    assert losses == [(row["step"], row["test/loss"]) for row in curve(run)]
    assert read_sent(run)["tensorboard"]["step"] == 30


@pytest.mark.filterwarnings("ignore")
def test_mlflow_itself(tiny_run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")

    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert send_run("run", "mlflow")[0] == len(curve(Path("run")))
    client, known = MlflowClient(), read_sent(Path("run"))["mlflow"]["id"]
    history = client.get_metric_history(known, "test/loss")
    assert [(m.step, m.value) for m in history] == [(row["step"], row["test/loss"]) for row in curve(Path("run"))]
    assert client.get_run(known).data.params["optimizer.lr"] == "0.1"
    assert client.get_run(known).info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_without_a_connection(tiny_run, monkeypatch):
    pytest.importorskip("wandb")

    monkeypatch.setenv("WANDB_MODE", "offline")
    assert send_run("run", "wandb") == (len(curve(Path("run"))), 1)
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
