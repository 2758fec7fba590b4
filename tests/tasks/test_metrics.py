"""Metrics against scikit-learn, in float64; sums against NumPy."""

import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from resnet_jax.tasks.classification import classification
from resnet_jax.tasks.metric import add, compute_all, empty, measure_all
from resnet_jax.tasks.metrics import METRICS, display_of, format_value, loss_metric
from resnet_jax.tasks.regression import regression
from resnet_jax.tasks.task import select_metrics

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@cache
def jitted(names):
    """As in an evaluation; operations one by one would be compiled one by one."""
    return jax.jit(partial(measure_all, {name: METRICS[name] for name in names}))


def values_of(names, outputs, targets, mask=None, batches=1):
    """Measure in batches, add on the host, compute once, as an evaluation does."""
    metrics = {name: METRICS[name] for name in names}
    mask = np.ones(len(outputs), bool) if mask is None else mask
    total = None
    for part in np.array_split(np.arange(len(outputs)), batches):
        arrays = (jnp.asarray(a[part]) for a in (outputs, targets, mask))
        sums = jax.device_get(jitted(tuple(names))(*arrays))
        total = add(empty(sums) if total is None else total, sums)
    return compute_all(metrics, total)


def random_classes(seed, examples, classes):
    random = np.random.default_rng(seed)
    return random.normal(size=(examples, classes)), random.integers(0, classes, examples)


def reference(outputs, targets):
    predicted = outputs.argmax(-1)
    classes = np.arange(outputs.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without examples, and fewer than six classes
        return {
            "accuracy": sklearn_metrics.accuracy_score(targets, predicted),
            "top5": sklearn_metrics.top_k_accuracy_score(targets, outputs, k=min(5, len(classes)), labels=classes)
            if len(classes) > 2
            else 1.0,
            "class_accuracy": sklearn_metrics.balanced_accuracy_score(targets, predicted),
            "macro_f1": sklearn_metrics.f1_score(targets, predicted, average="macro"),
        }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), examples=st.sampled_from([1, 7, 200]), classes=st.sampled_from([2, 4, 7, 30]))
def test_classification_matches_scikit_learn(seed, examples, classes):
    outputs, targets = random_classes(seed, examples, classes)
    expected = reference(outputs, targets)
    found = values_of(expected, outputs, targets)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **EXACT, err_msg=name)
    assert found["errors"] == (outputs.argmax(-1) != targets).sum()


def test_recall_is_of_each_class_by_its_name():
    outputs, targets = random_classes(5, 60, 4)
    targets[targets == 1] = 0
    sums = jax.device_get(jitted(("recall",))(jnp.asarray(outputs), jnp.asarray(targets), np.ones(60, bool)))
    found = compute_all({"recall": METRICS["recall"]}, sums, ("crane", "tench", "crane", "hen"))
    expected = sklearn_metrics.recall_score(targets, outputs.argmax(1), labels=range(4), average=None, zero_division=0)
    assert list(found) == ["recall.crane (0)", "recall.tench", "recall.crane (2)", "recall.hen"]
    assert found.pop("recall.tench") is None
    np.testing.assert_allclose(list(found.values()), expected[[0, 2, 3]], **EXACT)


@pytest.mark.parametrize("targets", [0, 2, 4])
def test_regression_matches_scikit_learn(targets):
    """Also where one output never changes."""
    random = np.random.default_rng(0)
    wanted = 100 + random.normal(size=(64, 5))
    wanted[:, :targets] = 3.0
    outputs = wanted + random.normal(size=(64, 5))
    outputs[:, : targets // 2] = 3.0
    found = values_of(["mae", "r2"], outputs, wanted)
    np.testing.assert_allclose(found["mae"], sklearn_metrics.mean_absolute_error(wanted, outputs), **EXACT)
    # The spread is the difference of two sums: four digits of the sixteen go to a mean of a hundred deviations
    np.testing.assert_allclose(found["r2"], sklearn_metrics.r2_score(wanted, outputs), rtol=1e-10, atol=1e-10)


def test_calibration_error_by_its_definition():
    outputs, targets = random_classes(1, 500, 3)
    probs = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    confidence, right = probs.max(-1), probs.argmax(-1) == targets
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    found = values_of(["calibration_error"], outputs, targets)["calibration_error"]
    np.testing.assert_allclose(found, expected, **EXACT)


ALL = ["accuracy", "top5", "class_accuracy", "macro_f1", "calibration_error"]


@pytest.mark.parametrize("names", [ALL, ["exact_match"], ["mae", "r2"]])
@pytest.mark.parametrize("batches", [2, 9])
def test_batches_and_padding_change_nothing(names, batches):
    random = np.random.default_rng(2)
    outputs = random.normal(size=(50, 6))
    targets = random.integers(0, 6, 50) if names is ALL else random.integers(0, 2, (50, 6)).astype(float)
    whole = values_of(names, outputs, targets)
    shuffled = random.permutation(80)
    padded = (
        np.concatenate([outputs, 1e3 * random.normal(size=(30, 6))])[shuffled],
        np.concatenate([targets, targets[:30]])[shuffled],
        (np.arange(80) < 50)[shuffled],
    )
    found = values_of(names, *padded, batches=batches)
    assert found.keys() == whole.keys()
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], **EXACT, err_msg=name)


def test_outputs_of_padding_may_be_anything():
    outputs = np.full((3, 4), np.nan)
    outputs[0] = [0.0, 3.0, 1.0, 2.0]
    mask = np.array([True, False, False])
    found = values_of(["accuracy", "mae", "r2", "calibration_error"][:1], outputs, np.array([1, 0, 0]), mask)
    assert (found["accuracy"], found["errors"]) == (1.0, 0)
    loss = classification().metrics["loss"]
    sums = loss.measure(jnp.asarray(outputs), jnp.asarray([1, 0, 0]), jnp.asarray(mask))
    assert np.isfinite(loss.compute(jax.device_get(sums))["loss"])
    found = values_of(["mae", "r2"], outputs, np.ones((3, 4)), mask)
    assert np.isfinite(list(found.values())).all()


def test_counts_are_exact_beyond_float32_and_int32():
    """2**24 + 1 is the first integer that float32 lacks; 2**31 the first that int32 lacks."""
    sums = {"correct": np.int32(2**30), "count": np.int32(2**30 + 1)}
    total = empty(sums)
    for _ in range(5):
        total = add(total, sums)
    assert int(total["count"]) == 5 * 2**30 + 5
    assert METRICS["accuracy"].compute(total)["errors"] == 5


def test_an_unknown_total_gives_unknown_values():
    assert add(None, {"count": np.int32(1)}) is None
    assert compute_all({"accuracy": METRICS["accuracy"]}, {"accuracy": None}) == {"accuracy": None, "errors": None}


def test_soft_targets_count_for_their_largest_class():
    soft = np.array([[0.6, 0.0, 0.4], [0.2, 0.7, 0.1]])
    assert values_of(["accuracy"], np.array([[3.0, 2, 1], [3.0, 2, 1]]), soft)["accuracy"] == 0.5


def test_a_loss_may_weigh_its_examples():
    """As pixels or boxes are weighed: the mean is over all weights, not over examples."""

    def weighted(outputs, targets):
        return outputs * targets, targets

    metric = loss_metric(weighted)
    outputs, weights = jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 3.0, 5.0])
    sums = jax.device_get(metric.measure(outputs, weights, jnp.array([True, True, False])))
    assert metric.compute(sums)["loss"] == 7 / 4


def test_loss_comes_first_and_no_metric_twice():
    assert list(select_metrics(classification(), ("top5", "loss", "top5"))) == ["loss", "accuracy", "top5"]


def test_every_value_of_a_metric_is_displayed():
    random = np.random.default_rng(3)
    for metrics, targets in (
        (classification().metrics, random.integers(0, 6, 8)),
        (regression().metrics, random.normal(size=(8, 6))),
    ):
        for name, metric in metrics.items():
            sums = metric.measure(jnp.ones((8, 6)), jnp.asarray(targets), jnp.ones(8, bool))
            assert set(metric.compute(jax.device_get(sums))) == set(metric.display), name


def test_values_for_people():
    assert format_value("top5", 0.99) == "99.00%"
    assert format_value("a metric of one's own", 0.5) == "0.5000"
    assert format_value("loss", None) == "-"
    assert display_of("top5").complement == "top-5 error"
