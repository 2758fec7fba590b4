"""What networks answer: every image once, as `evaluate` counts, and what happens where they are gone."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricated import write_run
from sklearn.metrics import precision_recall_fscore_support

from resnet_jax.checkpoint.checkpoint import open_checkpoints, save
from resnet_jax.data.augment import normalize
from resnet_jax.data.datasets import DATASETS
from resnet_jax.data.source import Example, Source
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.explain import grad_cam
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.recipe import check
from resnet_jax.report.predictions import (
    Predictions,
    class_scores,
    collect_predictions,
    confusion,
    mistakes,
    most_confused,
)
from resnet_jax.report.runs import group_runs, read_runs
from resnet_jax.run_dir.files import identity, read_dataset_info
from resnet_jax.training.init import init_train_state
from resnet_jax.training.setup import make_setup


def answers(label, answer, probability, classes=3):
    source = Source(len(label), tuple("abcdef"[:classes]), lambda i: Example(np.zeros((2, 2, 1), np.uint8), label[i]))
    return Predictions(source, np.array(label), np.array(answer), np.array(probability))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


def drawn(tree, seed):
    """Other parameters or statistics, of a network that is sure of what it says."""
    draw = np.random.default_rng(seed).uniform
    return jax.tree.map(lambda leaf: jnp.asarray(draw(-1, 1, leaf.shape).astype(leaf.dtype) + (leaf.ndim == 1)), tree)


@pytest.fixture
def run(tiny, trained, tmp_path):
    """A run of the tiny recipe that nobody trained, with an EMA and checkpoints at steps 4 and 6; a copy of one."""
    if not trained.exists():
        recipe = check(dataclasses.replace(tiny, steps=6, ema_decay=0.5))
        ema = {"ema/test/loss": 1.0, "ema/test/accuracy": 0.5}
        write_run(trained, recipe, (0.1, 0.2, 0.3), classes="abc", shape=(8, 8, 1), last=6, **ema)
        dataset = read_dataset_info(trained)
        state = init_train_state(make_setup(recipe, dataset, 1))
        with open_checkpoints(trained / "checkpoints") as checkpoints:
            for step in (4, 6):
                averages = {"params": drawn(state.params, step), "batch_stats": drawn(state.batch_stats, step + 1)}
                save(checkpoints, state.replace(step=jnp.int32(step), ema=averages), identity(recipe, dataset))
    return shutil.copytree(trained, tmp_path / "run")


def test_every_image_counts_once_and_as_evaluation_says(run):
    (variant,) = group_runs(read_runs([run]))
    step, values, *_ = evaluate(run, devices=1)
    for loading in (DataLoading(), DataLoading(device_cache_gib=0.0)):
        found, notes = collect_predictions(variant, devices=1, loading=loading)
        matrix = confusion(found)
        assert notes == []
        assert matrix.sum() == values["count"] == 10
        assert matrix.sum(1).tolist() == [4, 3, 3]
        assert matrix.sum() - matrix.trace() == values["errors"]
        assert sum(one.wrong for one in mistakes(found)) == values["errors"]
        assert ((found.probability > 1 / 3) & (found.probability <= 1)).all()
    assert step == 6
    assert evaluate(run, devices=1, checkpoint=CheckpointChoice(no_ema=True)).values["loss"] != values["loss"]
    looked = found.heat
    assert sorted(looked) == sorted(one.place for one in mistakes(found))
    assert all(heat.shape == (8, 8) and heat.min() >= 0 and heat.max() <= 1 for heat in looked.values())
    setup, state = load_model(run, devices=1)
    variables, data = {"params": state.params, "batch_stats": state.batch_stats}, setup.recipe.data
    one = mistakes(found)[-1]
    image = normalize(jnp.asarray(found.source.read(one.place).image[None]), data.mean, data.std)
    np.testing.assert_allclose(
        looked[one.place], grad_cam(setup.model, variables, image, jnp.array([one.answer]))[0], atol=1e-5
    )
    # eight devices, which pad the ten images to sixteen
    many, _ = collect_predictions(variant)
    np.testing.assert_array_equal(many.answer, found.answer)


def test_what_is_gone_is_told_and_left_out(run, monkeypatch):
    newest = next(
        path for path in (run / "checkpoints" / "6").rglob("*") if path.stat().st_size > 200 and path.is_file()
    )
    content = bytearray(newest.read_bytes())
    content[100] ^= 1
    newest.write_bytes(content)
    (variant,) = group_runs(read_runs([run]))
    found, notes = collect_predictions(variant, devices=1)
    assert confusion(found).sum() == 10
    assert notes == ["run: predictions are of step 4, its last row of 6."]

    monkeypatch.delitem(DATASETS, "tiny")
    found, (note,) = collect_predictions(variant, devices=1)
    assert found is None
    assert note.startswith("run: left out of the confusion matrix and mistakes: unknown data set 'tiny'")

    shutil.rmtree(run / "checkpoints")
    found, (note,) = collect_predictions(variant, devices=1)
    assert found is None
    assert "no checkpoint yet" in note


def test_several_outputs_an_image_are_not_confused(run):
    (variant,) = group_runs(read_runs([run]))
    one = variant.runs[0]
    for loss in ("multilabel", "mse"):
        recipe = dataclasses.replace(one.recipe, loss=dataclasses.replace(one.recipe.loss, name=loss))
        found, (note,) = collect_predictions(variant._replace(runs=(one._replace(recipe=recipe),)))
        assert found is None
        assert note == (f"{variant.label}: no confusion matrix or mistakes, because its classes are not exclusive.")


def test_confusion_counts_class_and_answer_of_all_networks():
    both = answers([0, 1, 2, 2], [[0, 2, 2, 1], [0, 1, 2, 1]], np.ones((2, 4)))
    assert confusion(both).tolist() == [[2, 0, 0], [0, 1, 1], [0, 2, 2]]
    pairs = most_confused(confusion(both))
    assert [tuple(pair) for pair in pairs] == [(2, 1, 2, 0.5), (1, 2, 1, 0.5)]
    assert most_confused(confusion(both), 1) == pairs[:1]


def test_scores_of_classes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 60)
    given = np.where(rng.random((2, 60)) < 0.5, label, rng.integers(0, 5, (2, 60)))
    scores = class_scores(confusion(answers(label, given, np.ones((2, 60)), 6)))
    theirs = precision_recall_fscore_support(np.tile(label, 2), given.ravel())[:3]
    np.testing.assert_allclose(scores[:, :5], theirs)
    assert np.isnan(scores[:, 5]).all()  # neither seen nor predicted


def test_mistakes_begin_with_what_most_are_surest_of():
    label = [0, 0, 0, 0, 1]
    given = [[1, 1, 2, 0, 1], [1, 0, 2, 0, 0]]
    sure = [[0.5, 0.99, 0.9, 1.0, 1.0], [0.7, 1.0, 0.8, 1.0, 0.0]]
    found = mistakes(answers(label, given, sure))
    assert [(one.place, one.label, one.answer, one.wrong) for one in found] == [
        (2, 0, 2, 2),  # both wrong, 0.85 in the mean
        (0, 0, 1, 2),  # both wrong, 0.6
        (1, 0, 1, 1),
        (4, 1, 0, 1),
    ]
    np.testing.assert_allclose([one.probability for one in found], [0.85, 0.6, 0.99, 0.0])
    assert len(mistakes(answers(label, given, sure), 2)) == 2
