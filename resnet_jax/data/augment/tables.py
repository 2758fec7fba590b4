"""The policies of AutoAugment, from the paper's appendix."""

from resnet_jax.data.augment.operations import Operation as Op

# Operation, probability (0 to 1) and strength (0 to 9, or None if it has none)
Step = tuple[Op, float, int | None]
Pair = tuple[Step, Step]

# Cubuk et al. 2019, table 9
IMAGENET: tuple[Pair, ...] = (
    ((Op.POSTERIZE, 0.4, 8), (Op.ROTATE, 0.6, 9)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTO_CONTRAST, 0.6, None)),
    ((Op.EQUALIZE, 0.8, None), (Op.EQUALIZE, 0.6, None)),
    ((Op.POSTERIZE, 0.6, 7), (Op.POSTERIZE, 0.6, 6)),
    ((Op.EQUALIZE, 0.4, None), (Op.SOLARIZE, 0.2, 4)),
    ((Op.EQUALIZE, 0.4, None), (Op.ROTATE, 0.8, 8)),
    ((Op.SOLARIZE, 0.6, 3), (Op.EQUALIZE, 0.6, None)),
    ((Op.POSTERIZE, 0.8, 5), (Op.EQUALIZE, 1.0, None)),
    ((Op.ROTATE, 0.2, 3), (Op.SOLARIZE, 0.6, 8)),
    ((Op.EQUALIZE, 0.6, None), (Op.POSTERIZE, 0.4, 6)),
    ((Op.ROTATE, 0.8, 8), (Op.COLOR, 0.4, 0)),
    ((Op.ROTATE, 0.4, 9), (Op.EQUALIZE, 0.6, None)),
    ((Op.EQUALIZE, 0.0, None), (Op.EQUALIZE, 0.8, None)),
    ((Op.INVERT, 0.6, None), (Op.EQUALIZE, 1.0, None)),
    ((Op.COLOR, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.ROTATE, 0.8, 8), (Op.COLOR, 1.0, 2)),
    ((Op.COLOR, 0.8, 8), (Op.SOLARIZE, 0.8, 7)),
    ((Op.SHARPNESS, 0.4, 7), (Op.INVERT, 0.6, None)),
    ((Op.SHEAR_X, 0.6, 5), (Op.EQUALIZE, 1.0, None)),
    ((Op.COLOR, 0.4, 0), (Op.EQUALIZE, 0.6, None)),
    ((Op.EQUALIZE, 0.4, None), (Op.SOLARIZE, 0.2, 4)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTO_CONTRAST, 0.6, None)),
    ((Op.INVERT, 0.6, None), (Op.EQUALIZE, 1.0, None)),
    ((Op.COLOR, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.EQUALIZE, 0.8, None), (Op.EQUALIZE, 0.6, None)),
)

# Cubuk et al. 2019, table 7
CIFAR10: tuple[Pair, ...] = (
    ((Op.INVERT, 0.1, None), (Op.CONTRAST, 0.2, 6)),
    ((Op.ROTATE, 0.7, 2), (Op.TRANSLATE_X, 0.3, 9)),
    ((Op.SHARPNESS, 0.8, 1), (Op.SHARPNESS, 0.9, 3)),
    ((Op.SHEAR_Y, 0.5, 8), (Op.TRANSLATE_Y, 0.7, 9)),
    ((Op.AUTO_CONTRAST, 0.5, None), (Op.EQUALIZE, 0.9, None)),
    ((Op.SHEAR_Y, 0.2, 7), (Op.POSTERIZE, 0.3, 7)),
    ((Op.COLOR, 0.4, 3), (Op.BRIGHTNESS, 0.6, 7)),
    ((Op.SHARPNESS, 0.3, 9), (Op.BRIGHTNESS, 0.7, 9)),
    ((Op.EQUALIZE, 0.6, None), (Op.EQUALIZE, 0.5, None)),
    ((Op.CONTRAST, 0.6, 7), (Op.SHARPNESS, 0.6, 5)),
    ((Op.COLOR, 0.7, 7), (Op.TRANSLATE_X, 0.5, 8)),
    ((Op.EQUALIZE, 0.3, None), (Op.AUTO_CONTRAST, 0.4, None)),
    ((Op.TRANSLATE_Y, 0.4, 3), (Op.SHARPNESS, 0.2, 6)),
    ((Op.BRIGHTNESS, 0.9, 6), (Op.COLOR, 0.2, 8)),
    ((Op.SOLARIZE, 0.5, 2), (Op.INVERT, 0.0, None)),
    ((Op.EQUALIZE, 0.2, None), (Op.AUTO_CONTRAST, 0.6, None)),
    ((Op.EQUALIZE, 0.2, None), (Op.EQUALIZE, 0.6, None)),
    ((Op.COLOR, 0.9, 9), (Op.EQUALIZE, 0.6, None)),
    ((Op.AUTO_CONTRAST, 0.8, None), (Op.SOLARIZE, 0.2, 8)),
    ((Op.BRIGHTNESS, 0.1, 3), (Op.COLOR, 0.7, 0)),
    ((Op.SOLARIZE, 0.4, 5), (Op.AUTO_CONTRAST, 0.9, None)),
    ((Op.TRANSLATE_Y, 0.9, 9), (Op.TRANSLATE_Y, 0.7, 9)),
    ((Op.AUTO_CONTRAST, 0.9, None), (Op.SOLARIZE, 0.8, 3)),
    ((Op.EQUALIZE, 0.8, None), (Op.INVERT, 0.1, None)),
    ((Op.TRANSLATE_Y, 0.7, 9), (Op.AUTO_CONTRAST, 0.9, None)),
)
