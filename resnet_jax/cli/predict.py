"""resnet-jax predict."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tyro.conf import Positional

from resnet_jax.cli.parse import Unnamed, parse
from resnet_jax.cli.tables import prediction_table
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.runtime.terminal import show


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Weights and images of a prediction."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    topk: int = 5
    """Number of classes per image."""
    json: bool = False
    """Print JSON."""


def predict(words: list[str]) -> int:
    """Classify images: predict RUN|WEIGHTS IMAGE... [--topk 5]"""
    kind = cast(
        type[tuple[PredictOptions, WeightsInfo, CheckpointChoice]],
        tuple[Unnamed[PredictOptions], Unnamed[WeightsInfo], Unnamed[CheckpointChoice]],
    )
    options, weights, checkpoint = parse(kind, words, prog="resnet-jax predict", description=predict.__doc__ or "")
    from resnet_jax.inference.predict import predict as predict_classes

    predictions = predict_classes(options.source, options.images, options.topk, weights=weights, checkpoint=checkpoint)
    if options.json:
        rows = [
            {
                "image": str(p.image),
                "predictions": [
                    {"class": name, p.measure: number} for name, number in zip(p.classes, p.probabilities, strict=True)
                ],
            }
            for p in predictions
        ]
        show(json.dumps(rows, indent=2))
        return 0
    show(prediction_table(predictions))
    return 0
