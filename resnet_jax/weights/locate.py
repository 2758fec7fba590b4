"""Locate weights: a file, a folder as on the Hugging Face hub, the hub itself, or a published entry."""

import difflib
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, cast

from resnet_jax.data.image import Preprocessing
from resnet_jax.errors import InputError, first_line, unknown
from resnet_jax.models.zoo import MODELS
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.weights.entries import WEIGHTS, Entry, Interpolation
from resnet_jax.weights.state_dict import listed
from resnet_jax.weights.tensors import shards_of

# In a repository of the hub, the safer format first; large weights are an index of files
_FILES = tuple(f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json"))


# timm's names for parts of ours. GELU is not among them: ours is the approximation by tanh
_POOLS = {"avg": "avg", "fast": "avg", "max": "max"}
_ACTS = {
    **{name: name for name in ("relu", "silu", "elu", "leaky_relu", "hard_silu")},
    **{"swish": "silu", "hard_swish": "hard_silu"},
}
# Of `model_args`: of training alone, or known from the tensors
_NEUTRAL = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "pretrained"}


class Weights(NamedTuple):
    """A file of weights, with its published entry or the config.json beside it, if any."""

    file: Path
    entry: Entry | None


def locate(where: str) -> Weights:
    """Return the file for a path, "hf:OWNER/NAME" or the name of an entry such as "resnet50.a1_in1k".

    The hub is read by `huggingface_hub` (the extra `hub`), whose cache works without a network. Raises InputError if
    there are no weights.
    """
    if where.startswith("hf:"):
        return Weights(_weights_on_hub(where), _entry_of(where) or _config_on_hub(where))
    if where in WEIGHTS:
        return _published(WEIGHTS[where])
    path = Path(where)
    if path.is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return Weights(path / name, describe(path / "config.json", str(path)))
        if (path / "recipe.json").is_file():
            raise InputError(
                f"{path}: a run and no weights; `resnet-jax convert {path} OUT.safetensors` writes its weights"
            )
        raise InputError(f"{path}: neither a run (recipe.json) nor weights ({', '.join(_FILES)}) in this folder")
    if path.is_file():
        return Weights(path, describe(path.with_name("config.json"), where))
    if difflib.get_close_matches(where, WEIGHTS):
        raise unknown("weights", where, WEIGHTS)
    raise InputError(
        f"{where}: no such run or weights; give a run directory, a file of weights, hf:OWNER/NAME or a name that"
        " `resnet-jax list --weights` shows"
    )


def _published(entry: Entry) -> Weights:
    if not entry.source.startswith("hf:"):
        raise InputError(f"{entry.name}: not on the hub; download the file from {entry.source} and name it")
    return Weights(_weights_on_hub(entry.source), entry)


def _weights_on_hub(where: str) -> Path:
    file = _from_hub(where, _FILES)
    try:
        shards = set(shards_of(file).values()) if file.suffix == ".json" else set()
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    for shard in sorted(shards):
        _from_hub(where, (shard,))
    return file


def _entry_of(source: str) -> Entry | None:
    source = source.split("@")[0]
    return next((entry for entry in WEIGHTS.values() if entry.source == source), None)


def _config_on_hub(where: str) -> Entry | None:
    try:
        return describe(_from_hub(where, ("config.json",)), where)
    except InputError:
        # A repository need not have one
        return None


def describe(config: Path, source: str) -> Entry | None:
    """Return the entry that timm's config.json describes, or None if it is missing or of another network.

    What it says and is not understood is in `Entry.refused`.
    """
    try:
        values = parse_json(config.read_bytes())
        model, known = network_of(values["architecture"]), values["pretrained_cfg"]
        fields, refused = _understood(values, known)
        preprocessing = Preprocessing(
            image_size=int(known["input_size"][-1]),
            crop_pct=float(known["crop_pct"]),
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


def _understood(values: dict[str, Any], known: dict[str, Any]) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the fields of the network that a config.json changes, and what it says that is not understood."""
    arguments = values.get("model_args") or {}
    pool = arguments.get("global_pool", values.get("global_pool")) or "avg"
    act = arguments.get("act_layer") or "relu"
    allowed: list[tuple[str, Any, Collection[Any]]] = [
        ("global_pool", pool, _POOLS),
        ("act_layer", act, _ACTS),
        ("output_stride", arguments.get("output_stride", 32), (32,)),
        ("crop_mode", known.get("crop_mode") or "center", ("center",)),
        ("interpolation", known["interpolation"], ("bilinear", "bicubic")),
        ("label_offset", known.get("label_offset") or 0, (0,)),
        ("input_size", known["input_size"][-2:], ([known["input_size"][-1]] * 2,)),
    ]
    others = arguments.keys() - _NEUTRAL - {name for name, *_ in allowed}
    allowed += [(name, arguments[name], ()) for name in sorted(others)]
    refused = [f"{name[:50]} {str(value)[:50]!r}" for name, value, known in allowed if value not in tuple(known)]
    fields = (("act", _ACTS.get(str(act), "relu")), ("pool", _POOLS.get(str(pool), "avg")))
    return tuple(field for field in fields if field[1] not in ("relu", "avg")), listed(refused) if refused else ""


def network_of(architecture: str) -> str:
    """Return the name in MODELS for timm's `architecture`; raise LookupError if there is none."""
    match = re.fullmatch(r"resnetv2_(\d+)", architecture)
    name = f"resnet{match[1]}v2" if match else architecture
    if name not in MODELS:
        raise LookupError(name)
    return name


def _from_hub(where: str, files: tuple[str, ...]) -> Path:
    """Return the first of `files` in "hf:OWNER/NAME[@REVISION]", downloaded unless it is in the cache."""
    name, _, revision = where.removeprefix("hf:").partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(f"{where}: not a repository of the hub; write hf:OWNER/NAME")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(f"{where}: needs huggingface_hub; pip install huggingface_hub") from error
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # It repeats one warning five times
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # The cache is tried first: it needs no network
    for local in (True, False):
        for file in files:
            try:
                return Path(hf_hub_download(name, file, revision=revision or None, local_files_only=local))
            except Exception as error:
                # Many types: no network, no such repository, no permission
                missing = isinstance(error, EntryNotFoundError)
                if missing and (local or not isinstance(error, LocalEntryNotFoundError)):
                    continue
                raise InputError(
                    f"{where}: cannot be had from the hub ({first_line(error)});"
                    " without a network, download it once or name a local folder"
                ) from error
    raise InputError(f"{where}: has no {' and no '.join(files)}; name another repository")
