"""Locate weights: a file, a folder as on the Hugging Face hub, the hub itself, or a published entry."""

import difflib
import hashlib
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from resnet_jax.errors import InputError, first_line, unknown
from resnet_jax.models.zoo import known_as
from resnet_jax.weights.config import PREPROCESSOR, describe
from resnet_jax.weights.entries import WEIGHTS, Entry
from resnet_jax.weights.tensors import shards_of

# In a repository of the hub, the safer format first; large weights are an index of files
_FILES = tuple(f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json"))


class Weights(NamedTuple):
    """A file of weights, with its published entry or the config.json beside it, if any."""

    file: Path
    entry: Entry | None


def locate(where: Path | str) -> Weights:
    """Return the file for a path, "hf:OWNER/NAME" or the name of an entry such as "resnet50.a1_in1k".

    The hub is read by `huggingface_hub` (the extra `hub`), whose cache works without a network. Raises InputError if
    there are no weights.
    """
    where = str(where)
    if where.startswith("hf:"):
        return Weights(_weights_on_hub(where), _entry_of(where) or _config_on_hub(where))
    if (name := known_as(where)) in WEIGHTS:
        return _published(WEIGHTS[name])
    path = Path(where)
    if path.is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return Weights(path / name, describe(path / "config.json", str(path)))
        if (path / "recipe.json").is_file():
            raise InputError(
                f"{path}: a run, not weights; `resnet-jax convert {path} OUT.safetensors` writes its weights"
            )
        raise InputError(f"{path}: neither a run (recipe.json) nor weights ({', '.join(_FILES)}) in this folder")
    if path.is_file():
        return Weights(path, _published_file(path) or describe(path.with_name("config.json"), where))
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


def _published_file(path: Path) -> Entry | None:
    """Return the entry whose file has this name; raise InputError if its name does not begin its SHA-256."""
    entry = next((entry for entry in WEIGHTS.values() if entry.source.endswith(f"/{path.name}")), None)
    digits = re.fullmatch(r".*-([0-9a-f]{8})\.pth", path.name)
    if entry and digits:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(digits[1]):
            hint = f"download it again from {entry.source}"
            raise InputError(f"{path}: its SHA-256 begins with {found[:8]}, not {digits[1]}; {hint}")
    return entry


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
    # A repository need not have them; transformers' have both
    try:
        config = _from_hub(where, ("config.json",))
    except InputError:
        return None
    entry = describe(config, where)
    if entry and entry.preprocessing.mean is None:
        with suppress(InputError):
            _from_hub(where, (PREPROCESSOR,))
        entry = describe(config, where)
    return entry


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
                    f"{where}: cannot be downloaded from the hub ({first_line(error)});"
                    " without a connection, name a local folder"
                ) from error
    raise InputError(f"{where}: has no {' and no '.join(files)}; name another repository")
