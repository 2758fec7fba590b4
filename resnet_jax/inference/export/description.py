"""What is written beside an export: a description for programs, and a model card for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.data.image import preprocessing_of
from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network
from resnet_jax.recipe import to_json
from resnet_jax.run_dir.files import is_run
from resnet_jax.runtime.checksum import add_checksum, remove_checksum
from resnet_jax.runtime.safe_files import read_regular
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.training.metadata import evaluation_recipe
from resnet_jax.version import __version__

# Numbers of each image and output that are recorded
_RECORDED = 4096
Description = dict[str, Any]


def describe(network: Network, interface: Interface, file_format: str) -> Description:
    """Return what a program must know to use an export, as JSON values."""
    setup = network.setup
    known = preprocessing_of(setup.recipe.data).known()
    return {
        "format": file_format,
        "network": setup.recipe.model.name,
        "classes": list(setup.dataset.classes),
        "answers": setup.task.answers,
        "image_shape": list(network.image_shape),
        "preprocessing": known,
        **asdict(interface),
        "recipe": parse_json(to_json(evaluation_recipe(setup.recipe))),
        "resnet_jax": __version__,
        "jax": jax.__version__,
    }


def recorded(outputs: Sequence[np.ndarray]) -> list[list[list[float]]]:
    """Return the first numbers of each image in each output."""
    return [output.reshape(len(output), -1)[:, :_RECORDED].astype(float).tolist() for output in outputs]


def as_recorded(outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return outputs as `recorded` keeps them."""
    return [output.reshape(len(output), -1)[:, :_RECORDED] for output in outputs]


def description_path(file: Path) -> Path:
    """Return the path of the description of an export."""
    return file.with_name(file.name + ".json")


def card_path(file: Path) -> Path:
    """Return the path of the model card of an export."""
    return file.with_name(file.name + ".md")


def write_description(description: Description) -> str:
    """Return a description as its file has it."""
    return json.dumps(add_checksum(description), indent=1) + "\n"


def read_description(file: Path) -> Description:
    """Return the description of an export; raise InputError if it is missing or damaged."""
    path = description_path(file)
    try:
        found = remove_checksum(parse_json(read_regular(path)))
        shape = found["image_shape"]
        fits = all(type(size) is int and 0 < size < 1 << 20 for size in shape) and len(shape) in (2, 3, 4)
        if not fits or not isinstance(found["check"]["outputs"], list):
            raise ValueError("its sizes are not those of images")
        return dict(found)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; `resnet-jax export` writes it beside the file") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)}); export the network again") from error


def model_card(network: Network, source: str, description: Mapping[str, Any], measured: Mapping[str, str]) -> str:
    """Return a model card as Markdown.

    Args:
        network: the network.
        source: the run or weights that it comes from.
        description: as `describe` returns it, with "file_sha256" and "bytes" of the file.
        measured: further lines, by what they are about.
    """
    recipe, dataset = network.setup.recipe, network.setup.dataset
    trained = recipe.data.name if is_run(source) else "not recorded in the weights"
    rows = {
        "Network": f"{recipe.model.name}, {_parameters(network):,} parameters",
        "From": f"`{source}`",
        "Trained on": f"{trained}" + (f", {dataset.train_size:,} images" if dataset.train_size > 1 else ""),
        "Classes": f"{len(dataset.classes):,}",
        "Input": _input(network, description),
        "Output": str(description["outputs"]),
        "Preprocessing": json.dumps(description["preprocessing"]),
        "Licence": str(description.get("license") or "not recorded; that of the weights and of the data applies"),
        "Format": f"{description['format']}, {description['bytes']:,} bytes, by resnet_jax {description['resnet_jax']}"
        f" with jax {description['jax']}",
        "SHA-256": f"`{description['file_sha256']}`",
        **measured,
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return (
        f"# {recipe.model.name}\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Recipe\n\n```json\n{json.dumps(parse_json(to_json(recipe)), indent=1)}\n```\n"
    )


def _parameters(network: Network) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(network.variables["params"]))


def _input(network: Network, description: Mapping[str, Any]) -> str:
    *spatial, channels = network.image_shape
    first = description["format"] == "onnx" and not description["preprocess"]
    sizes = [channels, *spatial] if first else [*spatial, channels]
    kind = "uint8, normalised inside" if description["preprocess"] else "float32, normalised"
    return f"{' x '.join(map(str, sizes))}, {kind}"
