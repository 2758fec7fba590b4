"""resnet-jax explain."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from resnet_jax.cli.parse import options_and_weights
from resnet_jax.cli.tables import prediction_table
from resnet_jax.runtime.terminal import show


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Weights, images and class to explain."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    name: Annotated[str | None, arg(name="class")] = None
    """Class to explain; None is the most probable one of each image."""
    stage: int | None = None
    """Stage whose feature map is used, from 1; None is the last. Earlier maps are finer but less specific."""
    topk: int = 3
    """Number of classes per image."""
    out: Path = Path("explanation.png")
    """Picture to write."""


def explain(words: list[str]) -> int:
    """Show where a network sees a class, by Grad-CAM: explain RUN|WEIGHTS IMAGE... [--class NAME]"""
    options, weights, checkpoint = options_and_weights(ExplainOptions, words, "explain", explain.__doc__)
    from resnet_jax.inference.explain import draw_explanations
    from resnet_jax.inference.explain import explain as explain_classes

    found = explain_classes(
        options.source,
        options.images,
        options.name,
        stage=options.stage,
        topk=options.topk,
        weights=weights,
        checkpoint=checkpoint,
    )
    draw_explanations(found, options.out)
    show(prediction_table([explanation.prediction for explanation in found]))
    cells = " x ".join(map(str, found[0].cells))
    first = {"probability": "the most probable class", "output": "the largest output"}[found[0].prediction.measure]
    show(f"Grad-CAM of {options.name or first}, {cells} cells: {options.out}")
    return 0
