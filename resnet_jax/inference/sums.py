"""The sums of an evaluation so far, kept in a file from which it goes on after an interruption."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.runtime.safe_files import read_regular, write_atomic
from resnet_jax.runtime.strict_json import parse_json

# Seconds between two writes
_SECONDS = 5.0


def read_sums(file: Path, key: str) -> tuple[int, dict[str, Any]]:
    """Return the number of batches and their totals that `save_sums` kept under a key; none if there are no such."""
    try:
        found = parse_json(read_regular(file))
        if found["key"] == key:
            return int(found["batches"]), _arrays(found["totals"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, {}


def save_sums(file: Path, key: str, batches: int, totals: dict[str, Any]) -> None:
    """Keep totals, exactly, unless they were kept a few seconds ago."""
    if file.exists() and time.time() - file.stat().st_mtime < _SECONDS:
        return
    write_atomic(file, json.dumps({"key": key, "batches": batches, "totals": _lists(totals)}))


def _lists(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _lists(value) for name, value in tree.items()}
    return np.asarray(tree).tolist()


def _arrays(tree: Any) -> Any:
    return {name: _arrays(value) for name, value in tree.items()} if isinstance(tree, dict) else np.asarray(tree)
