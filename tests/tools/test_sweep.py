"""A sweep: its space, its rungs, and trials that are ordinary runs and resume."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import curve, quietly

from resnet_jax.cli.main import main
from resnet_jax.cli.sweep import parse_vary
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, to_json
from resnet_jax.run_dir.files import read_recipe
from resnet_jax.tools import sweep as tool
from resnet_jax.tools.sweep import Range, run_sweep, rungs, vary_recipe
from resnet_jax.training.options import RunOptions

ONE = RunOptions(devices=1)


def test_the_space_is_read():
    words = ["optimizer.lr=log:1e-3:1", "batch_size=16:64", "augment.hflip=true,false", "loss.label_smoothing=0,0.1"]
    assert parse_vary(words) == {
        "optimizer.lr": Range(1e-3, 1, True),
        "batch_size": Range(16, 64, False),
        "augment.hflip": (True, False),
        "loss.label_smoothing": (0, 0.1),
    }
    for word in ("optimizer.lr", "=1:2", "optimizer.lr=a:b", "optimizer.lr=log:1:x"):
        with pytest.raises(InputError, match=f"--vary {word}"):
            parse_vary([word])
    assert vary_recipe(Recipe(), {"optimizer.lr": 1, "seed": 2}).optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({}, "nothing to vary"),
        ({"optimizer.rate": Range(0, 1)}, "--vary optimizer.rate: no such field; nearest: "),
        ({"optimizer.lr": Range(1, 0.1)}, "--vary optimizer.lr: 1 to 0.1 is empty"),
        ({"optimizer.lr": Range(0, 1, log=True)}, "log is not above 0"),
        ({"optimizer.lr": Range(-1.0, 1.0)}, "optimizer.lr is -1.0; it must be positive"),
        ({"optimizer.name": ("sgd", "sgdd")}, "optimizer.name is 'sgdd'"),
    ],
)
def test_a_space_without_sense_is_refused_before_anything_is_written(tiny, tmp_path, vary, message):
    pytest.importorskip("optuna")
    with pytest.raises(InputError, match=message):
        run_sweep(tiny, tmp_path / "x", vary, options=ONE)
    assert not (tmp_path / "x").exists()


def test_without_optuna_it_is_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="sweep: needs optuna; pip install optuna"):
        run_sweep(tiny, tmp_path / "x", {"optimizer.lr": Range(0.1, 1)})


def test_rungs_are_whole_epochs():
    assert rungs(690, 3, 23.0) == [69, 230, 690]
    assert rungs(30, 3, 2.5) == [3, 10, 30]
    assert rungs(10, 3, 10.0) == [10]
    assert rungs(100, 0, 10.0) == [100]


@pytest.mark.slow
def test_trials_are_runs_that_resume(tiny, tmp_path, monkeypatch):
    """Interrupted in the second trial, and compared with a sweep that was not."""
    pytest.importorskip("optuna")
    vary = {"optimizer.lr": Range(1e-3, 0.3, log=True)}
    options = replace(ONE, device_cache_gib=2.0)
    told = []
    whole = run_sweep(tiny, tmp_path / "whole", vary, trials=4, options=options, log=told.append)
    assert [trial.number for trial in whole.trials] == [0, 1, 2, 3]
    assert len(told) == 4
    assert {trial.state for trial in whole.trials} <= {"complete", "pruned"}
    complete = [trial for trial in whole.trials if trial.state == "complete"]
    assert whole.best.value == max(trial.value for trial in complete)
    for trial in whole.trials:
        assert read_recipe(tmp_path / f"whole/trial{trial.number}").optimizer.lr == trial.values["optimizer.lr"]
        assert trial.step == curve(tmp_path / f"whole/trial{trial.number}")[-1]["step"]
    best = replace(tiny.optimizer, lr=whole.best.values["optimizer.lr"])
    quietly(replace(tiny, optimizer=best), tmp_path / "alone")
    assert curve(tmp_path / "alone") == curve(tmp_path / f"whole/trial{whole.best.number}")

    plain, calls = tool.train, []

    def interrupted(recipe, out, **more):
        calls.append(out.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(recipe, out, **more)

    monkeypatch.setattr(tool, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tiny, tmp_path / "cut", vary, trials=4, options=options)
    assert run_sweep(tiny, tmp_path / "cut", vary, trials=4, options=options) == whole
    with pytest.raises(InputError, match="cut: holds a sweep with another vary"):
        run_sweep(tiny, tmp_path / "cut", {"optimizer.lr": Range(1e-3, 0.2)}, options=options)


def test_the_command_writes_a_page(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(to_json(replace(tiny, steps=3)))
    flags = ["--vary", "optimizer.name=sgd,adam", "--trials", "2", "--halving", "0", "--devices", "1"]
    assert main(["sweep", "r.json", *flags]) == 0
    said = capsys.readouterr().out
    assert "compared on the test split" in said
    page = Path("runs/r-sweep/index.html").read_text()
    assert "trial1" in page
    assert page.count("<img") == 1
