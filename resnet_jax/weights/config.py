"""What stands beside weights: the config.json of timm or transformers."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from resnet_jax.data.image import Preprocessing
from resnet_jax.models.zoo import MODELS, known_as
from resnet_jax.runtime.safe_files import read_regular
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.weights.entries import Entry, Interpolation
from resnet_jax.weights.state_dict import listed

# timm's names for parts of ours. GELU is not among them: ours is the approximation by tanh
_POOLS = {"avg": "avg", "fast": "avg", "max": "max"}
_ACTS = {"swish": "silu", **{name: name for name in ("relu", "silu", "elu", "leaky_relu", "hard_swish")}}
# Of `model_args`: of training alone, or known from the tensors
_NEUTRAL = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "pretrained"}
# Blocks of a stage, since building a network takes time for each
_DEEPEST = 1000
# transformers': networks by layer and depths, Pillow's numbers of interpolations
_DEPTHS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_RESAMPLE: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
_PROCESSORS = ("ConvNextImageProcessor", "ConvNextImageProcessorFast", "ConvNextFeatureExtractor")
PREPROCESSOR = "preprocessor_config.json"


def describe(config: Path, source: str) -> Entry | None:
    """Return the entry that a config.json of timm or transformers describes, or None if it is of another network.

    What it says and is not understood is in `Entry.refused`.
    """
    try:
        values = parse_json(read_regular(config))
        if values.get("model_type") == "resnet":
            return _of_transformers(config, values, source)
        model, known = network_of(values["architecture"]), values["pretrained_cfg"]
        fields, refused = _understood(values, known)
        preprocessing = Preprocessing(
            image_size=int(known["input_size"][-1]),
            crop_pct=float(known["crop_pct"]),
            crop_mode=known.get("crop_mode"),
            interpolation=cast(Interpolation, str(known["interpolation"])),
            mean=tuple(map(float, known["mean"])),
            std=tuple(map(float, known["std"])),
        )
        name = f"{model}.{known.get('tag', '')}"
        names = tuple(map(str, values.get("label_names") or known.get("label_names") or ()))
        classes, license_ = int(values["num_classes"]), str(known.get("license"))
        return Entry(name, source, classes, None, preprocessing, license_, fields, names, refused)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _understood(values: dict[str, Any], known: dict[str, Any]) -> tuple[tuple[tuple[str, Any], ...], str]:
    """Return the fields of the network that a config.json changes, and what it says that is not understood."""
    arguments = values.get("model_args") or {}
    pool = arguments.get("global_pool", values.get("global_pool")) or "avg"
    act = arguments.get("act_layer") or "relu"
    depths = tuple(arguments.get("layers") or ())
    sensible = all(type(depth) is int and 0 < depth < _DEEPEST for depth in depths) and len(depths) in (0, 3, 4)
    others = {name: (value, ()) for name, value in arguments.items() if name not in _NEUTRAL}
    refused = _refused(
        others
        | {
            "global_pool": (pool, _POOLS),
            "act_layer": (act, _ACTS),
            "layers": (depths, (depths,) if sensible else ()),
            "output_stride": (arguments.get("output_stride", 32), (32,)),
            "crop_mode": (known.get("crop_mode") or "center", ("center", "border")),
            "interpolation": (known["interpolation"], ("bilinear", "bicubic")),
            "label_offset": (known.get("label_offset") or 0, (0,)),
            "input_size": (known["input_size"][-2:], ([known["input_size"][-1]] * 2,)),
        }
    )
    fields: tuple[tuple[str, Any], ...] = (
        ("act", _ACTS.get(str(act), "relu")),
        ("pool", _POOLS.get(str(pool), "avg")),
        ("depths", depths if sensible else ()),
    )
    return tuple(field for field in fields if field[1] not in ("relu", "avg", ())), refused


def _refused(said: Mapping[str, tuple[Any, Collection[Any]]]) -> str:
    """Return the values that are none of those that are understood; empty if all are."""
    wrong = [f"{name[:50]} {str(value)[:50]!r}" for name, (value, known) in said.items() if value not in tuple(known)]
    return listed(sorted(wrong)) if wrong else ""


def _of_transformers(config: Path, values: dict[str, Any], source: str) -> Entry:
    """Return the entry of a config.json of transformers' ResNet, with the preprocessing in the file beside it."""
    basic, depths = values["layer_type"] == "basic", tuple(values["depths"])
    widths = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
    original = "_v1" if values.get("downsample_in_bottleneck") and not basic else ""
    model = network_of(_DEPTHS[values["layer_type"], depths] + original)
    act, names = values.get("hidden_act", "relu"), values.get("id2label") or {}
    preprocessing, refused = _of_preprocessor(config.with_name(PREPROCESSOR))
    refused |= {
        "hidden_act": (act, _ACTS),
        "hidden_sizes": (values.get("hidden_sizes", widths), (widths,)),
        "embedding_size": (values.get("embedding_size", 64), (64,)),
        "downsample_in_first_stage": (values.get("downsample_in_first_stage", False), (False,)),
    }
    classes = tuple(str(names[str(i)]) for i in range(len(names)))
    fields = () if act == "relu" else (("act", _ACTS.get(str(act), "relu")),)
    return Entry(f"{model}.", source, len(classes), None, preprocessing, "", fields, classes, _refused(refused))


def _of_preprocessor(file: Path) -> tuple[Preprocessing, dict[str, tuple[Any, Collection[Any]]]]:
    """Return the preprocessing of a preprocessor_config.json, if there is one, and what must be understood of it."""
    if not file.is_file():
        return Preprocessing(), {}
    said = parse_json(read_regular(file))
    kind = said.get("image_processor_type") or said.get("feature_extractor_type")
    if kind not in _PROCESSORS:
        return Preprocessing(), {"image_processor_type": (kind, ())}
    size = int(said["size"]["shortest_edge"] if isinstance(said["size"], dict) else said["size"])
    resample = said.get("resample", 3)
    preprocessing = Preprocessing(
        image_size=size,
        crop_pct=float(said.get("crop_pct") or 0.875),
        interpolation=_RESAMPLE.get(resample, "bicubic"),
        mean=tuple(map(float, said["image_mean"])),
        std=tuple(map(float, said["image_std"])),
    )
    return preprocessing, {
        "resample": (resample, _RESAMPLE),
        # Larger images are stretched instead of cropped
        "size": (size, range(1, 384)),
        "rescale_factor": (said.get("rescale_factor", 1 / 255), (1 / 255,)),
        **{name: (said.get(name, True), (True,)) for name in ("do_resize", "do_normalize", "do_rescale")},
    }


def network_of(architecture: str) -> str:
    """Return the name in MODELS for timm's `architecture`; raise LookupError if there is none."""
    name = known_as(architecture)
    if name not in MODELS:
        raise LookupError(name)
    return name
