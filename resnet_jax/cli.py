"""The command line: each verb a few lines over the library.

Exit codes: 0 done, 1 the machine failed (a full disk), 2 wrong use or input, 130 and 143 stopped by SIGINT or SIGTERM.
"""

import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, cast

from rich.markup import escape
from tyro.conf import Positional, arg

from resnet_jax.errors import InputError, MachineError, first_line, unknown
from resnet_jax.parse import parse, split_first, unset_other_length
from resnet_jax.recipe import Recipe, load_recipe

_T = TypeVar("_T")
_Unnamed = Annotated[_T, arg(name="")]  # flags without a prefix: --seed, not --recipe.seed

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_jax.train.run import Result


def default_data_dir() -> Path:
    return Path(os.environ.get("RESNET_JAX_DATA", "data"))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How and where to run; none of it changes the curve."""

    out: Path | None = None
    """Run directory. None is runs/NAME, with a number if that is taken; a run already there goes on."""
    data_dir: Path | None = None
    """Where data sets are looked for; None is $RESNET_JAX_DATA, or else data/."""
    devices: int | None = None
    """Devices to use; None is all."""
    stop_at: int | None = None
    """Step at which to stop with a checkpoint, before the recipe ends."""
    evaluate_every: int | None = None
    """Steps between evaluations; None is an epoch."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None is an epoch."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure."""

    run: Positional[Path]
    """Run directory."""
    split: Literal["train", "validation", "test"] = "test"
    """Part of the data."""
    data_dir: Path | None = None
    """Where data sets are looked for; None is where the run found its own."""
    devices: int | None = None
    """Devices to use; None is all."""
    json: bool = False
    """Print JSON for machines."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to classify."""

    run: Positional[Path]
    """Run directory."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    top: int = 5
    """Classes to show of each image."""
    json: bool = False
    """Print JSON for machines."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """There are none."""


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """What to describe."""

    model: Positional[str]
    """Name of a network; `resnet-jax list` shows all."""
    size: int | None = None
    """Height and width of the images in pixels; None is as published."""
    channels: int = 3
    """Channels of the images."""
    classes: int | None = None
    """Classes; None is as published."""


def train(words: list[str]) -> int:
    """train a recipe, or go on with a run: train [RECIPE.py | RUN] [--field value ...] [--out DIR]"""
    path, rest = split_first(words)
    base = load_recipe(path) if path else Recipe()
    kind = cast(type[tuple[Recipe, TrainOptions]], tuple[_Unnamed[Recipe], _Unnamed[TrainOptions]])
    recipe, options = parse(
        kind, rest, prog="resnet-jax train", description=VERBS["train"][1], default=(base, TrainOptions())
    )
    recipe = unset_other_length(recipe, base)

    from resnet_jax.curves import draw_curves
    from resnet_jax.train.directory import free_run
    from resnet_jax.train.run import train_recipe

    out = options.out or (path if path and path.is_dir() else None)
    out = out or free_run(Path("runs") / (path.stem if path else recipe.data.name), recipe)
    result = train_recipe(
        recipe,
        out,
        data_dir=options.data_dir or default_data_dir(),
        devices=options.devices,
        stop_at=options.stop_at,
        evaluate_every=options.evaluate_every,
        checkpoint_every=options.checkpoint_every,
    )
    if result.lines:
        title = f"{recipe.model.name} on {recipe.data.name}"
        draw_curves(result.lines, result.split, title, out / "curves.png")
        show_result(result, out)
    if result.step < result.steps:
        why, again = "interrupted" if result.signal else "stopped", f"resnet-jax train {shlex.quote(str(out))}"
        print(f"{why} at step {result.step} of {result.steps}, checkpoint saved; go on with: {again}")
    return 128 + result.signal if result.signal else 0


def show_result(result: "Result", out: Path) -> None:
    """The short table at the end of training."""
    line, split = result.lines[-1], result.split
    table = plain_table(f"step {line['step']} of {result.steps}", "")
    wrong, count = line[f"{split}_wrong"], line[f"{split}_examples"]
    table.add_row(f"{split} accuracy", f"{line[f'{split}_accuracy']:.2%}  ({wrong} of {count:,} wrong)")
    table.add_row(f"{split} loss", f"{line[f'{split}_loss']:.4f}")
    table.add_row("train accuracy", f"{line['train_accuracy']:.2%}")
    speed = statistics.median(line["images_per_second"] for line in result.lines)
    table.add_row("training time", f"{line['seconds']:.1f} s  ({speed:,.0f} images/s)")
    table.add_row("curves", escape(str(out / "curves.png")))
    table.add_row("run", escape(str(out)))
    show(table)


def show(*tables: "Table") -> None:
    """Prints tables; where there is no terminal, as wide as they are."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 240).print(*tables, soft_wrap=True)


def plain_table(*columns: str) -> "Table":
    """A table without a frame."""
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def evaluate(words: list[str]) -> int:
    """exact accuracy and loss of a run: evaluate RUN [--split test]"""
    options = parse(EvaluateOptions, words, prog="resnet-jax evaluate", description=VERBS["evaluate"][1])
    from resnet_jax.evaluation import evaluate_run

    step, metrics = evaluate_run(options.run, options.split, data_dir=options.data_dir, devices=options.devices)
    if options.json:
        print(json.dumps({"run": str(options.run), "split": options.split, "step": step, **metrics._asdict()}))
        return 0
    print(
        f"{options.run} at step {step}, {options.split}: accuracy {metrics.accuracy:.2%}"
        f" ({metrics.wrong} of {metrics.examples:,} wrong), loss {metrics.loss:.4f}"
    )
    return 0


def predict(words: list[str]) -> int:
    """classes of images by a run: predict RUN IMAGE... [--top 5]"""
    options = parse(PredictOptions, words, prog="resnet-jax predict", description=VERBS["predict"][1])
    from resnet_jax.predict import predict_images

    predictions = predict_images(options.run, options.images, options.top)
    if options.json:
        rows = [
            {
                "image": str(p.image),
                "predictions": [
                    {"class": name, "probability": probability}
                    for name, probability in zip(p.classes, p.probabilities, strict=True)
                ],
            }
            for p in predictions
        ]
        print(json.dumps(rows, indent=2))
        return 0
    table = plain_table("image", "class", "probability")
    for p in predictions:
        for place, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True)):
            table.add_row(escape(str(p.image)) if place == 0 else "", escape(name), f"{probability:7.2%}")
    show(table)
    return 0


def list_all(words: list[str]) -> int:
    """the networks and data sets"""
    parse(ListOptions, words, prog="resnet-jax list", description=VERBS["list"][1])
    from resnet_jax.data.datasets import DATASETS
    from resnet_jax.model.blocks import SHORTCUTS
    from resnet_jax.model.zoo import MODELS, image_size
    from resnet_jax.summary import count_parameters

    models = plain_table("network", "block", "blocks a stage", "shortcut")
    models.add_column("parameters", justify="right")
    letters = {shortcut: letter for letter, shortcut in SHORTCUTS.items()}
    for name, model in MODELS.items():
        size = image_size(model)
        models.add_row(
            name,
            model.block.__name__,
            " ".join(map(str, model.depths)),
            letters[model.shortcut],
            f"{count_parameters(model, (size, size, 3)):,}",
        )
    datasets = plain_table("data set", "what it is")
    for name, source in DATASETS.items():
        datasets.add_row(name, (source.__doc__ or "").splitlines()[0])
    show(models, datasets)
    return 0


def summary(words: list[str]) -> int:
    """layers, shapes, parameters and multiply-adds of a network: summary MODEL [--size 224]"""
    options = parse(SummaryOptions, words, prog="resnet-jax summary", description=VERBS["summary"][1])
    from resnet_jax.model.zoo import create, image_size
    from resnet_jax.summary import summarize

    for name in ("size", "channels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; it must be positive")
    model = create(options.model)
    if options.classes is not None and options.classes < 0:
        raise InputError(f"--classes is {options.classes}; it must not be negative")
    if options.classes is not None:
        model = model.clone(num_classes=options.classes)
    size = options.size or image_size(model)
    rows = summarize(model, (size, size, options.channels))
    table = plain_table("layer", "kind", "output")
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    for row in rows:
        output = " x ".join(map(str, row.output))
        table.add_row(row.path, row.kind, output, f"{row.parameters:,}", f"{row.multiply_adds:,}")
    show(table)
    parameters, multiply_adds = sum(r.parameters for r in rows), sum(r.multiply_adds for r in rows)
    print(
        f"{options.model} at {size} x {size} x {options.channels}: {parameters:,} parameters,"
        f" {multiply_adds / 1e9:.3f} G multiply-adds an image"
    )
    return 0


VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    verb: (function, (function.__doc__ or "").strip())
    for verb, function in {
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "list": list_all,
        "summary": summary,
    }.items()
}


def usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {doc}" for verb, (_, doc) in VERBS.items())
    return (
        f"usage: resnet-jax VERB ...\n\nResidual networks in JAX and Flax.\n\n{verbs}\n\n"
        "resnet-jax VERB --help shows what a verb takes."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if not words or words[0] in ("-h", "--help"):
            print(usage())
            return 0 if words else 2
        if words[0] == "--version":
            print(metadata.version("resnet-jax"))
            return 0
        if words[0] not in VERBS:
            raise unknown("verb", words[0], VERBS)
        return VERBS[words[0]][0](words[1:])
    except BrokenPipeError:  # `resnet-jax list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return fail("interrupted; the same command starts again where it can", 130)
    except InputError as error:
        return fail(str(error), 2)
    except (MachineError, OSError) as error:  # a full disk, a folder that may not be read
        return fail(str(error), 1)
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        return fail(f"out of memory ({first_line(error)}); lower --batch-size or use more devices", 1)


def fail(message: str, code: int) -> int:
    """Says in one line what went wrong; returns the exit code."""
    print(f"resnet-jax: {' '.join(message.split())}", file=sys.stderr)
    return code
