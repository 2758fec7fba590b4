"""The experiments that answer questions: what they measure is what they say, on tiny networks."""

import ast
import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import QUICKLY, ROOT

from experiments.questions import federated, gradients, norm_groups, preactivation, shortcuts, surface, trials
from resnet_jax import MODELS, SHORTCUTS, InputError, ResNet, compiler_options
from resnet_jax.data.batches import batch_indices
from resnet_jax.model.stems import CifarStem
from resnet_jax.recipe import Model, Schedule

QUESTIONS = sorted(path for path in trials.HOME.glob("*.py") if path.stem != "trials")
SMALLEST = 100_000  # bytes of a picture


@pytest.fixture
def recipe(monkeypatch):
    """Two steps of a network of six layers, without shortcuts, on the digits."""
    monkeypatch.setitem(MODELS, "tiny", ResNet((1, 1), stem=CifarStem, width=4))
    return trials.short_recipe(Model(name="tiny", shortcut="none"), "digits", 2, batch_size=8)


def first_batch(trial):
    return next(trials.batches(trial, 0))


def test_a_trial_is_the_run_of_its_recipe(recipe):
    """The first loss is that of the network as drawn; the state that is returned was trained."""
    trial = trials.make_trial(recipe)
    init_key, _ = trials.keys_of(trial, 0)
    state, batch = trial.begin(init_key), first_batch(trial)
    assert list(batch.indices) == list(batch_indices(0, 0, 8, 1437))
    expected = jitted(partial(loss, trial, batch.image, batch.label, train=True))(variables(state))
    run = trials.run(trial, 0)
    assert run.loss.shape == (2,)
    assert run.loss[0] == pytest.approx(float(expected), rel=1e-5)
    assert int(run.state.step) == 2
    assert 0 <= trials.make_accuracy(trial)(run.state) <= 1
    assert trials.run(trial, 1).loss[0] != run.loss[0]


def jitted(function):
    return jax.jit(function, compiler_options=compiler_options() | QUICKLY)


def loss(trial, image, label, variables, *, train):
    logits, _ = trial.job.model.apply(variables, (image / 255.0 - 0.5) / 0.5, train=train, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


def test_smooth_curves():
    curves = np.array([[0.0, 3, 0, 0], [1, 1, 1, 1]])
    assert trials.smooth(curves, 3).tolist() == [[1.5, 1, 1, 0], [1, 1, 1, 1]]
    assert trials.smooth(np.arange(3.0)).shape == (3,)
    assert trials.late(np.arange(20.0)) == 18.5


@pytest.mark.parametrize("normalized", [True, False])
def test_gradient_norms_are_those_of_each_block(recipe, normalized):
    """Against a gradient that is taken of the parameters of one block alone."""

    def change(job):
        return job if normalized else job._replace(model=job.model.clone(norm=gradients.without_norm))

    trial = trials.make_trial(recipe, change=lambda job: gradients.noting(change(job)))
    state = trial.begin(trials.keys_of(trial, 0)[0])
    assert bool(state.batch_stats) == normalized
    batch, block = first_batch(trial), "stage2_block1"

    def loss_of(kernels):
        mine = {conv: {"kernel": kernel} for conv, kernel in kernels.items()}
        params = {**state.params, block: {**state.params[block], **mine}}
        fixed = {"params": params, "batch_stats": state.batch_stats}
        return loss(trial, batch.image, batch.label, fixed, train=True)

    grads = jitted(jax.grad(loss_of))({conv: state.params[block][conv]["kernel"] for conv in ("conv1", "conv2")})
    expected = np.sqrt(sum(float(jnp.square(grad).sum()) for grad in grads.values()))
    found = gradients.initial_norms(trial, 0, 1.0)
    assert found.shape == (2,)
    assert found[1] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(gradients.mean_norms(np.array([[8.0, 3], [2, 3]])), [4, 3])


def test_smaller_kernels_without_normalisation_have_smaller_gradients(recipe):
    bare = trials.make_trial(
        recipe, change=lambda job: gradients.noting(job._replace(model=job.model.clone(norm=gradients.without_norm)))
    )
    he, glorot = (gradients.initial_norms(bare, 0, factor) for factor in (1.0, gradients.GLOROT))
    # five convolutions, four of them besides the one that is derived by; the loss is all but linear in them
    np.testing.assert_allclose(glorot / he, gradients.GLOROT**4, rtol=0.2)


def test_directions_have_the_lengths_of_the_filters(recipe):
    trial = trials.make_trial(recipe)
    params = trial.begin(jax.random.key(0)).params
    direction = surface.filter_direction(jax.random.key(1), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        drawn = next(d for p, d in jax.tree_util.tree_leaves_with_path(direction) if p == path)
        if leaf.ndim == 1:
            assert not drawn.any()
        else:
            rows = [np.asarray(x).reshape(-1, x.shape[-1]) for x in (leaf, drawn)]
            np.testing.assert_allclose(*(np.linalg.norm(row, axis=0) for row in rows), rtol=1e-5)
            assert not np.allclose(*rows)


def test_the_middle_of_a_surface_is_the_solution(recipe):
    trial = trials.make_trial(recipe)
    found = surface.surface(trial, surface.make_loss(trial, 16), 0, 3)
    state = trials.run(trial, 0).state
    first = trial.train.image[:16], trial.train.label[:16]
    expected = jitted(partial(loss, trial, *first, train=False))(variables(state))
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


def test_what_shortcuts_bring(recipe):
    brought = shortcuts.bring("tiny", "B", "digits", 2, 2)
    assert brought.loss.shape == (2, 2)
    assert brought.accuracy.shape == (2,)
    assert brought.seconds > 0


def test_a_group_of_the_batch_is_no_group(recipe):
    whole = norm_groups.outcome(norm_groups.BATCH, "digits", 2, 1, name="tiny")
    halves = norm_groups.outcome(norm_groups.BATCH // 2, "digits", 2, 1, name="tiny")
    plain = trials.short_recipe(Model(name="tiny"), "digits", 2, schedule="cosine", warmup=20, batch_size=64)
    assert whole.loss[0].tolist() == trials.run(trials.make_trial(plain), 0).loss.tolist()
    assert whole.loss[0, 0] != halves.loss[0, 0]
    with pytest.raises(InputError, match="norm_group is 7"):
        norm_groups.outcome(7, "digits", 2, 1, name="tiny")


@pytest.mark.parametrize("split", ["central", "IID", "skewed"])
def test_every_example_is_of_one_client(split):
    labels = np.random.default_rng(0).integers(0, 10, 1437)
    shares = federated.SPLITS[split](labels, 10, 0)
    assert sorted(np.concatenate(shares)) == list(range(1437))
    assert len(shares) == (1 if split == "central" else 10)
    classes = [len(np.unique(labels[share])) for share in shares]
    assert min(classes) == 10 if split != "skewed" else max(classes) <= 4


def test_one_client_with_one_step_is_central_training(recipe):
    trial = trials.make_trial(dataclasses.replace(recipe, batch_size=8))
    everything = [np.arange(len(trial.train.label))]
    init_key, key = trials.keys_of(trial, 0)
    federal = federated.make_round(trial, 1)(trial.begin(init_key), everything, 0, 0)
    central, _ = trial.step(trial.begin(init_key), first_batch(trial), key)
    chex.assert_trees_all_close(federal, central, rtol=1e-6, atol=1e-7)


def test_clients_are_averaged_by_their_data(recipe):
    """Against each client trained by itself, of which one has three times the data of the other."""
    trial = trials.make_trial(recipe)
    shares = [np.arange(100), np.arange(100, 400)]
    init_key, key = trials.keys_of(trial, 0)
    federal = federated.make_round(trial, 2)(trial.begin(init_key), shares, 0, 0)
    alone = []
    for share in shares:
        state = trial.begin(init_key)
        for step in range(2):
            state, _ = trial.step(state, trial.train.batch(share[batch_indices(0, step, 8, len(share))]), key)
        alone.append(variables(state))
    expected = jax.tree.map(lambda one, other: 0.25 * one + 0.75 * other, *alone)
    chex.assert_trees_all_close(variables(federal), expected, rtol=1e-4, atol=1e-5)
    assert int(federal.step) == 2


def test_steps_until_a_loss():
    loss = np.concatenate([np.full((2, 20), 2.0), np.full((2, 20), 0.1)], axis=1)
    assert preactivation.steps_to(loss, 3.0) == 1
    assert 20 < preactivation.steps_to(loss, 0.2) < 30
    assert preactivation.steps_to(loss, 0.01) == np.inf


def test_without_warm_up_the_first_step_has_the_whole_rate(recipe):
    """From the same parameters: ten times the change."""
    found = preactivation.losses("tiny", "digits", 3, 1)
    assert found[0][0, 0] == found[preactivation.WARMUP][0, 0]
    warm = trials.make_trial(
        dataclasses.replace(recipe, schedule=Schedule(name="constant", warmup=preactivation.WARMUP, warmup_from=0.1))
    )
    init_key, key = trials.keys_of(warm, 0)
    before, batch = warm.begin(init_key), first_batch(warm)
    step = jitted(warm.pure_step)
    after = [step(state, batch, key)[0] for state in (before, preactivation.after_warmup(before))]
    slow, fast = (state.params["head"]["kernel"] - before.params["head"]["kernel"] for state in after)
    np.testing.assert_allclose(fast, 10 * slow, rtol=1e-3, atol=1e-7)


def test_every_question_is_drawn(tmp_path):
    """Of numbers that are made up."""
    rng = np.random.default_rng(0)
    curve, blocks = np.exp(rng.normal(size=(2, 12))), np.exp(rng.normal(size=(2, 3)))
    norms = gradients.Norms(blocks, blocks, blocks, np.exp(rng.normal(size=(2, 12, 3))), curve)
    gradients.draw({(kind, depth): norms for kind in gradients.KINDS for depth in gradients.DEPTHS}, tmp_path / "1.png")
    surface.draw(
        {name: [surface.Surface(np.exp(rng.normal(size=(5, 5))), 1.0)] for name in surface.NAMES}, tmp_path / "2.png"
    )
    brought = shortcuts.Brought(curve, np.array([0.9, 0.8]), 0.1)
    costs = {option: shortcuts.Cost(100, 100) for option in SHORTCUTS}
    shortcuts.draw(dict.fromkeys(shortcuts.COLORS, brought), costs, "digits", tmp_path / "3.png")
    outcome = norm_groups.Outcome(curve, np.array([0.1, 0.2]), np.array([0.1, 0.2]))
    norm_groups.draw(dict.fromkeys(norm_groups.GROUPS, outcome), "digits", tmp_path / "4.png")
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
