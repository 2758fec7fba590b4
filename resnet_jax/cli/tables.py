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
    """Return a table of images with their classes, and with their boxes if they have some."""
    boxed = predictions[0].boxes is not None
    table = plain_table("image", "class", predictions[0].measure, *(["box: x1, y1, x2, y2"] if boxed else []))
    for p in predictions:
        boxes = [] if p.boxes is None else [[", ".join(f"{x:.0f}" for x in box)] for box in p.boxes]
        rows = zip(p.classes, p.probabilities, boxes or [[]] * len(p.classes), strict=True)
        for place, (name, number, box) in enumerate(rows):
            table.add_row(str(p.image) if place == 0 else "", name, f"{p.format(number):>7}", *box)
        if boxed and not p.classes:
            table.add_row(str(p.image), "nothing", "", "")
    return table
