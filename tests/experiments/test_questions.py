"""The experiments that answer questions: they measure what they say, on tiny networks."""

import argparse
import ast
import dataclasses
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT
from PIL import Image

from experiments.privacy.secure_sum import masked_sum
from experiments.questions import federated, gradients, norm_groups, preactivation, shortcuts, surface, trials
from resnet_jax import SHORTCUTS, InputError, compiler_options
from resnet_jax.input_pipeline.sampler import batch_indices
from resnet_jax.recipe import Model

QUESTIONS = sorted(path for path in trials.HOME.glob("*.py") if path.stem != "trials")
SMALLEST = 100_000  # bytes of a picture
TINY = Model(name="resnet8", fields={"depths": (1,), "width": 4})
# Two blocks, without shortcuts
PLAIN = Model(name="resnet8", fields={"depths": (2,), "width": 4}, shortcut="none")
RECIPE = trials.short_recipe(PLAIN, "digits", 2, batch_size=8)


@pytest.fixture(scope="module")
def trial():
    """Two steps of a network on the digits, compiled once; the optimiser also records the norms of the gradients."""
    return trials.make_trial(RECIPE, change=gradients.recording_norms)


@pytest.fixture(scope="module")
def bare():
    """The same without normalisation."""
    return trials.make_trial(RECIPE, change=gradients.bare)


@pytest.fixture(scope="module")
def outcome():
    """Two steps with two seeds on batches of 64."""
    return shortcuts.outcome(TINY, "digits", 2, 2)


def first_batch(trial):
    return next(trials.batches(trial, 0))


def examples(trial, indices):
    """Images and labels at these places of the training split."""
    return trial.train.arrays.image[indices], trial.train.arrays.target[indices]


@pytest.mark.slow
def test_a_trial_is_the_run_of_its_recipe(trial):
    """The first loss is that of the network as drawn; the state that is returned was trained."""
    init_key, _ = trials.keys_of(trial, 0)
    state, batch = trial.init(init_key), first_batch(trial)
    assert list(batch.indices) == list(batch_indices(0, 0, 8, 1437))
    expected = jitted(partial(loss, trial, *examples(trial, batch.indices), train=True))(variables(state))
    result = trials.run(trial, 0)
    assert result.loss.shape == (2,)
    assert result.loss[0] == pytest.approx(float(expected), rel=1e-5)
    assert int(result.state.step) == 2
    assert trials.run(trial, 1).loss[0] != result.loss[0]


@pytest.mark.slow
def test_accuracy_of_the_first_images(trial):
    """Against predictions that are counted here; a thousand of the training images, and all of the test images."""
    state = trials.run(trial, 0).state
    logits = jitted(lambda images: logits_of(trial, images, variables(state), train=False))
    for split, size in ((trial.train, 1000), (trial.evaluation, 360)):
        images, labels = split.arrays.image[:size], split.arrays.target[:size]
        expected = float((logits(images).argmax(-1) == labels).mean())
        assert trials.make_accuracy(trial, split)(state) == pytest.approx(expected)


def jitted(function):
    return jax.jit(function, compiler_options=compiler_options())


def logits_of(trial, images, variables, *, train):
    return trial.setup.model.apply(variables, (images / 255.0 - 0.5) / 0.5, train=train, mutable=["batch_stats"])[0]


def loss(trial, images, labels, variables, *, train):
    logits = logits_of(trial, images, variables, train=train)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def test_smooth_curves():
    curves = np.array([[0.0, 3, 0, 0], [1, 1, 1, 1]])
    assert trials.smooth(curves, 3).tolist() == [[1.5, 1, 1, 0], [1, 1, 1, 1]]
    assert trials.smooth(np.arange(3.0)).shape == (3,)
    assert trials.final_loss(np.arange(20.0)) == 18.5


@pytest.mark.parametrize("kind", ["trial", "bare"])
def test_gradient_norms_are_those_of_each_block(kind, request):
    """Against a gradient with respect to the parameters of one block alone."""
    trial = request.getfixturevalue(kind)
    state = trial.init(trials.keys_of(trial, 0)[0])
    assert bool(state.batch_stats) == (kind == "trial")
    batch, block = first_batch(trial), "stage1_block2"

    def loss_of(kernels):
        mine = {conv: {"kernel": kernel} for conv, kernel in kernels.items()}
        params = {**state.params, block: {**state.params[block], **mine}}
        fixed = {"params": params, "batch_stats": state.batch_stats}
        return loss(trial, *examples(trial, batch.indices), fixed, train=True)

    grads = jitted(jax.grad(loss_of))({conv: state.params[block][conv]["kernel"] for conv in ("conv1", "conv2")})
    expected = np.sqrt(sum(float(jnp.square(grad).sum()) for grad in grads.values()))
    found = gradients.initial_norms(trial, 0, 1.0)
    assert found.shape == (2,)
    assert found[1] == pytest.approx(expected, rel=1e-4)


def test_mean_norms_are_geometric():
    np.testing.assert_allclose(gradients.mean_norms(np.array([[8.0, 3], [2, 3]])), [4, 3])


def test_smaller_kernels_without_normalisation_have_smaller_gradients(bare):
    he, glorot = (gradients.initial_norms(bare, 0, factor) for factor in (1.0, gradients.GLOROT))
    # Five convolutions, four of them beside the one of the derivative; the loss is nearly linear in them
    np.testing.assert_allclose(glorot / he, gradients.GLOROT**4, rtol=0.2)


@pytest.mark.slow
def test_directions_have_the_norms_of_the_filters(trial):
    params = trial.init(jax.random.key(0)).params
    direction = surface.filter_direction(jax.random.key(1), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        drawn = next(d for p, d in jax.tree_util.tree_leaves_with_path(direction) if p == path)
        if leaf.ndim == 1:
            assert not drawn.any()
        else:
            rows = [np.asarray(x).reshape(-1, x.shape[-1]) for x in (leaf, drawn)]
            np.testing.assert_allclose(*(np.linalg.norm(row, axis=0) for row in rows), rtol=1e-5)
            assert not np.allclose(*rows)


def test_the_middle_of_a_surface_is_the_solution(trial):
    found = surface.surface(trial, surface.make_loss(trial, 16), 0, 3)
    state = trials.run(trial, 0).state
    expected = jitted(partial(loss, trial, *examples(trial, np.arange(16)), train=False))(variables(state))
    assert found.loss[1, 1] == pytest.approx(float(expected), rel=1e-5)
    assert len(np.unique(found.loss)) == 9
    assert found.trained == trials.run(trial, 0).loss[-1]


def test_what_is_read_from_a_surface():
    line = np.linspace(-1, 1, 201)
    one, other = np.meshgrid(line, line)
    bowl = one**2 + other**2
    assert surface.valleys(bowl) == 1
    assert surface.valleys(np.minimum(bowl, (one - 0.5) ** 2 + other**2 - 0.01)) == 2
    assert surface.below(bowl, 0.5) == pytest.approx(np.pi * 0.5 / 4, abs=0.01)


def test_what_shortcuts_cost():
    """He et al. 2015, table 6 for A; the others counted by hand: 1x1 kernels, and two numbers a channel."""
    costs = {option: shortcuts.cost("resnet20", option) for option in shortcuts.COLORS}
    change = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    same = 3 * (16 * 16 + 2 * 16) + 2 * (32 * 32 + 2 * 32) + 2 * (64 * 64 + 2 * 64)
    assert costs["A"].parameters == costs["none"].parameters == 269_722
    assert costs["B"].parameters == 269_722 + change
    assert costs["C"].parameters == 269_722 + change + same
    assert costs["A"].multiply_adds == costs["none"].multiply_adds < costs["B"].multiply_adds < costs["C"].multiply_adds


@pytest.mark.slow
def test_what_shortcuts_bring(outcome):
    assert outcome.loss.shape == (2, 2)
    assert outcome.accuracy.shape == (2,)
    assert outcome.seconds > 0


@pytest.mark.slow
def test_a_group_of_the_batch_is_no_group(outcome):
    whole, halves = (
        norm_groups.outcome(dataclasses.replace(TINY, norm_group_size=norm_groups.BATCH // n), "digits", 2, 1)
        for n in (1, 2)
    )
    assert whole.loss[0].tolist() == outcome.loss[0].tolist()
    assert whole.test[0] == 1 - outcome.accuracy[0]
    assert whole.loss[0, 0] != halves.loss[0, 0]
    assert all(0 <= error <= 1 for error in (*whole.train, *whole.test))


def test_groups_divide_the_batch():
    with pytest.raises(InputError, match="norm_group_size is 7"):
        norm_groups.outcome(dataclasses.replace(TINY, norm_group_size=7), "digits", 2, 1)


@pytest.mark.parametrize("split", ["central", "IID", "skewed", "unequal"])
def test_every_example_is_of_one_client(split):
    labels = np.random.default_rng(0).integers(0, 10, 1437)
    clients = federated.SPLITS[split](labels, 10, 0)
    assert sorted(np.concatenate(clients)) == list(range(1437))
    assert len(clients) == (1 if split == "central" else 10)
    classes = [len(np.unique(labels[client])) for client in clients]
    assert max(classes) <= 6 if split in ("skewed", "unequal") else min(classes) == 10
    sizes = [len(client) for client in clients]
    assert (max(sizes) > 2 * min(sizes)) == (split == "unequal")


@pytest.fixture(scope="module")
def train_round(trial):
    """A round of two steps."""
    return federated.make_round(trial, 2)


@pytest.mark.slow
def test_clients_with_all_data_are_central_training(trial, train_round):
    everything = np.arange(trial.train.source.size)
    federal = train_round(trial.init(trials.keys_of(trial, 0)[0]), [everything, everything], 0, 0)
    chex.assert_trees_all_close(variables(federal), variables(trials.run(trial, 0).state), rtol=1e-5, atol=1e-6)


def test_clients_are_averaged_by_their_data(trial, train_round):
    """Against each client trained by itself, of which one has three times the data of the other."""
    clients = [np.arange(100), np.arange(100, 400)]
    init_key, key = trials.keys_of(trial, 0)
    federal = train_round(trial.init(init_key), clients, 0, 0)
    alone = []
    for client in clients:
        state = trial.init(init_key)
        for step in range(2):
            batch = trials.batch_at(trial, client[batch_indices(0, step, 8, len(client))])
            state, _ = trial.train_step(state, batch, key)
        alone.append(variables(state))
    expected = jax.tree.map(lambda one, other: 0.25 * one + 0.75 * other, *alone)
    chex.assert_trees_all_close(variables(federal), expected, rtol=1e-4, atol=1e-5)
    assert int(federal.step) == 2


def test_clients_of_unequal_size_take_a_pass_over_their_own_data():
    """Against each client trained by itself with FedProx, which takes as many steps as it has batches."""
    prox = trials.make_trial(RECIPE, change=partial(federated.with_norm, "BatchNorm", strength=0.5))
    clients = [np.arange(16), np.arange(16, 40)]
    init_key, key = trials.keys_of(prox, 0)
    found = federated.make_round(prox, None, masked_sum)(prox.init(init_key), clients, 0, 0)
    assert int(found.step) == 3
    alone = []
    for client, steps in zip(clients, (2, 3), strict=True):
        state = prox.init(init_key)
        for step in range(steps):
            state, _ = prox.train_step(
                state, trials.batch_at(prox, client[batch_indices(0, step, 8, len(client))]), key
            )
        alone.append(variables(state))
    expected = jax.tree.map(lambda one, other: 0.4 * one + 0.6 * other, *alone)
    chex.assert_trees_all_close(variables(found), expected, rtol=1e-3, atol=1e-4)


def test_fedprox_pulls_towards_the_server():
    rule = federated.stay_near(0.5)
    updates, _ = rule.update({"a": jnp.ones(2)}, federated.Anchor({"a": jnp.zeros(2)}), {"a": jnp.array([2.0, -4.0])})
    assert updates["a"].tolist() == [2.0, -1.0]


@pytest.mark.slow
def test_accuracies_by_round():
    a = argparse.Namespace(data="digits", steps=2 * federated.LOCAL_STEPS, seeds=1, data_dir=Path("data"))
    found = federated.accuracies(TINY, "GroupNorm", "skewed", a)
    assert found.shape == (1, 2)
    assert ((found >= 0) & (found <= 1)).all()


def test_steps_until_a_loss():
    loss = np.concatenate([np.full((2, 20), 2.0), np.full((2, 20), 0.1)], axis=1)
    assert preactivation.steps_to(loss, 3.0) == 1
    assert 20 < preactivation.steps_to(loss, 0.2) < 30
    assert preactivation.steps_to(loss, 0.01) == np.inf


@pytest.mark.slow
def test_without_warm_up_the_first_step_has_the_whole_rate():
    """From the same parameters: ten times the change."""
    warm = preactivation.warm_trial(TINY, "digits", 3)
    found = preactivation.losses(warm, 1)
    assert found[0].shape == (1, 3)
    assert found[0][0, 0] == found[preactivation.WARMUP][0, 0]
    init_key, key = trials.keys_of(warm, 0)
    before, batch = warm.init(init_key).params["head"]["kernel"], first_batch(warm)
    starts = warm.init(init_key), preactivation.after_warmup(warm.init(init_key))
    slow, fast = (warm.train_step(state, batch, key)[0].params["head"]["kernel"] - before for state in starts)
    np.testing.assert_allclose(fast, 10 * slow, rtol=1e-3, atol=1e-7)


def test_a_picture_has_few_colours(tmp_path):
    figure, panels = trials.canvas("title")
    trials.band(panels[0], np.arange(3), np.arange(6.0).reshape(2, 3), trials.BLUE, "label")
    trials.save(figure, tmp_path / "folder" / "1.png")
    with Image.open(tmp_path / "folder" / "1.png") as picture:
        assert picture.width == 1300
        assert len(picture.getcolors()) <= 128


@pytest.mark.slow
def test_every_question_is_drawn(tmp_path, monkeypatch):
    """With made-up numbers."""
    monkeypatch.setattr(trials, "save", lambda figure, path: figure.savefig(path, dpi=30))
    rng = np.random.default_rng(0)
    curve, blocks = np.exp(rng.normal(size=(2, 12))), np.exp(rng.normal(size=(2, 3)))
    norms = gradients.GradientNorms(blocks, blocks, blocks, np.exp(rng.normal(size=(2, 12, 3))), curve)
    gradients.draw({(kind, depth): norms for kind in gradients.KINDS for depth in gradients.DEPTHS}, tmp_path / "1.png")
    surface.draw(
        {name: [surface.Surface(np.exp(rng.normal(size=(5, 5))), 1.0)] for name in surface.NAMES}, tmp_path / "2.png"
    )
    outcome = shortcuts.Outcome(curve, np.array([0.9, 0.8]), 0.1)
    costs = {option: shortcuts.Cost(100, 100) for option in SHORTCUTS}
    shortcuts.draw(dict.fromkeys(shortcuts.COLORS, outcome), costs, "digits", tmp_path / "3.png")
    groups = norm_groups.Outcome(curve, np.array([0.1, 0.2]), np.array([0.1, 0.2]))
    norm_groups.draw(dict.fromkeys(norm_groups.GROUPS, groups), "digits", tmp_path / "4.png")
    rounds = {(norm, split): np.full((2, 3), 0.5) for norm in federated.NORMS for split in federated.SPLITS}
    federated.draw(rounds, "digits", tmp_path / "5.png")
    pairs = {(name, warmup): curve for name in preactivation.NAMES for warmup in (0, preactivation.WARMUP)}
    preactivation.draw(pairs, "digits", tmp_path / "6.png")
    assert len(list(tmp_path.glob("*.png"))) == 6


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda p: p.stem)
def test_every_question_is_answered(path):
    said, page = ast.get_docstring(ast.parse(path.read_text())), (trials.HOME / "README.md").read_text()
    command, picture = f"python {path.relative_to(ROOT)}", trials.PICTURES / f"{path.stem}.png"
    assert said.split("\n")[0].endswith("?")
    for text in (said, page):
        assert command in text
    assert f"Picture: {picture.relative_to(ROOT)}" in said
    assert f"../pictures/questions/{picture.name}" in page
    assert 0 < picture.stat().st_size < SMALLEST
