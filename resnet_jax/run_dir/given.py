"""given.json: the parts that a run was given as values, instead of naming them in its recipe."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.runtime.safe_files import read_regular
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.tasks.metric import Display
from resnet_jax.tasks.task import TaskFacts

_DIGITS = 20


def read_given(run: Path) -> dict[str, Any]:
    """Return what a run records of the parts that it was given as values, by their names; empty if there were none.

    Returns:
        `TaskFacts` of a task; of other parts, such as "model", the name of their class or function.

    Raises:
        InputError: The file is damaged.
    """
    path = run / "given.json"
    if not path.is_file():
        return {}
    try:
        found = parse_json(read_regular(path))
        return {str(name): _facts(value) if name == "task" else str(value) for name, value in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged; it records the parts passed to `train` as values") from error


def _facts(value: Any) -> TaskFacts:
    display = {str(name): Display(**how) for name, how in value["display"].items()}
    for how in display.values():
        if [*map(type, how)] != [*map(type, Display())] or not 0 <= how.digits <= _DIGITS:
            raise ValueError("not a Display")
    return TaskFacts(str(value["monitor"]), str(value["answers"]), display)


def given_json(given: Mapping[str, Any]) -> str:
    """Return the text of given.json."""
    return json.dumps({name: _as_json(value) for name, value in given.items()}, indent=2) + "\n"


def _as_json(value: Any) -> Any:
    if not isinstance(value, TaskFacts):
        return value
    return value._asdict() | {"display": {name: how._asdict() for name, how in value.display.items()}}


def require_given(run: Path, given: Collection[str], needed: Sequence[str] | None = None) -> None:
    """Raise InputError unless the parts that a run was given as values are given again, and no others.

    Args:
        run: the run directory.
        given: names of the parts that are given now.
        needed: names of those that matter; None is all.
    """
    before = read_given(run)
    for name in sorted({*before, *given}):
        if (name in before) == (name in given) or (needed is not None and name not in needed):
            continue
        if name in before:
            raise InputError(f"{run}: its {name} was passed as a value; pass it again in Python, {name}=VALUE")
        raise InputError(f"{run}: its {name} was not passed as a value; leave it out")
