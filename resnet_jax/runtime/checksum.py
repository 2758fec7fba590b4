"""SHA-256 of files and values, and JSON objects that carry that of their own, so that a changed byte is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

_NAME = "sha256"


def add_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with their checksum.

    Example:
        >>> remove_checksum(add_checksum({"lr": 0.1}))
        {'lr': 0.1}
    """
    return {**values, _NAME: sha256_of(values)}


def remove_checksum(values: Any) -> Any:
    """Return the values without their checksum, which those written by hand need not have.

    Raises:
        ValueError: The checksum is that of other values.
    """
    if not isinstance(values, dict) or _NAME not in values:
        return values
    rest = {name: value for name, value in values.items() if name != _NAME}
    if values[_NAME] != sha256_of(rest):
        raise ValueError(f"has changed since it was written; restore it, or delete its {_NAME} if you edited it")
    return rest


def sha256_of(values: Any) -> str:
    """Return the SHA-256 of values that JSON has; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
