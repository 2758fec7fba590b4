"""Losses against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.source import from_arrays
from resnet_jax.errors import InputError
from resnet_jax.recipe import Loss
from resnet_jax.tasks.losses import binary_cross_entropy, cross_entropy, mse
from resnet_jax.tasks.make import make_task
from resnet_jax.tasks.metric import compute_all, measure_all

LOGITS = np.asarray(5 * jax.random.normal(jax.random.key(0), (6, 4)))
LABEL = np.array([0, 1, 2, 3, 0, 1])


def loss_of(recipe):
    return make_task(recipe).loss


def values(recipe, outputs, targets):
    metrics = make_task(recipe).metrics
    return compute_all(metrics, jax.device_get(measure_all(metrics, outputs, targets, jnp.ones(len(outputs), bool))))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy(smoothing):
    log_p = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))
    target = (1 - smoothing) * np.eye(4)[LABEL] + smoothing / 4
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL), smoothing=smoothing)
    np.testing.assert_allclose(loss, -(target * log_p).sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_of_classes(smoothing):
    hard = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL), smoothing=smoothing)
    one_hot = jax.nn.one_hot(LABEL, 4)
    np.testing.assert_allclose(
        cross_entropy(jnp.asarray(LOGITS), one_hot, smoothing=smoothing), hard, rtol=1e-5, atol=1e-6
    )
    mixed = cross_entropy(jnp.asarray(LOGITS), 0.3 * one_hot + 0.7 * one_hot[::-1], smoothing=smoothing)
    other = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL[::-1].copy()), smoothing=smoothing)
    np.testing.assert_allclose(mixed, 0.3 * hard + 0.7 * other, rtol=1e-5, atol=1e-6)


def test_half_precision_logits_have_a_float32_loss():
    loss = cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), jnp.asarray(LABEL))
    assert loss.dtype == jnp.float32


def test_large_logits_do_not_overflow():
    assert np.isfinite(cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))).all()


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy(smoothing, sum_classes):
    target = (1 - smoothing) * np.eye(4)[LABEL] + smoothing / 4
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    each = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    expected = each.sum(-1) if sum_classes else each.mean(-1)
    loss = loss_of(Loss(name="bce", label_smoothing=smoothing, sum_classes=sum_classes))
    np.testing.assert_allclose(loss(jnp.asarray(LOGITS), jnp.asarray(LABEL)), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss(jnp.asarray(LOGITS), jax.nn.one_hot(LABEL, 4)), expected, rtol=1e-4, atol=1e-6)


def test_a_threshold_makes_shares_whole():
    shares = jnp.array([[0.7, 0.3, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]])
    whole = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    logits = jnp.asarray(LOGITS[:2])
    loss = loss_of(Loss(name="bce", bce_target_thresh=0.2))
    np.testing.assert_allclose(loss(logits, shares), loss_of(Loss(name="bce"))(logits, whole), rtol=1e-6)
    # smoothing comes first: 0.1 / 4 is over 0.02
    all_on = loss_of(Loss(name="bce", bce_target_thresh=0.02, label_smoothing=0.1))
    np.testing.assert_allclose(all_on(logits, shares), loss_of(Loss(name="bce"))(logits, jnp.ones((2, 4))), rtol=1e-6)


def test_several_labels_an_image():
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 2, (6, 4)), jnp.float32)
    loss = loss_of(Loss(name="multilabel"))(jnp.asarray(LOGITS), labels)
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    np.testing.assert_allclose(loss, -np.log(np.where(labels, p, 1 - p)).mean(-1), rtol=1e-4, atol=1e-6)


def test_mean_squared_error():
    loss = loss_of(Loss(name="mse"))(jnp.array([[1, 2], [3, 4]], jnp.bfloat16), jnp.zeros((2, 2)))
    np.testing.assert_array_equal(loss, [2.5, 12.5])
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_classification_reports_the_plain_cross_entropy(name):
    reported = values(Loss(name=name, label_smoothing=0.1), jnp.asarray(LOGITS), jnp.asarray(LABEL))
    expected = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL)).mean()
    np.testing.assert_allclose(reported["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["multilabel", "mse"])
def test_other_tasks_report_the_mean_over_outputs(name):
    labels = jnp.asarray(np.eye(4)[LABEL])
    reported = values(Loss(name=name, sum_classes=name == "multilabel"), jnp.asarray(LOGITS), labels)
    expected = loss_of(Loss(name=name))(jnp.asarray(LOGITS), labels).mean()
    np.testing.assert_allclose(reported["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [(mse, (4, 1), (4,)), (mse, (4, 1), (4, 3)), (cross_entropy, (4, 3), (3,)), (binary_cross_entropy, (4, 3), (1, 3))],
)
def test_shapes_that_would_broadcast_are_refused(loss, outputs, targets):
    kind = jnp.int32 if loss is cross_entropy else jnp.float32
    with pytest.raises(AssertionError, match="shape"):
        jax.eval_shape(loss, jax.ShapeDtypeStruct(outputs, jnp.float32), jax.ShapeDtypeStruct(targets, kind))


def test_labels_are_right_only_together():
    logits = jnp.array([[2.0, -1.0, 1.0], [-1.0, 3.0, 1.0]])
    labels = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    reported = values(Loss(name="multilabel"), logits, labels)
    assert (reported["accuracy"], reported["errors"]) == (0.5, 1)


def test_targets_of_another_task_are_refused():
    images = np.zeros((4, 8, 8, 1), np.uint8)
    classes = from_arrays(images, np.arange(4) % 2, ("a", "b"))
    outputs = from_arrays(images, np.full((4, 3), 0.5, np.float32), ("x", "y", "z"))
    wrong = from_arrays(images, np.full((4, 3), 2, np.float32), ("x", "y", "z"))

    def check(name, source):
        make_task(Loss(name=name)).targets.check(source)

    for name in ("cross_entropy", "bce"):
        check(name, classes)
        with pytest.raises(InputError, match="the task is classification; the targets are 3 numbers each"):
            check(name, outputs)
    for name in ("multilabel", "mse"):
        check(name, outputs)
        with pytest.raises(InputError, match="the targets are classes, one per image: set loss.name"):
            check(name, classes)
    check("mse", wrong)
    with pytest.raises(InputError, match="the task is several labels per image; a label is 2, expected 0 or 1"):
        check("multilabel", wrong)
