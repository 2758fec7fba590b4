"""Losses against torch's and timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

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


WEIGHTS = (1.0, 3.0, 0.5, 2.0, 0.1)


def weighted_mean(loss, outputs, target):
    """Ours, over all weights, and its gradient."""

    def value(outputs):
        numerators, weights = make_task(loss).loss(outputs, jnp.asarray(target))
        return numerators.sum() / weights.sum()

    found, slope = jax.value_and_grad(value)(jax.tree.map(jnp.asarray, outputs))
    return float(found), slope


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_class_weights(smoothing):
    theirs = reference(
        lambda x, y: functional.cross_entropy(x, y, torch.tensor(WEIGHTS), label_smoothing=smoothing), CLASSES
    )
    assert_same(weighted_mean(Loss(class_weights=WEIGHTS, label_smoothing=smoothing), LOGITS, CLASSES), theirs)


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_pixels_with_an_auxiliary_head(smoothing, weights):
    """As torchvision's training script has it: ignored pixels, and half of the auxiliary loss."""
    outputs = {name: RANDOM.normal(size=(2, 3, 4, 5)).astype(np.float32) for name in ("out", "aux")}
    masks = RANDOM.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (2, 3, 4))
    loss = Loss(name="pixel_cross_entropy", class_weights=weights, label_smoothing=smoothing)
    value, slopes = weighted_mean(loss, outputs, masks)
    logits = {k: torch.tensor(v.transpose(0, 3, 1, 2).copy(), requires_grad=True) for k, v in outputs.items()}
    of_class, target = torch.tensor(weights) if weights else None, torch.tensor(masks.astype(int))
    out, aux = (
        functional.cross_entropy(x, target, of_class, ignore_index=255, label_smoothing=smoothing)
        for x in logits.values()
    )
    (out + 0.5 * aux).backward()
    assert_same([value], [float((out + 0.5 * aux).detach())])
    assert_same([slopes[k] for k in logits], [x.grad.numpy().transpose(0, 2, 3, 1) for x in logits.values()])


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_of_labels(gamma):
    theirs = reference(lambda x, y: sigmoid_focal_loss(x, y, alpha=-1, gamma=gamma, reduction="mean"), LABELS)
    assert_same(mean(Loss(name="multilabel", focal_gamma=gamma), LABELS), theirs)


def test_class_weights_of_labels():
    weights = torch.tensor(WEIGHTS)
    theirs = reference(lambda x, y: functional.binary_cross_entropy_with_logits(x, y, weights), LABELS)
    assert_same(mean(Loss(name="multilabel", class_weights=WEIGHTS), LABELS), theirs)


@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 2.0, 0.0, 3.0)])
def test_pos_weight_is_that_of_torch(weights):
    pos = (3.0, 1.0, 0.5, 10.0, 0.0)
    loss = Loss(name="multilabel", pos_weight=pos, class_weights=weights)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos), weight=torch.tensor(weights) if weights else None)
    assert_same(mean(loss, LABELS), reference(theirs, LABELS))
