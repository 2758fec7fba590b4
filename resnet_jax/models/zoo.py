"""The published networks, one entry each in MODELS."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from resnet_jax.models.backbone import Network
from resnet_jax.models.blocks import (
    BLOCKS,
    Bottleneck,
    FrameBlock,
    InvertedResidual,
    OriginalBottleneck,
    PooledBlock,
    PreActBasicBlock,
    PreActBottleneck,
    R2Plus1DBlock,
)
from resnet_jax.models.detection.anchors import RETINANET_SIZES
from resnet_jax.models.detection.faster_rcnn import FasterRCNN
from resnet_jax.models.detection.fcos import FCOS
from resnet_jax.models.detection.retinanet import RetinaNet
from resnet_jax.models.layers import (
    ACTS,
    ANTIALIASES,
    CONVS,
    GATES,
    POOLS,
    Conv,
    EfficientChannelAttention,
    SqueezeExcite,
    StandardizedConv,
    average_pool,
    blur_pool,
    global_max_pool,
    k_max_pool,
)
from resnet_jax.models.log_mel import LogMel
from resnet_jax.models.norm import NORMS, FrozenBatchNorm, group_norm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.segmentation import FCN, DeepLabV3, UNet
from resnet_jax.models.shortcuts import AverageShortcut, BareShortcut, IdentityShortcut, NoShortcut, PadShortcut
from resnet_jax.models.stems import (
    STEMS,
    BiTStem,
    CifarStem,
    DeepStem,
    MobileStem,
    PoollessStem,
    PreActCifarStem,
    PreActStem,
    R2Plus1DStem,
    TextStem,
    TieredStem,
    VideoStem,
)

# Number of blocks of each stage, by the number of layers of the bottleneck network
_14, _26, _50, _101, _152 = (1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_200, _269 = (3, 24, 36, 3), (3, 30, 48, 8)

_resnet = partial(ResNet, block=Bottleneck)
_resnext = partial(_resnet, groups=32, base_width=4)
_d: dict[str, Any] = {"stem": DeepStem, "shortcut": AverageShortcut}
_t: dict[str, Any] = {"stem": TieredStem, "shortcut": AverageShortcut}
_se: dict[str, Any] = {"gate": SqueezeExcite}
_eca: dict[str, Any] = {"gate": EfficientChannelAttention}
_aa: dict[str, Any] = {"antialias": average_pool}
_rs = partial(_resnet, stem=PoollessStem, shortcut=AverageShortcut, gate=partial(SqueezeExcite, ratio=0.25))
_v2 = partial(ResNet, block=PreActBottleneck, stem=PreActStem)
_bit = partial(ResNet, block=PreActBottleneck, stem=BiTStem, conv=StandardizedConv, norm=group_norm)
_cifar = partial(ResNet, stem=CifarStem, num_classes=10, input_shape=(32, 32, 3))
_he = partial(_cifar, shortcut=PadShortcut, width=16)
_plain = partial(_cifar, shortcut=NoShortcut, width=16)
_pre = partial(_cifar, block=PreActBottleneck, stem=PreActCifarStem, width=16)
_wrn = partial(_cifar, block=PreActBasicBlock, stem=PreActCifarStem, stem_features=16)
_video = partial(ResNet, (2, 2, 2, 2), stem=VideoStem, num_classes=400, input_shape=(16, 112, 112, 3))
_vdcnn = partial(ResNet, stem=TextStem, pool=k_max_pool, num_classes=2, input_shape=(1024, 1))
# Without a head, as a backbone of the networks below
_features18 = ResNet((2, 2, 2, 2), num_classes=0)
_features34 = ResNet((3, 4, 6, 3), num_classes=0)
_features50, _features101 = (_resnet(depths, num_classes=0) for depths in (_50, _101))
_frozen50 = _features50.clone(norm=FrozenBatchNorm)
_boxes: dict[str, Any] = {"num_classes": 91, "input_shape": (800, 800, 3)}
_coco: dict[str, Any] = {"input_shape": (520, 520, 3)}

MODELS: dict[str, Network] = {
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
    "resnext101_32x48d": _resnext(_101, base_width=48),
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
    "seresnet269d": _resnet(_269, **_d, **_se),
    # A deep stem whose widths grow, of timm
    "resnet10t": ResNet(_14, **_t),
    "resnet14t": _resnet(_14, **_t),
    "resnet26t": _resnet(_26, **_t),
    "resnet50t": _resnet(_50, **_t),
    "seresnet50t": _resnet(_50, **_t, **_se),
    "seresnext26t_32x4d": _resnext(_26, **_t, **_se),
    # Efficient channel attention: Wang et al. 2020
    "ecaresnet26t": _resnet(_26, **_t, **_eca),
    "ecaresnet50t": _resnet(_50, **_t, **_eca),
    "ecaresnet50d": _resnet(_50, **_d, **_eca),
    "ecaresnet101d": _resnet(_101, **_d, **_eca),
    "ecaresnet200d": _resnet(_200, **_d, **_eca),
    "ecaresnet269d": _resnet(_269, **_d, **_eca),
    "ecaresnetlight": _resnet((1, 1, 11, 3), shortcut=AverageShortcut, **_eca),
    "ecaresnext26t_32x4d": _resnext(_26, **_t, **_eca),
    "ecaresnext50t_32x4d": _resnext(_50, **_t, **_eca),
    # Group normalisation: Wu and He 2018
    "resnet50_gn": _resnet(_50, norm=group_norm),
    # Anti-aliased: Zhang 2019
    "resnetblur18": ResNet((2, 2, 2, 2), antialias=blur_pool),
    "resnetblur50": _resnet(_50, antialias=blur_pool),
    "resnetblur50d": _resnet(_50, antialias=blur_pool, **_d),
    "resnetblur101d": _resnet(_101, antialias=blur_pool, **_d),
    # The same by averages of 2x2 pixels, as in timm
    "resnetaa34d": ResNet((3, 4, 6, 3), **_aa, **_d),
    "resnetaa50": _resnet(_50, **_aa),
    "resnetaa50d": _resnet(_50, **_aa, **_d),
    "resnetaa101d": _resnet(_101, **_aa, **_d),
    "seresnetaa50d": _resnet(_50, **_aa, **_d, **_se),
    "seresnextaa101d_32x8d": _resnext(_101, base_width=8, **_aa, **_d, **_se),
    "seresnextaa201d_32x8d": _resnext((3, 24, 36, 4), base_width=8, stem_features=128, **_aa, **_d, **_se),
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
    # Inverted residuals: Sandler et al. 2018, table 2, whose first two rows are the stem
    "mobilenet_v2": ResNet(
        (2, 3, 4, 3, 3, 1),
        block=InvertedResidual,
        stem=MobileStem,
        shortcut=IdentityShortcut,
        widths=(24, 32, 64, 96, 160, 320),
        strides=(2, 2, 2, 1, 2, 1),
        act=ACTS["relu6"],
        stem_features=16,
        last_features=1280,
    ),
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
    # MLPerf Tiny's image classification: Banbury et al. 2021; convolutions have a bias. Keras counts 78,666 parameters,
    # 480 of them running statistics; its strided convolutions are padded on one side, ours on both
    "resnet8_mlperf_tiny": _cifar((1, 1, 1), width=16, conv=partial(Conv, bias=True), shortcut=BareShortcut),
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
    "r3d_18": _video(),
    "mc3_18": _video(later_block=FrameBlock),
    "r2plus1d_18": _video(block=R2Plus1DBlock, stem=R2Plus1DStem),
    # Sound, by its log-mel spectrogram, and text, by its bytes: Conneau et al. 2017, with one layer after the pool
    "log_mel_resnet18": LogMel(_features18, num_classes=35),
    "vdcnn9": _vdcnn((1, 1, 1, 1)),
    "vdcnn17": _vdcnn((2, 2, 2, 2)),
    "vdcnn29": _vdcnn((5, 5, 2, 2)),
    # Semantic segmentation, by the 21 classes of Pascal VOC: Ronneberger et al. 2015, with a light decoder
    "unet_resnet18": UNet(_features18),
    "unet_resnet34": UNet(_features34),
    "unet_resnet50": UNet(_features50),
    # Long et al. 2015 and Chen et al. 2017, at output stride 8
    "fcn_resnet50": FCN(_features50.clone(output_stride=8), **_coco),
    "fcn_resnet101": FCN(_features101.clone(output_stride=8), **_coco),
    "deeplabv3_resnet50": DeepLabV3(_features50.clone(output_stride=8), **_coco),
    "deeplabv3_resnet101": DeepLabV3(_features101.clone(output_stride=8), **_coco),
    # Object detection, by the 91 numbers of COCO's classes: Lin et al. 2017, "Focal loss", and torchvision's later one
    "retinanet_resnet50_fpn": RetinaNet(_frozen50, **_boxes),
    "retinanet_resnet50_fpn_v2": RetinaNet(_features50, group_norm=True, box_loss="giou", extra="c5", **_boxes),
    # Tian et al. 2019
    "fcos_resnet50_fpn": FCOS(_frozen50, **_boxes),
    # Ren et al. 2015 on a feature pyramid; the background is no class of its own here
    "fasterrcnn_resnet50_fpn": FasterRCNN(_frozen50, **{**_boxes, "num_classes": 90}),
    "fasterrcnn_resnet50_fpn_v2": FasterRCNN(_features50, rpn_depth=2, conv_head=True, **{**_boxes, "num_classes": 90}),
    # For small data: three levels, half the width, two convolutions per head
    "retinanet_resnet18_fpn": RetinaNet(
        _features18,
        num_classes=20,
        pyramid_width=128,
        head_depth=2,
        extra="none",
        anchor_sizes=RETINANET_SIZES[:3],
        input_shape=(320, 320, 3),
    ),
}


# Names of timm that differ from those here
ALIASES = {f"resnetv2_{layers}": f"resnet{layers}v2" for layers in (18, 34, 50, 101, 152)}


def known_as(name: str) -> str:
    """Return the name here of a network, or of weights NETWORK.TAG, that is called as in timm.

    Example:
        >>> known_as("resnetv2_50.a1h_in1k"), known_as("resnet18")
        ('resnet50v2.a1h_in1k', 'resnet18')
    """
    network, dot, tag = name.partition(".")
    return f"{ALIASES.get(network, network)}{dot}{tag}"


# Parts of a network that a recipe can name in `model.fields`, by field
PARTS: dict[str, Mapping[Any, Any]] = {
    "backbone": {name: model for name, model in MODELS.items() if isinstance(model, ResNet)},
    "block": BLOCKS,
    "later_block": {None: None, **BLOCKS},
    "stem": STEMS,
    "gate": GATES,
    "antialias": ANTIALIASES,
    "norm": NORMS,
    "conv": CONVS,
    "pool": POOLS,
    "act": ACTS,
    # Of detectors
    "box_loss": {name: name for name in ("l1", "giou")},
    "extra": {name: name for name in ("none", "pool", "p5", "c5")},
}
