"""The published networks, one line each. ImageNet: He et al. 2015, table 1. CIFAR: section 4.2, 6n + 2 layers."""

from typing import Any

from resnet_jax.errors import unknown
from resnet_jax.model.blocks import Bottleneck, NoShortcut, OriginalBottleneck, PadShortcut, Shortcut
from resnet_jax.model.layers import CifarStem
from resnet_jax.model.resnet import ResNet


def _cifar(n: int, shortcut: type[Shortcut] = PadShortcut) -> ResNet:
    return ResNet((n, n, n), stem=CifarStem, shortcut=shortcut, width=16, num_classes=10)


MODELS: dict[str, ResNet] = {
    "resnet18": ResNet((2, 2, 2, 2)),
    "resnet34": ResNet((3, 4, 6, 3)),
    "resnet50": ResNet((3, 4, 6, 3), Bottleneck),
    "resnet101": ResNet((3, 4, 23, 3), Bottleneck),
    "resnet152": ResNet((3, 8, 36, 3), Bottleneck),
    "resnet50_v1": ResNet((3, 4, 6, 3), OriginalBottleneck),
    "resnet101_v1": ResNet((3, 4, 23, 3), OriginalBottleneck),
    "resnet152_v1": ResNet((3, 8, 36, 3), OriginalBottleneck),
    "plain18": ResNet((2, 2, 2, 2), shortcut=NoShortcut),
    "plain34": ResNet((3, 4, 6, 3), shortcut=NoShortcut),
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
    "resnet1202": _cifar(200),
    "plain20": _cifar(3, NoShortcut),
    "plain32": _cifar(5, NoShortcut),
    "plain44": _cifar(7, NoShortcut),
    "plain56": _cifar(9, NoShortcut),
    "plain110": _cifar(18, NoShortcut),
    "plain1202": _cifar(200, NoShortcut),
}


def create(name: str, **fields: Any) -> ResNet:
    """The published network of that name with some fields changed: `create("resnet50", num_classes=10)`.

    Raises InputError for a name that is not in MODELS, and TypeError for a field that ResNet does not have.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name].clone(**fields)


def image_size(model: ResNet) -> int:
    """Height and width, in pixels, of the images for which a network with its stem is published."""
    return 32 if model.stem is CifarStem else 224
