"""One step: what it changes, what it counts, and that devices do not matter."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import QUICKLY

from resnet_jax.data.augment import normalize
from resnet_jax.data.augment.mix import mixup
from resnet_jax.data.source import from_arrays
from resnet_jax.input_pipeline.device_input import gather_batch, open_device_split
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stems import CifarStem
from resnet_jax.parallel.sharding import batch_sharding, data_mesh, replicate
from resnet_jax.recipe import Data
from resnet_jax.tasks.classification import classification
from resnet_jax.tasks.losses import cross_entropy
from resnet_jax.tasks.metric import Display, Metric
from resnet_jax.tasks.task import select_metrics
from resnet_jax.training.evaluate import add_sums, compute_all, evaluate_split, make_eval_step
from resnet_jax.training.state import first_state, init_state, update_ema
from resnet_jax.training.step import eval_step, make_objective, train_step

SCALE = partial(normalize, mean=(0.5,), std=(0.5,))
OPTIMIZER = optax.sgd(0.1)
METRICS = select_metrics(classification(), ())


@cache
def network(group=None):
    return ResNet((1, 1), stem=CifarStem, width=4, num_classes=3, norm=partial(BatchNorm, group=group))


def batch(size=16, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    image = jax.random.randint(keys[0], (size, 8, 8, 1), 0, 256).astype(jnp.uint8)
    return gather_batch(Batch(image, jax.random.randint(keys[1], (size,), 0, 3), None))


@cache
def initial(model):
    init = partial(init_state, model=model, optimizer=OPTIMIZER, image_shape=(8, 8, 1))
    return jax.jit(init, compiler_options=QUICKLY)(jax.random.key(0))


def scaled(key, step, batch):
    return batch._replace(image=SCALE(batch.image))


def stepper(model, preprocess=scaled, loss=cross_entropy, frozen=None):
    step = partial(
        train_step,
        objective=make_objective(model, loss, frozen),
        optimizer=OPTIMIZER,
        preprocess=preprocess,
        key=jax.random.key(5),
        metrics={"accuracy": METRICS["accuracy"]},
    )
    return jax.jit(step)


def correct(sums):
    return int(sums["accuracy"]["correct"])


compiled = cache(stepper)  # once for each network and preprocessing


def take(state, data, model, **options):
    return compiled(model, **options)(state, data)


def test_a_step_follows_the_gradient_of_the_mean_loss():
    model, data = network(), batch()
    state = initial(model)

    def mean_loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, _ = model.apply(variables, SCALE(data.image), train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.target).mean()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    after, sums = take(state, data, model)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-6)
    assert int(after.step) == 1
    assert int(sums["count"]) == 16
    np.testing.assert_allclose(sums["loss"] / 16, loss, rtol=1e-5)


def test_training_lowers_the_loss_and_moves_the_statistics():
    model, data = network(), batch()
    brightness = data.image.mean((1, 2, 3))
    data = data._replace(target=jnp.argsort(jnp.argsort(brightness)) // 6)  # something that can be learned
    state = initial(model)
    losses, step = [], compiled(model)
    for _ in range(60):
        state, sums = step(state, data)
        losses.append(float(sums["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert not np.allclose(state.batch_stats["stem"]["norm"]["mean"], 0)


@pytest.mark.slow
def test_randomness_is_a_function_of_the_step():
    model, data = network(), batch()

    def noisy(key, step, batch):
        noise = jax.random.normal(jax.random.fold_in(key, step), batch.image.shape)
        return batch._replace(image=SCALE(batch.image) + noise)

    first = initial(model)
    again, _ = take(first, data, model, preprocess=noisy)
    same, _ = take(first, data, model, preprocess=noisy)
    chex.assert_trees_all_equal(again, same)
    later, _ = take(first.replace(step=jnp.int32(1)), data, model, preprocess=noisy)
    assert not np.allclose(later.params["stem"]["conv"]["kernel"], again.params["stem"]["conv"]["kernel"])


@pytest.mark.slow
def test_mixed_labels_train_and_nothing_mixed_is_as_without():
    model, data = network(), batch()
    plain, plain_sums = take(initial(model), data, model)

    def same(key, step, batch):
        return batch._replace(image=SCALE(batch.image), target=jax.nn.one_hot(batch.target, 3))

    soft, soft_sums = take(initial(model), data, model, preprocess=same)
    chex.assert_trees_all_close(plain.params, soft.params, rtol=1e-4, atol=1e-6)
    assert correct(plain_sums) == correct(soft_sums)
    half, _ = take(initial(model), data, model, preprocess=mixed)
    assert not np.allclose(half.params["stem"]["conv"]["kernel"], plain.params["stem"]["conv"]["kernel"])


def mixed(key, step, batch):
    image, target = mixup(key, SCALE(batch.image), jax.nn.one_hot(batch.target, 3), 1.0)
    return batch._replace(image=image, target=target)


def test_padding_does_not_train():
    model, data = network(group=1), batch(4)  # statistics of each image alone, so that padding cannot leak through them
    double = jax.tree.map(lambda x: jnp.concatenate([x, x * 0]), (data.image, data.target))
    padded = gather_batch(Batch(*double, jnp.arange(8) < 4))
    plain, plain_sums = take(initial(model), data, model)
    masked, masked_sums = take(initial(model), padded, model)
    chex.assert_trees_all_close(plain.params, masked.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(plain_sums, masked_sums, rtol=1e-6)


@pytest.mark.parametrize("group", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_devices_change_nothing_but_rounding(group):
    model, data = network(group), batch()
    alone, alone_sums = take(initial(model), data, model)
    mesh = data_mesh(8)
    spread, spread_sums = take(replicate(initial(model), mesh), jax.device_put(data, batch_sharding(mesh)), model)
    chex.assert_trees_all_close(alone, spread, rtol=1e-4, atol=1e-5)
    assert correct(alone_sums) == correct(spread_sums)


@cache
def at_once():
    return jax.jit(partial(eval_step, model=network(), metrics=METRICS, normalize=SCALE))


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 7), (1, 500), (8, 1), (8, 9)])
def test_evaluation_does_not_depend_on_batch_size_or_devices(devices, batch_size):
    model, data = network(), batch(21)
    mesh = data_mesh(devices)
    state = replicate(initial(model), mesh)
    source = from_arrays(np.asarray(data.image), np.asarray(data.target), ("a", "b", "c"))
    step = make_eval_step(model, Data(), mesh, METRICS)
    values = evaluate_split(step, METRICS, state, open_device_split(source, mesh), batch_size)
    whole = compute_all(METRICS, add_sums({}, at_once()(initial(model), data)))
    assert (values["errors"], values["count"]) == (whole["errors"], 21)
    np.testing.assert_allclose(values["loss"], whole["loss"], rtol=1e-5)
    assert values["accuracy"] == (21 - values["errors"]) / 21


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (8, 9)])
def test_what_is_kept_of_each_example_comes_in_order_and_without_padding(devices, batch_size):
    model, data, mesh = network(), batch(21), data_mesh(devices)
    rows = []
    metrics = {
        "kept": Metric(
            lambda outputs, targets, mask: (outputs, targets),
            lambda kept: rows.append(kept) or {"kept": None},
            {"kept": Display()},
            per_example=True,
        )
    }
    split = open_device_split(from_arrays(np.asarray(data.image), np.asarray(data.target), ("a", "b", "c")), mesh)
    step = make_eval_step(model, Data(), mesh, metrics)
    assert evaluate_split(step, metrics, replicate(initial(model), mesh), split, batch_size)["kept"] is None
    ((logits, labels),) = rows
    np.testing.assert_array_equal(labels, data.target)
    state = initial(model)
    whole = model.apply({"params": state.params, "batch_stats": state.batch_stats}, SCALE(data.image), train=False)
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-5)


def test_init_is_a_function_of_the_key():
    model = network()
    init = jax.jit(partial(init_state, model=model, optimizer=OPTIMIZER, image_shape=(8, 8, 1)))
    first, same, other = (init(jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, same)
    assert not np.allclose(first.params["head"]["kernel"], other.params["head"]["kernel"])


def test_what_is_frozen_has_no_gradient():
    """Whatever the optimiser would do with one: plain SGD here, which knows of nothing frozen."""
    model, data = network(), batch()
    state = initial(model)
    frozen = {name: jax.tree.map(lambda _, still=name == "stem": still, tree) for name, tree in state.params.items()}
    after, _ = stepper(model, frozen=frozen)(state, data)
    chex.assert_trees_all_equal(after.params["stem"], state.params["stem"])
    assert not np.allclose(after.params["head"]["kernel"], state.params["head"]["kernel"])


def test_a_loss_with_weights_is_averaged_over_all_weights():
    """As that of pixels or boxes: one image has three times the weight of another."""
    model, data = network(group=1), batch(4)

    def weighted(logits, targets):
        weights = 1.0 + 2.0 * (targets == 0)
        return cross_entropy(logits, targets) * weights, weights

    after, sums = stepper(model, loss=weighted)(initial(model), data)
    weights = 1.0 + 2.0 * (np.asarray(data.target) == 0)
    np.testing.assert_allclose(sums["weight"], weights.sum())

    def mean_loss(params):
        variables = {"params": params, "batch_stats": initial(model).batch_stats}
        logits, _ = model.apply(variables, SCALE(data.image), train=True, mutable=["batch_stats"])
        return (optax.softmax_cross_entropy_with_integer_labels(logits, data.target) * weights).sum() / weights.sum()

    grads = jax.jit(jax.grad(mean_loss))(initial(model).params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, initial(model).params, grads)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-6)


def test_an_objective_of_ones_own():
    """A penalty that no recipe has a field for."""
    model, data = network(), batch()

    def objective(params, batch_stats, batch, rngs):
        losses, rest = make_objective(model, cross_entropy)(params, batch_stats, batch, rngs)
        return losses + 10.0 * jnp.square(params["head"]["bias"] - 1).sum(), rest

    step = partial(train_step, optimizer=OPTIMIZER, preprocess=scaled, key=jax.random.key(5))
    after, _ = jax.jit(partial(step, objective=objective))(initial(model), data)
    assert (after.params["head"]["bias"] > 1).all()


def ema_after(updates, *, every, warmup, decay=0.9999):
    """The EMA of a parameter that starts at 0 and goes down by 1 in each step."""

    def objective(params, batch_stats, batch, rngs):
        return params["x"] * jnp.ones(4), (batch.image, {})

    optimizer = optax.sgd(1.0)
    state = first_state({"params": {"x": jnp.float32(0)}}, optimizer, ema=True)
    step = partial(train_step, objective=objective, optimizer=optimizer, preprocess=lambda key, step, batch: batch)
    step = partial(step, key=jax.random.key(0), update_ema=partial(update_ema, decay=decay, every=every, warmup=warmup))
    step, data = jax.jit(step), Batch(jnp.zeros((4, 1)), jnp.zeros(4), jnp.ones(4, bool))
    for _ in range(updates * every):
        state, _ = step(state, data)
    return float(state.ema["params"]["x"])


@pytest.mark.parametrize("every", [1, 3])
def test_the_ema_of_a_short_run_is_one_of_its_steps(every):
    """As TensorFlow's ExponentialMovingAverage with num_updates."""
    expected = 0.0
    for n in range(1, 21):
        keep = min(0.9999, (1 + n) / (10 + n))
        expected = keep * expected - (1 - keep) * n * every
    assert ema_after(20, every=every, warmup=True) == pytest.approx(expected, rel=1e-5)
    assert expected < -15 * every
    assert ema_after(20, every=every, warmup=False) > -0.1 * every
    assert ema_after(20, every=every, warmup=True, decay=0.1) == ema_after(20, every=every, warmup=False, decay=0.1)


@pytest.mark.parametrize(
    "make",
    [
        optax.sgd,
        optax.adam,
        lambda rate: optax.partition({"all": optax.adam(rate)}, lambda params: jax.tree.map(lambda _: "all", params)),
        optax.inject_hyperparams(optax.adam),
    ],
)
def test_after_skipped_steps_the_rate_is_that_of_the_step(make):
    """Three of four steps are skipped: the last takes the fourth rate, with the momenta of the first."""
    optimizer = make(optax.linear_schedule(1.0, 0.0, 5))

    def objective(params, batch_stats, batch, rngs):
        return params["x"] * jnp.ones(4), (batch.image, {})

    state = init = first_state({"params": {"x": jnp.float32(0)}}, optimizer, ema=False)
    step = partial(train_step, objective=objective, optimizer=optimizer, preprocess=lambda key, step, batch: batch)
    step = jax.jit(partial(step, key=jax.random.key(0), skip_nonfinite=True))
    for healthy in (False, False, False, True):
        data = Batch(jnp.zeros((4, 1)), jnp.zeros(4), jnp.ones(4, bool))
        state = state if healthy else state.replace(params={"x": jnp.float32(jnp.nan)})
        state, sums = step(state, data)
        assert int(sums["nonfinite_steps"]) == (not healthy)
        state = state if healthy else state.replace(params=init.params)
    # The gradient is 1, which Adam's first step leaves as it is
    np.testing.assert_allclose(state.params["x"], -0.4, rtol=1e-5)
    assert int(state.step) == 4
