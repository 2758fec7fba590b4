"""The published networks, one entry each in MODELS."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from resnet_jax.models.blocks import (
    BLOCKS,
    Bottleneck,
    OriginalBottleneck,
    PooledBlock,
    PreActBasicBlock,
    PreActBottleneck,
)
from resnet_jax.models.layers import ACTS, CONVS, GATES, POOLS, SqueezeExcite, StandardizedConv, global_max_pool
from resnet_jax.models.norm import NORMS, group_norm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import AverageShortcut, NoShortcut, PadShortcut
from resnet_jax.models.stems import (
    STEMS,
    BiTStem,
    CifarStem,
    DeepStem,
    PoollessStem,
    PreActCifarStem,
    PreActStem,
    VideoStem,
)

# Number of blocks of each stage, by the number of layers of the bottleneck network
_26, _50, _101, _152, _200 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)

_resnet = partial(ResNet, block=Bottleneck)
_resnext = partial(_resnet, groups=32, base_width=4)
_d: dict[str, Any] = {"stem": DeepStem, "shortcut": AverageShortcut}
_se: dict[str, Any] = {"gate": SqueezeExcite}
_rs = partial(_resnet, stem=PoollessStem, shortcut=AverageShortcut, gate=partial(SqueezeExcite, ratio=0.25))
_v2 = partial(ResNet, block=PreActBottleneck, stem=PreActStem)
_bit = partial(ResNet, block=PreActBottleneck, stem=BiTStem, conv=StandardizedConv, norm=group_norm)
_cifar = partial(ResNet, stem=CifarStem, num_classes=10, input_shape=(32, 32, 3))
_he = partial(_cifar, shortcut=PadShortcut, width=16)
_plain = partial(_cifar, shortcut=NoShortcut, width=16)
_pre = partial(_cifar, block=PreActBottleneck, stem=PreActCifarStem, width=16)
_wrn = partial(_cifar, block=PreActBasicBlock, stem=PreActCifarStem, stem_features=16)

MODELS: dict[str, ResNet] = {
    # He et al. 2015, table 1, with the stride in the 3x3 convolution ("v1.5")
    "resnet18": ResNet((2, 2, 2, 2)),
    "resnet26": _resnet(_26),
    "resnet34": ResNet((3, 4, 6, 3)),
    "resnet50": _resnet(_50),
    "resnet101": _resnet(_101),
    "resnet152": _resnet(_152),
    "resnet200": _resnet(_200),
    # The same with the stride in the first 1x1, as in the paper
    "resnet50_v1": _resnet(_50, block=OriginalBottleneck),
    "resnet101_v1": _resnet(_101, block=OriginalBottleneck),
    "resnet152_v1": _resnet(_152, block=OriginalBottleneck),
    # Without shortcuts: He et al. 2015, table 2
    "plain18": ResNet((2, 2, 2, 2), shortcut=NoShortcut),
    "plain34": ResNet((3, 4, 6, 3), shortcut=NoShortcut),
    # Pre-activation: He et al. 2016
    "resnet18v2": _v2((2, 2, 2, 2), block=PreActBasicBlock),
    "resnet34v2": _v2((3, 4, 6, 3), block=PreActBasicBlock),
    "resnet50v2": _v2(_50),
    "resnet101v2": _v2(_101),
    "resnet152v2": _v2(_152),
    "resnet200v2": _v2(_200),
    # Wide bottlenecks: Zagoruyko and Komodakis 2016, section 3
    "wide_resnet50_2": _resnet(_50, base_width=128),
    "wide_resnet101_2": _resnet(_101, base_width=128),
    # ResNeXt: Xie et al. 2017
    "resnext50_32x4d": _resnext(_50),
    "resnext101_32x4d": _resnext(_101),
    "resnext101_32x8d": _resnext(_101, base_width=8),
    "resnext101_32x16d": _resnext(_101, base_width=16),
    "resnext101_32x32d": _resnext(_101, base_width=32),
    "resnext101_64x4d": _resnext(_101, groups=64),
    # Squeeze and excitation: Hu et al. 2018
    "seresnet18": ResNet((2, 2, 2, 2), **_se),
    "seresnet34": ResNet((3, 4, 6, 3), **_se),
    "seresnet50": _resnet(_50, **_se),
    "seresnet101": _resnet(_101, **_se),
    "seresnet152": _resnet(_152, **_se),
    "seresnext50_32x4d": _resnext(_50, **_se),
    "seresnext101_32x4d": _resnext(_101, **_se),
    "seresnext101_32x8d": _resnext(_101, base_width=8, **_se),
    "seresnext101_64x4d": _resnext(_101, groups=64, **_se),
    # Deep stem, then also the average-pool shortcut: He et al. 2019, "Bag of tricks", section 4.2
    "resnet50c": _resnet(_50, stem=DeepStem),
    "resnet101c": _resnet(_101, stem=DeepStem),
    "resnet152c": _resnet(_152, stem=DeepStem),
    "resnet50s": _resnet(_50, stem=DeepStem, stem_features=128),
    "resnet101s": _resnet(_101, stem=DeepStem, stem_features=128),
    "resnet152s": _resnet(_152, stem=DeepStem, stem_features=128),
    "resnet18d": ResNet((2, 2, 2, 2), **_d),
    "resnet26d": _resnet(_26, **_d),
    "resnet34d": ResNet((3, 4, 6, 3), **_d),
    "resnet50d": _resnet(_50, **_d),
    "resnet101d": _resnet(_101, **_d),
    "resnet152d": _resnet(_152, **_d),
    "resnet200d": _resnet(_200, **_d),
    "resnext50d_32x4d": _resnext(_50, **_d),
    "seresnet152d": _resnet(_152, **_d, **_se),
    "seresnet200d": _resnet(_200, **_d, **_se),
    "seresnext26d_32x4d": _resnext(_26, **_d, **_se),
    "seresnext101d_32x8d": _resnext(_101, base_width=8, **_d, **_se),
    # Anti-aliased: Zhang 2019
    "resnetblur18": ResNet((2, 2, 2, 2), antialias=True),
    "resnetblur50": _resnet(_50, antialias=True),
    "resnetblur50d": _resnet(_50, antialias=True, **_d),
    "resnetblur101d": _resnet(_101, antialias=True, **_d),
    # ResNet-RS: Bello et al. 2021, table 7
    "resnetrs50": _rs(_50, input_shape=(160, 160, 3)),
    "resnetrs101": _rs(_101, input_shape=(192, 192, 3)),
    "resnetrs152": _rs(_152, input_shape=(256, 256, 3)),
    "resnetrs200": _rs(_200, input_shape=(256, 256, 3)),
    "resnetrs270": _rs((4, 29, 53, 4), input_shape=(256, 256, 3)),
    "resnetrs350": _rs((4, 36, 72, 4), input_shape=(288, 288, 3)),
    "resnetrs420": _rs((4, 44, 87, 4), input_shape=(320, 320, 3)),
    # Group normalisation and weight standardisation: Kolesnikov et al. 2020, "Big transfer"
    "resnetv2_50x1_bit": _bit(_50),
    "resnetv2_50x3_bit": _bit(_50, width=192),
    "resnetv2_101x1_bit": _bit(_101),
    "resnetv2_101x3_bit": _bit(_101, width=192),
    "resnetv2_152x2_bit": _bit(_152, width=128),
    "resnetv2_152x4_bit": _bit(_152, width=256),
    # CIFAR: He et al. 2015, section 4.2, 6n + 2 layers; the first two, not in the paper, are common in distillation
    "resnet8": _he((1, 1, 1)),
    "resnet14": _he((2, 2, 2)),
    "resnet20": _he((3, 3, 3)),
    "resnet32": _he((5, 5, 5)),
    "resnet44": _he((7, 7, 7)),
    "resnet56": _he((9, 9, 9)),
    "resnet110": _he((18, 18, 18)),
    "resnet1202": _he((200, 200, 200)),
    "plain20": _plain((3, 3, 3)),
    "plain32": _plain((5, 5, 5)),
    "plain44": _plain((7, 7, 7)),
    "plain56": _plain((9, 9, 9)),
    "plain110": _plain((18, 18, 18)),
    "plain1202": _plain((200, 200, 200)),
    # CIFAR, pre-activation, 9n + 2 layers: He et al. 2016, table 3; the basic block keeps option A
    "resnet110v2": _pre((18, 18, 18), block=PreActBasicBlock, shortcut=PadShortcut),
    "resnet164v2": _pre((18, 18, 18)),
    "resnet1001v2": _pre((111, 111, 111)),
    # CIFAR, wide: Zagoruyko and Komodakis 2016, 6n + 4 layers; `dropout` is an option
    "wrn_16_4": _wrn((2, 2, 2), width=64),
    "wrn_16_8": _wrn((2, 2, 2), width=128),
    "wrn_28_10": _wrn((4, 4, 4), width=160),
    "wrn_40_4": _wrn((6, 6, 6), width=64),
    # CIFAR, groups: Xie et al. 2017, section 5.3
    "resnext29_8x64d": _cifar((3, 3, 3), block=Bottleneck, groups=8),
    "resnext29_16x64d": _cifar((3, 3, 3), block=Bottleneck, groups=16),
    # The ImageNet widths at 32x32, and the nine layers of Page 2018
    "resnet18_cifar": _cifar((2, 2, 2, 2)),
    "resnet50_cifar": _cifar((3, 4, 6, 3), block=Bottleneck),
    "resnet9": _cifar(
        (2, 1, 2), block=PooledBlock, width=128, stem_features=64, strides=(2, 2, 2), pool=global_max_pool
    ),
    # Sequences (length, channels) and video (time, height, width, channels): Tran et al. 2018
    "resnet18_1d": ResNet((2, 2, 2, 2), input_shape=(1024, 1)),
    "resnet34_1d": ResNet((3, 4, 6, 3), input_shape=(1024, 1)),
    "resnet50_1d": _resnet(_50, input_shape=(1024, 1)),
    "r3d_18": ResNet((2, 2, 2, 2), stem=VideoStem, num_classes=400, input_shape=(16, 112, 112, 3)),
}


# Parts of a network that a recipe can name in `model.fields`, by field
PARTS: dict[str, Mapping[Any, Any]] = {
    "block": BLOCKS,
    "stem": STEMS,
    "gate": GATES,
    "norm": NORMS,
    "conv": CONVS,
    "pool": POOLS,
    "act": ACTS,
}
