"""What a run does when something goes wrong, and when it is done early."""

import io
import json
import subprocess
import sys
import time
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from resnet_jax.data.batches import batch_indices
from resnet_jax.errors import InputError, MachineError
from resnet_jax.recipe import Augment
from resnet_jax.train import run as run_module
from resnet_jax.train.checkpoint import load_run
from resnet_jax.train.habits import Habits
from resnet_jax.train.run import train_recipe
from resnet_jax.train.state import averaged
from resnet_jax.train.which import Which
from resnet_jax.trained import open_trained


def quietly(recipe, out, **options):
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    chosen = {name: options.pop(name) for name in list(options) if hasattr(Habits, name)}
    result = train_recipe(recipe, out, habits=Habits(**chosen), console=console, **({"devices": 1} | options))
    return result, printed.getvalue()


def poison(monkeypatch, *steps):
    """Makes the loss of these steps, counted from 0, NaN."""
    plain = run_module.compiler

    def poisoned(job, parts, say):
        compiled = plain(job, parts, say)

        def step(number, given):
            advance, seconds = compiled(number, given)
            if number not in steps:
                return advance, seconds

            def nan(state, sums, *rest):
                params = jax.tree.map(np.asarray, state.params)
                broken = jax.tree.map(lambda x: jax.device_put(np.full_like(x, np.nan), state.step.sharding), params)
                after, sums, told = advance(state.replace(params=broken), sums, *rest)
                healed = jax.tree.map(lambda x: jax.device_put(x, state.step.sharding), params)
                assert job.recipe.nonfinite == "stop" or np.isnan(after.params["head"]["bias"]).all()
                return after.replace(params=healed), sums, told

            return nan, seconds

        return step

    monkeypatch.setattr(run_module, "compiler", poisoned)


def test_a_step_that_is_not_finite_stops_the_run_and_names_its_examples(tiny, tmp_path, monkeypatch):
    quietly(tiny, tmp_path / "run", stop_at=3)
    poison(monkeypatch, 4)
    with pytest.raises(InputError, match=r"loss or gradient of step 5 is not finite, its examples are in .*jsonl"):
        quietly(tiny, tmp_path / "run")
    (line,) = (json.loads(text) for text in (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines())
    assert line == {"step": 5, "indices": batch_indices(0, 4, 16, 40).tolist()}
    assert int(load_run(tmp_path / "run", 1)[1].step) in (3, 5)  # of before
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_run(tmp_path / "run", 1)[1].params))


def test_a_step_that_is_not_finite_is_skipped_whole(tiny, tmp_path, monkeypatch):
    """An image of white noise does it no harm; the step counts, and nothing else of the state moves."""
    skipping = replace(tiny, nonfinite="skip", steps=6, ema=0.5)
    plain, _ = quietly(skipping, tmp_path / "plain", stop_at=2)
    poison(monkeypatch, 2)
    result, said = quietly(skipping, tmp_path / "run", stop_at=3, evaluate_every=3)
    assert "loss or gradient of step 3 is not finite" in said
    assert "it changes nothing" in said
    assert int(result.state.step) == 3
    chex.assert_trees_all_equal(result.state.replace(step=0), plain.state.replace(step=0))
    assert result.lines[-1]["skipped"] == 1
    assert np.isfinite(result.lines[-1]["train_loss"])


def test_where_every_step_is_skipped_the_run_stops(tiny, tmp_path, monkeypatch):
    poison(monkeypatch, *range(12))
    with pytest.raises(InputError, match="every step was skipped before step 3"):
        quietly(replace(tiny, nonfinite="skip"), tmp_path / "run", evaluate_every=3)


def test_averages_are_measured_beside_and_used_after(tiny, tmp_path):
    result, said = quietly(replace(tiny, ema=0.9), tmp_path / "run")
    line = result.lines[-1]
    assert {"ema_test_loss", "ema_test_accuracy", "ema_test_wrong"} <= line.keys()
    assert line["ema_test_loss"] != line["test_loss"]
    assert "  ema 0." in said or "  ema 1." in said
    state, ema = result.state, result.state.ema
    assert jax.tree.structure(ema) == jax.tree.structure({"params": state.params, "batch_stats": state.batch_stats})
    assert not np.allclose(ema["batch_stats"]["stem"]["norm"]["mean"], state.batch_stats["stem"]["norm"]["mean"])
    used = open_trained(tmp_path / "run", devices=1)[1]
    chex.assert_trees_all_equal(used.params, averaged(state).params)
    raw = open_trained(tmp_path / "run", which=Which(raw=True), devices=1)[1]
    chex.assert_trees_all_equal(raw.params, state.params)


def test_the_averages_are_those_of_the_definition(tiny, tmp_path):
    """ema <- keep ema + (1 - keep) new, every second step."""
    averaging = replace(tiny, ema=0.75, ema_every=2, steps=4)
    ends = [quietly(averaging, tmp_path / str(stop), stop_at=stop)[0].state for stop in (1, 2, 4)]
    kernel = [np.asarray(end.params["head"]["kernel"]) for end in ends]
    first, second, fourth = (np.asarray(end.ema["params"]["head"]["kernel"]) for end in ends)
    np.testing.assert_allclose(second, 0.75 * first + 0.25 * kernel[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fourth, 0.75 * second + 0.25 * kernel[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("habits", "message"),
    [
        ({"keep": 0}, "--keep is 0; it must be positive"),
        ({"target": 94.0}, "--target is 94.0; it must be an accuracy, 0 to 1"),
        ({"stall": -1.0}, "--stall is -1.0; it must not be negative"),
    ],
)
def test_numbers_without_sense(tiny, tmp_path, habits, message):
    with pytest.raises(InputError, match=message):
        quietly(tiny, tmp_path / "run", **habits)
    assert not (tmp_path / "run").exists()


def test_a_target_ends_the_run_and_says_when(tiny, tmp_path):
    longer = replace(tiny, steps=40)
    result, _ = quietly(longer, tmp_path / "run", target=0.6)
    assert result.step < 40
    assert result.reached == result.lines[-1]
    assert result.reached["test_accuracy"] >= 0.6
    assert int(load_run(tmp_path / "run", 1)[1].step) == result.step
    again, _ = quietly(longer, tmp_path / "run", target=0.6)
    assert (again.step, again.reached) == (result.step, result.reached)
    further, _ = quietly(longer, tmp_path / "run")
    whole, _ = quietly(longer, tmp_path / "whole")
    chex.assert_trees_all_equal(further.state, whole.state)


def test_images_grow_while_a_run_is_trained(tiny, tmp_path):
    growing = replace(tiny, augment=Augment(pad=1, sizes=(6, 8), size_times=(0, 5)))
    result, said = quietly(growing, tmp_path / "run", evaluate_every=6)
    assert [line["step"] for line in result.lines] == [6, 12]
    assert said.count("compiled in") == 2
    assert "for 6 x 6 pixels" in said
    stopped = [quietly(growing, tmp_path / "parts", stop_at=stop, evaluate_every=6)[0] for stop in (4, 7, 12)]
    chex.assert_trees_all_equal(stopped[-1].state, result.state)


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_next_one_is(tiny, tmp_path, monkeypatch):
    plain, failed = run_module.save, []

    def save(checkpoints, state, sums, **options):
        if int(state.step) == 4:
            failed.append(4)
            raise MachineError("a checkpoint cannot be written (no space)")
        plain(checkpoints, state, sums, **options)

    monkeypatch.setattr(run_module, "save", save)
    result, said = quietly(tiny, tmp_path / "run", checkpoint_every=4)
    assert failed == [4]
    assert "cannot be written (no space); the run goes on to its next checkpoint" in said
    assert int(load_run(tmp_path / "run", 1)[1].step) == result.step == 12


def test_regression_has_no_accuracy(tiny, tmp_path):
    from resnet_jax.fitting import fit
    from resnet_jax.recipe import Loss

    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    labels = images.mean((1, 2), dtype=np.float32) / 255
    recipe = replace(tiny, loss=Loss(name="mean_squared_error"))
    result = fit(
        recipe, (images, labels), (images, labels), tmp_path / "run", console=Console(file=io.StringIO()), devices=1
    )
    line = result.lines[-1]
    assert line["test_loss"] < 1
    assert not any("accuracy" in name or "wrong" in name for name in line)


def test_a_run_that_hangs_writes_its_stacks_and_ends(tmp_path):
    code = "\n".join(
        (
            "import time",
            "from resnet_jax.train.stop import watched",
            "with watched(0.5) as alive:",
            "    for _ in range(4): alive(); time.sleep(0.3)",
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
