"""resnet-jax list."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tyro.conf import Positional

from resnet_jax.cli.parse import parse
from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_jax.weights.entries import Entry


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What to list."""

    word: Positional[str] = ""
    """Show only names that contain this."""
    weights: bool = False
    """Show published weights."""
    markdown: bool = False
    """Print the networks as the Markdown table of the site."""


def list_all(words: list[str]) -> int:
    """List networks and data sets or, with --weights, published weights: list [WORD]"""
    options = parse(ListOptions, words, prog="resnet-jax list", description=list_all.__doc__ or "")
    if options.markdown:
        show("\n".join(_markdown(options.word)))
        return 0
    tables = [_weights(options.word)] if options.weights else [_networks(options.word), _datasets(options.word)]
    tables = [table for table in tables if table.row_count]
    if not tables:
        raise InputError(f"no name contains {options.word!r}; `resnet-jax list` shows all")
    show(*tables)
    return 0


def _networks(word: str) -> "Table":
    from resnet_jax.models.backbone import backbone_of
    from resnet_jax.models.shortcuts import SHORTCUTS
    from resnet_jax.models.summary import published_cost
    from resnet_jax.models.zoo import MODELS

    table = plain_table("network", "block", "blocks per stage", "shortcut")
    for column in ("classes", "parameters"):
        table.add_column(column, justify="right")
    letters = {shortcut: letter for letter, shortcut in SHORTCUTS.items()}
    for name, model in MODELS.items():
        if word in name:
            backbone = backbone_of(model)
            assert backbone is not None
            depths = " ".join(map(str, backbone.depths))
            shortcut = letters.get(backbone.shortcut, backbone.shortcut.__name__)
            numbers = f"{model.num_classes:,}", f"{published_cost(name, model).parameters:,}"
            table.add_row(name, backbone.block.__name__, depths, shortcut, *numbers)
    return table


def _markdown(word: str) -> list[str]:
    """Return a Markdown row per network: its cost, and the best published accuracy with its weights."""
    from resnet_jax.models.summary import published_cost
    from resnet_jax.models.zoo import MODELS
    from resnet_jax.weights.entries import REPORTED, WEIGHTS, best_entry

    lines = [
        "| network | parameters | multiply-adds | input | top-1 % | weights |",
        "|---|--:|--:|---|--:|---|",
    ]
    for name, model in MODELS.items():
        if word not in name:
            continue
        cost, best = published_cost(name, model), best_entry(name)
        count = sum(entry.model == name for entry in WEIGHTS.values())
        top1 = best.score if best and best.score else f"{REPORTED[name]:.2f}" if name in REPORTED else ""
        where = f"`{best.tag}` at {pixels(best)}" + (f" and {count - 1} more" if count > 1 else "") if best else ""
        shape = " x ".join(map(str, model.input_shape))
        lines.append(
            f"| {name} | {cost.parameters:,} | {cost.multiply_adds / 1e9:.3f} G | {shape} | {top1} | {where} |"
        )
    return lines


def _datasets(word: str) -> "Table":
    from resnet_jax.data.datasets import DATASETS

    table = plain_table("data set", "what it is")
    for name, source in DATASETS.items():
        if word in name:
            table.add_row(name, (source.__doc__ or "").splitlines()[0])
    return table


def _weights(word: str) -> "Table":
    from resnet_jax.weights.entries import WEIGHTS

    table = plain_table("weights", "source")
    for column in ("classes", "top-1 %", "pixels", "crop"):
        table.add_column(column, justify="right")
    for column in ("scaled", "licence"):
        table.add_column(column)
    for entry in WEIGHTS.values():
        if word in entry.name:
            p = entry.preprocessing
            numbers = f"{entry.classes:,}", entry.score, pixels(entry), f"{p.crop_pct:g}"
            table.add_row(entry.name, entry.source, *numbers, p.interpolation, entry.license)
    return table


def pixels(entry: "Entry") -> str:
    """Return the size of the images of weights, as 224 or 800 x 1344."""
    size = entry.preprocessing.image_size
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)
