"""resnet-jax predict."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from resnet_jax.cli.parse import options_and_weights
from resnet_jax.cli.tables import prediction_table
from resnet_jax.inference.source import TABLES, CheckpointChoice, WeightsInfo
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir

if TYPE_CHECKING:
    from resnet_jax.inference.predict import Prediction


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Weights and images to predict."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name."""
    images: Positional[tuple[Path, ...]]
    """Image, sound or video files; if --out is a table, also folders, tables (.csv, column path) and data sets."""
    topk: int = 5
    """Number of classes per image."""
    out: Path = Path("predictions")
    """Table to write (.csv, .jsonl or .parquet), for any number of images and resumable; or folder for the
    masks of a segmentation network, and for images with masks or boxes drawn on them."""
    overlap: float = 0.25
    """Segmentation: fraction of overlap of neighbouring windows, if an image is larger than the training images."""
    score: float = 0.5
    """Minimum score of a box."""
    class_agnostic: bool = False
    """Suppress overlapping boxes even if their classes differ."""
    coco: Path | None = None
    """File to write boxes to, as COCO's result JSON."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of a data set, if --out is a table."""
    data_dir: Path = field(default_factory=default_data_dir)
    """Folder of the data sets."""
    batch_size: int = 64
    """Images per call of the network, if --out is a table."""
    text: tuple[str, ...] = ()
    """Texts instead of files, for a network that reads text."""
    clips: int = 1
    """Number of clips of a video to average over, spread evenly; 1 is the middle one."""
    json: bool = False
    """Print JSON."""


def predict(words: list[str]) -> int:
    """Predict classes of images, pixels, boxes, sound, video, text: predict RUN|WEIGHTS FILE... [--out FILE.csv]"""
    options, weights, checkpoint = options_and_weights(PredictOptions, words, "predict", predict.__doc__)
    if options.out.suffix in TABLES:
        return _predict_to(options, weights, checkpoint)
    from resnet_jax.inference.predict import predict as predict_classes

    predictions = predict_classes(
        options.source,
        options.images,
        options.topk,
        weights=weights,
        checkpoint=checkpoint,
        out=options.out,
        overlap=options.overlap,
        score=options.score,
        class_agnostic=options.class_agnostic,
        coco=options.coco,
        text=options.text,
        clips=options.clips,
    )
    if options.json:
        show(json.dumps([as_json(p) for p in predictions], indent=2))
        return 0
    show(prediction_table(predictions))
    for p in predictions:
        if p.files:
            show(f"{p.image}: {' and '.join(map(str, p.files))}")
    return 0


def _predict_to(options: PredictOptions, weights: WeightsInfo, checkpoint: CheckpointChoice) -> int:
    from resnet_jax.inference.bulk import predict_to

    done = predict_to(
        options.source,
        options.images,
        options.out,
        options.topk,
        split=options.split,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        weights=weights,
        checkpoint=checkpoint,
    )
    show(done.format())
    return 0


def as_json(prediction: "Prediction") -> dict[str, Any]:
    """Return a prediction as JSON values; boxes are x1, y1, x2, y2 in pixels."""
    classes = zip(prediction.classes, prediction.probabilities, strict=True)
    rows: list[dict[str, Any]] = [{"class": name, prediction.measure: number} for name, number in classes]
    if prediction.boxes is not None:
        rows = [row | {"box": box} for row, box in zip(rows, prediction.boxes.tolist(), strict=True)]
    files = {"files": [str(file) for file in prediction.files]} if prediction.files else {}
    return {"image": str(prediction.image), "predictions": rows, **files}
