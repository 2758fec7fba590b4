"""The operations of the learned policies, any of which an image of a batch may draw.

Under `vmap`, `lax.switch` computes every branch for every image. Here, all operations are one sequence of a blend with
another image, a table of levels and an affine map, of which at most one is not the identity. Hence an image costs one
blend, one look-up and one resampling, whichever operation it draws.
"""

import enum

import jax.numpy as jnp
from jax import Array, lax

from resnet_jax.data.augment import affine, color
from resnet_jax.data.augment.affine import Affine, Interpolation


class Operation(enum.IntEnum):
    """An operation; a comment gives the meaning of the arguments of the operations that follow it."""

    IDENTITY = 0
    # Factor
    SHEAR_X = 1
    SHEAR_Y = 2
    # Pixels
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    # Degrees, counterclockwise
    ROTATE = 5
    # Factor of the blend, less 1
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    # Number of bits to keep
    POSTERIZE = 10
    # Lowest inverted level
    SOLARIZE = 11
    # Unused
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    INVERT = 14
    # Number of levels
    SOLARIZE_ADD = 15


def apply_op(
    image: Array,
    operation: Array,
    argument: Array,
    *,
    interpolation: Interpolation = "nearest",
    fill: int = 0,
) -> Array:
    """Apply one operation to uint8 (h, w, c), c being 1 or 3.

    Args:
        image: uint8.
        operation: () int32, an `Operation`.
        argument: () float32, as documented there.
        interpolation: of rotation, shear and translation.
        fill: 0 to 255, value of uncovered pixels.
    """
    table = _table(image, operation, argument)
    image = color.lookup(_blended(image, operation, argument), table)
    return affine.resample(image, _map(image, operation, argument), interpolation, fill)


def apply_ops(
    image: Array,
    operations: Array,
    arguments: Array,
    *,
    interpolation: Interpolation = "nearest",
    fill: int = 0,
) -> Array:
    """Apply `apply_op` with each of (n,) operations and (n,) arguments.

    The loop stores the image between two operations. Unrolled, the first operation would be computed again for every
    pixel that the second one reads.
    """

    def step(image: Array, chosen: tuple[Array, Array]) -> tuple[Array, None]:
        return apply_op(image, *chosen, interpolation=interpolation, fill=fill), None

    return lax.scan(step, image, (operations, arguments))[0]


def _blended(image: Array, operation: Array, argument: Array) -> Array:
    """Apply colour and sharpness."""
    is_color, is_sharpness = operation == Operation.COLOR, operation == Operation.SHARPNESS
    degenerate = jnp.where(is_color, color.grayscale(image), color.smoothed(image))
    return color.blend(degenerate, image, jnp.where(is_color | is_sharpness, 1 + argument, 1.0))


def _table(image: Array, operation: Array, argument: Array) -> Array:
    """Return uint8 (256, c): the new level of each level, for the operations that depend on it alone."""
    channels = image.shape[-1]
    counts = color.histogram(image)
    levels = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8)[:, None], (256, channels))
    base = jnp.where(operation == Operation.CONTRAST, color.mean_luma(image), 0)
    # Other operations have arguments of any size
    factor = jnp.clip(1 + argument, 0, 8)
    tables = {
        Operation.BRIGHTNESS: (blended := color.blend(base, levels, factor)),
        Operation.CONTRAST: blended,
        Operation.POSTERIZE: color.posterize(levels, jnp.clip(argument, 0, 8).astype(jnp.int32)),
        Operation.SOLARIZE: color.solarize(levels, argument),
        Operation.AUTO_CONTRAST: color.autocontrast_table(*color.extremes(counts)),
        Operation.EQUALIZE: color.equalize_table(counts),
        Operation.INVERT: color.invert(levels),
        Operation.SOLARIZE_ADD: color.solarize_add(levels, argument),
    }
    chosen = jnp.array([operation == name for name in tables])
    # XLA stores a matrix product, which is exact for levels in any precision. It would compute a selection, with all
    # its tables, again for every pixel that is looked up.
    stacked = jnp.stack(list(tables.values())).reshape(len(tables), -1)
    table = (chosen.astype(jnp.float32) @ stacked.astype(jnp.float32)).reshape(256, channels).astype(jnp.uint8)
    return jnp.where(chosen.any(), table, levels)


def _map(image: Array, operation: Array, argument: Array) -> Affine:
    """Return the affine map of the operations that move pixels, otherwise the identity."""
    height, width, _ = image.shape
    maps = {
        Operation.SHEAR_X: affine.shearing_x(argument, height),
        Operation.SHEAR_Y: affine.shearing_y(argument, width),
        Operation.TRANSLATE_X: affine.translation(argument, 0.0),
        Operation.TRANSLATE_Y: affine.translation(0.0, argument),
        Operation.ROTATE: affine.rotation(argument),
    }
    chosen = [operation == name for name in maps]
    entries = zip(affine.identity(), *maps.values(), strict=True)
    return Affine(*(jnp.select(chosen, others, default) for default, *others in entries))
