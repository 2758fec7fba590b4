"""A run continued as a new one, stopped early or in time, and its best checkpoint by any metric."""

import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from runs import curve, quietly

from resnet_jax.checkpoint.store import committed
from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Model, Optimizer, Schedule
from resnet_jax.run_dir.environment import read_environments
from resnet_jax.run_dir.files import read_recipe
from resnet_jax.runtime.checksum import file_sha256
from resnet_jax.runtime.signals import stop_signal
from resnet_jax.tasks.classification import classification
from resnet_jax.training import loop
from resnet_jax.training.options import RunOptions, read_time, validate_options
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.rows import best_without_progress

CONSTANT = Schedule(name="constant", warmup=0)


def test_a_run_extended_is_the_longer_run(tiny, tmp_path):
    """With a constant rate: the batch of a step is a function of seed and step, and the momentum goes on."""
    short = replace(tiny, schedule=CONSTANT, steps=6)
    quietly(short, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    longer = replace(short, steps=10, parent=str(tmp_path / "run"))
    quietly(longer, tmp_path / "child", stop_at=8)
    child, said = quietly(longer, tmp_path / "child")
    whole, _ = quietly(replace(short, steps=10), tmp_path / "whole")
    chex.assert_trees_all_equal(child.state, whole.state)
    assert "resuming at step 8" in said
    assert curve(tmp_path / "child")[-1] == curve(tmp_path / "whole")[-1]
    assert [row["step"] for row in child.rows] == [r["step"] for r in whole.rows if r["step"] > 6]
    assert {p: p.read_bytes() for p in before} == before
    start = read_environments(tmp_path / "child")[0]["parent"]
    manifest = tmp_path / "run" / "checkpoints" / "6" / "manifest.json"
    assert start == {"file": str(manifest), "sha256": file_sha256(manifest)}


def test_a_rate_is_changed_midway_and_the_notes_say_so(tiny, tmp_path):
    cosine = replace(tiny, schedule=Schedule(warmup=0), steps=8)
    quietly(cosine, tmp_path / "run", stop_at=4)
    slower = replace(cosine, optimizer=replace(cosine.optimizer, lr=0.02), parent=str(tmp_path / "run"))
    child, said = quietly(slower, tmp_path / "child")
    assert "optimizer.lr 0.1 -> 0.02" in said
    # Cosine over 8 steps: (1 + cos(pi s / 8)) / 2
    rates = [0.1 * (1 + np.cos(np.pi * 3 / 8)) / 2, 0.02 * (1 + np.cos(np.pi * 4 / 8)) / 2]
    assert f"learning rate: was {rates[0]:.4g} at step 4, is {rates[1]:.4g} from here on (cosine over 8 steps" in said
    assert child.rows[-1]["lr"] == pytest.approx(0.02 * (1 + np.cos(np.pi * 7 / 8)) / 2, rel=1e-5)
    assert int(child.state.step) == 8


def test_what_cannot_be_continued_is_one_line(tiny, tmp_path):
    quietly(tiny, tmp_path / "run")
    parent = {"parent": str(tmp_path / "run")}
    adam = Optimizer(name="adamw", momentum=0.9)
    wide = Model(name="resnet8", fields={"depths": (1,), "width": 8})
    for recipe, message in (
        (replace(tiny, **parent), "is at step 12, and this run has 12: raise --epochs or --steps"),
        (replace(tiny, optimizer=adam, steps=20, **parent), "parent: .* does not fit this network and optimiser"),
        (replace(tiny, model=wide, steps=20, **parent), "to start from its weights alone: --model.pretrained"),
        (replace(tiny, parent=str(tmp_path / "none")), "none: not a run directory"),
        (replace(tiny, model=replace(tiny.model, pretrained_best=True)), "pretrained_best needs model.pretrained"),
        (replace(tiny, model=replace(tiny.model, pretrained_best=True, pretrained="x.pth")), "which is not a run"),
    ):
        with pytest.raises(InputError, match=message):
            quietly(recipe, tmp_path / "child")
    assert not (tmp_path / "child").exists()


def test_the_command_continues_in_a_new_directory(tiny_run, capsys):
    assert main(["train", "run", "--steps", "33", "--devices", "1"]) == 0
    said = capsys.readouterr().out
    assert "the recipe differs from that of run; a new run, run-2, continues its newest state" in said
    assert "continuing run at step 30" in said
    assert "parent run: steps 30 -> 33" in said
    recipe = read_recipe(run_2 := Path("run-2"))
    assert (recipe.steps, recipe.parent) == (33, "run")
    # Its times are in the past and are not rescaled
    assert recipe.schedule.warmup == read_recipe(run_2.with_name("run")).schedule.warmup
    assert main(["train", "run-2", "--devices", "1"]) == 0


def test_weights_of_the_best_checkpoint(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "score", lambda row, *_: -row["step"])
    quietly(tiny, tmp_path / "run", eval_every=3)
    for best, step in ((True, 3), (False, 12)):
        model = replace(tiny.model, pretrained=str(tmp_path / "run"), pretrained_best=best)
        setup, state = load_run(tmp_path / "run", 1, best=best)
        assert int(state.step) == step
        loaded = load_pretrained(setup._replace(recipe=replace(tiny, model=model)))
        chex.assert_trees_all_equal(loaded.variables["params"], jax.device_get(state.params))


@pytest.mark.parametrize(
    ("accuracies", "patience", "best"),
    [([0.5], 1, None), ([0.5, 0.5], 1, 0), ([0.5, 0.4, 0.6], 2, None), ([0.5, 0.7, 0.7, 0.6], 2, 1), ([], 1, None)],
)
def test_patience(accuracies, patience, best):
    rows = [{"test/accuracy": value} for value in accuracies]
    found = best_without_progress(rows, "test", classification(), patience)
    assert found == (None if best is None else rows[best])


def test_a_run_stops_early_and_goes_on_without_patience(tiny, tmp_path):
    longer = replace(tiny, steps=40, optimizer=replace(tiny.optimizer, lr=1e-8))
    result, _ = quietly(longer, tmp_path / "run", patience=2, eval_every=1)
    assert result.step < 40
    assert result.early_stopped["step"] == result.step - 2
    again, _ = quietly(longer, tmp_path / "run", patience=2, eval_every=1)
    assert (again.step, again.early_stopped) == (result.step, result.early_stopped)
    further, _ = quietly(longer, tmp_path / "run", eval_every=1, stop_at=result.step + 3)
    assert further.step == result.step + 3
    assert further.early_stopped is None


def test_the_best_checkpoint_by_another_metric(tiny, tmp_path):
    result, _ = quietly(tiny, tmp_path / "run", monitor="macro_f1", eval_every=3, keep_checkpoints=1)
    scores = {row["step"]: row["test/macro_f1"] for row in result.rows}
    kept = committed(tmp_path / "run" / "checkpoints")
    assert {step: kept[step].metric for step in kept} == {step: pytest.approx(scores[step]) for step in kept}
    assert max(manifest.metric for manifest in kept.values()) == pytest.approx(max(scores.values()))
    with pytest.raises(InputError, match="not chosen by --monitor by default; give --monitor macro_f1"):
        quietly(tiny, tmp_path / "run", eval_every=3)
    by_loss, _ = quietly(tiny, tmp_path / "loss", monitor="loss", eval_every=3, keep_checkpoints=1)
    kept = committed(tmp_path / "loss" / "checkpoints")
    assert -max(m.metric for m in kept.values()) == pytest.approx(min(row["test/loss"] for row in by_loss.rows))
    with pytest.raises(InputError, match="unknown metric 'f1'; --monitor takes"):
        quietly(tiny, tmp_path / "other", monitor="f1")
    assert not (tmp_path / "other").exists()


def test_the_time_limit_saves_and_returns_the_number_of_sigusr1(tiny, tmp_path):
    longer = replace(tiny, steps=100_000)
    options = {"time_limit": timedelta(seconds=0.01), "return_on_signal": True}
    result, _ = quietly(longer, tmp_path / "run", **options)
    assert result.signal == signal.SIGUSR1
    assert int(load_run(tmp_path / "run", 1)[1].step) == result.step < 100_000
    with stop_signal(timedelta(hours=1)) as stopped:
        assert stopped() == 0


def test_times():
    assert [read_time(word).total_seconds() for word in ("3h", "90m", "45s", "0.5h")] == [10800, 5400, 45, 1800]
    for word in ("3", "h", "3d", "-3h", "3 h", "\u0661h"):
        with pytest.raises(ValueError, match="is not a time; write 3h, 90m or 45s"):
            read_time(word)
    with pytest.raises(InputError, match="--time-limit is .*; it must be positive"):
        validate_options(RunOptions(time_limit=timedelta(0)))
