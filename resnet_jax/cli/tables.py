"""Tables on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_jax.inference.predict import Prediction


def plain_table(*columns: str) -> "Table":
    """Return a table without a frame."""
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def prediction_table(predictions: "Sequence[Prediction]") -> "Table":
    """Return a table of images with their classes, one or more."""
    table = plain_table("image", "class", predictions[0].measure)
    for p in predictions:
        for place, (name, number) in enumerate(zip(p.classes, p.probabilities, strict=True)):
            table.add_row(str(p.image) if place == 0 else "", name, f"{p.format(number):>7}")
    return table
