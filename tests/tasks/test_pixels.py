"""Segmentation: losses against their formulas, confusion against scikit-learn, and what a target must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from resnet_jax.data.source import Example, Source
from resnet_jax.errors import InputError
from resnet_jax.recipe import Loss, Recipe, check
from resnet_jax.tasks.losses import dice, pixel_cross_entropy, with_auxiliary
from resnet_jax.tasks.make import make_task
from resnet_jax.tasks.metric import add, compute_all, empty, measure_all
from resnet_jax.tasks.metrics import confusion
from resnet_jax.tasks.segmentation import segmentation

RANDOM = np.random.default_rng(0)
LOGITS = (3 * RANDOM.normal(size=(4, 5, 6, 3))).astype(np.float32)
MASKS = RANDOM.choice(np.array([0, 1, 2, 255], np.uint8), (4, 5, 6))
LOG_P = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))
LABELLED = MASKS != 255
OF_LABEL = np.take_along_axis(LOG_P, np.where(LABELLED, MASKS, 0)[..., None].astype(int), -1)[..., 0]
WEIGHTS = (1.0, 3.0, 0.5)


@pytest.mark.parametrize(("gamma", "weights"), [(0.0, ()), (0.0, WEIGHTS), (2.0, ()), (0.5, WEIGHTS)])
def test_cross_entropy_of_pixels(gamma, weights):
    of_pixel = np.where(LABELLED, np.array(weights or (1, 1, 1), float)[np.where(LABELLED, MASKS, 0)], 0)
    expected = (-of_pixel * (1 - np.exp(OF_LABEL)) ** gamma * OF_LABEL).sum((1, 2)), of_pixel.sum((1, 2))
    found = pixel_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(MASKS), class_weights=weights, focal_gamma=gamma)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert jnp.issubdtype(found[1].dtype, jnp.floating) == bool(weights)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_a_sure_answer_has_a_finite_focal_gradient(gamma):
    logits, masks = jnp.array([[[200.0, -200.0]]]), jnp.zeros((1, 1), jnp.uint8)
    slope = jax.grad(lambda x: pixel_cross_entropy(x, masks, focal_gamma=gamma)[0].sum())(logits)
    assert np.isfinite(slope).all()


def test_dice():
    probs = np.exp(LOG_P) * LABELLED[..., None]
    one_hot = np.eye(256)[MASKS][..., :3]
    coefficients = 2 * (probs * one_hot).sum((1, 2)) / (probs.sum((1, 2)) + one_hot.sum((1, 2)))
    losses, weights = dice(jnp.asarray(LOGITS), jnp.asarray(MASKS))
    np.testing.assert_allclose(losses, 1 - coefficients.mean(-1), rtol=1e-5)
    assert weights.tolist() == [1, 1, 1, 1]
    # A class that a mask does not have, and a mask that has none
    masks = jnp.asarray(np.stack([np.zeros((5, 6), np.uint8), np.full((5, 6), 255, np.uint8)]))
    losses, weights = dice(jnp.asarray(LOGITS[:2]), masks)
    np.testing.assert_allclose(
        losses[0], 1 - 2 * np.exp(LOG_P[0])[..., 0].sum() / (np.exp(LOG_P[0])[..., 0].sum() + 30), rtol=1e-5
    )
    assert (float(losses[1]), weights.tolist()) == (0.0, [1, 0])


def test_an_auxiliary_head_counts_half_and_is_not_measured():
    main, auxiliary, masks = jnp.asarray(LOGITS), jnp.asarray(LOGITS[::-1]), jnp.asarray(MASKS)
    (a, weight), (b, _) = pixel_cross_entropy(main, masks), pixel_cross_entropy(auxiliary, masks)
    both = {"out": main, "aux": auxiliary}
    losses, weights = with_auxiliary(pixel_cross_entropy)(both, masks)
    np.testing.assert_allclose(losses, a + 0.5 * b, rtol=1e-6)
    np.testing.assert_array_equal(weights, weight)
    task, inside = segmentation(), jnp.ones(4, bool)
    for outputs in (both, main):
        found = compute_all(task.metrics, jax.device_get(measure_all(task.metrics, outputs, masks, inside)), "abc")
        assert found["loss"] == pytest.approx(float(a.sum() / weight.sum()))
        assert found["pixel_accuracy"] == pytest.approx((LOGITS.argmax(-1) == MASKS)[LABELLED].mean())
        assert list(found) == ["loss", "miou", "pixel_accuracy", "class_iou.a", "class_iou.b", "class_iou.c"]
        np.testing.assert_array_equal(task.predict(outputs), jax.nn.softmax(main))


@pytest.fixture(scope="module")
def generated():
    """200 masks of 12x10 pixels of 5 classes, some not labelled, and predictions that are right half of the time."""
    random = np.random.default_rng(1)
    masks = random.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (200, 12, 10), p=[0.4, 0.3, 0.1, 0.1, 0.0, 0.1])
    guesses = np.where(random.random(masks.shape) < 0.5, np.minimum(masks, 4), random.integers(0, 5, masks.shape))
    return np.eye(5, dtype=np.float32)[guesses], masks


def test_confusion_equals_that_of_scikit_learn(generated):
    outputs, masks = generated
    mask = np.arange(200) < 190  # the rest is padding
    total = None
    for part in np.array_split(np.arange(200), 3):
        sums = confusion(*(jnp.asarray(a[part]) for a in (outputs, masks, mask)))
        total = add(empty(sums) if total is None else total, jax.device_get(sums))
    counted = (masks != 255) & mask[:, None, None]
    truth, guess = masks[counted], outputs.argmax(-1)[counted]
    np.testing.assert_array_equal(total, confusion_matrix(truth, guess, labels=range(5)))
    values = compute_all(segmentation().metrics, {"miou": total, "class_iou": total}, "abcde")
    each = jaccard_score(truth, guess, labels=range(5), average=None)
    assert [values[f"class_iou.{name}"] for name in "abcde"] == pytest.approx(each.tolist())
    assert values["miou"] == pytest.approx(each.mean())


def test_a_class_in_no_pixel_does_not_count():
    values = compute_all(segmentation().metrics, {"miou": np.diag([1, 0]), "class_iou": np.diag([1, 0])}, "ab")
    assert (values["miou"], values["class_iou.a"], values["class_iou.b"]) == (1.0, 1.0, None)
    nothing = compute_all(segmentation().metrics, {"miou": np.zeros((2, 2)), "pixel_accuracy": None}, "ab")
    assert (nothing["miou"], nothing["pixel_accuracy"]) == (0.0, None)


def test_pixels_are_counted_as_integers_beyond_what_floats_hold():
    """Of 2^24 + 1 pixels in one batch, and 2^31 and more over batches, none is lost."""
    masks, wrong = jnp.zeros((1, 1, 2**24 + 1), jnp.uint8), jnp.zeros((1, 1, 2**24 + 1, 2))
    sums = jax.jit(confusion)(wrong, masks, jnp.array([True]))
    assert sums.tolist() == [[2**24 + 1, 0], [0, 0]]
    total = empty(sums)
    for _ in range(130):
        total = add(total, jax.device_get(sums))
    assert int(total[0, 0]) == 130 * (2**24 + 1) > 2**31


def test_sequences_and_videos_have_a_class_for_each_position():
    for spatial in ((7,), (2, 3, 4)):
        logits, masks = jnp.zeros((2, *spatial, 3)), jnp.zeros((2, *spatial), jnp.uint8)
        for loss in (pixel_cross_entropy, dice):
            assert jax.eval_shape(loss, logits, masks)[0].shape == (2,)
        assert confusion(logits, masks, jnp.array([True, False]))[0, 0] == np.prod(spatial)


def source_of(target, image=(4, 5, 3)):
    return Source(1, ("a", "b"), lambda index: Example(np.zeros(image, np.uint8), target))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            np.zeros((5, 4), np.uint8),
            "example 0: the mask has 5 x 4 pixels, its image 4 x 5; they must have the same size",
        ),
        (np.full((4, 5), 2, np.uint8), "example 0: class 2 in the mask, expected 0 to 1 or 255 for no label; correct"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(target, message):
    with pytest.raises(InputError, match=message):
        segmentation().targets.cast(source_of(target)).read(0)


def test_targets_of_another_task_are_refused():
    with pytest.raises(InputError, match=r"the task is segmentation; the targets are of shape \(\), not a class for"):
        segmentation().targets.check(source_of(1))
    good = source_of(np.array([[0, 1, 255, 0, 1]] * 4))
    segmentation().targets.check(good)
    assert segmentation().targets.cast(good).read(0).target.dtype == np.uint8


@pytest.mark.parametrize("name", ["pixel_cross_entropy", "dice"])
def test_a_recipe_names_the_task_by_its_loss(name):
    assert make_task(check(Recipe(loss=Loss(name=name))).loss).answers == "dense"


def test_weights_that_a_loss_does_not_use_are_refused():
    with pytest.raises(InputError, match=r"loss.class_weights is \(1.0, 2.0\), which loss.name dice does not use"):
        check(Recipe(loss=Loss(name="dice", class_weights=(1.0, 2.0))))
    with pytest.raises(InputError, match=r"loss.focal_gamma is -1.0; it must not be negative"):
        check(Recipe(loss=Loss(focal_gamma=-1.0)))
