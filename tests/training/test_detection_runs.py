"""Detectors train the same on any hardware, interrupted or not."""

from dataclasses import replace

import chex
import pytest
from runs import curve, killed_and_whole, quietly, two_processes_and_one
from squares import write_boxes

from resnet_jax.cli.main import main
from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

DETECTOR = {
    "depths": (1, 1),
    "width": 4,
    "pyramid_width": 8,
    "head_depth": 1,
    "extra": "none",
    "anchor_sizes": ((8, 10),),
}


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    return write_boxes(tmp_path_factory.mktemp("rectangles"))


def recipe_of(rectangles, **fields):
    given = {
        "model": Model(name="retinanet_resnet18_fpn", fields=DETECTOR, norm_group_size=2),
        "data": Data(name=f"coco:{rectangles}", mean=(0.4,), std=(0.3,)),
        "augment": Augment(crop_padding=0, hflip=True, scale_jitter=(0.7, 1.3)),
        "loss": Loss(name="detection", max_objects=3),
        "optimizer": Optimizer(name="adamw", lr=0.01, weight_decay=0.0),
        "schedule": Schedule(name="cosine", warmup=0),
        "batch_size": 16,
        "epochs": None,
        "steps": 4,
    }
    return Recipe(**{**given, **fields})


def require_near(rows, others):
    for one, other in zip(rows, others, strict=True):
        assert one["test/count"] == other["test/count"] == 8
        for name in ("train/loss", "test/loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
        # A rank may change by rounding
        assert one["test/ap50"] == pytest.approx(other["test/ap50"], abs=0.05)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_a_run_that_is_stopped_ends_bitwise_the_same(rectangles, tmp_path):
    recipe = recipe_of(rectangles)
    whole, _ = quietly(recipe, tmp_path / "whole", eval_every=2)
    # Between two evaluations
    quietly(recipe, tmp_path / "parts", eval_every=2, stop_at=3)
    end, _ = quietly(recipe, tmp_path / "parts", eval_every=2)
    chex.assert_trees_all_equal(whole.state, end.state)
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")
    assert whole.rows[-1]["train/loss"] < whole.rows[0]["train/loss"]


@pytest.mark.slow
def test_devices_and_accumulation_change_rounding_alone(rectangles, tmp_path):
    one, _ = quietly(recipe_of(rectangles), tmp_path / "one", eval_every=2)
    other, _ = quietly(recipe_of(rectangles), tmp_path / "other", devices=4, grad_accum_steps=2, eval_every=2)
    require_near(other.rows, one.rows)


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(rectangles, tmp_path, monkeypatch):
    killed, whole = killed_and_whole(tmp_path, recipe_of(rectangles, steps=100))
    assert killed == whole
    assert len(whole) == 5
    assert whole[-1]["test/ap50"] > 0.5
    # A file of it finds the same boxes
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "whole", "boxes.onnx"]) == main(["verify", "boxes.onnx"]) == 0


@pytest.mark.slow
def test_two_processes_train_as_one(rectangles, tmp_path):
    require_near(*two_processes_and_one(tmp_path, recipe_of(rectangles, steps=6)))


@pytest.mark.slow
def test_shards_train_as_files_do(rectangles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", f"coco:{rectangles}", "packed"]) == 0
    recipe = recipe_of(rectangles)
    quietly(recipe, tmp_path / "files", eval_every=4)
    packed = replace(recipe, data=replace(recipe.data, name="array_record:packed"))
    quietly(packed, tmp_path / "shards", eval_every=4)
    assert curve(tmp_path / "files") == curve(tmp_path / "shards")
