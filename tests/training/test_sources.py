"""Unbalanced data: weights of classes and draws by weight, in runs."""

import json
from dataclasses import replace

import chex
import numpy as np
import pytest
from runs import curve, quietly
from sklearn.utils.class_weight import compute_class_weight

from resnet_jax.data.source import from_arrays
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Data, Loss
from resnet_jax.run_dir.files import read_dataset_info
from resnet_jax.tasks.make import make_task, with_auto_weights
from resnet_jax.training.sources import class_counts, open_sources


def test_an_unbalanced_run_resumes_bitwise_and_records_its_weights(tiny, tmp_path):
    data = Data(name="tiny", class_map={"a": "big", "b": "big"}, sampling="balanced", num_validation=0.2, stratify=True)
    recipe = replace(tiny, data=data, loss=Loss(class_weights="auto"), seed=3)
    whole, said = quietly(recipe, tmp_path / "whole", eval_every=4)
    quietly(recipe, tmp_path / "parts", eval_every=4, stop_at=5)
    parts, _ = quietly(recipe, tmp_path / "parts", eval_every=4)
    chex.assert_trees_all_equal(whole.state, parts.state)
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")
    labels = open_sources(recipe, tmp_path).train.labels
    weights = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    assert f"loss.class_weights: big {weights[0]:.4g}, c {weights[1]:.4g}" in said
    assert read_dataset_info(tmp_path / "whole").class_counts == tuple(np.bincount(labels))
    setup, _ = load_run(tmp_path / "whole", 1)
    logits, targets = np.array([[2.0, 0.5], [0.1, 0.3]], np.float32), np.array([0, 1])
    numerators, denominators = setup.task.loss(logits, targets)
    np.testing.assert_allclose(denominators, weights, rtol=1e-6)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(numerators, -log_probs[[0, 1], [0, 1]] * weights, rtol=1e-5)
    assert json.loads((tmp_path / "whole" / "recipe.json").read_text())["data"]["class_map"] == {"a": "big", "b": "big"}


def test_auto_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(4, 500, p=[0.6, 0.2, 0.15, 0.05])
    counts = np.bincount(labels)
    found = with_auto_weights(Loss(class_weights="auto"), counts.tolist(), 500, 4).class_weights
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(4), y=labels))


def test_pos_weight_auto_is_absent_over_present():
    labels = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    train = from_arrays(np.zeros((4, 1, 1, 1), np.uint8), labels, ["u", "v"])
    loss = Loss(name="multilabel", pos_weight="auto")
    assert class_counts(loss, train, "x") == (1, 3)
    assert with_auto_weights(loss, (1, 3), 4, 2).pos_weight == (3.0, 1 / 3)
    # Where a run is only sized, they are 1
    sized = make_task(with_auto_weights(loss, (), 4, 2)).loss(np.zeros((4, 2), np.float32), labels)
    np.testing.assert_allclose(sized, np.log(2), rtol=1e-6)


def test_pixels_are_counted(tmp_path):
    from squares import write_splits

    from resnet_jax.data.formats.masks import mask_folder

    train = mask_folder("train", write_splits(tmp_path), ".")
    masks = np.concatenate([train.read(index).target.ravel() for index in range(train.size)])
    loss = Loss(name="pixel_cross_entropy", class_weights="auto")
    assert class_counts(loss, train, "x") == ((masks == 0).sum(), (masks == 1).sum())


def test_a_class_without_images_has_no_weight():
    train = from_arrays(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, int), ["u", "v"])
    with pytest.raises(ValueError, match="x: no training image has the class 'v'"):
        class_counts(Loss(class_weights="auto"), train, "x")


def test_doubled_images_are_said_at_the_start(tiny, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    labels = np.arange(24) % 3
    data = [from_arrays(images[part], labels[part], "abc") for part in (slice(20), slice(16, 24))]
    _, said = quietly(tiny, tmp_path / "run", data=data, stop_at=1)
    assert "4 of 8 test images are in the training split as well, such as test example 0 is train example 16" in said
