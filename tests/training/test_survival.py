"""What a run does when something goes wrong, and when it is done early."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import chex
import jax
import numpy as np
import optax
import pytest
from runs import curve, quietly

from resnet_jax.checkpoint.store import committed
from resnet_jax.errors import InputError, MachineError
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.input_pipeline.sampler import batch_indices
from resnet_jax.recipe import Augment
from resnet_jax.run_dir.files import read_metrics
from resnet_jax.training import loop as loop_module
from resnet_jax.training import run as run_module
from resnet_jax.training.state import with_ema_params

# Of two tests, which share what they compile
AVERAGING = {"on_nonfinite": "skip", "steps": 6, "ema_decay": 0.5}


def poison(monkeypatch, *steps):
    """Make the loss of these steps, counted from 0, NaN."""
    plain = run_module.compile_once

    def poisoned(setup, accum_steps, log):
        compiled = plain(setup, accum_steps, log)

        def step(number, arguments):
            advance, seconds = compiled(number, arguments)
            if number not in steps:
                return advance, seconds

            def nan(state, *rest):
                params = jax.tree.map(np.asarray, state.params)
                broken = jax.tree.map(lambda x: jax.device_put(np.full_like(x, np.nan), state.step.sharding), params)
                after, sums = advance(state.replace(params=broken), *rest)
                healed = jax.tree.map(lambda x: jax.device_put(x, state.step.sharding), params)
                assert setup.recipe.on_nonfinite == "stop" or np.isnan(after.params["head"]["bias"]).all()
                return after.replace(params=healed), sums

            return nan, seconds

        return step

    monkeypatch.setattr(run_module, "compile_once", poisoned)


def test_a_step_that_is_not_finite_stops_the_run_and_names_its_examples(tiny, tmp_path, monkeypatch):
    quietly(tiny, tmp_path / "run", stop_at=3)
    poison(monkeypatch, 4)
    with pytest.raises(InputError, match=r"loss or gradient of step 5 is not finite; its examples are in .*jsonl"):
        quietly(tiny, tmp_path / "run")
    (line,) = (json.loads(text) for text in (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines())
    assert line == {"step": 5, "indices": batch_indices(0, 4, 16, 40).tolist()}
    assert int(load_run(tmp_path / "run", 1)[1].step) in (3, 5)  # of before
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_run(tmp_path / "run", 1)[1].params))


def test_a_step_that_is_not_finite_is_skipped_whole(tiny, tmp_path, monkeypatch):
    """An image of white noise does it no harm; the step counts for the schedule, and nothing else moves."""
    skipping = replace(tiny, **AVERAGING)
    plain, _ = quietly(skipping, tmp_path / "plain", stop_at=2)
    poison(monkeypatch, 2)
    result, said = quietly(skipping, tmp_path / "run", stop_at=3, eval_every=3)
    assert "loss or gradient of step 3 is not finite" in said
    assert "the step is skipped" in said
    assert int(result.state.step) == 3
    assert optax.tree.get(result.state.opt_state, "count") == 3
    stopped = result.state.replace(step=plain.state.step, opt_state=optax.tree.set(result.state.opt_state, count=2))
    chex.assert_trees_all_equal(stopped, plain.state)
    assert result.rows[-1]["nonfinite_steps"] == 1
    assert np.isfinite(result.rows[-1]["train/loss"])


@pytest.mark.slow
def test_where_every_step_is_skipped_the_run_stops(tiny, tmp_path, monkeypatch):
    poison(monkeypatch, *range(12))
    with pytest.raises(InputError, match="every step was skipped before step 3"):
        quietly(replace(tiny, on_nonfinite="skip"), tmp_path / "run", eval_every=3)


def test_averages_are_measured_beside_and_used_after(tiny, tmp_path):
    result, said = quietly(replace(tiny, **AVERAGING), tmp_path / "run")
    line = result.rows[-1]
    assert {"ema/test/loss", "ema/test/accuracy", "ema/test/errors"} <= line.keys()
    assert line["ema/test/loss"] != line["test/loss"]
    assert "  ema 0." in said or "  ema 1." in said
    state, ema = result.state, result.state.ema
    assert jax.tree.structure(ema) == jax.tree.structure({"params": state.params, "batch_stats": state.batch_stats})
    assert not np.allclose(ema["batch_stats"]["stem"]["norm"]["mean"], state.batch_stats["stem"]["norm"]["mean"])
    used = load_model(tmp_path / "run", devices=1)[1]
    chex.assert_trees_all_equal(used.params, with_ema_params(state).params)
    raw = load_model(tmp_path / "run", checkpoint=CheckpointChoice(no_ema=True), devices=1)[1]
    chex.assert_trees_all_equal(raw.params, state.params)


@pytest.mark.slow
def test_the_averages_are_those_of_the_definition(tiny, tmp_path):
    """ema <- keep ema + (1 - keep) new, every second step."""
    averaging = replace(tiny, ema_decay=0.75, ema_update_every=2, ema_warmup=False, steps=4)
    ends = [quietly(averaging, tmp_path / str(stop), stop_at=stop)[0].state for stop in (1, 2, 4)]
    kernel = [np.asarray(end.params["head"]["kernel"]) for end in ends]
    first, second, fourth = (np.asarray(end.ema["params"]["head"]["kernel"]) for end in ends)
    np.testing.assert_allclose(second, 0.75 * first + 0.25 * kernel[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fourth, 0.75 * second + 0.25 * kernel[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("habits", "message"),
    [
        ({"keep_checkpoints": 0}, "--keep-checkpoints is 0; it must be positive"),
        ({"watchdog_seconds": -1.0}, "--watchdog-seconds is -1.0; it must not be negative"),
    ],
)
def test_numbers_without_sense(tiny, tmp_path, habits, message):
    with pytest.raises(InputError, match=message):
        quietly(tiny, tmp_path / "run", **habits)
    assert not (tmp_path / "run").exists()


def test_a_target_ends_the_run_and_says_when(tiny, tmp_path):
    longer = replace(tiny, steps=40)
    result, _ = quietly(longer, tmp_path / "run", target_metric=0.6, eval_every=4)
    assert result.step < 40
    assert result.reached == result.rows[-1]
    assert result.reached["test/accuracy"] >= 0.6
    assert int(load_run(tmp_path / "run", 1)[1].step) == result.step
    again, _ = quietly(longer, tmp_path / "run", target_metric=0.6, eval_every=4)
    assert (again.step, again.reached) == (result.step, result.reached)
    further, _ = quietly(longer, tmp_path / "run", eval_every=4)
    whole, _ = quietly(longer, tmp_path / "whole", eval_every=4)
    chex.assert_trees_all_equal(further.state, whole.state)


@pytest.mark.slow
def test_images_grow_while_a_run_is_trained(tiny, tmp_path):
    growing = replace(tiny, augment=Augment(crop_padding=1, progressive_sizes=(6, 8), progressive_starts=(0, 5)))
    result, said = quietly(growing, tmp_path / "run", eval_every=6)
    assert [line["step"] for line in result.rows] == [6, 12]
    assert said.count("compiled in") == 2
    assert "for 6 x 6 pixels" in said
    stopped = [quietly(growing, tmp_path / "parts", stop_at=stop, eval_every=6)[0] for stop in (4, 7, 12)]
    chex.assert_trees_all_equal(stopped[-1].state, result.state)


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_next_one_is(tiny, tmp_path, monkeypatch):
    plain, failed = loop_module.save, []

    def save(checkpoints, state, progress, **options):
        if int(state.step) == 4:
            failed.append(4)
            raise MachineError("a checkpoint cannot be written (no space)")
        plain(checkpoints, state, progress, **options)

    monkeypatch.setattr(loop_module, "save", save)
    result, said = quietly(tiny, tmp_path / "run", checkpoint_every=4)
    assert failed == [4]
    assert "cannot be written (no space); training continues to the next checkpoint" in said
    assert int(load_run(tmp_path / "run", 1)[1].step) == result.step == 12


def test_an_evaluation_that_fails_saves_the_state_and_the_row_comes_later(tiny, tmp_path, monkeypatch):
    """A test image is damaged while a run reads it: nothing is lost, and rows stay what they were."""
    whole, _ = quietly(tiny, tmp_path / "whole")
    plain = loop_module.evaluate_split

    def failing(*args):
        raise InputError("seven.jpg: damaged")

    quietly(tiny, tmp_path / "run", stop_at=4)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "evaluate_split", failing)
        for _ in range(2):
            with pytest.raises(InputError, match=r"seven\.jpg: damaged"):
                quietly(tiny, tmp_path / "run")
    assert int(load_run(tmp_path / "run", 1)[1].step) == 5
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [3]
    assert loop_module.evaluate_split is plain
    # Evaluated, and stopped before another checkpoint: the row is there once, and counts for the best
    quietly(tiny, tmp_path / "run", stop_at=5)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [3, 5]
    assert committed(tmp_path / "run" / "checkpoints")[5].metric == read_metrics(tmp_path / "run")[1]["test/accuracy"]
    end, _ = quietly(tiny, tmp_path / "run")
    chex.assert_trees_all_equal(end.state, whole.state)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_the_best_evaluation_always_has_a_checkpoint(tiny, tmp_path):
    """Evaluated every 3 steps, saved every 7: but for the last, none of the first is a step of the second."""
    result, _ = quietly(tiny, tmp_path / "run", eval_every=3, checkpoint_every=7)
    accuracy = {row["step"]: row["test/accuracy"] for row in result.rows}
    setup, state = load_model(tmp_path / "run", checkpoint=CheckpointChoice(best=True), devices=1)
    assert accuracy[int(state.step)] == max(accuracy.values())
    assert setup.recipe == tiny


def test_the_time_of_an_interrupted_run_is_complete(tiny, tmp_path):
    """The steps before the interruption count with the time that they took."""
    quietly(tiny, tmp_path / "run", stop_at=7, eval_every=12)
    restored = run_module.restore_or_init(load_run(tmp_path / "run", 1)[0], tmp_path / "run", lambda line: None)
    assert restored.timer["first_step"] == 0
    assert restored.timer["seconds"] > 0
    row = quietly(tiny, tmp_path / "run", eval_every=12)[0].rows[-1]
    assert row["train_seconds"] > restored.timer["seconds"]
    assert row["images_per_second"] == pytest.approx(12 * 16 / row["train_seconds"])


def test_a_metric_that_is_new_is_null_in_the_first_row_and_one_that_is_gone_is_dropped(tiny, tmp_path):
    setup = load_run_after(tiny, tmp_path, 4)
    saved = {"loss": 1.0, "weight": 16, "count": 16, "nonfinite_steps": 0, "gone": 3}
    totals = run_module.known_totals(setup, saved)
    assert totals["accuracy"] is None
    assert "gone" not in totals
    assert run_module.known_totals(setup, {}) == {}
    assert loop_module.train_values(setup, totals) == {"loss": 1 / 16, "accuracy": None, "errors": None}


def load_run_after(recipe, folder, step):
    quietly(recipe, folder / "run", stop_at=step)
    return load_run(folder / "run", 1)[0]


def test_a_logger_that_fails_is_reported_once_and_changes_nothing(tiny, tmp_path):
    plain, _ = quietly(tiny, tmp_path / "plain")
    seen = []

    def broken(step, row):
        row.clear()
        raise ValueError("no connection")

    result, said = quietly(tiny, tmp_path / "run", log=(broken, lambda step, row: seen.append((step, row["step"]))))
    assert said.count("logger broken failed and is not called again: ValueError('no connection')") == 1
    assert seen == [(row["step"], row["step"]) for row in result.rows]
    chex.assert_trees_all_equal(result.state, plain.state)
    assert curve(tmp_path / "run") == curve(tmp_path / "plain")


def test_a_run_that_hangs_writes_its_stacks_and_ends(tmp_path):
    code = "\n".join(
        (
            "import time",
            "from resnet_jax.runtime.signals import watchdog",
            "with watchdog(0.5) as kick:",
            "    for _ in range(4): kick(); time.sleep(0.3)",
            "    print('lives', flush=True)",
            "    time.sleep(60)",
        )
    )
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stdout == "lives\n"
    assert "Timeout" in done.stderr
    assert "most recent call first" in done.stderr
    assert time.monotonic() - before < 40
