"""The pages of the site that are made from the code: recipe fields, commands, public names, networks and weights."""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import resnet_jax
from resnet_jax.cli.help import field_texts
from resnet_jax.cli.list import pixels
from resnet_jax.cli.main import COMMANDS, main
from resnet_jax.recipe.bounds import UsedBy
from resnet_jax.recipe.fields import Recipe, Table
from resnet_jax.weights.entries import WEIGHTS

ROOT = Path(__file__).parent.parent
API = {
    "Train": ["train", "train_seeds", "fit", "Recipe", "load_recipe", "RunOptions", "Parts"],
    "Use a network": [
        *("create_model", "evaluate", "predict", "explain", "grad_cam", "load_run"),
        *("CheckpointChoice", "WeightsInfo", "Preprocessing", "summarize", "make_report"),
    ],
    "Many images": [
        *("predict_to", "embed_to", "predict_each", "embed_each", "read_features", "neighbours", "probe"),
    ],
    "Weights and export": ["convert_weights", "average", "export", "verify_export", "fold_batch_norm", "WEIGHTS"],
    "Networks": [
        *("MODELS", "ResNet", "BasicBlock", "Bottleneck", "SqueezeExcite", "BatchNorm", "FPN", "SHORTCUTS"),
    ],
    "Tasks, metrics and data": [
        *("Task", "classification", "multilabel", "regression", "segmentation", "detection", "Metric", "METRICS"),
        *("Source", "DATASETS"),
    ],
    "Your own loop": ["TrainState", "train_step", "eval_step", "compiler_options", "InputError"],
}
TRAINED_ON = {
    "dino": "ImageNet-1k without labels (DINO)",
    "moco": "ImageNet-1k without labels (MoCo)",
    "swav": "ImageNet-1k without labels (SwAV)",
    "in1k": "ImageNet-1k",
    "in21k": "ImageNet-21k",
    "in12k": "ImageNet-12k",
    "ig1b": "Instagram, 1 billion images with hashtags",
    "yfcc100m": "YFCC100M",
    "cifar10": "CIFAR-10",
    "kinetics400": "Kinetics-400",
    "coco": "COCO",
    "voc": "images of COCO with the classes of Pascal VOC",
}


class Field(NamedTuple):
    """One field of a recipe, as the table shows it."""

    name: str
    type: str
    default: str
    bounds: str
    used_by: tuple[str, ...]
    text: str


def write_pages(folder: Path) -> None:
    """Write the generated pages; a page that has not changed is left alone, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    pages = {"recipe": recipe(), "commands": commands(), "api": api(), "models": models()}
    for name, text in (pages | project_pages()).items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def project_pages() -> dict[str, str]:
    """Return the pages about the project, which stand in the root, with links from the folder of generated pages."""
    names = ("CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT", "CHANGELOG")
    texts = {name.lower(): (ROOT / f"{name}.md").read_text() for name in names}
    for name in names:
        texts = {page: text.replace(f"]({name}.md)", f"]({name.lower()}.md)") for page, text in texts.items()}
    return {
        page: text.replace("](docs/", "](../").replace("](experiments/", "](../experiments/")
        for page, text in texts.items()
    }


def recipe() -> str:
    """Return the page about the fields of a recipe."""
    parts = [
        "# Fields of a recipe\n\nA field `optimizer.lr` is the flag `--optimizer.lr` and, in Python, "
        "`Recipe(optimizer=Optimizer(lr=0.1))`. Times are in epochs, or in steps if the length of the run is given in "
        'steps. A field that is "used by" some values of `name` has no effect with the others.\n'
    ]
    for kind, prefix in groups():
        title = prefix.rstrip(".") or "the run"
        parts.append(f"## {title}\n\n{(inspect.getdoc(kind) or '').split('Example:')[0].strip()}\n")
        for field in fields_of_group(kind, prefix):
            facts = [field.type, f"default {field.default}", field.bounds]
            facts.append(f"used by {', '.join(f'`{name}`' for name in field.used_by)}" if field.used_by else "")
            parts.append(f"`{field.name}`\n: {field.text}\n\n  {'; '.join(filter(None, facts))}.\n")
    return "\n".join(parts)


def groups() -> Iterator[tuple[type, str]]:
    """Yield the dataclasses of a recipe with the prefix of their fields, the recipe itself first."""
    yield Recipe, ""
    for field in dataclasses.fields(Recipe):
        if dataclasses.is_dataclass(kind := typing.get_type_hints(Recipe)[field.name]):
            yield kind, f"{field.name}."


def fields_of_group(kind: type, prefix: str) -> Iterator[Field]:
    """Yield the fields of one dataclass; the text is the string below the field."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), field_texts(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            continue
        bounds = [str(mark) for mark in getattr(hint, "__metadata__", ()) if not isinstance(mark, UsedBy)]
        users = next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, UsedBy)), ())
        default = f"`{field.default!r}`"
        yield Field(prefix + field.name, spelled(hint), default, " and ".join(bounds), tuple(users), texts[field.name])


def spelled(hint: Any) -> str:
    """Return a type in words: `int` or `None`, `"A"` or `"B"`."""
    if hasattr(hint, "__metadata__"):
        return spelled(hint.__origin__)
    if hint == Table:
        return "`dict`"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(spelled, args))
    if origin is tuple:
        return f"`tuple` of {spelled(args[0])}" if args[-1] is Ellipsis else f"{len(args)} {spelled(args[0])}"
    return "`None`" if hint is type(None) else f"`{getattr(hint, '__name__', hint)}`"


def commands() -> str:
    """Return the page about the command line: the help of each command, 100 columns wide."""
    parts = ["# Commands\n\n`resnet-jax COMMAND --help` prints a short version; this page has all details.\n"]
    for name, (_, doc) in COMMANDS.items():
        parts.append(f"## {name}\n\n{doc.partition(':')[0]}.\n\n```text\n{help_of(name)}\n```\n")
    return "\n".join(parts)


def help_of(command: str) -> str:
    """Return what `resnet-jax COMMAND --help-all` prints."""
    printed, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([command, "--help-all"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue()).strip()


def api() -> str:
    """Return the page about the public names, in the order of API."""
    homes = public_homes()
    parts = ["# API reference\n\nImport all names from `resnet_jax`.\n"]
    for title, names in API.items():
        parts.append(f"## {title}\n\n```{{eval-rst}}\n.. py:currentmodule:: resnet_jax\n")
        parts.extend(documented(name, homes[name]) for name in names)
        parts.append("```\n")
    return "\n".join(parts)


def documented(name: str, home: str) -> str:
    """Return the directive that documents a public name of the module `home`."""
    value = getattr(resnet_jax, name)
    if isinstance(value, dict):
        kind = f"{len(value)} entries, by name. ``{home}.{name}``"
        return f".. py:data:: {name}\n\n   {about_constant(home, name)} {kind}\n"
    if inspect.isclass(value):
        options = ":members:\n   :exclude-members: setup" if not issubclass(value, Exception) else ""
        return f".. autoclass:: {name}\n   {options}\n"
    return f".. autofunction:: {name}\n"


def about_constant(home: str, name: str) -> str:
    """Return the comment above a constant."""
    lines = Path(inspect.getfile(__import__(home, fromlist=["x"]))).read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith(f"{name}:"))
    comments = []
    while lines[place - 1].startswith("# "):
        place -= 1
        comments.insert(0, lines[place][2:])
    return " ".join(comments).rstrip(".") + "." if comments else ""


def public_homes() -> dict[str, str]:
    """Return the module of each public name, as `__init__.pyi` has them."""
    tree = ast.parse(Path(resnet_jax.__file__).with_suffix(".pyi").read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"resnet_jax.{node.module}" for node in nodes for alias in node.names}


def models() -> str:
    """Return the page about networks and published weights."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["list", "--markdown"]) == 0
    rows = [
        f"| `{entry.name}` | {trained_on(entry.tag)} | {pixels(entry)} | {entry.score} "
        f"| {entry.classes:,} | {entry.license} |"
        for entry in WEIGHTS.values()
    ]
    return "\n".join(
        [
            "# Networks and weights\n",
            "Parameters and multiply-adds are counted by this library and tested. Accuracies are published numbers, "
            "not measured here: those of the best weights (for ImageNet from timm's evaluation, otherwise from their "
            "authors) or, without weights, of the paper.\n",
            printed.getvalue(),
            f"## All {len(WEIGHTS)} published weights\n",
            '`create_model("resnet50", pretrained="resnet50.a1_in1k")` and all commands take these names. The '
            "resolution is the one of the published evaluation, in pixels.\n",
            "| weights | trained on | resolution | top-1 % | classes | licence |",
            "|---|---|--:|--:|--:|---|",
            *rows,
        ]
    )


def trained_on(tag: str) -> str:
    """Return the data that published weights were trained on, in order, by the parts of their tag.

    Example:
        >>> trained_on("goog_in21k_ft_in1k")
        'ImageNet-21k, then ImageNet-1k'
    """
    found = [TRAINED_ON[part] for part in tag.split("_") if part in TRAINED_ON]
    if found and found[-1] == TRAINED_ON["voc"]:
        return found[-1]
    return ", then ".join(found)
