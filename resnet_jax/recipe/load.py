"""Read recipes from Python files, run directories and JSON, and write them as JSON."""

import dataclasses
import importlib.util
import json
import sys
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from resnet_jax.data.own import is_own
from resnet_jax.errors import InputError, first_line, short_repr, unknown
from resnet_jax.recipe.fields import Recipe, Table
from resnet_jax.runtime.checksum import add_checksum, remove_checksum
from resnet_jax.runtime.strict_json import parse_json

# Fields that are objects in JSON
_TABLES = (("model", "fields"), ("data", "class_map"), ("data", "mix"))


def load_recipe(path: Path | str, *, network: str | None = None, data: str | None = None) -> Recipe:
    """Return the `recipe` of a Python file, a run directory or a recipe.json.

    A Python file is executed: load only what you would run.

    Args:
        path: a Python file, a run directory or a JSON file.
        network: your own network, `package.module:network`, if a run directory or JSON file names one.
            Data files never import anything by themselves.
        data: likewise your own data source, `package.module:source`.

    Raises:
        InputError: There is no recipe, or it names your own network or data source and the argument does not.

    Example:
        >>> load_recipe("experiments/cifar10/resnet20.py").model.name  # doctest: +SKIP
        'resnet20'
    """
    path = Path(path)
    if path.is_dir() and not (path / "recipe.json").is_file():
        hint = f"to train on a folder of images, give --data.name folder:{path}"
        raise InputError(f"{path}: not a run directory (no recipe.json); {hint}")
    path = path / "recipe.json" if path.is_dir() else path
    if not path.is_file():
        from resnet_jax.models.zoo import MODELS

        hint = f"; to choose a network, give --model.name {path}" if str(path) in MODELS else ""
        raise InputError(f"{path}: no such recipe; give a Python file or a run directory{hint}")
    if path.suffix == ".json":
        return _read_json(path, network, data)
    recipe = getattr(_execute(path), "recipe", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"{path}: defines no `recipe = Recipe(...)`")
    return recipe


def _read_json(path: Path, network: str | None, data: str | None) -> Recipe:
    try:
        recipe = from_json(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged (not text)") from error
    name = recipe.model.name
    if ":" in name and name != network:
        raise InputError(
            f"{path}: its network is {name}, which is imported only if you name it: --model.name {name} for train,"
            f" --network {name} for the other commands"
        )
    if is_own(recipe.data.name) and recipe.data.name != data:
        hint = f"name it with --data.name {recipe.data.name}"
        raise InputError(f"{path}: its data are {recipe.data.name}, which are imported only if you name them: {hint}")
    return recipe


def _execute(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a recipe; give a Python file or a run directory")
    module = importlib.util.module_from_spec(spec)
    try:
        with _importing_as(module, path.absolute().parent):
            spec.loader.exec_module(module)
    except InputError:
        raise
    except SystemExit as error:
        raise InputError(f'{path}: exits instead of defining a recipe; exit only if __name__ == "__main__"') from error
    except Exception as error:
        raise InputError(f"{path}: {type(error).__name__}: {first_line(error)}") from error
    return module


@contextmanager
def _importing_as(module: types.ModuleType, folder: Path) -> Iterator[None]:
    """Let a file import the files beside it, and be found by its name, as dataclasses need; forget both afterwards."""
    before, path = dict(sys.modules), list(sys.path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name, other in list(sys.modules.items()):
            if other is module or (name not in before and _is_in(folder, other)):
                del sys.modules[name]
        if module.__name__ in before:
            sys.modules[module.__name__] = before[module.__name__]


def _is_in(folder: Path, module: Any) -> bool:
    # Not by `getattr`, at which lazy modules import others
    file = vars(module).get("__file__") if isinstance(module, types.ModuleType) else None
    return file is not None and Path(file).parent == folder


def to_json(recipe: Recipe) -> str:
    """Return a recipe as JSON text with a checksum, and with its tables as objects."""
    values = dataclasses.asdict(recipe)
    for part, name in _TABLES:
        if isinstance(values[part], dict) and isinstance(values[part][name], tuple):
            values[part][name] = dict(values[part][name])
    return json.dumps(add_checksum(values), indent=2) + "\n"


def from_json(text: str, where: str = "recipe.json", *, nonfinite: bool = False) -> Recipe:
    """Return the recipe that `to_json` wrote; raise InputError that names the file and the field.

    `nonfinite` leaves NaN and Infinity to `check`, which names the field.
    """
    try:
        values = remove_checksum(parse_json(text, nonfinite=nonfinite))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return _build(Recipe, values, where, "")


def _build(kind: type, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where}: {prefix or 'the recipe'} is {short_repr(values)}, not a table of fields")
    kinds = typing.get_type_hints(kind)
    for name in values:
        if name not in kinds:
            raise unknown(f"field in {where}:", prefix + name, [prefix + known for known in kinds])
    return kind(**{k: _value(kinds[k], v, where, prefix + k) for k, v in values.items()})


def _value(kind: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where, f"{name}.")
    if kind == Table:
        if not isinstance(value, dict):
            raise InputError(f"{where}: {name} is {short_repr(value)}, not a table of names and values")
        return value
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(kind, value):
        raise InputError(f"{where}: {name} is {short_repr(value)}, which is not of type {kind}")
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Return whether a JSON value is of the annotated type: a plain type, a Literal, a union or a tuple[X, ...]."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in args
    if origin in (types.UnionType, typing.Union):
        return any(_fits(arg, value) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(args[0], item) for item in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
