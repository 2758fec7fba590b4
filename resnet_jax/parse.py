"""Command-line words to dataclasses by tyro, with its errors cut down to one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from resnet_jax.errors import InputError
from resnet_jax.recipe import TIMES, Recipe, fields_of, nearest_fields

Kind = TypeVar("Kind")
_T = TypeVar("_T")
Unnamed = Annotated[_T, tyro.conf.arg(name="")]  # flags without a prefix: --seed, not --recipe.seed


def parse(kind: type[Kind], words: list[str], *, prog: str, description: str, default: Kind | None = None) -> Kind:
    """A value of `kind` from words such as ["--optimizer.lr", "0.2"].

    Raises InputError for a flag that does not exist or a value that does not fit, SystemExit(0) for --help.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            value, rest = tyro.cli(
                kind, args=words, prog=prog, description=description, return_unknown_args=True, **options
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        raise InputError(f"{_message(printed.getvalue())}; see {prog} --help") from None
    if rest:
        raise InputError(f"unknown {_what(rest[0], value)}; see {prog} --help")
    return value


def _message(box: str) -> str:
    """The first paragraph of one of tyro's boxes, as one line."""
    lines = [line.strip("│ \n") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [index for index, line in enumerate(lines) if line.startswith("─")]
    text = " ".join(lines[: rules[0]] if rules else lines)
    return re.sub(r"\s+", " ", text).strip().rstrip(".") or "these words do not fit"


def _what(word: str, value: Any) -> str:
    """Names a word that no field took, with the nearest fields."""
    if not word.startswith("-"):
        return f"word {word!r} (a recipe or run comes first, before any flag)"
    parts = value if isinstance(value, tuple) else (value,)
    known = [name.replace("_", "-") for part in parts for name, _ in fields_of(part)]
    near = nearest_fields(word.split("=")[0].lstrip("-").replace("_", "-"), known)
    return f"field {word!r}" + (f"; nearest: {', '.join('--' + name for name in near)}" if near else "")


def unset_other_length(recipe: Recipe, before: Recipe, words: Sequence[str] = ()) -> Recipe:
    """Lets --epochs replace a recipe's steps, and --steps its epochs, where only one of the two was given.

    Times are in the unit of the length, so they keep their share of the run: 3 epochs of warm-up in 30 are 30 steps in
    300. Those that differ from the recipe `before`, or that `words` name, are in the new unit already.
    """
    if recipe.epochs is None or recipe.steps is None:
        return recipe
    if recipe.epochs == before.epochs:
        return _rescaled(dataclasses.replace(recipe, epochs=None), before, recipe.steps, recipe.epochs or 1, words)
    if recipe.steps == before.steps:
        return _rescaled(dataclasses.replace(recipe, steps=None), before, recipe.epochs, recipe.steps or 1, words)
    return recipe


def _rescaled(recipe: Recipe, before: Recipe, length: float, old_length: float, words: Sequence[str]) -> Recipe:
    """The recipe with its times, but for those just given, for a run of `length` in place of `old_length`."""
    given = {word.split("=")[0].lstrip("-").replace("_", "-") for word in words if word.startswith("--")}
    for name in TIMES:
        part, field = name.split(".")
        old = getattr(recipe, part)
        value = getattr(old, field)
        if name.replace("_", "-") in given or value != getattr(getattr(before, part), field):
            continue
        times = value if isinstance(value, tuple) else (value,)
        times = tuple(time * length / old_length for time in times)
        scaled = times if isinstance(value, tuple) else times[0]
        recipe = dataclasses.replace(recipe, **{part: dataclasses.replace(old, **{field: scaled})})
    return recipe


def split_first(words: list[str]) -> tuple[Path | None, list[str]]:
    """The leading word that is no flag, if there is one, as a path, and the others."""
    if words and not words[0].startswith("-"):
        return Path(words[0]), words[1:]
    return None, words
