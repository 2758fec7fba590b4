"""Losses against torch's and timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torch.nn import functional

from resnet_jax.recipe import Loss
from resnet_jax.tasks.make import make_task

RANDOM = np.random.default_rng(0)
LOGITS = (4 * RANDOM.normal(size=(8, 5))).astype(np.float32)
CLASSES = RANDOM.integers(0, 5, 8)
LABELS = RANDOM.integers(0, 2, (8, 5)).astype(np.float32)


def mean(loss, label):
    """Ours, over the batch, and its gradient."""
    value, slope = jax.value_and_grad(lambda x: make_task(loss).loss(x, jnp.asarray(label)).mean())(jnp.asarray(LOGITS))
    return float(value), np.asarray(slope)


def reference(function, label):
    logits = torch.tensor(LOGITS, requires_grad=True)
    value = function(logits, torch.tensor(label))
    value.backward()
    return float(value.detach()), logits.grad.numpy()


def assert_same(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    theirs = reference(lambda x, y: functional.cross_entropy(x, y, label_smoothing=smoothing), CLASSES)
    assert_same(mean(Loss(label_smoothing=smoothing), CLASSES), theirs)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sum_classes", [False, True])
def test_binary_cross_entropy(smoothing, threshold, sum_classes):
    loss = Loss(name="bce", label_smoothing=smoothing, bce_target_thresh=threshold, sum_classes=sum_classes)
    function = BinaryCrossEntropy(smoothing, threshold, sum_classes=sum_classes)
    assert_same(mean(loss, CLASSES), reference(function, CLASSES))


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_of_mixed_images(smoothing, threshold):
    """timm smooths the classes before it mixes them, with the same result as after it."""
    soft = mixup_target(torch.tensor(CLASSES), 5, 0.3, smoothing).numpy()
    plain = mixup_target(torch.tensor(CLASSES), 5, 0.3, 0.0).numpy()
    loss = Loss(name="bce", label_smoothing=smoothing, bce_target_thresh=threshold)
    assert_same(mean(loss, plain), reference(BinaryCrossEntropy(0.0, threshold), soft))


def test_several_labels_and_regression():
    assert_same(mean(Loss(name="multilabel"), LABELS), reference(functional.binary_cross_entropy_with_logits, LABELS))
    assert_same(mean(Loss(name="mse"), LABELS), reference(functional.mse_loss, LABELS))
