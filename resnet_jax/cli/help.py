"""The short help of a command: a line for each flag with its default, grouped; --help-all has tyro's, with details."""

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, get_args, get_origin, get_type_hints

from resnet_jax.recipe.fields import Table

# Columns of the flags, at most
_FLAG = 40
_WORDS = {Table: "JSON", timedelta: "TIME"}
_WIDEST = 120


def short_help(kind: Any, *, prog: str, description: str, default: Any = None) -> str:
    """Return the help of a command whose words are parsed to `kind`, a dataclass or a tuple of dataclasses.

    Args:
        kind: as `parse` takes it.
        prog: the command.
        description: what it does, a colon, and its words.
        default: value, or tuple of values, whose fields are the defaults.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    what, _, words = description.partition(": ")
    usage = f"usage: resnet-jax {words or prog.removeprefix('resnet-jax ')}"
    usage = textwrap.fill(usage, width, subsequent_indent="  ", break_on_hyphens=False)
    lines = [usage, "", f"{what.rstrip('.')}.", ""]
    parts = [strip(part) for part in get_args(kind)] if get_origin(kind) is tuple else [kind]
    defaults = default if isinstance(default, tuple) else (default,) * len(parts)
    # What the command itself takes comes before the fields of a recipe
    for part, value in sorted(zip(parts, defaults, strict=True), key=lambda pair: pair[0].__name__ == "Recipe"):
        for title, rows in groups(part, value):
            lines += [title, *(row_of(flag, text, width) for flag, text in rows), ""]
    return "\n".join([*lines, f"All details: {prog} --help-all"])


def strip(hint: Any) -> Any:
    """Return a type without its marks."""
    return getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint


def groups(kind: type, default: Any, prefix: str = "") -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield title, flags and their texts of a dataclass and of the dataclasses inside it."""
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)
    places: list[tuple[str, str]] = []
    rows: list[tuple[str, str]] = []
    inner = []
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name, field.default)
        # A flag may be called otherwise than its field, as --class is
        marks = getattr(hints[field.name], "__metadata__", ())
        name = prefix + (next((mark.name for mark in marks if getattr(mark, "name", None)), None) or field.name)
        if dataclasses.is_dataclass(strip(hints[field.name])):
            inner.append((strip(hints[field.name]), value, f"{name}."))
        else:
            here = places if is_positional(hints[field.name]) else rows
            text = f"Turn off: {texts[field.name]}" if value is True else texts[field.name]
            here.append((flag_of(name, hints[field.name], value), text))
    title = (inspect.getdoc(kind) or kind.__name__).split("\n")[0]
    title = re.split(r"[:;.](?:\s|$)", title)[0]
    yield ("The run" if kind.__name__ == "Recipe" else title), places + rows
    for part, value, within in inner:
        yield from groups(part, None if value is dataclasses.MISSING else value, within)


def is_positional(hint: Any) -> bool:
    """Return whether a field is given by its place and not by a flag."""
    return "Positional" in repr(getattr(hint, "__metadata__", ()))


def flag_of(name: str, hint: Any, default: Any) -> str:
    """Return a flag with its default, or with the kind of its value if it has none."""
    if is_positional(hint):
        return name.upper()
    flag = "--" + name.replace("_", "-")
    if isinstance(default, bool):
        group, dot, last = flag.removeprefix("--").rpartition(".")
        return f"--{group}{dot}no-{last}" if default else flag
    if default is None or default is dataclasses.MISSING or default == ():
        return f"{flag} {word_for(strip(hint))}"
    words = default if isinstance(default, tuple) else (default,)
    return f"{flag} {' '.join(f'{word:.5g}' if isinstance(word, float) else str(word) for word in words)}"


def word_for(hint: Any) -> str:
    """Return a placeholder such as INT for a type, the first of a union."""
    if hint in _WORDS:
        return _WORDS[hint]
    name = getattr(get_origin(hint), "__name__", "")
    if name == "Literal":
        return "|".join(map(str, get_args(hint)))
    if name in ("UnionType", "Union"):
        return word_for(next(arg for arg in get_args(hint) if arg is not type(None)))
    if name == "tuple":
        return f"{word_for(strip(get_args(hint)[0]))} ..."
    return getattr(hint, "__name__", "VALUE").upper()


def row_of(flag: str, text: str, width: int) -> str:
    """Return one line: the flag, and as much of the first sentence as fits."""
    column = max(min(_FLAG, width * 2 // 5), len(flag.split()[0]) + 4)
    flag = flag if len(flag) <= column - 3 else flag.split()[0]
    # Papers and their sections are for --help-all
    text = re.sub(r" \([^)]*\)", "", text.replace("`", ""))
    sentence = re.split(r"(?<!et al)(?<!e\.g)[.;](?:\s|$)", text, maxsplit=1)[0]
    room = width - column
    sentence = sentence if len(sentence) <= room else f"{sentence[: room - 3].rpartition(' ')[0]} ..."
    return f"  {flag:<{column - 2}}{sentence}"


def field_texts(kind: type) -> dict[str, str]:
    """Return the string below each field of a dataclass, and of those that it inherits, on one line.

    Example:
        >>> from resnet_jax.recipe import Recipe
        >>> field_texts(Recipe)["batch_size"]
        'Images per step, over all devices.'
    """
    texts: dict[str, str] = {}
    for parent in (parent for parent in reversed(kind.__mro__) if dataclasses.is_dataclass(parent)):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        body = getattr(definition, "body", [])
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                value = after.value if isinstance(after, ast.Expr) else None
                text = value.value if isinstance(value, ast.Constant) else ""
                texts[node.target.id] = re.sub(r"\s+", " ", str(text)).strip()
    return texts
