"""The fields of a recipe that say how it is optimised: optimiser and learning rate schedule."""

from dataclasses import dataclass
from typing import Annotated, Literal

from resnet_jax.recipe.bounds import FRACTION, NON_NEGATIVE, POSITIVE, UNIT, Bounds, Increasing, UsedBy

_MOMENTS = ("adam", "adamw", "lamb", "muon")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimiser. Fields say which optimisers use them."""

    name: Literal[
        "sgd",
        "rmsprop",
        "adam",
        "adamw",
        "adafactor",
        "lion",
        "lamb",
        "lars",
        "muon",
        "schedule_free_sgd",
        "schedule_free_adamw",
    ] = "sgd"
    """SGD with momentum; RMSProp as in TensorFlow, whose averages start at 1; AdamW (Loshchilov and Hutter 2019); LAMB
    (You et al. 2020); LARS (You et al. 2017); Muon (Jordan et al. 2024) for convolution kernels, scaled as in Liu et
    al. 2025 so that lr is an AdamW rate, and AdamW for the other parameters. Adam (Kingma and Ba 2015); Adafactor
    (Shazeer and Stern 2018) without momentum, whose lr is relative to the size of the parameters; Lion (Chen et al.
    2023: b2 0.99, lr a tenth of AdamW's); schedule-free (Defazio et al. 2024), with a constant schedule."""
    lr: Annotated[float, POSITIVE] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, FRACTION, UsedBy("sgd", "rmsprop", "lars", "muon")] = 0.9
    """Momentum of sgd, rmsprop, lars and muon (Jordan: 0.95)."""
    nesterov: Annotated[bool, UsedBy("sgd", "lars", "muon")] = True
    """Nesterov momentum, of sgd, lars and muon."""
    b1: Annotated[float, FRACTION, UsedBy(*_MOMENTS, "lion", "schedule_free_sgd", "schedule_free_adamw")] = 0.9
    """Decay of the first moment, of the Adam family, lion, lamb and muon's AdamW; of the schedule-free ones the weight
    of the average in the point where the gradient is taken."""
    b2: Annotated[float, FRACTION, UsedBy(*_MOMENTS, "rmsprop", "lion", "schedule_free_adamw")] = 0.999
    """Decay of the second moment, of these and of rmsprop (Tan and Le 2019: 0.9)."""
    eps: Annotated[float, NON_NEGATIVE, UsedBy(*_MOMENTS, "rmsprop", "lars", "schedule_free_adamw")] = 1e-8
    """Added to the root of the second moment, by rmsprop under the root (Tan and Le 2019: 1e-3); also to the norms of
    lars and muon."""
    trust_coefficient: Annotated[float, POSITIVE, UsedBy("lars")] = 0.001
    """LARS: update at learning rate 1, as a fraction of the parameter's norm (You et al. 2017, equation 6)."""
    weight_decay: Annotated[float, NON_NEGATIVE] = 5e-4
    """Weight decay: added to the gradient by sgd, rmsprop, adam, lars and schedule_free_sgd, otherwise decoupled."""
    weight_decay_mask: Literal["all", "no_norm", "kernels"] = "all"
    """Parameters that decay: all; all but the scale and bias of normalisations (torchvision's norm_weight_decay 0); or
    only the kernels of convolutions and head. In lamb and lars the same parameters have layer-wise rates."""
    sam_rho: Annotated[float, NON_NEGATIVE] = 0.0
    """Sharpness-aware minimisation (Foret et al. 2021, equation 2: 0.05): the gradient is taken at this distance up the
    slope, which takes a second pass; 0 = off."""
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

    name: Literal[
        "constant",
        "steps",
        "cosine",
        "cosine_restarts",
        "linear",
        "polynomial",
        "exponential",
        "onecycle",
        "plateau",
    ] = "cosine"
    """Shape after the warm-up; onecycle has its own rise (Smith and Topin 2018) and takes no warm-up. cosine_restarts
    is SGDR (Loshchilov and Hutter 2017). plateau multiplies the rate by `gamma` when the validation loss, measured once
    per epoch, has not improved by a relative 1e-4 for more than `plateau_patience` epochs."""
    warmup: float = 3.0
    """Length of the linear warm-up."""
    warmup_start_factor: Annotated[float, UNIT] = 0.0
    """Factor of the peak at which the warm-up starts."""
    milestones: Annotated[tuple[float, ...], Increasing(), UsedBy("steps")] = ()
    """Times, from the start of the run, at which "steps" multiplies the rate by `gamma`."""
    gamma: Annotated[float, POSITIVE, UsedBy("steps", "exponential", "plateau")] = 0.1
    """Factor of "steps", "exponential" and "plateau"."""
    plateau_patience: Annotated[int, NON_NEGATIVE, UsedBy("plateau")] = 10
    """Epochs without a lower validation loss that "plateau" tolerates."""
    restart_every: Annotated[float, NON_NEGATIVE, UsedBy("cosine_restarts")] = 0.0
    """Length of the first cycle of "cosine_restarts"."""
    restart_mult: Annotated[float, Bounds(low=1), UsedBy("cosine_restarts")] = 1.0
    """Length of each later cycle of "cosine_restarts", as a multiple of the one before."""
    decay_every: Annotated[float, NON_NEGATIVE, UsedBy("exponential")] = 0.0
    """Time between multiplications of "exponential" by `gamma`, from the end of the warm-up."""
    staircase: Annotated[bool, UsedBy("exponential")] = False
    """Let "exponential" decay in steps instead of continuously."""
    end_factor: Annotated[float, UNIT, UsedBy("cosine", "cosine_restarts", "linear", "polynomial", "plateau")] = 0.0
    """Factor of the peak at which "cosine", its cycles, "linear" and "polynomial" end, and below which "plateau" does
    not go."""
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
