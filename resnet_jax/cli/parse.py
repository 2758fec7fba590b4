"""Parse command-line words to dataclasses by tyro, with errors of one line."""

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_origin

import tyro

from resnet_jax.cli.help import short_help
from resnet_jax.cli.other_names import OTHER_NAMES
from resnet_jax.errors import InputError, short_repr
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.recipe import Recipe, fields_of, load_recipe, nearest_fields
from resnet_jax.recipe.fields import Table
from resnet_jax.recipe.overrides import rescale_times
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import read_time

Kind = TypeVar("Kind")
Options = TypeVar("Options")
_T = TypeVar("_T")
# Flags without a prefix: --seed, not --recipe.seed
Unnamed = Annotated[_T, tyro.conf.arg(name="")]
# Flags that print help instead of running the command
HELP = ("-h", "--help", "--help-all")
# Of a 64-bit integer with its sign
_DIGITS = 20


_registry = tyro.constructors.ConstructorRegistry()


def _read_as(kind: Any, metavar: str, read: Callable[[str], Any], write: Callable[[Any], str] = str) -> None:
    """Read flags of a type by a function of one word, whose ValueError is the message."""

    def rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type != kind:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda words: read(words[0]),
            is_instance=lambda value: type(value) is not bool and isinstance(value, get_origin(kind) or kind),
            str_from_instance=lambda value: [write(value)],
        )

    _registry.primitive_rule(rule)


def _read_integer(word: str) -> int:
    if len(word) > _DIGITS:
        raise ValueError(f"a number of {len(word):,} digits is too large")
    return int(word)


def _read_table(word: str) -> Table:
    try:
        fields = parse_json(word)
    except ValueError as error:
        raise ValueError(f'{error}; write {{"width": 32}}') from error
    if not isinstance(fields, dict):
        raise ValueError('not an object; write {"width": 32}')
    return tuple(fields.items())


_read_as(Table, "JSON", _read_table, lambda fields: json.dumps(dict(fields)))
_read_as(int, "INT", _read_integer)
_read_as(timedelta, "TIME", read_time, lambda time: f"{time.total_seconds():g}s")
# In --out=~/runs the shell leaves the ~
_read_as(Path, "PATH", lambda word: Path(os.path.expanduser(word)))


def parse(kind: type[Kind], words: list[str], *, prog: str, description: str, default: Kind | None = None) -> Kind:
    """Return a value of `kind` from words such as ["--optimizer.lr", "0.2"].

    Args:
        kind: a dataclass, or a tuple of dataclasses.
        words: command-line words after the command.
        prog: name of the command in messages.
        description: help text of the command.
        default: value to which the flags are applied.

    Raises:
        InputError: A flag is unknown, or a value does not fit.
        SystemExit: The words contain --help or --help-all, which is printed.
    """
    if {"-h", "--help"} & {*words}:
        show(short_help(kind, prog=prog, description=description, default=default))
        raise SystemExit(0)
    words = ["--help" if word == "--help-all" else word for word in words]
    options: dict[str, Any] = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            value, rest = tyro.cli(
                kind,
                args=words,
                prog=prog,
                description=description,
                return_unknown_args=True,
                registry=_registry,
                **options,
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        message = _message(printed.getvalue())
        if message.startswith("Missing from"):
            message = f"arguments are missing; usage: resnet-jax {description.partition(': ')[2]}"
        raise InputError(f"{message}; see {prog} --help") from None
    if rest:
        raise InputError(f"unknown {_what(rest[0], value)}; see {prog} --help")
    return value


def _message(box: str) -> str:
    """Return the first paragraph of one of tyro's boxes as one line; in ASCII its title is a paragraph too."""
    lines = [line.strip("│ \n") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"\n[─-]{8,}\n", "\n".join(lines))
    text = paragraphs[0 if "╭" in box or len(paragraphs) == 1 else 1]
    line = re.sub(r"\s+", " ", text).strip().rstrip(".")
    # Of an optional value, what is wrong with the value and not that it is not None
    line = re.sub(r"no type matching .* Got errors: .*- <class '\w+'>: ", "", line)
    line = line.replace(". Expected 1 values", "")
    # Its choices come in the order of a set
    line = re.sub(r"\((('[^']*'(, )?)+)\)$", lambda found: ", ".join(sorted(re.findall(r"'([^']*)'", found[1]))), line)
    return line or "these words do not fit"


def _what(word: str, value: Any) -> str:
    """Return a description of a word that no field took, with the nearest fields."""
    if not word.startswith("-"):
        return f"word {short_repr(word)} (a recipe or run comes first, before any flag)"
    parts = value if isinstance(value, tuple) else (value,)
    known = [name.replace("_", "-") for part in parts for name, _ in fields_of(part)]
    name = word.split("=")[0].lstrip("-").replace("_", "-")
    ours = OTHER_NAMES.get(name.rpartition(".")[2], "")
    if ours.split(" ")[0].rstrip(",").removeprefix("--") in known:
        return f"field {short_repr(word)}; use {ours}"
    near = nearest_fields(name, known)
    return f"field {short_repr(word)}" + (f"; nearest: {', '.join('--' + name for name in near)}" if near else "")


def recipe_and(
    kind: type[Options], words: list[str], command: str, doc: str | None, load: Callable[..., Recipe] = load_recipe
) -> tuple[Recipe, Options]:
    """Return a recipe, from a file and flags, and the options of a command; `load` returns the recipe of the file."""
    path, rest = split_first(words)
    base = load(path, network=named(rest, "--model.name"), data=named(rest, "--data.name")) if path else Recipe()
    both = cast(type[tuple[Recipe, Options]], tuple[Unnamed[Recipe], Unnamed[kind]])  # type: ignore[valid-type]
    recipe, options = parse(both, rest, prog=f"resnet-jax {command}", description=doc or "", default=(base, kind()))
    return rescale_times(recipe, base, rest), options


def options_and_weights(
    kind: type[Options], words: list[str], command: str, doc: str | None
) -> tuple[Options, WeightsInfo, CheckpointChoice]:
    """Return the options of a command on a run or weights, what is known of the weights, and the checkpoint to use."""
    parts = cast(
        type[tuple[Options, WeightsInfo, CheckpointChoice]],
        tuple[Unnamed[kind], Unnamed[WeightsInfo], Unnamed[CheckpointChoice]],  # type: ignore[valid-type]
    )
    return parse(parts, words, prog=f"resnet-jax {command}", description=doc or "")


def named(words: Sequence[str], name: str) -> str | None:
    """Return the value of a flag, such as --model.name: code of one's own is imported only if the user names it."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == name:
            return value if equals else next(iter(words[place + 1 : place + 2]), None)
    return None


def split_first(words: list[str]) -> tuple[Path | None, list[str]]:
    """Return the first word as a path, None if it is a flag, and the other words."""
    if words and not words[0].startswith("-"):
        return Path(words[0]), words[1:]
    return None, words
