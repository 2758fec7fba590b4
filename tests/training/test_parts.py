"""Every part of a run can be given as a value, and a run that was given one needs it again."""

import re
from dataclasses import replace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from runs import curve, quietly

from resnet_jax.data.source import Example, Source, from_arrays
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.explain import explain
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.predict import predict
from resnet_jax.recipe import Augment, Model, Optimizer
from resnet_jax.report.page import Contents, make_page
from resnet_jax.report.runs import group_runs, read_runs, recipe_fields
from resnet_jax.run_dir.given import read_given
from resnet_jax.tasks.classification import classification
from resnet_jax.tasks.losses import cross_entropy
from resnet_jax.tasks.metric import Display, Metric
from resnet_jax.tasks.metrics import loss_metric
from resnet_jax.tasks.regression import regression
from resnet_jax.tasks.task import TargetSpec
from resnet_jax.training.setup import Parts


class Linear(nn.Module):
    """One layer, with no state but its kernel."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


class PerPixel(nn.Module):
    """A 1x1 convolution: a class for each pixel."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Conv(3, (1, 1))(x)


def focal(logits, targets):
    log_p = jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets]
    return -jnp.square(1 - jnp.exp(log_p)) * log_p


def brightest(key, image, target):
    return jnp.full_like(image, 255), target


LARGEST = Metric(
    lambda outputs, targets, mask: jnp.where(mask, outputs.max(-1), 0).sum(),
    lambda total: {"largest": float(total), "rows": 7},
    {"largest": Display(percent=True), "rows": Display(shown=False)},
)


@pytest.fixture
def recipe(tiny):
    # Without warmup, mixing or weight decay that a part could hide behind
    return replace(tiny, steps=4, epochs=None)


def params_after(recipe, out, **parts):
    return jax.device_get(quietly(recipe, out, **parts)[0].state.params)


def differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


PARTS = {
    "task": classification(focal),
    "optimizer": optax.adam,
    "schedule": lambda step: 0.5 / (1 + step),
    "transform": brightest,
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_changes_the_run_and_is_recorded(recipe, tmp_path, name):
    plain = params_after(recipe, tmp_path / "plain")
    run = tmp_path / "run"
    assert differ(plain, params_after(recipe, run, **{name: PARTS[name]}, eval_every=1))
    assert read_given(run).keys() == {name}
    assert not (tmp_path / "plain" / "given.json").exists()
    if name == "schedule":
        assert [row["lr"] for row in curve(run)] == pytest.approx([0.5, 0.25, 0.5 / 3, 0.125])
    if name == "task":
        # The reported loss is the cross-entropy, whatever is minimised
        setup, _ = load_run(run, 1, parts=Parts(task=classification()))
        assert setup.task.loss is cross_entropy
        values = evaluate(run, parts=Parts(task=classification()), devices=1).values
        assert curve(run)[-1]["test/loss"] == values["loss"]
    if name == "optimizer":
        # Only training reads its state
        with pytest.raises(InputError, match="its optimizer was passed as a value"):
            load_run(run, 1)
        setup, state = load_model(run, devices=1)
        assert state.opt_state == ()
        chex.assert_trees_all_equal(state, load_run(run, 1, parts=Parts(optimizer=optax.adam))[1].replace(opt_state=()))
        assert evaluate(run, devices=1).values["loss"] == curve(run)[-1]["test/loss"]


def test_resuming_needs_the_part_again_and_continues_the_curve(recipe, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    quietly(recipe, whole, optimizer=optax.adam, eval_every=1)
    quietly(recipe, parted, optimizer=optax.adam, eval_every=1, stop_at=2)
    with pytest.raises(InputError, match="its optimizer was passed as a value; pass it again in Python, optimizer="):
        quietly(recipe, parted)
    with pytest.raises(InputError, match="its task was not passed as a value; leave it out"):
        quietly(recipe, parted, optimizer=optax.adam, task=classification())
    quietly(recipe, parted, optimizer=optax.adam, eval_every=1)
    assert curve(parted) == curve(whole)


def test_a_network_of_your_own_is_trained_evaluated_and_predicts(recipe, tmp_path):
    run = tmp_path / "run"
    result, said = quietly(recipe, run, model=Linear())
    assert said.startswith("training: Linear on ")
    assert set(result.state.params) == {"Dense_0"}
    fields = recipe_fields(read_runs([run])[0])
    assert (fields["model.name"], fields["model.dropout"]) == ("Linear, passed as a value", "-")
    parts = Parts(model=Linear())
    assert evaluate(run, parts=parts, devices=1).values["count"] == 10
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    (prediction,) = predict(run, [tmp_path / "image.png"], 2, parts=parts)
    assert len(prediction.classes) == 2
    with pytest.raises(InputError, match="model"):
        load_run(run, 1)
    with pytest.raises(InputError, match="its model was passed as a value"):
        explain(run, [tmp_path / "image.png"])


def test_a_metric_of_your_own_is_reported_and_shown_as_it_wants_to_be(recipe, tmp_path):
    """In the lines of a run, and in a report, which has the directory alone."""
    task, run = classification(), tmp_path / "run"
    task = task._replace(
        metrics={**task.metrics, "largest": LARGEST}, monitor="largest", train_metrics=("accuracy", "largest")
    )
    _, printed = quietly(recipe, run, task=task, metrics=("accuracy",))
    row = curve(run)[-1]
    assert 0 < row["test/largest"] != row["train/largest"]
    assert f"  test {row['test/loss']:.3f} {row['test/largest']:.2%}" in printed
    assert "test/rows" in row
    assert "train/rows" not in row
    content = make_page(Contents(group_runs(read_runs([run])), [None], [])).decode()
    assert re.search(r">test largest</th>", content)
    assert f">{100 * row['test/largest']:.2f} %</td>" in content
    assert "test rows" not in content


def test_metrics_are_chosen_by_name(recipe, tmp_path):
    run = tmp_path / "run"
    quietly(recipe, run, metrics=("top5", "macro_f1"))
    row = curve(run)[-1]
    assert row["test/top5"] == 1.0
    assert 0 <= row["test/macro_f1"] <= 1
    with pytest.raises(InputError, match=r"top6.*top5"):
        quietly(recipe, tmp_path / "other", metrics=("top6",))
    assert not (tmp_path / "other" / "recipe.json").exists()


def test_loggers_see_each_row_and_one_that_fails_stops_nothing(recipe, tmp_path):
    rows = []

    def failing(step, row):
        row.clear()
        raise OSError("no network")

    run = tmp_path / "run"
    _, printed = quietly(
        recipe, run, eval_every=2, log=(failing, lambda step, row: rows.append((step, row["test/loss"])))
    )
    assert rows == [(row["step"], row["test/loss"]) for row in curve(run)]
    assert printed.count("logger failing failed and is not called again: OSError('no network')") == 1


def test_a_task_checks_its_targets(recipe, tmp_path):
    size, random = 8, np.random.default_rng(0)
    images = random.integers(0, 255, (24, size, size, 1), np.uint8)
    numbers = (images / 255).mean((1, 2))
    splits = tuple(
        from_arrays(images[part], numbers[part].astype(np.float32), ("mean",)) for part in (slice(16), slice(16, 24))
    )
    data = replace(recipe.data, name="")
    result, _ = quietly(replace(recipe, data=data), tmp_path / "run", data=splits, model=Linear(1), task=regression())
    assert set(result.rows[-1]) >= {"test/loss", "test/mae"}
    with pytest.raises(InputError, match="the task is regression; the targets are classes"):
        quietly(recipe, tmp_path / "classes", task=regression())


def test_fields_of_a_network_travel_with_the_run(recipe, tmp_path):
    fields = {"depths": (1,), "width": 6, "act": "silu"}
    run = tmp_path / "run"
    quietly(replace(recipe, model=Model(name="resnet8", fields=fields)), run)
    setup, _ = load_run(run, 1)
    assert (setup.model.depths, setup.model.width, setup.model.act.__name__) == ((1,), 6, "silu")
    assert evaluate(run, devices=1).values["count"] == 10


def test_a_network_that_cannot_be_built_is_refused_in_one_line(recipe, tmp_path):
    fields = {"depths": (1,), "width": 4, "norm": "GroupNorm"}
    with pytest.raises(InputError, match=r"cannot be built for images of \(8, 8, 1\) .*groups"):
        quietly(replace(recipe, model=Model(name="resnet8", fields=fields)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def pixel_loss(logits, masks):
    return cross_entropy(logits.reshape(-1, 3), masks.reshape(-1).astype(int)).reshape(len(masks), -1).mean(1)


def test_masks_are_learned_and_move_with_their_images(tiny, tmp_path):
    masks = np.random.default_rng(0).integers(0, 3, (16, 8, 8))
    source = Source(
        16, ("a", "b", "c"), lambda index: Example((masks[index, ..., None] * 100).astype(np.uint8), masks[index])
    )
    task = classification()._replace(
        loss=pixel_loss,
        metrics={"loss": loss_metric(pixel_loss)},
        default_metrics=(),
        train_metrics=(),
        monitor="loss",
        mode="min",
        targets=TargetSpec(lambda source: None, lambda classes, shape: (8, 8), np.uint8),
    )
    recipe = replace(tiny, optimizer=Optimizer(lr=1.0), steps=60)
    given = {"model": PerPixel(), "task": task, "data": (source, source)}
    with pytest.raises(InputError, match="augment.crop_padding adds black, which has no target"):
        quietly(recipe, tmp_path / "run", **given)
    with pytest.raises(InputError, match=r"data.image_size is 16; the images of data= are \(8, 8, 1\), resize them or"):
        quietly(replace(recipe, data=replace(recipe.data, image_size=16)), tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    recipe = replace(recipe, augment=Augment(crop_padding=2, pad_mode="reflect", hflip=True))
    result, _ = quietly(recipe, tmp_path / "run", eval_every=60, checkpoint_every=60, **given)
    assert result.rows[-1]["test/loss"] < 0.2
