"""The fields of a recipe: every choice that changes the mathematics of a run, each with its unit and bounds.

Devices, hosts, folders and intervals are options of a run and not part of the recipe: the same recipe gives the same
curve.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from resnet_jax.recipe.bounds import FRACTION, NON_NEGATIVE, POSITIVE, UNIT, Bounds, Increasing, Pair, UsedBy

# Fields of the network that a recipe changes: given as a dict, kept as sorted pairs, which are hashable
if TYPE_CHECKING:
    NetworkFields = Mapping[str, Any] | tuple[tuple[str, Any], ...]
else:
    NetworkFields = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network."""

    name: str = "resnet20"
    """Published network (`resnet-jax list` shows all), or a network of your own as `package.module:network`."""
    fields: NetworkFields = ()
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
    pretrained: str | None = None
    """Initial weights: a run, a file, `hf:OWNER/NAME` or an entry of `resnet-jax list --weights`. If the number of
    classes differs, the head is re-initialised."""
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
    image_size: Annotated[int | None, POSITIVE] = None
    """Height and width in pixels. The shorter side is resized to image_size / crop_pct and the centre is cropped.
    None leaves images as they are, which needs a data set of one size."""
    crop_pct: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0
    """Fraction of the resized shorter side that the centre crop keeps."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of the resize, antialiased."""
    num_validation: Annotated[int, NON_NEGATIVE] = 0
    """Number of training images held out for validation, always the same ones. If positive, a run is evaluated on
    them and not on the test split."""
    test_split: str | None = None
    """Folder or TFDS split to test on, such as val. None is the first of test, val, valid and validation that has the
    classes of the training images."""
    mean: tuple[float, ...] = (0.5,)
    """Mean of the pixels, scaled to 0 to 1; one number, or one per channel."""
    std: Annotated[tuple[float, ...], POSITIVE] = (0.5,)
    """Standard deviation of the pixels, scaled to 0 to 1; one number, or one per channel."""


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
    """Height and width in pixels of the random-resized crop; None is the size of the images."""
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
    """Grey level of the area that they uncover."""
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

    name: Literal["cross_entropy", "bce", "multilabel", "mse"] = "cross_entropy"
    """Classification: cross-entropy, or binary cross-entropy per class (Wightman et al. 2021). Several labels per
    image: multilabel, binary cross-entropy of labels 0 or 1. Regression: mse, the mean squared error."""
    label_smoothing: Annotated[float, FRACTION, UsedBy("cross_entropy", "bce")] = 0.0
    """Label smoothing (Szegedy et al. 2016, section 7)."""
    bce_target_thresh: Annotated[float | None, FRACTION, UsedBy("bce")] = None
    """Targets over it become 1, the others 0 (timm's --bce-target-thresh); None keeps soft targets."""
    sum_classes: Annotated[bool, UsedBy("bce", "multilabel")] = False
    """Sum the loss over the classes instead of averaging it."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimiser; a field that only some optimisers use says which."""

    name: Literal["sgd", "rmsprop", "adamw", "lamb", "lars", "muon"] = "sgd"
    """SGD with momentum; RMSProp as in TensorFlow, whose averages start at 1; AdamW (Loshchilov and Hutter 2019); LAMB
    (You et al. 2020); LARS (You et al. 2017); Muon (Jordan et al. 2024) for convolution kernels, scaled as in Liu et
    al. 2025 so that lr is an AdamW rate, and AdamW for the other parameters."""
    lr: Annotated[float, POSITIVE] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, FRACTION, UsedBy("sgd", "rmsprop", "lars", "muon")] = 0.9
    """Momentum of sgd, rmsprop, lars and muon (Jordan: 0.95)."""
    nesterov: Annotated[bool, UsedBy("sgd", "lars", "muon")] = True
    """Nesterov momentum, of sgd, lars and muon."""
    b1: Annotated[float, FRACTION, UsedBy("adamw", "lamb", "muon")] = 0.9
    """Decay of the first moment, of adamw, lamb and muon's AdamW."""
    b2: Annotated[float, FRACTION, UsedBy("rmsprop", "adamw", "lamb", "muon")] = 0.999
    """Decay of the second moment, of these and of rmsprop (Tan and Le 2019: 0.9)."""
    eps: Annotated[float, NON_NEGATIVE, UsedBy("rmsprop", "adamw", "lamb", "lars", "muon")] = 1e-8
    """Added to the root of the second moment, by rmsprop under the root (Tan and Le 2019: 1e-3); also to the norms of
    lars and muon."""
    trust_coefficient: Annotated[float, POSITIVE, UsedBy("lars")] = 0.001
    """LARS: update at learning rate 1, as a fraction of the parameter's norm (You et al. 2017, equation 6)."""
    weight_decay: Annotated[float, NON_NEGATIVE] = 5e-4
    """Weight decay: added to the gradient by sgd, rmsprop and lars; decoupled in adamw, lamb and muon."""
    weight_decay_mask: Literal["all", "no_norm", "kernels"] = "all"
    """Parameters that decay: all; all but the scale and bias of normalisations (torchvision's norm_weight_decay 0); or
    only the kernels of convolutions and head. In lamb and lars the same parameters have layer-wise rates."""
    clip_grad_norm: Annotated[float, NON_NEGATIVE] = 0.0
    """Maximum global gradient norm (Pascanu et al. 2013); 0 = off."""
    agc_clipping: Annotated[float, NON_NEGATIVE] = 0.0
    """Adaptive gradient clipping: maximum gradient norm as a fraction of the weight norm, per output channel and
    without the head (Brock et al. 2021, section 4.1); 0 = off."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by path: stem, stage1_* or */bias; everything below a path is frozen. Running
    statistics are still updated; `model.freeze_norm` freezes them."""
    layer_decay: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0
    """Layer-wise learning rate decay: the head trains at the full rate, the last block at this fraction of it, the one
    before at its square, and so on to the stem (Howard and Ruder 2018, section 3.2)."""
    head_lr_mult: Annotated[float, POSITIVE] = 1.0
    """Learning rate of the head, as a multiple of the rate of all other parameters."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate schedule. Times are in epochs or in steps, like the run's length.

    The rate changes at every step, even if a paper or another library changes it once per epoch; both agree at the
    first step of an epoch.
    """

    name: Literal["constant", "steps", "cosine", "linear", "polynomial", "exponential", "onecycle"] = "cosine"
    """Shape after the warm-up; onecycle has its own rise (Smith and Topin 2018) and takes no warm-up."""
    warmup: float = 3.0
    """Length of the linear warm-up."""
    warmup_start_factor: Annotated[float, UNIT] = 0.0
    """Factor of the peak at which the warm-up starts."""
    milestones: Annotated[tuple[float, ...], Increasing(), UsedBy("steps")] = ()
    """Times, from the start of the run, at which "steps" multiplies the rate by `gamma`."""
    gamma: Annotated[float, POSITIVE, UsedBy("steps", "exponential")] = 0.1
    """Factor of "steps" and "exponential"."""
    decay_every: Annotated[float, NON_NEGATIVE, UsedBy("exponential")] = 0.0
    """Time in which "exponential" multiplies the rate once by `gamma`, from the end of the warm-up."""
    staircase: Annotated[bool, UsedBy("exponential")] = False
    """Let "exponential" decay in discrete steps."""
    end_factor: Annotated[float, UNIT, UsedBy("cosine", "linear", "polynomial")] = 0.0
    """Factor of the peak at which "cosine", "linear" and "polynomial" end."""
    power: Annotated[float, POSITIVE, UsedBy("polynomial")] = 2.0
    """Power of "polynomial"; 1 is linear."""
    pct_start: Annotated[float, Bounds(0, 1, open_low=True, open_high=True), UsedBy("onecycle")] = 0.3
    """Fraction of the run in which "onecycle" rises to the peak."""
    div_factor: Annotated[float, Bounds(low=1), UsedBy("onecycle")] = 25.0
    """Peak divided by the initial rate of "onecycle"."""
    final_div_factor: Annotated[float, Bounds(low=1), UsedBy("onecycle")] = 1e4
    """Initial divided by the final rate of "onecycle"."""
    anneal_strategy: Annotated[Literal["cosine", "linear"], UsedBy("onecycle")] = "cosine"
    """Shape of the rise and fall of "onecycle"."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run as a value: print it, compare it and vary it with `dataclasses.replace`.

    The defaults are the default recipe, experiments/digits.py; other recipes name everything that they rely on.

    Example:
        >>> from dataclasses import replace
        >>> recipe = replace(Recipe(), batch_size=128, model=Model(name="resnet56"))
        >>> differences(Recipe(), recipe)
        ['model.name resnet20 -> resnet56', 'batch_size 64 -> 128']
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
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
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of everything random: initial parameters, order of the images, augmentation."""


# The fields that are in epochs or steps, like the length
TIMES = ("schedule.warmup", "schedule.milestones", "schedule.decay_every", "augment.progressive_starts")


def fields_of(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a recipe with its dotted name.

    Example:
        >>> dict(fields_of(Recipe()))["optimizer.lr"]
        0.1
    """
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the fields in which two recipes differ, as "optimizer.lr 0.1 -> 0.2"."""
    values = dict(fields_of(new))
    return [f"{k} {v} -> {values[k]}" for k, v in fields_of(old) if values[k] != v]


def nearest_fields(name: str, known: list[str]) -> list[str]:
    """Return up to three of the `known` dotted names that resemble `name` as a whole or in their last part."""
    by_part = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    whole = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    last = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_part, n=3, cutoff=0.5)
    return list(dict.fromkeys([by_part[part] for part in last] + whole))[:3]


def total_steps(recipe: Recipe, train_size: int) -> int:
    """Return the length of a run in steps, at least 1."""
    return max(1, round(in_steps(recipe, recipe.steps or recipe.epochs or 0, train_size)))


def in_steps(recipe: Recipe, time: float, train_size: int) -> float:
    """Convert a time of the recipe, in epochs or steps like its length, to steps."""
    return time if recipe.epochs is None else time * train_size / recipe.batch_size
