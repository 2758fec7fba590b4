"""resnet-jax evaluate."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from resnet_jax.cli.parse import options_and_weights
from resnet_jax.errors import InputError
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir

if TYPE_CHECKING:
    from resnet_jax.inference.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataLoading):
    """Weights, data and metrics of an evaluation."""

    sources: Positional[tuple[str, ...]]
    """Run directories, weights files, hf:OWNER/NAME or published names."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of the data."""
    metrics: tuple[str, ...] = ()
    """Metrics to report besides the loss, such as top5 or macro_f1; () is the task's default."""
    data_dir: Path | None = None
    """Folder of the data sets; None is that of the run or, for weights, $RESNET_JAX_DATA or data/."""
    devices: int | None = None
    """Devices to use; None is all."""
    views: Literal[1, 2, 5, 10] = 1
    """Views of an image to average over: 2 adds the mirror image, 5 the corner crops, 10 both."""
    clips: int = 1
    """Number of clips of a video to average over, spread evenly; 1 is the middle one."""
    csv: Path | None = None
    """Table to write, with timm's columns first. Weights already in it are skipped."""
    json: bool = False
    """Print JSON."""


def evaluate(words: list[str]) -> int:
    """Measure loss and accuracy on a split: evaluate RUN... [--split test], evaluate WEIGHTS... --data NAME"""
    options, weights, checkpoint = options_and_weights(EvaluateOptions, words, "evaluate", evaluate.__doc__)
    from resnet_jax.inference.validate import evaluate_several
    from resnet_jax.run_dir.files import is_run

    if not options.sources:
        raise InputError("name a run or weights to evaluate; see resnet-jax evaluate --help")
    found = evaluate_several(
        options.sources,
        options.split,
        options.csv,
        weights=weights,
        checkpoint=checkpoint,
        views=options.views,
        clips=options.clips,
        metrics=options.metrics,
        log=(lambda *found: None) if options.json else partial(_show, options, weights),
        data_dir=options.data_dir or (None if all(map(is_run, options.sources)) else default_data_dir()),
        devices=options.devices,
        loading=options,
    )
    if options.json:
        rows = [{"run": source, "split": options.split, "step": each.step, **each.values} for source, each in found]
        show(json.dumps(rows[0] if len(options.sources) == 1 == len(rows) else rows))
    elif options.csv:
        show(f"{options.csv}: {len(found):,} of {len(options.sources):,} newly measured")
    return 0


def _show(
    options: EvaluateOptions, weights: WeightsInfo, source: str, found: "Evaluation", published: float | None
) -> None:
    """Print what was measured of a source as one line."""
    from resnet_jax.tasks.metrics import display_of, format_value

    for note in found.notes:
        show(note)
    what = f"on {weights.data}" if weights.data else f"at step {found.step}"
    count, errors = found.values["count"], found.values.get("errors")
    parts = [
        f"{name.replace('_', ' ')} {format_value(name, value)}"
        + (f" ({errors:,} of {count:,} wrong)" if display_of(name).complement == "error" and errors is not None else "")
        for name, value in found.values.items()
        if name != "count" and display_of(name).shown
    ]
    if published is not None:
        parts.append(f"published {published:.3f}% ({100 * found.values['accuracy'] - published:+.3f})")
    kinds = (("views", options.views), ("clips", options.clips))
    views = "".join(f", {number} {kind}" for kind, number in kinds if number > 1)
    show(f"{source} {what}, {options.split}, {count:,} examples{views}: {', '.join(parts)}")
