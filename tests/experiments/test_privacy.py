"""Private training: each part against its formula or an independent library, and whole runs at a reduced size."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from conftest import ROOT

pytest.importorskip("dp_accounting", reason="make parity installs it")

import dp_accounting
from dp_accounting.rdp import RdpAccountant

from experiments.privacy import accounting, audit, clipping, dp_sgd, sampler, scattering, secure_sum, training
from resnet_jax import CheckpointChoice, InputError, evaluate, train_step
from resnet_jax.data.source import from_arrays
from resnet_jax.input_pipeline.device_input import DeviceArrays, IndexedBatch
from resnet_jax.input_pipeline.preprocess import make_preprocess
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.recipe import Augment, Model
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tasks.losses import cross_entropy
from resnet_jax.training.init import init_fn
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources
from resnet_jax.training.state import first_state


def linear(params, x):
    return x.reshape(len(x), -1) @ params["kernel"] + params["bias"].reshape(1, -1)


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def loop_of_clipped_gradients(params, images, labels, clip_norm):
    """The sum of clipped gradients over their norm, example by example."""
    total = jax.tree.map(jnp.zeros_like, params)
    gradients = jax.jit(jax.grad(lambda p, x, y: cross_entropy(linear(p, x), y).mean()))
    for image, label in zip(images, labels, strict=True):
        if label[0] == clipping.PADDING:
            continue
        grads = gradients(params, image, label)
        norm = math.sqrt(sum(float(jnp.square(g).sum()) for g in grads.values()))
        total = jax.tree.map(lambda t, g, n=norm: t + g * min(1 / n, 1 / clip_norm), total, grads)
    return total


@pytest.mark.parametrize("copies", [1, 3])
def test_clipped_gradients_are_those_of_a_plain_loop(copies):
    """In float64, through `train_step`; some gradients are longer than the bound, some shorter, two rows are empty."""
    with jax.enable_x64(True):
        params = {"kernel": drawn(0, 6, 4), "bias": drawn(1, 4)}
        images = drawn(2, 8, copies, 6) * jnp.arange(1, 9).reshape(8, 1, 1) / 4
        labels = jnp.asarray(np.random.default_rng(3).integers(0, 4, (8, 1)).repeat(copies, 1)).at[6:].set(-1)
        expected = loop_of_clipped_gradients(params, images, labels, 2.0)
        objective = clipping.private_objective(linear, clip_norm=2.0, expected_batch=5.0, rows=8, copies=copies)
        inputs = Batch(images.reshape(-1, 6), labels.reshape(-1), None)
        moved, _ = sgd_step(params, inputs, objective)
        for name in params:
            np.testing.assert_allclose(params[name] - moved.params[name], expected[name] / 5.0, rtol=1e-12, atol=1e-14)


def sgd_step(params, inputs, objective, **parts):
    optimizer = optax.sgd(1.0)
    state = first_state({"params": params}, optimizer, ema=False)
    step = partial(
        train_step, objective=objective, optimizer=optimizer, preprocess=lambda key, step, batch: batch, **parts
    )
    return jax.jit(step)(state, inputs, jax.random.key(0))


def test_an_example_moves_the_sum_by_its_norm_at_most():
    params = {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)}
    images, labels = 100 * drawn(0, 5, 1, 6).astype(jnp.float32), jnp.zeros((5, 1), int)
    clipped_sum = jax.jit(clipping.clipped_sum(linear, 0.5))
    grads, losses = clipped_sum(params, images, labels)
    fewer, _ = clipped_sum(params, images, labels.at[2].set(clipping.PADDING))
    apart = jax.tree.map(jnp.subtract, grads, fewer)
    assert math.sqrt(sum(float(jnp.square(g).sum()) for g in apart.values())) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(losses, math.log(4), rtol=1e-6)


class Total(NamedTuple):
    grads: dict


def test_noise_has_its_standard_deviation_and_depends_on_the_step_alone():
    zeros = {"a": jnp.zeros((200, 100)), "b": jnp.zeros(20_000)}

    def noise(step, multiplier=1.5):
        rule = clipping.noisy_sum(jnp.float32(multiplier), jax.random.fold_in(jax.random.key(0), step))
        return rule(lambda params: Total(zeros), (), ()).grads

    found = np.concatenate([np.ravel(x) for x in noise(3).values()])
    # 40,000 numbers: the error of their standard deviation is 0.0053
    assert found.std() == pytest.approx(1.5, abs=0.03)
    assert scipy.stats.kstest(found / 1.5, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(found[:20_000], found[20_000:])[0, 1]) < 0.04
    np.testing.assert_array_equal(noise(3)["b"], noise(3)["b"])
    assert not np.any(noise(3)["b"] == noise(4)["b"])
    assert not np.any(noise(0, 0.0)["a"])


def test_each_example_is_drawn_at_the_rate_and_by_itself():
    draws = np.zeros((2000, 50))
    for step in range(len(draws)):
        draws[step, sampler.poisson_draw(7, step, 50, 0.2)] = 1
    # 2,000 draws: three and a half standard errors, of 50 examples
    np.testing.assert_allclose(draws.mean(0), 0.2, atol=3.5 * math.sqrt(0.16 / 2000))
    counts = draws.sum(1)
    expected = scipy.stats.binom.pmf(np.arange(51), 50, 0.2) * len(draws)
    common = expected > 20
    observed = np.bincount(counts.astype(int), minlength=51)[common]
    assert scipy.stats.chisquare(observed, expected[common] * observed.sum() / expected[common].sum()).pvalue > 1e-3
    correlation = np.corrcoef(draws.T) - np.eye(50)
    assert abs(correlation).max() < 5 / math.sqrt(2000)
    assert sampler.poisson_draw(7, 0, 50, 0.2).tolist() != sampler.poisson_draw(8, 0, 50, 0.2).tolist()


def test_overflow_is_the_tail_of_the_binomial():
    found = sampler.overflow_probability(1437, 0.1, 50, 180)
    assert found == pytest.approx(50 * (1 - scipy.stats.binom.cdf(180, 1437, 0.1)), rel=1e-6)
    rows = sampler.rows_for(1437, 0.1, 50, 1e-3, multiple=4)
    assert rows % 4 == 0
    assert sampler.overflow_probability(1437, 0.1, 50, rows) <= 1e-3
    assert sampler.overflow_probability(1437, 0.1, 50, rows - 4) > 1e-3


def test_a_draw_that_does_not_fit_is_refused_and_not_cut():
    draw = sampler.poisson_draw(0, 0, 100, 0.5)
    batch = sampler.poisson_batch(0, 0, 100, 0.5, len(draw) + 2)
    assert batch.tolist() == [*draw, 100, 100]
    with pytest.raises(InputError, match=f"draws {len(draw)} examples and has {len(draw) - 1} rows"):
        sampler.poisson_batch(0, 0, 100, 0.5, len(draw) - 1)


def test_epsilon_is_that_of_dp_accounting():
    """Of its other accountant, which gives an upper bound and not a much larger one; and of one Gaussian."""
    found = accounting.epsilon_of(1.2, 0.05, 200, 1e-5)
    step = dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.2))
    bound = RdpAccountant().compose(dp_accounting.SelfComposedDpEvent(step, 200)).get_epsilon(1e-5)
    assert 0.8 * bound < found < bound
    sigma = dp_accounting.get_sigma_gaussian(2.0, 1e-5)
    assert accounting.epsilon_of(sigma, 1.0, 1, 1e-5) == pytest.approx(2.0, abs=1e-3)
    assert accounting.epsilon_of(1.0, 0.1, 0, 1e-5) == 0
    assert accounting.epsilon_of(0.0, 0.1, 1, 1e-5) == math.inf


def test_the_noise_is_the_least_that_keeps_the_guarantee():
    privacy = accounting.make_privacy(2.0, 1e-5, size=1000, batch_size=100, steps=30)
    assert 1.98 < privacy.epsilon <= 2.0
    left = privacy.delta - (1 + math.exp(2.0)) * privacy.overflow
    assert 0.99 * privacy.delta < left < privacy.delta
    assert accounting.epsilon_of(privacy.noise_multiplier, 0.1, 30, left) == privacy.epsilon
    assert accounting.epsilon_of(0.99 * privacy.noise_multiplier, 0.1, 30, left) > 2.0
    assert accounting.epsilon_after(privacy, 10) < privacy.epsilon
    assert privacy.expected_batch == 100
    none = accounting.make_privacy(math.inf, 1e-5, size=1000, batch_size=100, steps=30)
    assert none.noise_multiplier == 0
    assert none.rows == privacy.rows
    assert training.record(none)["epsilon"] is None


def test_the_root_never_lies_on_the_side_that_breaks_the_guarantee(monkeypatch):
    def reached(noise, rate, steps, delta):
        return steps / noise**2 + 0.1 / noise

    monkeypatch.setattr(accounting, "epsilon_of", reached)
    for epsilon in np.linspace(0.2, 10, 50):
        noise = accounting.least_noise(epsilon, 1e-5, 0.1, 30)
        assert reached(noise, 0.1, 30, 1e-5) <= epsilon < reached(0.998 * noise, 0.1, 30, 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 1e-4}, "epsilon 0.0001 is out of reach"),
        ({"epsilon": 50.0}, "epsilon is 50; it must be above 0 and at most 10"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"delta": 0.01}, "delta is 0.01"),
        ({"batch_size": 1000}, "the batch size is 1000"),
    ],
)
def test_a_guarantee_that_cannot_be_given(change, message):
    given = {"epsilon": 2.0, "delta": 1e-5, "batch_size": 100} | change
    with pytest.raises(InputError, match=message) as refused:
        accounting.make_privacy(given.pop("epsilon"), given.pop("delta"), size=1000, steps=30, **given)
    assert "\n" not in str(refused.value)


def test_missing_packages_are_named():
    with pytest.raises(InputError, match="needs no-such-package: pip install jax-privacy dp-accounting"):
        accounting.load("no_such_package.part")


TINY = Model(name="experiments.privacy.networks:small", fields={"depths": (1,), "width": 4})
RECIPE = dp_sgd._sgd(TINY.name, "digits", 0.5, 20, 4, augment=Augment(crop_padding=1))
RECIPE = replace(RECIPE, model=TINY, data=replace(RECIPE.data, limit=30), ema_decay=0.5)
PRIVACY = accounting.Privacy(2.0, 1e-5, 1.0, 300, 20 / 300, 4, 48, 1e-9, 2.0)


def prepared(devices, microbatches=1, copies=2):
    sources = open_sources(RECIPE, Path("data"))
    setup = make_setup(RECIPE, sources.dataset, devices, grad_accum_steps=microbatches)
    return training.prepare(setup, sources, PRIVACY, copies=copies)


@pytest.fixture(scope="module")
def one():
    """Four steps of a tiny network on 300 digits, two copies of each, compiled once."""
    return prepared(1)


@pytest.fixture(scope="module")
def whole(one, tmp_path_factory):
    """A run that nobody interrupts: directory, state and rows."""
    out = tmp_path_factory.mktemp("privacy") / "run"
    return out, *training.train_private(one, PRIVACY, 3, out, every=2, log=lambda line: None)


def arrays(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def test_a_run_says_what_it_reveals(whole):
    out, state, rows = whole
    assert int(state.step) == 4
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["epsilon"] for row in rows] == [accounting.epsilon_after(PRIVACY, step) for step in (2, 4)]
    assert not [name for row in rows for name in row if "train" in name]
    facts = json.loads((out / "privacy.json").read_text())
    assert facts["delta"] == 1e-5
    assert facts["noise_multiplier"] == 1.0
    assert training.format_row(rows[-1], PRIVACY).endswith(f"epsilon {rows[-1]['epsilon']:.3f} at delta 1e-05")


def test_an_interrupted_run_has_the_same_bits(one, whole, tmp_path):
    _, state, rows = whole
    run = partial(training.train_private, one, PRIVACY, 3, tmp_path / "run", every=2, log=lambda line: None)
    run(stop_at=3)
    resumed, again = run()
    assert again == rows
    for ours, theirs in zip(arrays(resumed), arrays(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="another guarantee or seed"):
        training.train_private(one, PRIVACY._replace(noise_multiplier=2.0), 3, tmp_path / "run", every=2)


def test_devices_and_microbatches_change_rounding_alone(whole, tmp_path):
    _, state, _ = whole
    found, _ = training.train_private(prepared(8, 2), PRIVACY, 3, tmp_path / "run", every=4, log=lambda line: None)
    assert len(found.params["head"]["kernel"].sharding.device_set) == 8
    for ours, theirs in zip(arrays(found), arrays(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_run_is_opened_like_any_other(whole):
    out, _, rows = whole
    found = evaluate(out, checkpoint=CheckpointChoice(network=TINY.name))
    assert found.values["accuracy"] == rows[-1]["test/accuracy"]


def test_batchnorm_is_refused():
    recipe = replace(RECIPE, model=Model(name="resnet8"))
    sources = open_sources(recipe, Path("data"))
    with pytest.raises(InputError, match="resnet8 has BatchNorm, with which the gradient of an example depends on"):
        training.prepare(make_setup(recipe, sources.dataset, 1), sources, PRIVACY)


def test_wavelets_find_edges_and_ignore_brightness():
    waves = scattering.wavelets()
    assert waves.shape == (9, 9, 32)
    np.testing.assert_allclose(waves.sum((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(scattering.smoothing(32).sum(1), 1, rtol=1e-6)
    ramp = np.random.default_rng(0).integers(0, 100, (2, 16, 16, 3), np.uint8)
    one, brighter = (np.asarray(scattering.scatter(images), float) for images in (ramp, ramp + np.uint8(100)))
    assert one.shape == (2, 17 * 3 * 16)
    np.testing.assert_allclose(one, brighter, atol=0.02)
    # Vertical stripes: the wavelet across them answers most, before normalisation
    stripes = np.tile(np.cos(np.arange(9) * 0.75 * np.pi), (9, 1))
    real, imag = np.tensordot(stripes, waves, 2).reshape(2, 16)
    assert np.hypot(real, imag)[:8].argmax() == 0


def test_masks_hide_each_client_and_cancel_in_the_sum():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4000)), jnp.float32)
    sent = secure_sum.masked(values, jax.random.key(0))
    np.testing.assert_allclose(secure_sum.masked_sum(values, jax.random.key(0)), values.sum(0), atol=5 * 2**-17 + 1e-6)
    np.testing.assert_allclose(secure_sum.plain_sum(values, jax.random.key(0)), values.sum(0), rtol=1e-6)
    for client in range(5):
        uniform = np.asarray(sent[client], float) / 2**32
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(uniform, values[client])[0, 1]) < 0.06
    # Without one of the clients nothing cancels
    partial_sum = np.asarray(sent[:4].sum(0, dtype=jnp.uint32), float) / 2**32
    assert scipy.stats.kstest(partial_sum, "uniform").pvalue > 1e-3


def test_a_bound_follows_from_the_guesses():
    """All guesses right: the probability of that is at most 5 % below the bound; and none if they are random."""
    pytest.importorskip("jax_privacy")
    member = np.arange(400) % 2 == 0
    bound = audit.lower_bound(np.where(member, 1.0, 0.0) + np.arange(400) * 1e-6, member, 1e-9)
    assert 2.5 < bound < math.log(200 / -math.log(1 - 0.05 / 400) + 1) + 3
    assert audit.lower_bound(np.random.default_rng(0).normal(size=400), member, 1e-5) == 0
    found = audit.Audit(PRIVACY, member, np.where(member, 1.0, 0.0))
    assert found.accuracy() == 1
    assert found.bound() > 2.5


def test_canaries_join_the_training_images():
    digits = from_arrays(np.full((10, 8, 8, 1), 9, np.uint8), np.arange(10), [*"abcdefghij"])
    canaries = audit.make_canaries(1, 60, (8, 8, 1), 10)
    assert canaries.images.shape == (60, 32, 32, 1)
    assert (canaries.images.reshape(60, -1).sum(0) <= 255).all()
    assert not canaries.images[:, 12:20, 12:20].any()
    assert 15 < canaries.member.sum() < 45
    both = audit.with_canaries(digits, canaries)
    assert both.size == 10 + canaries.member.sum()
    np.testing.assert_array_equal(both.read(both.size - 1).image, canaries.images[canaries.member][-1])
    assert both.read(0).image.sum() == 9 * 64
    with pytest.raises(InputError, match="--canaries is 961; the frame has 960 pixels"):
        audit.make_canaries(1, 961, (8, 8, 1), 10)


def test_an_audit_stays_below_epsilon_and_without_noise_does_not(monkeypatch, tmp_path, capsys):
    pytest.importorskip("jax_privacy")
    words = ["audit.py", "--epsilons", "1", "inf", "--seeds", "1", "--steps", "30", "--canaries", "200"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path), "--picture", str(tmp_path / "1.png")])
    audit.main()
    private, bare = re.findall(r"\| 0 \| (\S+) \| (\S+) \| (\S+) \|", capsys.readouterr().out)
    assert float(private[2]) < float(private[0]) <= 1
    assert bare[0] == "none"
    assert float(bare[1]) > 95
    assert float(bare[2]) > 1.5
    assert (tmp_path / "1.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_head_on_features_for_each_epsilon_and_seed(monkeypatch, tmp_path, capsys):
    """From flags to the picture, on images whose class is their stripes."""

    def stripes(name, split, folder):
        labels = np.arange(120) % 2
        image = np.where(np.arange(16) // 2 % 2, 200, 50).reshape(1, 1, 16, 1).repeat(16, 1).repeat(3, 3)
        images = np.where(labels.reshape(-1, 1, 1, 1), image, image.swapaxes(1, 2)).astype(np.uint8)
        return from_arrays(images, labels, ["across", "along"])

    monkeypatch.setattr(dp_sgd, "open_split", stripes)
    flags = {"--epsilons": "2 inf", "--seeds": 2, "--steps": 4, "--batch-size": 30, "--grad-accum-steps": 1}
    flags |= {"--devices": 1, "--out": tmp_path, "--picture": tmp_path / "1.png"}
    words = ["dp_sgd.py", "features", *(word for flag, value in flags.items() for word in (flag, *str(value).split()))]
    monkeypatch.setattr("sys.argv", words)
    dp_sgd.main()
    said = capsys.readouterr().out
    assert re.search(r"\| features \| (1\.9\d|2\.00) \| 1e-05 \| .* \| 100.0 ± 0.0 \|", said)
    assert re.search(r"\| features \| inf \| 1e-05 \| 0 \| .* \| 100.0 ± 0.0 \|", said)
    assert (tmp_path / "1.png").stat().st_size > 1000
    assert (tmp_path / "features" / "epsilon2" / "seed1" / "privacy.json").is_file()


@pytest.mark.slow
def test_a_guarantee_out_of_reach_is_one_line_and_exit_2(tmp_path):
    command = [sys.executable, "experiments/privacy/dp_sgd.py", "digits", "--epsilons", "inf", "0.001"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    out = tmp_path / "out"
    ended = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ended.returncode == 2
    assert "epsilon 0.001 is out of reach" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
def test_the_recipe_of_de_et_al():
    """Its authors stop at epsilon 1 with noise 10; this accountant needs less. Nothing is trained here."""
    setting = dp_sgd.SETTINGS["de2022"]
    privacy = dp_sgd.privacy_of(setting, 1.0, 50_000, 1)
    assert 8 < privacy.noise_multiplier < 10
    assert privacy.rows % setting.microbatches == 0
    info = DatasetInfo(tuple(map(str, range(10))), (32, 32, 3), 50_000, "")
    setup = make_setup(setting.recipe, info, 1, grad_accum_steps=1)
    step = training.make_step(
        clipping.logits_of(setup.model),
        setup.optimizer,
        make_preprocess(setting.recipe, 50_000, 10),
        setup.mesh,
        privacy._replace(rows=8),
        copies=setting.copies,
    )
    state = jax.eval_shape(partial(init_fn, setup), jax.random.key(0))
    arrays = DeviceArrays(jax.ShapeDtypeStruct((9, 32, 32, 3), np.uint8), jax.ShapeDtypeStruct((9,), np.int32))
    batch = IndexedBatch(arrays, jax.ShapeDtypeStruct((8 * setting.copies,), np.int32), None)
    after, _ = jax.eval_shape(step, state, batch, jax.random.key(0), jnp.float32(1))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    # Wide ResNet of 16 layers, 2.75 million parameters
    assert 2.7e6 < sum(leaf.size for leaf in jax.tree.leaves(after.params)) < 2.8e6
