"""Data sources of one's own, which are imported only if the caller names them."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.errors import InputError, first_line


def is_own(name: str) -> bool:
    """Return whether a name is that of a source of one's own, `package.module:source`.

    Example:
        >>> is_own("my.data:birds"), is_own("folder:my.data")
        (True, False)
    """
    return "." in name.partition(":")[0] and ":" in name


def own_reader(name: str, trusted: bool) -> Callable[[str, Path], Any]:
    """Import a function of (split, folder) that returns a source."""
    if not trusted:
        raise InputError(f"data.name is {name}, which is imported only if you name it: --data.name to train, or data=")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"data.name is {name}: cannot be imported ({first_line(error)})") from error
    if not callable(found):
        raise InputError(f"data.name is {name}: a {type(found).__name__}, not a function of (split, folder)")

    def read(split: str, folder: Path) -> Any:
        from resnet_jax.data.source import Source

        source = found(split, folder)
        if not isinstance(source, Source):
            raise InputError(f"data.name is {name}: returns a {type(source).__name__}, not a Source")
        return source

    return read
