"""Random colours."""

import jax
from jax import Array

from resnet_jax.data.augment import color


def jitter(
    key: Array, image: Array, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Array:
    """Change brightness, contrast, saturation and hue of uint8 (h, w, c) at random, in this order.

    Factors are uniform in 1 - strength to 1 + strength, with strengths of 0 to 1; the hue turns by up to `hue`, 0 to
    0.5 of the circle. torchvision draws the order too; in a batch that would cost each operation four times.
    """
    draws = jax.random.uniform(key, (4,), minval=-1.0)
    if brightness:
        image = color.brightness(image, 1 + brightness * draws[0])
    if contrast:
        image = color.contrast(image, 1 + contrast * draws[1])
    if saturation:
        image = color.saturation(image, 1 + saturation * draws[2])
    return color.hue(image, hue * draws[3]) if hue else image
