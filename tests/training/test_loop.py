"""Whole runs of a tiny network: resuming, stopping, refusing."""

import json
import os
import shutil
import signal
from dataclasses import replace

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import TINY
from runs import curve, quietly

from resnet_jax.checkpoint.checkpoint import restore
from resnet_jax.checkpoint.store import committed
from resnet_jax.errors import InputError, MachineError
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Schedule
from resnet_jax.run_dir.files import read_metrics
from resnet_jax.training import loop as loop_module
from resnet_jax.training.init import abstract_train_state, init_train_state, random_keys
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources


def quiet_result(*args, **options):
    return quietly(*args, **options)[0]


def test_a_run_learns_and_leaves_its_traces(tiny, tmp_path):
    longer = replace(tiny, steps=40)
    result, text = quietly(longer, tmp_path / "run")
    assert (result.step, result.steps, result.signal) == (40, 40, 0)
    assert repr(result).startswith("TrainResult(step=40, steps=40, split='test', rows=<16, last {")
    assert len(repr(result)) < 600
    lines = read_metrics(tmp_path / "run")
    assert lines == result.rows
    assert [line["step"] for line in lines] == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40]
    assert lines[-1]["test/accuracy"] == 1.0
    assert lines[-1]["epoch"] == 16.0
    assert lines[-1]["test/count"] == 10
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.json",
        "dataset.json",
        "options.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
    }
    assert "resnet8 on tiny, 40 images, 40 steps of 16" in text
    assert "40/40  epoch  16.00  train" in text


@pytest.mark.parametrize("stops", [(1, 2, 3), pytest.param((7,), marks=pytest.mark.slow), (4, 11)])
def test_stopped_anywhere_a_run_ends_bitwise_the_same(tiny, tmp_path, stops):
    """Parameters, statistics, momentum and every line of metrics, through evaluations and ends of epochs."""
    options = {"eval_every": 4, "checkpoint_every": 5}
    whole = quiet_result(tiny, tmp_path / "whole", **options)
    for stop in stops:
        part = quiet_result(tiny, tmp_path / "parts", stop_at=stop, **options)
        assert part.step == stop
    end = quiet_result(tiny, tmp_path / "parts", **options)
    chex.assert_trees_all_equal(whole.state, end.state)
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_a_checkpoint_is_not_touched_by_the_steps_after_it(tiny, tmp_path):
    """The state is donated to the next step while it is still being written."""
    result = quiet_result(tiny, tmp_path / "run", checkpoint_every=1)
    alone = quiet_result(tiny, tmp_path / "alone", stop_at=11)
    setup, _ = load_run(tmp_path / "run", 1)
    assert {11, 12} <= committed(tmp_path / "run" / "checkpoints").keys()  # and the best one
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    state, _ = restore(tmp_path / "run" / "checkpoints", abstract_train_state(setup))
    chex.assert_trees_all_equal(state, alone.state)
    assert int(result.state.step) == 12


def test_a_finished_run_is_left_alone(tiny, tmp_path):
    first = quiet_result(tiny, tmp_path / "run")
    again, printed = quietly(tiny, tmp_path / "run")
    assert printed == f"{tmp_path / 'run'}: already finished, nothing trained\n"
    assert again.rows == first.rows
    chex.assert_trees_all_equal(first.state, again.state)


@pytest.mark.slow
def test_eight_devices_train_what_one_does(tiny, tmp_path):
    grouped = replace(tiny, model=replace(TINY, norm_group_size=2))
    one = quiet_result(grouped, tmp_path / "one")
    eight = quiet_result(grouped, tmp_path / "eight", devices=8)
    chex.assert_trees_all_close(one.state.params, eight.state.params, rtol=1e-3, atol=1e-4)
    assert one.rows[-1]["test/errors"] == eight.rows[-1]["test/errors"]


def test_seed_and_recipe_decide_the_start(tiny, tmp_path):
    setup = make_setup(tiny, open_sources(tiny, tmp_path).dataset, 1)
    other = make_setup(replace(tiny, seed=1), setup.dataset, 1)
    chex.assert_trees_all_equal(init_train_state(setup), init_train_state(setup))
    kernels = [np.asarray(init_train_state(s).params["head"]["kernel"]) for s in (setup, other)]
    assert not np.allclose(*kernels)
    largest = random_keys(replace(tiny, seed=2**32 - 1))
    assert not np.array_equal(jax.random.key_data(largest[0]), jax.random.key_data(largest[1]))


@pytest.mark.slow
def test_validation_replaces_the_test_split_while_training(tiny, tmp_path):
    result = quiet_result(replace(tiny, data=Data(name="tiny", num_validation=8)), tmp_path / "run")
    assert result.split == "validation"
    assert result.rows[-1]["validation/count"] == 8
    assert "test/loss" not in result.rows[-1]


def test_a_signal_ends_the_step_and_saves(tiny, tmp_path, monkeypatch):
    def items(*args, original=loop_module.training_batches):
        for step, item in enumerate(original(*args)):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    monkeypatch.setattr(loop_module, "training_batches", items)
    before = signal.getsignal(signal.SIGTERM)
    result = quiet_result(tiny, tmp_path / "run", return_on_signal=True)
    assert (result.step, result.signal) == (6, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()


def test_a_loss_that_is_no_number_is_never_saved(tiny, tmp_path):
    wild = replace(tiny, optimizer=Optimizer(lr=1e30), augment=Augment(crop_padding=0))
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+; lower optimizer.lr"):
        quiet_result(wild, tmp_path / "run", eval_every=1, checkpoint_every=1)
    _, state = load_run(tmp_path / "run", 1)
    chex.assert_tree_all_finite(state.params)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"batch_size": 12}, {"devices": 8}, "batch_size is 12, which 8 devices do not divide; use --devices 6"),
        ({}, {"devices": 9}, "--devices is 9; this machine has 8"),
        ({}, {"devices": 0}, "--devices is 0"),
        ({"data": Data(name="tiny", mean=(1, 2, 3))}, {}, "data.mean has 3 numbers; tiny has 1 channels"),
        ({"data": Data(name="tiny", std=(1, 2))}, {}, "data.std has 2 numbers"),
        ({"model": Model(name="resnet21")}, {}, "unknown model 'resnet21'"),
        ({"model": replace(TINY, shortcut="E")}, {}, "recipe: model.shortcut is 'E'"),
        ({"data": Data(name="tiny", num_validation=40)}, {}, "data.num_validation is 40"),
        ({"steps": 0}, {}, "steps is 0"),
        ({}, {"stop_at": 0}, "--stop-at is 0; it must be positive"),
        ({}, {"eval_every": -1}, "--eval-every is -1; it must be positive"),
        ({}, {"checkpoint_every": 0}, "--checkpoint-every is 0; it must be positive"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tiny, tmp_path, change, options, message):
    with pytest.raises(InputError, match=message):
        quiet_result(replace(tiny, **change), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["truncate", pytest.param("delete", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_put_aside_and_the_run_goes_on_from_the_one_before(tiny, tmp_path, damage):
    whole = quiet_result(tiny, tmp_path / "whole", checkpoint_every=2)
    quiet_result(tiny, tmp_path / "run", stop_at=4, checkpoint_every=2)
    folder = tmp_path / "run" / "checkpoints"
    file = next(path for path in sorted((folder / "4").rglob("*")) if path.is_file())
    file.write_bytes(b"") if damage == "truncate" else file.unlink()
    end, printed = quietly(tiny, tmp_path / "run", checkpoint_every=2)
    assert f"{folder}/4: damaged checkpoint ({file.name} " in printed
    assert f"moved to {folder}/damaged/4; step 3 is used instead" in printed
    assert (folder / "damaged" / "4").is_dir()
    chex.assert_trees_all_equal(whole.state, end.state)
    assert curve(tmp_path / "whole") == curve(tmp_path / "run")


def test_where_no_checkpoint_is_intact_the_run_does_not_begin_anew(tiny, tmp_path):
    quiet_result(tiny, tmp_path / "run", stop_at=3)
    lines = read_metrics(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "3" / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"checkpoints: no intact checkpoint \(step 3: no manifest.json\); restore"
        ):
            quiet_result(tiny, tmp_path / "run")
    assert read_metrics(tmp_path / "run") == lines


def test_a_run_without_checkpoint_is_named(tiny, tmp_path):
    quiet_result(tiny, tmp_path / "run", stop_at=1)
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        step.rename(tmp_path / f"moved-{step.name}")
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_run(tmp_path / "run", 1)


def test_metrics_are_json_lines(tiny, tmp_path):
    quiet_result(tiny, tmp_path / "run")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["lr"] >= 0


def test_a_checkpoint_that_cannot_be_written_is_named_and_those_before_are_kept(tiny, tmp_path, monkeypatch):
    quiet_result(tiny, tmp_path / "run", stop_at=3)

    def save(self, *args):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore")

    failure = r"checkpoints: .*cannot be written \(No space left on device\); free"
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "save", save)
        with pytest.raises(MachineError, match=failure):
            quiet_result(tiny, tmp_path / "run")
    assert int(load_run(tmp_path / "run", 1)[1].step) == 3
    assert quiet_result(tiny, tmp_path / "run").step == 12


def test_reading_a_run_touches_nothing(tiny, tmp_path):
    """A run can be evaluated while it trains: what the trainer is writing stays where it is."""
    quiet_result(tiny, tmp_path / "run", stop_at=3)
    writing = tmp_path / "run" / "checkpoints" / "incomplete" / "6.orbax-checkpoint-tmp"
    writing.mkdir(parents=True)
    assert int(load_run(tmp_path / "run", 1)[1].step) == 3
    assert writing.exists()


def test_parameters_that_are_no_numbers_are_never_saved(tiny, tmp_path):
    """The loss of a step is that of the parameters before it."""
    wild = replace(
        tiny,
        optimizer=Optimizer(lr=3e38, weight_decay=1e4),
        augment=Augment(crop_padding=0),
        schedule=Schedule(warmup=0),
    )
    with pytest.raises(
        InputError, match=r"the (loss is (nan|inf)|parameters are no longer finite) .*lower optimizer.lr"
    ):
        quiet_result(wild, tmp_path / "run", stop_at=1)
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_run(tmp_path / "run", 1)


def test_a_stop_that_has_passed_is_refused(tiny, tmp_path):
    quiet_result(tiny, tmp_path / "run", stop_at=5)
    with pytest.raises(InputError, match=r"--stop-at is 3; .*run is already at step 5"):
        quiet_result(tiny, tmp_path / "run", stop_at=3)


def test_names_that_the_checkpoint_writer_cannot_handle_are_refused(tiny, tmp_path):
    with pytest.raises(InputError, match=r"run\[1\]: the checkpoint writer cannot handle"):
        quiet_result(tiny, tmp_path / "run[1]")
    assert not list(tmp_path.iterdir())


def test_without_a_checkpoint_a_run_starts_again_with_no_rows(tiny, tmp_path):
    quietly(tiny, tmp_path / "run")
    rows = curve(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    quietly(tiny, tmp_path / "run")
    assert curve(tmp_path / "run") == rows
