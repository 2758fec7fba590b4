"""Operations, tables and distributions of augmentation against torchvision and timm."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm.data import auto_augment as timm_augment
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from resnet_jax.data.augment import affine, color, policies
from resnet_jax.data.augment.erase import fill_box, random_erase
from resnet_jax.data.augment.geometry import random_box, resized
from resnet_jax.data.augment.mix import cutmix_weights
from resnet_jax.data.augment.operations import Operation
from resnet_jax.data.augment.tables import CIFAR10, IMAGENET

RANDOM = np.random.default_rng(0)
IMAGES = [
    RANDOM.integers(0, 256, (29, 33, 3), dtype=np.uint8),
    RANDOM.integers(50, 180, (29, 33, 3), dtype=np.uint8),
    RANDOM.integers(0, 256, (29, 33, 1), dtype=np.uint8),
    np.full((29, 33, 3), 77, np.uint8),
]
NAMES = {
    "Identity": Operation.IDENTITY,
    "ShearX": Operation.SHEAR_X,
    "ShearY": Operation.SHEAR_Y,
    "TranslateX": Operation.TRANSLATE_X,
    "TranslateY": Operation.TRANSLATE_Y,
    "Rotate": Operation.ROTATE,
    "Brightness": Operation.BRIGHTNESS,
    "Color": Operation.COLOR,
    "Contrast": Operation.CONTRAST,
    "Sharpness": Operation.SHARPNESS,
    "Posterize": Operation.POSTERIZE,
    "Solarize": Operation.SOLARIZE,
    "AutoContrast": Operation.AUTO_CONTRAST,
    "Equalize": Operation.EQUALIZE,
    "Invert": Operation.INVERT,
}


def tensor(image):
    return torch.from_numpy(np.moveaxis(image, -1, 0).copy())


def array(result):
    return np.moveaxis(result.numpy(), 0, -1).astype(int)


def both(image, ours, theirs, *values):
    return np.asarray(ours(image, *values), int), array(theirs(tensor(image), *values))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (color.autocontrast, functional.autocontrast),
        (color.equalize, functional.equalize),
        (color.invert, functional.invert),
        (lambda x: color.posterize(x, 4), lambda x: functional.posterize(x, 4)),
        (lambda x: color.posterize(x, 0), lambda x: functional.posterize(x, 0)),
        (lambda x: color.solarize(x, 127.5), lambda x: functional.solarize(x, 127.5)),
        (lambda x: x[:, ::-1], functional.horizontal_flip),
        (
            lambda x: fill_box(x, jnp.array([2, 1]), jnp.array([5, 3]), 9),
            lambda x: functional.erase(x, 2, 1, 5, 3, torch.tensor(9)),
        ),
    ],
)
def test_operations_on_whole_levels(ours, theirs):
    for image in IMAGES:
        np.testing.assert_array_equal(*both(image, jax.jit(ours), theirs))


def test_every_stretch_of_autocontrast():
    for high in range(1, 256):
        image = np.arange(high + 1, dtype=np.uint8)[None, :, None]
        np.testing.assert_array_equal(
            color._STRETCHES[high, : high + 1, None][None], array(functional.autocontrast(tensor(image)))
        )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (color.brightness, functional.adjust_brightness),
        (color.contrast, functional.adjust_contrast),
        (color.saturation, functional.adjust_saturation),
        (color.sharpness, functional.adjust_sharpness),
    ],
)
def test_blends_are_within_a_level(ours, theirs):
    compiled = jax.jit(ours)
    for image, factor in itertools.product(IMAGES, (0.0, 0.3, 0.9, 1.0, 1.27, 1.9)):
        first, second = both(image, compiled, theirs, factor)
        assert np.abs(first - second).max() <= 1


def test_hue_is_within_a_level():
    compiled = jax.jit(color.hue)
    for image, turn in itertools.product(IMAGES, (-0.5, -0.1, 0.0, 0.02, 0.25, 0.4)):
        first, second = both(image, compiled, functional.adjust_hue, turn)
        assert np.abs(first - second).max() <= 1


def affine_of(name, interpolation):
    """As torchvision's policies call it."""
    mode = transforms.InterpolationMode(interpolation)
    return lambda x, value: transforms.autoaugment._apply_op(x, name, value, mode, None)


AFFINE = {
    "ShearX": affine.shear_x,
    "ShearY": affine.shear_y,
    "TranslateX": lambda x, value, how: affine.translate(x, value, 0, how),
    "TranslateY": lambda x, value, how: affine.translate(x, 0, value, how),
    "Rotate": affine.rotate,
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_maps(name):
    compiled = jax.jit(AFFINE[name], static_argnums=2)
    for image, strength in itertools.product(IMAGES[::2], (-0.7, 0.0, 0.3, 1.0)):
        value = strength * {"S": 0.99, "T": 12, "R": 135}[name[0]]
        value = float(int(value)) if name[0] == "T" else value
        first, second = both(image, lambda x, v: compiled(x, v, "nearest"), affine_of(name, "nearest"), value)
        assert (first != second).any(-1).mean() <= 0.005  # places half way between two pixels
        first, second = both(image, lambda x, v: compiled(x, v, "bilinear"), affine_of(name, "bilinear"), value)
        assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (64, 64)])
def test_resized_crops(size):
    mode = transforms.InterpolationMode.BILINEAR
    for image in IMAGES[::2]:
        first, second = both(
            image,
            jax.jit(lambda x: resized(x, jnp.array([2, 3, 15, 17]), size)),
            lambda x: functional.resized_crop(x, 2, 3, 15, 17, size, mode, antialias=False),
        )
        assert np.abs(first - second).max() <= 1


def arguments(name, values):
    """Of torchvision's tables, as its operations read them: whole pixels and bits, but for errors of rounding."""
    return np.trunc(values + 1e-4) if name in ("TranslateX", "TranslateY", "Posterize") else values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (policies.randaugment_space(224, 160), transforms.RandAugment()._augmentation_space(31, (224, 160))),
        (policies.trivial_space(), transforms.TrivialAugmentWide()._augmentation_space(31)),
        (policies.autoaugment_space(224, 160), transforms.AutoAugment()._augmentation_space(10, (224, 160))),
    ],
)
def test_tables_of_strengths(ours, theirs):
    assert set(ours) == {NAMES[name] for name in theirs}
    for name, (values, signed) in theirs.items():
        first, second = ours[NAMES[name]]
        expected = np.broadcast_to(arguments(name, np.asarray(values, np.float32)), first.shape)
        np.testing.assert_allclose(first, expected, rtol=1e-6, err_msg=name)
        assert second == signed


@pytest.mark.parametrize(("ours", "theirs"), [(IMAGENET, "imagenet"), (CIFAR10, "cifar10")])
def test_policies_of_autoaugment(ours, theirs):
    policy = transforms.AutoAugment(transforms.AutoAugmentPolicy(theirs)).policies
    assert ours == tuple(tuple((NAMES[name], *rest) for name, *rest in pair) for pair in policy)


@pytest.mark.parametrize("level", [0.0, 3.3, 7.0, 9.9, 10.0])
def test_increasing_strengths_are_those_of_timm(level):
    names, values, signed = policies.randaugment_inc_arguments(jnp.array([level]), 100, 200)
    assert len(timm_augment._RAND_INCREASING_TRANSFORMS) == len(names)
    for name, operation, value, sign in zip(
        timm_augment._RAND_INCREASING_TRANSFORMS, names, values[:, 0], signed, strict=True
    ):
        plain = name.removesuffix("Increasing").removesuffix("Rel")
        assert operation == {**NAMES, "SolarizeAdd": Operation.SOLARIZE_ADD}[plain]
        of_level = timm_augment.LEVEL_TO_ARG[name]
        expected = np.ravel(of_level(level, {}) if of_level else 0)[0]
        assert sign == (operation in range(Operation.SHEAR_X, Operation.POSTERIZE))
        side = {"TranslateX": 200, "TranslateY": 100}.get(plain, 1)
        one = plain in ("Brightness", "Color", "Contrast", "Sharpness")
        np.testing.assert_allclose(abs(float(value)), abs((expected - one) * side), rtol=1e-5, atol=1e-6, err_msg=name)


def quantiles(values):
    return np.quantile(np.asarray(values, float), np.linspace(0.02, 0.98, 13))


def test_crops_are_distributed_as_those_of_torchvision():
    count = 6000
    torch.manual_seed(0)
    image = torch.empty(3, 120, 160)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    ).T
    keys = jax.random.split(jax.random.key(0), count)
    ours = np.asarray(jax.jit(jax.vmap(lambda key: random_box(key, 120, 160)))(keys)).T
    for first, second in ((ours[2] * ours[3], theirs[2] * theirs[3]), (ours[3] / ours[2], theirs[3] / theirs[2])):
        np.testing.assert_allclose(quantiles(first), quantiles(second), rtol=0.08)
    for place, side in ((0, 120), (1, 160)):
        np.testing.assert_allclose(quantiles(ours[place]), quantiles(theirs[place]), atol=0.03 * side)


def test_rectangles_are_distributed_as_those_of_torchvision():
    count = 3000
    torch.manual_seed(0)
    image = torch.ones(1, 40, 50)
    erase = v2.RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    theirs = np.array([(erase(image) == 0).sum() for _ in range(count)])
    keys = jax.random.split(jax.random.key(0), count)
    holes = jax.jit(jax.vmap(lambda key: random_erase(key, jnp.ones((40, 50, 1)), 0.5, (0.02, 0.33), (0.3, 3.3)) == 0))(
        keys
    )
    ours = np.asarray(holes).sum((1, 2, 3))
    assert (ours > 0).mean() == pytest.approx((theirs > 0).mean(), abs=0.04)
    np.testing.assert_allclose(quantiles(ours[ours > 0]), quantiles(theirs[theirs > 0]), rtol=0.1, atol=6)


def test_boxes_of_cutmix_are_distributed_as_those_of_torchvision():
    count = 3000
    torch.manual_seed(0)
    cut = v2.CutMix(num_classes=2)
    images = [torch.zeros(2, 1, 40, 50)]
    theirs = [cut.make_params(images)["lam_adjusted"] for _ in range(count)]
    keys = jax.random.split(jax.random.key(0), count)
    ours = jax.jit(jax.vmap(lambda key: cutmix_weights(key, 40, 50, 1.0)[1]))(keys)
    np.testing.assert_allclose(quantiles(ours), quantiles(theirs), atol=0.04)
