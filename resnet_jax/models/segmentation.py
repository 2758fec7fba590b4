"""Networks for semantic segmentation: images (b, spatial..., c) to logits (b, spatial..., classes).

Reference:
    Ronneberger et al. 2015 (U-Net); Long et al. 2015 (FCN); Chen et al. 2017, "Rethinking atrous convolution"
    (DeepLabv3); Zhao et al. 2017, section 3.3 (auxiliary loss).
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import normal

from resnet_jax.models.backbone import BackboneModel, resize_linear
from resnet_jax.models.layers import Activation, Conv, ConvDef, NormDef

# Dilations of DeepLabv3 at output stride 8: Chen et al. 2017, section 3.3
_RATES = (12, 24, 36)


class ConvNormAct(nn.Module):
    """Convolution, normalisation and activation."""

    features: int
    conv: ConvDef
    norm: NormDef
    act: Activation
    kernel: int = 3
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, kernel=self.kernel, dilation=self.dilation, name="conv")(x)
        return self.act(self.norm(name="norm")(x))


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each normalised and activated."""

    features: int
    conv: ConvDef
    norm: NormDef
    act: Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in (1, 2):
            x = self.act(self.norm(name=f"norm{i}")(self.conv(self.features, name=f"conv{i}")(x)))
        return x


def classify_pixels(x: Array, num_classes: int) -> Array:
    """Return logits (b, spatial..., num_classes), at least float32, by the layer "head" of the calling module."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return Conv(num_classes, 1, bias=True, kernel_init=normal(0.01), name="head")(x)


class UNet(BackboneModel):
    """Light U-Net decoder on any backbone, for sequences, images and video: logits at the resolution of the input.

    Each step enlarges the coarser map, appends the backbone's map of that resolution, and convolves twice. If the
    finest map of the backbone has less than half of the input's resolution, a last step without such a map leads there.

    Attributes:
        decoder_width: channels of the finest step; each coarser one is twice as wide.

    Example:
        >>> import jax
        >>> model, images = UNet(num_classes=5), jnp.zeros((2, 64, 48, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (2, 64, 48, 5)
    """

    decoder_width: int = 16

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, rows: Array | None = None) -> Array:
        """Return logits (b, spatial..., num_classes) float32; the arguments are those of `ResNet`."""
        conv, norm, drop = self.backbone.builders(train, rows)
        *skips, y = self.backbone.features(x, train=train, rows=rows)
        half = tuple(-(-size // 2) for size in x.shape[1:-1])
        steps: list[tuple[tuple[int, ...], list[Array]]] = [(skip.shape[1:-1], [skip]) for skip in skips]
        finest, *_ = (*skips, y)
        if any(size < least for size, least in zip(finest.shape[1:-1], half, strict=True)):
            steps.insert(0, (tuple(map(max, finest.shape[1:-1], half)), []))
        for index, (shape, skip) in reversed(list(enumerate(steps))):
            y = jnp.concatenate([resize_linear(y, shape), *skip], -1)
            y = DoubleConv(self.decoder_width * 2**index, conv, norm, self.backbone.act, name=f"decoder{index + 1}")(y)
        return resize_linear(classify_pixels(drop(self.head_dropout)(y), self.num_classes), x.shape[1:-1])


class FCN(BackboneModel):
    """Fully convolutional network on a dilated backbone, as torchvision has it.

    Attributes:
        aux_head: also classify the pixels of the last map but one, for a loss in training.

    Example:
        >>> import jax
        >>> model, images = FCN(num_classes=5), jnp.zeros((2, 64, 48, 3))
        >>> jax.tree.map(jnp.shape, jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]))
        {'aux': (2, 64, 48, 5), 'out': (2, 64, 48, 5)}
    """

    aux_head: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, rows: Array | None = None) -> Array | dict[str, Array]:
        """Return logits (b, spatial..., num_classes) float32, under "out" and "aux" if there is an auxiliary head."""
        conv, norm, drop = self.backbone.builders(train, rows)
        *_, middle, last = self.backbone.features(x, train=train, rows=rows)
        shape, dropout, act = x.shape[1:-1], drop(self.head_dropout), self.backbone.act
        logits = resize_linear(classify_pixels(self.decode(last, conv, norm, dropout), self.num_classes), shape)
        if not self.aux_head:
            return logits
        aux = AuxHead(self.num_classes, conv, norm, act, dropout, name="aux")(middle)
        return {"out": logits, "aux": resize_linear(aux, shape)}

    def decode(self, x: Array, conv: ConvDef, norm: NormDef, dropout: Activation) -> Array:
        """Return the features (b, spatial..., c) that the last layer classifies."""
        return dropout(ConvNormAct(x.shape[-1] // 4, conv, norm, self.backbone.act, name="decoder")(x))


class AuxHead(nn.Module):
    """Classifier of the pixels of an inner map, at its resolution."""

    num_classes: int
    conv: ConvDef
    norm: NormDef
    act: Activation
    dropout: Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvNormAct(x.shape[-1] // 4, self.conv, self.norm, self.act, name="decoder")(x)
        return classify_pixels(self.dropout(x), self.num_classes)


class DeepLabV3(FCN):
    """DeepLabv3: atrous spatial pyramid pooling on a dilated backbone, as torchvision has it.

    Dropout is applied once, after the pyramid.
    """

    def decode(self, x: Array, conv: ConvDef, norm: NormDef, dropout: Activation) -> Array:
        parts = conv, norm, self.backbone.act
        pyramid = [ConvNormAct(256, *parts, kernel=1, name="aspp1")(x)]
        pyramid += [ConvNormAct(256, *parts, dilation=r, name=f"aspp{i}")(x) for i, r in enumerate(_RATES, 2)]
        mean = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        mean = ConvNormAct(256, *parts, kernel=1, name="aspp_pool")(mean)
        pyramid.append(jnp.broadcast_to(mean, (*x.shape[:-1], mean.shape[-1])))
        y = ConvNormAct(256, *parts, kernel=1, name="project")(jnp.concatenate(pyramid, -1))
        return ConvNormAct(256, *parts, name="decoder")(dropout(y))
