"""resnet-jax evaluate and resnet-jax predict."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tyro.conf import Positional

from resnet_jax.cli.tables import prediction_table, show
from resnet_jax.cli.training import default_data_dir
from resnet_jax.parse import Unnamed, parse
from resnet_jax.train.which import Which
from resnet_jax.weights.like import Like


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure."""

    source: Positional[str]
    """Run directory, file of weights, hf:OWNER/NAME or published name."""
    split: Literal["train", "validation", "test"] = "test"
    """Part of the data."""
    data_dir: Path | None = None
    """Where data sets are looked for; None is where a run found its own, for weights as in training."""
    devices: int | None = None
    """Devices to use; None is all."""
    json: bool = False
    """Print JSON for machines."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to classify."""

    source: Positional[str]
    """Run directory, file of weights, hf:OWNER/NAME or published name."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    top: int = 5
    """Classes to show of each image."""
    json: bool = False
    """Print JSON for machines."""


def evaluate(words: list[str]) -> int:
    """exact accuracy and loss: evaluate RUN [--split test], evaluate WEIGHTS --data NAME"""
    kind = cast(
        type[tuple[EvaluateOptions, Like, Which]], tuple[Unnamed[EvaluateOptions], Unnamed[Like], Unnamed[Which]]
    )
    options, like, which = parse(kind, words, prog="resnet-jax evaluate", description=evaluate.__doc__ or "")
    from resnet_jax.evaluation import evaluate_run
    from resnet_jax.trained import is_run

    data_dir = options.data_dir or (None if is_run(options.source) else default_data_dir())
    step, metrics = evaluate_run(
        options.source, options.split, like=like, which=which, data_dir=data_dir, devices=options.devices
    )
    if options.json:
        known = {name: value for name, value in metrics._asdict().items() if value is not None}
        print(json.dumps({"run": options.source, "split": options.split, "step": step, **known}))
        return 0
    what = f"on {like.data}" if like.data else f"at step {step}"
    right = "" if metrics.accuracy is None else f"accuracy {metrics.accuracy:.2%} ({metrics.wrong} of"
    right += f" {metrics.examples:,} wrong), " if right else ""
    print(f"{options.source} {what}, {options.split}: {right}loss {metrics.loss:.4f}")
    return 0


def predict(words: list[str]) -> int:
    """classes of images: predict RUN|WEIGHTS IMAGE... [--top 5]"""
    kind = cast(type[tuple[PredictOptions, Like, Which]], tuple[Unnamed[PredictOptions], Unnamed[Like], Unnamed[Which]])
    options, like, which = parse(kind, words, prog="resnet-jax predict", description=predict.__doc__ or "")
    from resnet_jax.predict import predict_images

    predictions = predict_images(options.source, options.images, options.top, like=like, which=which)
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
        print(json.dumps(rows, indent=2))
        return 0
    show(prediction_table(predictions))
    return 0
