"""Published weights as data: source, preprocessing and published accuracy.

Sizes, crops, licences and ImageNet top-1 accuracies are from timm's own evaluation (results/results-imagenet.csv in
huggingface/pytorch-image-models, August 2026). An accuracy that is missing there is None.
"""

from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple, cast

from resnet_jax.data.formats.cifar import CIFAR10_CLASSES
from resnet_jax.data.formats.imagenet import imagenet_classes
from resnet_jax.data.image import Preprocessing
from resnet_jax.errors import InputError
from resnet_jax.runtime.strict_json import parse_json

# The classes of Pascal VOC, in the order of torchvision's weights
VOC_CLASSES = (
    *("__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_HERE = "resnet_jax.weights"
Interpolation = Literal["bilinear", "bicubic"]


class Entry(NamedTuple):
    """Published weights of one network."""

    name: str
    """NETWORK.TAG."""
    source: str
    """hf:OWNER/NAME, the address of the file, or the page that offers it."""
    classes: int
    """Number of classes."""
    top1: float | None
    """Published top-1 accuracy in percent."""
    preprocessing: Preprocessing
    license: str
    fields: tuple[tuple[str, Any], ...] = ()
    """Fields of the network that differ from MODELS, by name as in a recipe."""
    class_names: tuple[str, ...] = ()
    """Names of the classes; () if they are not given."""
    refused: str = ""
    """What is said of the network or its preprocessing and is not understood."""
    scores: tuple[tuple[str, float], ...] = ()
    """Other published numbers in percent, the most important one first, such as ("mIoU", 60.5)."""

    @property
    def tag(self) -> str:
        """Tag that tells the weights of one network apart."""
        return self.name.partition(".")[2]

    @property
    def model(self) -> str:
        """Name of the network in MODELS."""
        return self.name.split(".")[0]

    @property
    def score(self) -> str:
        """The published accuracy as text, or its most important other number with its name."""
        if self.top1 is not None:
            return f"{self.top1:.2f}"
        return "".join(f"{name} {value:g}" for name, value in self.scores[:1])


def _entry(
    name: str,
    source: str,
    classes: int,
    top1: float | None,
    size: int | list[int],
    crop: float,
    interpolation: str,
    mean: list[float],
    std: list[float],
    license: str,  # noqa: A002
    scores: dict[str, float] | None = None,
    fields: dict[str, str] | None = None,
    crop_mode: Literal["center", "border"] | None = None,
    frames: int | None = None,
    frame_rate: float | None = None,
) -> Entry:
    preprocessing = Preprocessing(
        image_size=size if isinstance(size, int) else (size[0], size[1]),
        crop_pct=crop,
        crop_mode=crop_mode,
        interpolation=cast(Interpolation, interpolation),
        mean=tuple(mean),
        std=tuple(std),
        frames=frames,
        frame_rate=frame_rate,
    )
    known = {"voc": VOC_CLASSES, "coco": coco_classes()[-classes:], "kinetics400": kinetics_classes()}
    names = known.get(name.rpartition("_")[2], ())
    changed = tuple((fields or {}).items())
    entry = Entry(name, source, classes, top1, preprocessing, license, changed, names)
    return entry._replace(scores=tuple((scores or {}).items()))


@cache
def coco_classes() -> tuple[str, ...]:
    """Return COCO's classes by their numbers, from the background on."""
    return tuple(resources.files(_HERE).joinpath("coco_classes.txt").read_text().splitlines())


@cache
def kinetics_classes() -> tuple[str, ...]:
    """Return the 400 actions of Kinetics-400, in the order of torchvision's weights."""
    return tuple(resources.files(_HERE).joinpath("kinetics400_classes.txt").read_text().splitlines())


def _read() -> dict[str, Entry]:
    rows = parse_json(resources.files(_HERE).joinpath("entries.json").read_bytes())
    return {row["name"]: _entry(**row) for row in rows}


# By name, in the order of MODELS
WEIGHTS: dict[str, Entry] = _read()


# CIFAR-10 accuracies in percent of networks without published weights: He et al. 2015 (table 6) and 2016, Zagoruyko
# and Komodakis 2016
REPORTED = {
    "resnet20": 91.25,
    "resnet32": 92.49,
    "resnet44": 92.83,
    "resnet56": 93.03,
    "resnet110": 93.57,
    "resnet1202": 92.07,
    "resnet110v2": 93.63,
    "resnet164v2": 94.54,
    "resnet1001v2": 95.08,
    "wrn_28_10": 96.00,
}


def best_entry(model: str) -> Entry | None:
    """Return the published weights of a network with the highest accuracy, or None."""
    known = [entry for entry in WEIGHTS.values() if entry.model == model]
    return max(known, key=lambda entry: entry.top1 or 0, default=None)


def class_names(classes: int, entry: Entry | None = None) -> tuple[str, ...]:
    """Return class names: the entry's, CIFAR-10's by its tag, ImageNet-1k's for 1,000 classes, otherwise numbers.

    Raises InputError if the entry names another number of classes.
    """
    if entry and entry.class_names:
        if len(entry.class_names) != classes:
            what = f"{len(entry.class_names):,} classes, and the weights have {classes:,}"
            raise InputError(f"{entry.source}: config.json names {what}; correct its label_names or remove them")
        return entry.class_names
    if entry and entry.tag.endswith("cifar10"):
        return CIFAR10_CLASSES
    if classes != 1000:
        return tuple(map(str, range(classes)))
    return tuple(imagenet_classes().values())
