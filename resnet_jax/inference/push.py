"""Publish a network on the Hugging Face hub, in the layout that timm and this library load."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.convert import convert_weights, lacking_layers
from resnet_jax.inference.export.description import describe, model_card
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network, open_network
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.models.layers import ACTS, POOLS
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.zoo import ALIASES, MODELS
from resnet_jax.run_dir.files import is_run, read_metrics
from resnet_jax.runtime.checksum import file_sha256
from resnet_jax.tasks.metrics import format_value
from resnet_jax.training.network import require_published
from resnet_jax.weights.locate import locate

# Files of a folder, which is replaced only if it has no others
_FILES = {"model.safetensors", "config.json", "README.md"}
# Fields without an effect on a trained network, or that the file says itself
_NEUTRAL = {
    *("name", "parent", "num_classes", "input_shape", "dtype", "norm", "dropout", "head_dropout", "drop_path"),
    *("zero_init_residual", "quantize"),
}


class Saved(NamedTuple):
    """A folder for the hub."""

    folder: Path
    timm: str
    """Name of the network in timm; empty if timm does not have it."""
    why: str
    """Why timm cannot load it; empty if it can."""


def push(
    where: Path | str,
    name: str,
    folder: Path | str,
    *,
    private: bool = False,
    license: str = "",  # noqa: A002
    checkpoint: CheckpointChoice = CheckpointChoice(),
) -> str:
    """Save a run or weights for the hub, upload the folder, and return its address.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        name: OWNER/NAME of the repository, which is created if it is missing.
        folder: as in `save_for_hub`.
        private: create a private repository.
        license: as in `save_for_hub`.
        checkpoint: which weights of a run to use.

    Raises:
        InputError: As `save_for_hub`, huggingface_hub is missing, or the hub refuses; the folder stays.
    """
    require_repository(name)
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError("push: needs huggingface_hub; pip install huggingface_hub") from error
    saved = save_for_hub(where, folder, name=name, license=license, checkpoint=checkpoint)
    api = huggingface_hub.HfApi(library_name="resnet_jax")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=saved.folder, repo_id=name, commit_message=f"Add {saved.timm or 'weights'}")
    except Exception as error:
        # Many types: no network, no token, no permission
        hint = f"log in with `hf auth login`; {saved.folder} is complete and can be uploaded by hand"
        raise InputError(f"{name}: cannot be uploaded ({first_line(error)}); {hint}") from error
    return f"https://huggingface.co/{name}"


def require_repository(name: str) -> None:
    """Raise InputError unless a name is OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise InputError(f"{name}: not a repository of the hub; write OWNER/NAME")


def save_for_hub(
    where: Path | str,
    folder: Path | str,
    *,
    name: str = "",
    license: str = "",  # noqa: A002
    checkpoint: CheckpointChoice = CheckpointChoice(),
) -> Saved:
    """Write a folder with model.safetensors in timm's names, config.json and a model card, all or nothing.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it if timm has the network, and
    `create_model("FOLDER", pretrained=True)` of this library does.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        folder: a new folder, or one that has been written like this.
        name: OWNER/NAME, for the card.
        license: its identifier on the hub, such as "apache-2.0"; empty is that of published weights.
        checkpoint: which weights of a run to use.

    Raises:
        InputError: The source cannot be read, or the folder has other files.

    Example:
        >>> save_for_hub("runs/pets", "pets-resnet18").timm  # doctest: +SKIP
        'resnet18'
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _FILES):
        raise InputError(f"{folder}: has other files; name a new folder")
    network = open_network(where, checkpoint=checkpoint)
    why = lacking_in_timm(network)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        file = draft / "model.safetensors"
        foreign = lacking_layers(require_published(network.model, "push"))["timm"]
        convert_weights(where, file, "flax" if foreign else "timm", checkpoint=checkpoint)
        license = license or ("" if is_run(where) else getattr(locate(where).entry, "license", ""))  # noqa: A001
        config = hub_config(network, license)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (draft / "README.md").write_text(_card(network, str(where), name or folder.name, file, license, why))
        draft.chmod(0o777 & ~_umask())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Saved(folder, "" if why else config["architecture"], why)


def _umask() -> int:
    # It can only be read by setting it
    mask = os.umask(0)
    os.umask(mask)
    return mask


def hub_config(network: Network, license: str = "") -> dict[str, Any]:  # noqa: A002
    """Return the config.json of a network, as timm reads it."""
    setup, model = network.setup, network.model
    data, (*spatial, channels) = setup.recipe.data, network.image_shape
    name = _timm_name(setup.recipe.model.name)
    arguments = _arguments(model, MODELS.get(setup.recipe.model.name)) if isinstance(model, ResNet) else {}
    widened = {field: list(getattr(data, field)) * (channels // len(getattr(data, field))) for field in ("mean", "std")}
    return {
        "architecture": name,
        "num_classes": len(setup.dataset.classes),
        "num_features": model.stages()[-1].channels if isinstance(model, ResNet) else None,
        "global_pool": arguments.get("global_pool", "avg"),
        "model_args": arguments | ({"in_chans": channels} if channels != 3 else {}),
        "label_names": list(setup.dataset.classes),
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [channels, *spatial],
            "fixed_input_size": False,
            "interpolation": data.interpolation,
            "crop_pct": data.crop_pct,
            "crop_mode": data.crop_mode,
            **widened,
            "num_classes": len(setup.dataset.classes),
            "first_conv": "stem.conv" if isinstance(model, ResNet) and model.block.preactivation else "conv1",
            "classifier": "head.fc" if isinstance(model, ResNet) and model.block.preactivation else "fc",
            **({"license": license} if license else {}),
        },
    }


def _timm_name(name: str) -> str:
    return {ours: theirs for theirs, ours in ALIASES.items()}.get(name, name)


def _arguments(model: ResNet, published: Any) -> dict[str, Any]:
    """Return timm's arguments for what a network differs in from the published one, as far as it has them."""
    if not isinstance(published, ResNet):
        return {}
    arguments: dict[str, Any] = {}
    if model.depths != published.depths:
        arguments["layers"] = list(model.depths)
    if model.pool is not published.pool:
        arguments["global_pool"] = next(name for name, pool in POOLS.items() if pool is model.pool)
    if model.act is not published.act:
        arguments["act_layer"] = next((name for name, act in ACTS.items() if act is model.act), "")
    return arguments


def lacking_in_timm(network: Network) -> str:
    """Return why timm cannot load a network; empty if it can."""
    model, name = network.model, network.setup.recipe.model.name
    published = MODELS.get(name)
    if not isinstance(model, ResNet) or not isinstance(published, ResNet):
        return f"timm has no {name}"
    others = name.endswith("_v1") or name.startswith(("plain", "mobilenet"))
    if len(model.input_shape) != 3 or "Cifar" in published.stem.__name__ or others:
        return f"timm has no {name}"
    said = {"depths", "pool", "act"}
    other = [
        field
        for field in type(model).__dataclass_fields__
        if field not in _NEUTRAL | said and getattr(model, field) != getattr(published, field)
    ]
    if model.quantize:
        other.append("quantize")
    if model.act is ACTS["gelu"]:
        # By another formula
        other.append("act")
    return f"timm's {_timm_name(name)} has other {' and '.join(other)}" if other else ""


def _card(network: Network, where: str, name: str, file: Path, license: str, why: str) -> str:  # noqa: A002
    """Return the model card, with what the hub reads at its head."""
    description = describe(network, Interface(), "safetensors")
    description |= {"bytes": file.stat().st_size, "file_sha256": file_sha256(file), "license": license}
    library, tags = "resnet_jax" if why else "timm", ["image-classification", "resnet_jax", *([] if why else ["timm"])]
    head = [f"library_name: {library}", *([f"license: {license}"] if license else []), "tags:"]
    head += [f"- {tag}" for tag in tags]
    source = f"hf:{name}" if "/" in name else name
    timm_name = f"hf-hub:{name}" if "/" in name else f"local-dir:{name}"
    ours = f'from resnet_jax import create_model\n\nmodel, variables = create_model("{source}", pretrained=True)'
    theirs = f'import timm\n\nmodel = timm.create_model("{timm_name}", pretrained=True)'
    usage = f"## Use\n\n```python\n{ours}\n```\n\n" + (
        f"{why[0].upper()}{why[1:]}.\n" if why else f"```python\n{theirs}\n```\n"
    )
    card = model_card(network, where, description, _measured(network, where))
    return "---\n" + "\n".join(head) + f"\n---\n\n{card}\n{usage}"


def _measured(network: Network, where: str) -> dict[str, str]:
    """Return the last values of a run on its evaluation split."""
    rows = read_metrics(Path(where)) if is_run(where) else []
    values = {name: value for name, value in (rows[-1] if rows else {}).items() if isinstance(value, float)}
    display = network.setup.task.facts.display
    return {
        f"Measured: {name}": format_value(key, value, display)
        for name, value in values.items()
        if (key := name.rpartition("/")[2]) in display and "test/" in name
    }
