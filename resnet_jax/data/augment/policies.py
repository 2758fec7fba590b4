"""Policies, which draw operations and strengths: RandAugment, TrivialAugment and AutoAugment."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.augment.affine import Interpolation
from resnet_jax.data.augment.operations import Operation, apply_op, apply_ops
from resnet_jax.data.augment.tables import Pair

# Strengths of RandAugment and TrivialAugment, 0 to 30
_BINS = 31
# Strengths of AutoAugment, 0 to 9
_AUTO_BINS = 10
# Greatest strength in timm
_TOP = 10.0

# Arguments of an operation by its strength, and whether their sign is random
Space = dict[Operation, tuple[np.ndarray, bool]]


def _line(start: float, stop: float, bins: int) -> np.ndarray:
    return np.linspace(start, stop, bins, dtype=np.float32)


def _space(bins: int, shear: float, down: float, right: float, degrees: float, factor: float, bits_lost: int) -> Space:
    """Return arguments from no change to these, in equal steps; float32 (bins,) each."""
    still = np.zeros(bins, np.float32)
    bits = 8 - np.round(np.arange(bins) / ((bins - 1) / bits_lost)).astype(np.float32)
    return {
        Operation.SHEAR_X: (_line(0, shear, bins), True),
        Operation.SHEAR_Y: (_line(0, shear, bins), True),
        Operation.TRANSLATE_X: (np.trunc(_line(0, right, bins)), True),
        Operation.TRANSLATE_Y: (np.trunc(_line(0, down, bins)), True),
        Operation.ROTATE: (_line(0, degrees, bins), True),
        Operation.BRIGHTNESS: (_line(0, factor, bins), True),
        Operation.COLOR: (_line(0, factor, bins), True),
        Operation.CONTRAST: (_line(0, factor, bins), True),
        Operation.SHARPNESS: (_line(0, factor, bins), True),
        Operation.POSTERIZE: (bits, False),
        Operation.SOLARIZE: (_line(255, 0, bins), False),
        Operation.AUTO_CONTRAST: (still, False),
        Operation.EQUALIZE: (still, False),
        Operation.INVERT: (still, False),
    }


def autoaugment_space(height: int, width: int, bins: int = _AUTO_BINS) -> Space:
    """Return torchvision's reading of Cubuk et al. 2019, table 6; translations scale from 331 pixels."""
    return _space(bins, 0.3, 150 / 331 * height, 150 / 331 * width, 30.0, 0.9, 4)


def randaugment_space(height: int, width: int, bins: int = _BINS) -> Space:
    """Return AutoAugment's space plus identity, less inversion, finer (Cubuk et al. 2020, section 3)."""
    space = {Operation.IDENTITY: (np.zeros(bins, np.float32), False), **autoaugment_space(height, width, bins)}
    del space[Operation.INVERT]
    return space


def trivial_space(bins: int = _BINS) -> Space:
    """Return the strongest, "wide" space, shifts of up to 32 pixels (Müller and Hutter 2021)."""
    space = {Operation.IDENTITY: (np.zeros(bins, np.float32), False), **_space(bins, 0.99, 32, 32, 135.0, 0.99, 6)}
    del space[Operation.INVERT]
    return space


def randaugment_inc_arguments(level: Array, height: int, width: int) -> tuple[Array, Array, Array]:
    """Return operations, arguments and signs of timm's increasing RandAugment, as `_arrays` does.

    Levels (n,) are float32, 0 to 10; a higher one makes every operation stronger (Wightman et al. 2021, section 3).
    """
    share = level / _TOP
    still = jnp.zeros_like(share)
    bits_lost, inverted, added = (jnp.floor(share * most) for most in (4, 256, 110))
    arguments = {
        Operation.AUTO_CONTRAST: (still, False),
        Operation.EQUALIZE: (still, False),
        Operation.INVERT: (still, False),
        Operation.ROTATE: (share * 30, True),
        Operation.POSTERIZE: (4 - bits_lost, False),
        Operation.SOLARIZE: (256 - inverted, False),
        Operation.SOLARIZE_ADD: (added, False),
        Operation.COLOR: (share * 0.9, True),
        Operation.CONTRAST: (share * 0.9, True),
        Operation.BRIGHTNESS: (share * 0.9, True),
        Operation.SHARPNESS: (share * 0.9, True),
        Operation.SHEAR_X: (share * 0.3, True),
        Operation.SHEAR_Y: (share * 0.3, True),
        Operation.TRANSLATE_X: (share * 0.45 * width, True),
        Operation.TRANSLATE_Y: (share * 0.45 * height, True),
    }
    values, signed = zip(*arguments.values(), strict=True)
    return jnp.array(list(arguments), jnp.int32), jnp.stack(values), jnp.array(signed)


def _arrays(space: Space) -> tuple[Array, Array, Array]:
    """Return operations (n,) int32, arguments (n, bins) float32 and signed (n,) bool of a space."""
    values, signed = zip(*space.values(), strict=True)
    return jnp.array(list(space), jnp.int32), jnp.asarray(np.stack(values)), jnp.array(signed)


def _with_sign(key: Array, argument: Array, signed: Array) -> Array:
    return jnp.where(signed & jax.random.bernoulli(key, shape=argument.shape), -argument, argument)


def _levels(key: Array, count: int, magnitude: float, std: float, most: float) -> Array:
    """Return (count,) float32, 0 to `most`: the magnitude with noise."""
    return jnp.clip(magnitude + std * jax.random.normal(key, (count,)), 0.0, most)


def randaugment(
    key: Array,
    image: Array,
    *,
    count: int = 2,
    magnitude: float = 9.0,
    std: float = 0.0,
    interpolation: Interpolation = "nearest",
    fill: int = 0,
) -> Array:
    """Apply `count` operations of one strength to uint8 (h, w, c).

    Args:
        key: of the image.
        image: uint8, c being 1 or 3.
        count: number of operations, drawn with replacement.
        magnitude: 0 to 30.
        std: of a Gaussian around the magnitude, drawn for each operation and rounded; 0 is the published one.
        interpolation: of rotation, shear and translation.
        fill: 0 to 255, value of uncovered pixels.

    Reference:
        Cubuk et al. 2020, section 3.
    """
    names, values, signed = _arrays(randaugment_space(*image.shape[:2]))
    which, noise, sign = jax.random.split(key, 3)
    number = jax.random.randint(which, (count,), 0, len(names))
    level = jnp.round(_levels(noise, count, magnitude, std, _BINS - 1.0)).astype(jnp.int32)
    argument = _with_sign(sign, values[number, level], signed[number])
    return apply_ops(image, names[number], argument, interpolation=interpolation, fill=fill)


def randaugment_inc(
    key: Array,
    image: Array,
    *,
    count: int = 2,
    magnitude: float = 7.0,
    std: float = 0.5,
    probability: float = 0.5,
    interpolation: Interpolation = "nearest",
    fill: int = 0,
) -> Array:
    """Apply timm's RandAugment "rand-m7-mstd0.5-inc1" to uint8 (h, w, c).

    The arguments are those of `randaugment`, with three differences: a magnitude of 0 to 10 strengthens each of the
    fifteen operations, each is applied with `probability`, and there is no identity. timm resamples bicubically or
    bilinearly, at random.

    Reference:
        Wightman et al. 2021, section 3.
    """
    which, noise, sign, coin = jax.random.split(key, 4)
    levels = _levels(noise, count, magnitude, std, _TOP)
    names, values, signed = randaugment_inc_arguments(levels, *image.shape[:2])
    number = jax.random.randint(which, (count,), 0, len(names))
    argument = _with_sign(sign, values[number, jnp.arange(count)], signed[number])
    done = jax.random.bernoulli(coin, probability, (count,))
    operation = jnp.where(done, names[number], Operation.IDENTITY)
    return apply_ops(image, operation, argument, interpolation=interpolation, fill=fill)


def trivialaugment_wide(key: Array, image: Array, *, interpolation: Interpolation = "nearest", fill: int = 0) -> Array:
    """Apply one operation of any strength to uint8 (h, w, c) (Müller and Hutter 2021, section 3)."""
    names, values, signed = _arrays(trivial_space())
    which, strength, sign = jax.random.split(key, 3)
    number = jax.random.randint(which, (), 0, len(names))
    argument = _with_sign(sign, values[number, jax.random.randint(strength, (), 0, _BINS)], signed[number])
    return apply_op(image, names[number], argument, interpolation=interpolation, fill=fill)


def autoaugment(
    key: Array, image: Array, policy: Sequence[Pair], *, interpolation: Interpolation = "nearest", fill: int = 0
) -> Array:
    """Apply a random pair of operations of a policy to uint8 (h, w, c), each with its probability.

    The policies are `tables.IMAGENET` and `tables.CIFAR10` (Cubuk et al. 2019, section 3).
    """
    space = autoaugment_space(*image.shape[:2])
    names, values, signed = _arrays(space)
    place = {name: number for number, name in enumerate(space)}
    numbers = jnp.array([[place[name] for name, _, _ in pair] for pair in policy])
    shares = jnp.array([[share for _, share, _ in pair] for pair in policy])
    levels = jnp.array([[level or 0 for _, _, level in pair] for pair in policy])
    which, coin, sign = jax.random.split(key, 3)
    pair = jax.random.randint(which, (), 0, len(policy))
    argument = _with_sign(sign, values[numbers[pair], levels[pair]], signed[numbers[pair]])
    done = jax.random.bernoulli(coin, shares[pair])
    operation = jnp.where(done, names[numbers[pair]], Operation.IDENTITY)
    return apply_ops(image, operation, argument, interpolation=interpolation, fill=fill)
