"""The fields of a recipe: every choice that changes the mathematics of a run, each with its unit and bounds.

Devices, hosts, folders and intervals are options of a run and not part of the recipe: the same recipe gives the same
curve.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from resnet_jax.recipe.bounds import FRACTION, NON_NEGATIVE, POSITIVE, UNIT, Bounds, Increasing, Pair, UsedBy
from resnet_jax.recipe.optimization import Optimizer, Schedule

# A table of names and values: given as a dict, kept as sorted pairs, which are hashable
if TYPE_CHECKING:
    Table = Mapping[str, Any] | tuple[tuple[str, Any], ...]
else:
    Table = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network."""

    name: str = "resnet20"
    """Published network (`resnet-jax list` shows all), or a network of your own as `package.module:network`."""
    fields: Table = ()
    """Other fields of the network, as a dict or, on the command line, as JSON: {"width": 32, "block": "Bottleneck"}.
    Classes are given by name."""
    shortcut: Literal["A", "B", "C", "D", "none"] | None = None
    """He et al. 2015, section 3.3: A zero-padded identity, B projection if the shape changes, C projection everywhere;
    He et al. 2019: D average pooling and projection if the shape changes; none for a plain network. None keeps the
    published one."""
    norm_group_size: Annotated[int | None, POSITIVE] = None
    """Ghost batch size: number of images that share BatchNorm statistics (Goyal et al. 2017: 32). None is the whole
    batch."""
    norm_momentum: Annotated[float, FRACTION] = 0.9
    """Decay of the running statistics: fraction of the old value that a step keeps."""
    freeze_norm: bool = False
    """Normalise with the running statistics during training too, and do not update them."""
    zero_init_residual: bool = False
    """Start every residual branch at zero: its last BatchNorm scale or, in pre-activation blocks, its last
    convolution."""
    dropout: Annotated[float, FRACTION] = 0.0
    """Dropout probability inside each block (Zagoruyko and Komodakis 2016: 0.3)."""
    head_dropout: Annotated[float, FRACTION] = 0.0
    """Dropout probability before the head (Bello et al. 2021: 0.25)."""
    drop_path: Annotated[float, FRACTION] = 0.0
    """Stochastic depth: probability of skipping the last block, growing linearly from 0 at the first (Huang et al.
    2016)."""
    quantize: bool = False
    """Quantisation-aware training: round the weights and inputs of all convolutions and of the head to int8 in the
    forward pass (Jacob et al. 2018). Best from `pretrained` float weights, at a small learning rate."""
    pretrained: str | None = None
    """Initial weights: a run, a file, `hf:OWNER/NAME` or an entry of `resnet-jax list --weights`. If the number of
    classes differs, the head is re-initialised."""
    pretrained_best: bool = False
    """Of a run, take the checkpoint with the best evaluation instead of the newest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, statistics, head and loss stay float32."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", _as_pairs(self.fields))


def _as_pairs(fields: Any) -> Any:
    """Return a dict, or pairs as JSON has them, as sorted pairs; anything else is left for the type check."""
    if isinstance(fields, Mapping):
        fields = fields.items()
    if not isinstance(fields, str) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in fields):
        return tuple(sorted((name, _hashable(value)) for name, value in fields))
    return fields


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data set and how images are preprocessed."""

    name: str = "digits"
    """Data set; `resnet-jax list` shows all."""
    image_size: Annotated[int | tuple[int, int] | None, POSITIVE] = None
    """Height and width in pixels: one number, or both. The image is resized to image_size / crop_pct, keeping its
    shape, as `crop_mode` says. None leaves images as they are, which needs a data set of one size."""
    crop_pct: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0
    """Fraction of the resized shorter side that the centre crop keeps."""
    crop_mode: Literal["center", "border"] = "center"
    """center: cover the size and crop the centre. border: fit into the size and pad with the mean, which has no label
    in a mask."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of the resize, antialiased."""
    sample_rate: Annotated[int | None, POSITIVE] = None
    """Sound: samples per second. Sound files are resampled to it."""
    seconds: Annotated[float | None, POSITIVE] = None
    """Sound: length to which files are cropped or padded around their centre. Folders then hold sound files."""
    frames: Annotated[int | None, POSITIVE] = None
    """Video: number of frames of a clip. Folders then hold video files; training takes a random clip of each, and
    evaluation the middle one."""
    frame_rate: Annotated[float | None, POSITIVE] = None
    """Video: frames per second of a clip, chosen by time stamp."""
    num_validation: Annotated[int | float, NON_NEGATIVE] = 0
    """Training images held out for validation, always the same ones: a number, or a fraction below 1. If positive, a
    run is evaluated on them and not on the test split."""
    fold: str | None = None
    """Cross-validation: I/K, such as 2/5, holds out the I-th of K parts of the training images instead."""
    stratify: bool = False
    """Hold out the same fraction of each class."""
    group_by: str | None = None
    """Hold out images of one group, such as a patient or a speaker, together: `folder` for images in one folder, a
    column of csv:FILE, or a {name} in files:PATTERN."""
    class_map: Table = ()
    """New names of classes, as a dict or, on the command line, as JSON: {"cat": "pet", "dog": "pet", "car": null}.
    Those of one new name are merged, and null drops a class with its images."""
    limit: Annotated[int | float | None, POSITIVE] = None
    """Training images to keep of each class: a number, or a fraction below 1; a larger limit includes the images of a
    smaller one. None is all."""
    sampling: str = "uniform"
    """How training images are drawn: uniform, each once per epoch; balanced, all classes equally often; sqrt, in
    proportion to the roots of their sizes; or a text file with a weight for each training image. An epoch has as many
    draws as there are images."""
    mix: Table = ()
    """Other data sets whose training images are mixed in, each with its number of draws relative to that of `name`:
    {"folder:drawn": 0.5} is one of three."""
    test_split: str | None = None
    """Folder or TFDS split to test on, such as val. None is the first of test, val, valid and validation that has the
    classes of the training images."""
    mean: tuple[float, ...] = (0.5,)
    """Mean of the pixels, scaled to 0 to 1; one number, or one per channel."""
    std: Annotated[tuple[float, ...], POSITIVE] = (0.5,)
    """Standard deviation of the pixels, scaled to 0 to 1; one number, or one per channel."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_map", _as_pairs(self.class_map))
        object.__setattr__(self, "mix", _as_pairs(self.mix))

    @property
    def holds_out(self) -> bool:
        """Whether training images are held out, on which a run is then evaluated."""
        return bool(self.num_validation or self.fold)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Augmentation of the training images, applied in this order."""

    crop_padding: Annotated[int, NON_NEGATIVE] = 1
    """Pixels of padding on each side before a random crop of the original size."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    """Content of the padding: zeros (black), or the image reflected at its edge."""
    hflip: bool = False
    """Horizontal flip with probability 0.5."""
    alternating_hflip: bool = False
    """Horizontal flip in every second epoch, starting at random (Jordan 2024, section 3.6); instead of `hflip`."""
    random_resized_crop: bool = False
    """Random-resized crop, bilinear (Szegedy et al. 2015, section 6)."""
    rrc_from: Literal["resized", "original"] = "resized"
    """Image that is cropped: the resized one, on the device; or the original, on the host, before everything else, as
    is usual for ImageNet."""
    rrc_scale: Annotated[tuple[float, float], Pair(1.0)] = (0.08, 1.0)
    """Range of the area of the crop, as a fraction of the image."""
    rrc_ratio: Annotated[tuple[float, float], Pair()] = (3 / 4, 4 / 3)
    """Range of the ratio of its width to its height."""
    train_crop_size: Annotated[int | None, POSITIVE] = None
    """Height and width in pixels of the random crop of these two; None is the size of the images."""
    scale_jitter: Annotated[tuple[float, float], Pair()] = (1.0, 1.0)
    """Range of a random factor that resizes the image before a random crop (segmentation: 0.5 to 2); a smaller image
    is padded, black and without label or object. (1, 1) = off."""
    min_visibility: Annotated[float, UNIT] = 0.25
    """Fraction of the area of a box that a crop must leave; otherwise its object is left out."""
    policy: Literal[
        "none", "randaugment", "randaugment_inc", "trivialaugment_wide", "autoaugment_imagenet", "autoaugment_cifar10"
    ] = "none"
    """RandAugment (Cubuk et al. 2020), timm's increasing variant of it, TrivialAugmentWide (Müller and Hutter 2021) or
    a policy of AutoAugment (Cubuk et al. 2019)."""
    num_ops: Annotated[int, POSITIVE] = 2
    """Number of RandAugment operations per image."""
    magnitude: Annotated[float, Bounds(0, 30)] = 9.0
    """Magnitude of RandAugment: 0 to 30, or 0 to 10 for the increasing variant."""
    magnitude_std: Annotated[float, NON_NEGATIVE] = 0.0
    """Standard deviation of the magnitude between operations."""
    policy_interpolation: Literal["nearest", "bilinear"] = "nearest"
    """Interpolation of the policy's rotations, shears and translations."""
    policy_fill: Annotated[int, Bounds(0, 255)] = 0
    """Grey level of the area that these uncover."""
    brightness: Annotated[float, UNIT] = 0.0
    """Maximum deviation of a random brightness factor from 1."""
    contrast: Annotated[float, UNIT] = 0.0
    """Maximum deviation of a random contrast factor from 1."""
    saturation: Annotated[float, UNIT] = 0.0
    """Maximum deviation of a random saturation factor from 1."""
    hue: Annotated[float, Bounds(0, 0.5)] = 0.0
    """Maximum hue shift, as a fraction of the circle."""
    cutout: Annotated[int, NON_NEGATIVE] = 0
    """Side in pixels of a square that is set to the mean (DeVries and Taylor 2017); 0 = off."""
    erase_prob: Annotated[float, UNIT] = 0.0
    """Probability of random erasing: a rectangle is set to the mean (Zhong et al. 2020)."""
    erase_scale: Annotated[tuple[float, float], Pair(1.0)] = (0.02, 1 / 3)
    """Range of the area of the rectangle, as a fraction of the image."""
    erase_ratio: Annotated[tuple[float, float], Pair()] = (0.3, 10 / 3)
    """Range of the ratio of its height to its width."""
    mixup_alpha: Annotated[float, NON_NEGATIVE] = 0.0
    """Alpha of mixup's Beta distribution (Zhang et al. 2018); 0 = off."""
    cutmix_alpha: Annotated[float, NON_NEGATIVE] = 0.0
    """Alpha of CutMix's Beta distribution (Yun et al. 2019); 0 = off. If both are on, each batch uses one of them."""
    mix_prob: Annotated[float, UNIT] = 1.0
    """Probability that a batch uses mixup or CutMix."""
    mix_switch_prob: Annotated[float, UNIT] = 0.5
    """Probability of CutMix if both are on."""
    time_shift: Annotated[float, UNIT] = 0.0
    """Sound: largest random shift in time, as a fraction of its length; silence follows."""
    progressive_sizes: Annotated[tuple[int, ...], POSITIVE] = ()
    """Heights and widths in pixels of progressive resizing, in order; () = off."""
    progressive_starts: Annotated[tuple[float, ...], Increasing()] = ()
    """Time at which each of `progressive_sizes` starts, the first at 0; in epochs or steps, like the run's length."""
    aug_repeats: Annotated[int, POSITIVE] = 1
    """Number of copies of each image in a batch, augmented independently (Hoffer et al. 2020). The length of an epoch
    in steps stays the same."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss, averaged over the examples."""

    name: Literal["cross_entropy", "bce", "multilabel", "mse", "pixel_cross_entropy", "dice", "detection"] = (
        "cross_entropy"
    )
    """Classification: cross-entropy, or binary cross-entropy per class (Wightman et al. 2021). Several labels per
    image: multilabel, binary cross-entropy of labels 0 or 1. Regression: mse, the mean squared error. Segmentation:
    pixel_cross_entropy, averaged over the labelled pixels, or dice, 1 - Dice coefficient (Milletari et al. 2016).
    Detection: the loss of the network itself."""
    label_smoothing: Annotated[float, FRACTION, UsedBy("cross_entropy", "bce", "pixel_cross_entropy")] = 0.0
    """Label smoothing (Szegedy et al. 2016, section 7)."""
    class_weights: Annotated[
        tuple[float, ...] | Literal["auto"],
        NON_NEGATIVE,
        UsedBy("cross_entropy", "bce", "multilabel", "pixel_cross_entropy"),
    ] = ()
    """Weight of each class in the loss, as PyTorch's `weight`; () is 1 for all. auto is n / (k n_c), as scikit-learn's
    "balanced": n training images or labelled pixels of k classes, n_c of class c."""
    pos_weight: Annotated[tuple[float, ...] | Literal["auto"], NON_NEGATIVE, UsedBy("multilabel")] = ()
    """Weight of each label where it is present, as in PyTorch's BCEWithLogitsLoss; () is 1 for all. auto is the number
    of training images without the label divided by that of images with it."""
    focal_gamma: Annotated[float, NON_NEGATIVE, UsedBy("cross_entropy", "bce", "multilabel", "pixel_cross_entropy")] = (
        0.0
    )
    """Focal loss (Lin et al. 2017): exponent of (1 - probability), the factor of the loss; 0 = off."""
    bce_target_thresh: Annotated[float | None, FRACTION, UsedBy("bce")] = None
    """Targets above this become 1, the others 0 (timm's --bce-target-thresh); None keeps soft targets."""
    sum_classes: Annotated[bool, UsedBy("bce", "multilabel")] = False
    """Sum the loss over the classes instead of averaging it."""
    max_objects: Annotated[int, POSITIVE, UsedBy("detection")] = 100
    """Number of objects to which targets are padded; an image with more counts as one that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Knowledge distillation: the network also learns the outputs of a trained one (Hinton et al. 2015)."""

    teacher: str | None = None
    """A run, a file, `hf:OWNER/NAME` or an entry of `resnet-jax list --weights`, of the same classes; None = off. It
    sees the same images as the network, augmented and mixed, normalised with its own mean and std."""
    model: str | None = None
    """Network of a teacher that is a bare weights file, or published weights with its mean and std."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Divides the logits of both before the softmax; the divergence is multiplied by its square (section 2.1)."""
    weight: Annotated[float, Bounds(0, 1, open_low=True)] = 0.5
    """Weight of the teacher in the loss; that of the targets is 1 - weight."""
    hard: bool = False
    """Learn the teacher's class instead of its probabilities (Touvron et al. 2021, section 4)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run as a value: print it, compare it and vary it with `dataclasses.replace`.

    The defaults are those of experiments/digits.py; other recipes set every field they rely on.

    Example:
        >>> from dataclasses import replace
        >>> from resnet_jax.recipe import differences
        >>> recipe = replace(Recipe(), batch_size=128, model=Model(name="resnet56"))
        >>> differences(Recipe(), recipe)
        ['model.name resnet20 -> resnet56', 'batch_size 64 -> 128']
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    distill: Distill = field(default_factory=Distill)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    batch_size: Annotated[int, POSITIVE] = 64
    """Images per step, over all devices."""
    epochs: Annotated[float | None, POSITIVE] = 30.0
    """Length in epochs; or give `steps`."""
    steps: Annotated[int | None, POSITIVE] = None
    """Length in steps; or give `epochs`."""
    ema_decay: Annotated[float, FRACTION] = 0.0
    """Decay of an exponential moving average (EMA) of parameters and statistics, e.g. 0.999; 0 = off."""
    ema_update_every: Annotated[int, POSITIVE] = 1
    """Steps between updates of the EMA."""
    ema_warmup: bool = True
    """Lower the decay at first, so that a short run does not average its initial parameters: min(ema_decay,
    (1 + n) / (10 + n)) at the n-th update."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """If the loss or gradient is not finite: stop the run, or skip the step."""
    parent: str | None = None
    """Run that this one continues: it starts from the newest state there, with its optimiser state and at its step.
    Length and times count from the first step of the parent."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of everything random: initial parameters, order of the images, augmentation."""
