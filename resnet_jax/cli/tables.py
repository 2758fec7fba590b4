"""Tables on the terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_jax.inference.predict import Prediction


def show(*tables: "Table") -> None:
    """Print tables; if there is no terminal, as wide as they are.

    Raises:
        BrokenPipeError: The reader of a pipe has closed it, as `head` does.
    """
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    PipeConsole(width=None if sys.stdout.isatty() else 240).print(*tables, soft_wrap=True)


def plain_table(*columns: str) -> "Table":
    """Return a table without a frame."""
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def prediction_table(predictions: "Sequence[Prediction]") -> "Table":
    """Return a table of images with their classes, one or more."""
    from rich.markup import escape

    table = plain_table("image", "class", predictions[0].measure)
    for p in predictions:
        for place, (name, number) in enumerate(zip(p.classes, p.probabilities, strict=True)):
            table.add_row(escape(str(p.image)) if place == 0 else "", escape(name), f"{p.format(number):>7}")
    return table
