"""Rates that follow the rows, and gradients taken elsewhere than at the parameters."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from runs import curve, quietly

from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.optim.gradient import make_gradient_rule
from resnet_jax.optim.schedules import plateau_factor
from resnet_jax.recipe import Optimizer, Schedule, check
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import train_step


def test_a_plateau_lowers_the_rate_and_resumes(tiny, tmp_path):
    """Epochs of two or three steps of 16 of 32 images; the rate barely moves the loss, and then less."""
    schedule = Schedule(name="plateau", warmup=0, plateau_patience=0, gamma=0.5)
    recipe = replace(
        tiny,
        data=replace(tiny.data, num_validation=8),
        schedule=schedule,
        optimizer=Optimizer(lr=1e-7, weight_decay=0.0),
        steps=8,
    )
    whole, _ = quietly(recipe, tmp_path / "whole")
    losses = [row["validation/loss"] for row in whole.rows]
    factors = [plateau_factor(losses[:count], schedule) for count in range(len(losses))]
    assert [row["lr"] for row in whole.rows] == pytest.approx([1e-7 * factor for factor in factors])
    assert factors[-1] < 1
    assert float(optax.tree.get(whole.state.opt_state, "factor")) == plateau_factor(losses, schedule)
    for stop in (4, 5, 8):
        resumed, _ = quietly(recipe, tmp_path / "run", stop_at=stop)
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    with pytest.raises(InputError, match="--eval-every: the schedule plateau follows the rows of whole epochs"):
        quietly(recipe, tmp_path / "other", eval_every=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": Schedule(name="plateau", warmup=0)}, "data.num_validation is 0; the schedule"),
        ({"schedule": Schedule(name="cosine_restarts", warmup=0)}, 'schedule.restart_every is 0; the schedule "cosine'),
        ({"optimizer": Optimizer(name="schedule_free_sgd", head_lr_mult=2.0, momentum=0.9)}, "has a single rate"),
        ({"optimizer": Optimizer(name="schedule_free_sgd", b1=0.0)}, "optimizer.b1 is 0, which schedule_free_sgd"),
    ],
)
def test_what_does_not_fit_together(tiny, fields, message):
    with pytest.raises(InputError, match=message):
        check(replace(tiny, **fields))


def linear_step(optimizer, **options):
    """A step of a linear network without statistics, and its state before and after."""
    model, key = nn.Dense(2), jax.random.key(0)

    def objective(params, batch_stats, batch, rngs):
        outputs = model.apply({"params": params}, batch.image)
        return jnp.square(outputs - batch.target).mean(-1), (outputs, batch_stats)

    images = jax.random.normal(key, (4, 3))
    batch = Batch(images, jnp.ones((4, 2)), jnp.ones(4, bool), rows=jnp.arange(4))
    params = model.init(key, images)["params"]
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), {})
    plain = {"objective": objective, "preprocess": lambda key, step, batch: batch, "key": key}
    after, sums = train_step(state, batch, optimizer=optimizer, **plain, **options)
    return images, state, after, sums


def test_sharpness_aware_minimisation_is_that_of_the_paper():
    """Foret et al. 2021, equations 2 and 3: the gradient at p + rho g / |g|, with the loss of p."""
    rule = make_gradient_rule(Optimizer(sam_rho=0.05))
    images, before, after, sums = linear_step(optax.sgd(0.1), gradient_rule=rule)
    x = np.asarray(images, np.float64)
    w, b = (np.asarray(before.params[name], np.float64) for name in ("kernel", "bias"))

    def gradient(w, b):
        errors = (x @ w + b - 1) / 4  # of the mean over 4 images and 2 outputs
        return x.T @ errors, errors.sum(0)

    gw, gb = gradient(w, b)
    norm = np.sqrt((gw**2).sum() + (gb**2).sum())
    gw, gb = gradient(w + 0.05 * gw / norm, b + 0.05 * gb / norm)
    np.testing.assert_allclose(after.params["kernel"], w - 0.1 * gw, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after.params["bias"], b - 0.1 * gb, rtol=1e-5, atol=1e-7)
    assert float(sums["loss"]) == pytest.approx(((x @ w + b - 1) ** 2).mean(-1).sum(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(name="schedule_free_sgd", freeze=("stem",)),
        Optimizer(name="adafactor", lr=0.01, sam_rho=0.05),
        Optimizer(name="lion", lr=1e-3, b2=0.99),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_they_train_and_resume(tiny, tmp_path, optimizer):
    recipe = replace(tiny, optimizer=optimizer, schedule=Schedule(name="constant", warmup=2), steps=8)
    whole, _ = quietly(recipe, tmp_path / "whole")
    quietly(recipe, tmp_path / "run", stop_at=3)
    resumed, _ = quietly(recipe, tmp_path / "run")
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert np.isfinite(whole.rows[-1]["train/loss"])
