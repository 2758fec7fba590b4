"""resnet-jax explain."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from tyro.conf import Positional, arg

from resnet_jax.cli.tables import prediction_table, show
from resnet_jax.parse import Unnamed, parse
from resnet_jax.train.which import Which
from resnet_jax.weights.like import Like


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """What to look for, and where."""

    source: Positional[str]
    """Run directory, file of weights, hf:OWNER/NAME or published name."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    name: Annotated[str | None, arg(name="class")] = None
    """Class to look for; None is the likeliest of each image."""
    stage: int | None = None
    """Stage whose map is looked at, 1 for the first: earlier ones are finer and know less. None is the last."""
    top: int = 3
    """Classes to show of each image."""
    out: Path = Path("explanation.png")
    """Picture to write."""


def explain(words: list[str]) -> int:
    """where a network sees a class, by Grad-CAM: explain RUN|WEIGHTS IMAGE... [--class NAME]"""
    kind = cast(type[tuple[ExplainOptions, Like, Which]], tuple[Unnamed[ExplainOptions], Unnamed[Like], Unnamed[Which]])
    options, like, which = parse(kind, words, prog="resnet-jax explain", description=explain.__doc__ or "")
    from resnet_jax.explain import draw_explanations, explain_images

    found = explain_images(
        options.source,
        options.images,
        options.name,
        stage=options.stage,
        top=options.top,
        like=like,
        which=which,
    )
    draw_explanations(found, options.out)
    show(prediction_table([explanation.prediction for explanation in found]))
    cells = " x ".join(map(str, found[0].cells))
    first = {"probability": "the likeliest class", "output": "the largest output"}[found[0].prediction.measure]
    print(f"where it sees {options.name or first}, in {cells} cells: {options.out}")
    return 0
