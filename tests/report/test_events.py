"""Event files of TensorBoard: what is read back is what metrics.jsonl says."""

import json
import struct
import sys

import pytest
from fabricated import vary, write_run

from resnet_jax.errors import InputError
from resnet_jax.report import make_report
from resnet_jax.report.events import event_files
from resnet_jax.report.runs import read_runs

pytest.importorskip("tensorboardX")


def read_back(content):
    """{(tag, step): value}, and the times, of the records of an event file."""
    from tensorboardX.proto.event_pb2 import Event

    values, times, place = {}, [], 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += 12 + length + 4  # a checksum follows the length, and another one what is as long
        for value in event.summary.value:
            values[value.tag, event.step] = value.simple_value
            times.append(event.wall_time)
    return values, times


def test_events_are_the_lines_of_metrics(tmp_path):
    run = write_run(tmp_path / "run", vary(ema_decay=0.9), **{"ema/test/accuracy": 0.75, "ema/test/loss": 0.5})
    empty = write_run(tmp_path / "empty", vary(seed=1), ())
    ((name, content),) = event_files(read_runs([run, empty])).items()
    assert name.startswith("tensorboard/run/events.out.tfevents.")
    values, times = read_back(content)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "test/accuracy", "ema/test/loss", "lr"} <= {tag for tag, _ in values}
    for line in lines:
        for key in set(line) - {"step"}:
            assert values[key, line["step"]] == pytest.approx(line[key])
    assert len(values) == sum(len(line) - 1 for line in lines)
    assert sorted(set(times)) == [line["train_seconds"] for line in lines]


def test_events_are_replaced_and_not_added_to(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_jax.report.make.as_png", lambda picture: b"")
    monkeypatch.setattr("resnet_jax.report.page.as_svg", lambda picture: "")
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    for _ in range(2):
        make_report([run], out, answers=False, tensorboard=True)
    assert len([path for path in (out / "tensorboard").rglob("*") if path.is_file()]) == 1
    make_report([run], out, answers=False)
    assert not (out / "tensorboard").exists()


def test_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.writer", None)
    run = write_run(tmp_path / "run")
    with pytest.raises(InputError, match="needs tensorboardX; pip install tensorboardX"):
        make_report([run], answers=False, tensorboard=True)
    assert not (run / "report").exists()
