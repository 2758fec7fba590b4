"""Networks on the maps of a backbone, which is a ResNet described as data like any other."""

from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import Array

from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stems import TextStem


class BackboneModel(nn.Module):
    """Base of the networks that compute on the maps of a ResNet.

    Their parameters are under "backbone" and under names of their own. Normalisation, activation, convolution and dtype
    of these parts are those of the backbone.

    Attributes:
        backbone: the network whose maps are used; its own head and input shape are not.
        num_classes: number of classes.
        head_dropout: fraction of the features dropped before the last layer.
        input_shape: (spatial..., c) of the images for which the network is published; other shapes work as well.
    """

    backbone: ResNet = ResNet((2, 2, 2, 2), BasicBlock, num_classes=0)
    num_classes: int = 21
    head_dropout: float = 0.0
    input_shape: tuple[int, ...] = (224, 224, 3)

    predicts: ClassVar[str] = "pixels"
    """What its outputs are about: "images" (or sounds) as a whole, "pixels" or "boxes"."""
    head_path: ClassVar[tuple[str, ...]] = ("head",)
    """Path of the layer that predicts classes, in the parameters."""

    @nn.nowrap
    def classes_of(self, outputs: int) -> int:
        """Return the number of classes for a number of outputs of that layer."""
        return outputs


Network = ResNet | BackboneModel


def backbone_of(model: nn.Module) -> ResNet | None:
    """Return a ResNet itself, the backbone of a network on one, or None for other modules.

    Example:
        >>> backbone_of(BackboneModel()).depths
        (2, 2, 2, 2)
    """
    if isinstance(model, BackboneModel):
        return model.backbone
    return model if isinstance(model, ResNet) else None


def takes_text(model: nn.Module) -> bool:
    """Return whether a network reads the bytes of a text."""
    backbone = backbone_of(model)
    return backbone is not None and backbone.stem is TextStem


def with_fields(model: Network, **fields: Any) -> Network:
    """Return a network with other fields; those that it does not have itself are its backbone's.

    Raises:
        TypeError: Neither has such a field.

    Example:
        >>> with_fields(BackboneModel(), num_classes=3, width=16).backbone.width
        16
    """
    if not isinstance(model, BackboneModel):
        return model.clone(**fields)
    inner = {name: fields.pop(name) for name in list(fields) if name not in type(model).__dataclass_fields__}
    if "backbone" in fields and model.predicts != "images":
        fields = {"input_shape": fields["backbone"].input_shape, **fields}
    backbone = fields.get("backbone", model.backbone).clone(**inner, num_classes=0)
    return model.clone(**{**fields, "backbone": backbone})


def resize_linear(x: Array, shape: tuple[int, ...]) -> Array:
    """Resize (b, spatial..., c) to another spatial shape by linear interpolation between centres of pixels.

    It is torch's `interpolate(..., align_corners=False)`, also where an axis shrinks.

    Example:
        >>> import jax.numpy as jnp
        >>> resize_linear(jnp.array([[[0.0], [1.0]]]), (4,))[0, :, 0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    return jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), "linear", antialias=False)
