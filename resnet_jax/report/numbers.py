"""Numbers on the page: how they are written, and the tables of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from resnet_jax.report.environment import hardware
from resnet_jax.report.figures import DARK, color_of, final_picture, marker_of
from resnet_jax.report.nodes import Child, node, shown, table
from resnet_jax.report.results import Quantity, final, headline, keeps_averages, over, typical
from resnet_jax.report.runs import Run, Variant
from resnet_jax.spread import Spread, spread

_SYMBOLS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}  # of matplotlib's markers
_NONE = "-"


def percent(value: Spread) -> str:
    """A share, 0 to 1, with what it varies by."""
    return spread(value.values, 0.01).written(2, " %")


def loss(value: Spread) -> str:
    return value.written(4)


def speed(value: Spread) -> str:
    return value.written(0)


def duration(value: Spread) -> str:
    """Of seconds, in a unit that suits them."""
    unit, seconds = next(((u, s) for u, s in (("h", 3600), ("min", 60)) if value.mean >= 2 * s), ("s", 1))
    return f"{spread(value.values, seconds).written(1)} {unit}"


class Column(NamedTuple):
    """A quantity of a run in a table."""

    title: str  # SPLIT stands for the held split
    of: Quantity
    write: Callable[[Spread], str]


ACCURACY = (
    Column("SPLIT accuracy", final("SPLIT_accuracy"), percent),
    Column("averaged weights", final("ema_SPLIT_accuracy"), percent),
    Column("train accuracy", final("train_accuracy"), percent),
)
LOSS = Column("SPLIT loss", final("SPLIT_loss"), loss)
TIME = (
    Column("training time", final("seconds"), duration),
    Column("images/s", typical("images_per_second"), speed),
    Column("waiting for data", typical("data_wait"), percent),
)


def swatch(place: int) -> Element:
    """The colour of the variant at a place, and its mark."""
    style = f"--light:{color_of(place)};--dark:{DARK[color_of(place)]}"
    return node("span", _SYMBOLS[marker_of(place)], class_="swatch", style=style, aria_hidden="true")


def named(variants: Sequence[Variant]) -> list[Child]:
    """The labels of variants, with their colours where there are several."""
    several = len(variants) > 1
    return [[swatch(place) if several else None, variant.label] for place, variant in enumerate(variants)]


def held_of(variants: Sequence[Variant]) -> str:
    """The split that they are measured on, or what it is called where they differ."""
    splits = {variant.split for variant in variants}
    return splits.pop() if len(splits) == 1 else "held"


def answer(variant: Variant) -> Element | None:
    """What came out of the only recipe, in large."""
    field = headline(variant)
    end = over(variant, final(field))
    if end is None:
        return None
    mean, _, std = (percent if field.endswith("accuracy") else loss)(end).partition(" ± ")
    large = node("p", mean, node("small", f" ± {std}") if std else None, class_="number")
    line, count = variant.counted[0].lines[-1], len(end.values)
    facts = {
        **({} if count > 1 else {"seed": str(variant.counted[0].recipe.seed)}),
        "steps": f"{_steps(variant.counted[0])} ({line['epoch']:,.3g} epochs)",
        "images/s": _cell(over(variant, TIME[1].of), speed),
        "training time" + (" of a run" if count > 1 else ""): _cell(over(variant, TIME[0].of), duration),
        "hardware": ", ".join(dict.fromkeys(hardware(run) for run in variant.counted)),
    }
    listed = [node("div", node("dt", name), node("dd", value)) for name, value in facts.items()]
    return node(
        "div",
        node("div", large, node("p", _what(variant, field, count), class_="what")),
        node("dl", listed, class_="facts"),
        class_="answer",
    )


def _what(variant: Variant, field: str, count: int) -> str:
    """The words for the number of a field over `count` runs."""
    name, split = field.rpartition("_")[2], variant.split
    what = f"{split} {name}{' of the averaged weights' if keeps_averages(variant) else ''}"
    if count > 1:
        return f"{what}, mean ± standard deviation over {count} runs"
    line, prefix = variant.counted[0].lines[-1], field.removesuffix(name).replace("SPLIT", split)
    wrong, examples = line.get(f"{prefix}wrong"), line.get(f"{prefix}examples")
    return f"{what}, {wrong:,} of {examples:,} wrong" if name == "accuracy" and examples else what


def _cell(value: Spread | None, write: Callable[[Spread], str], *, count: bool = False) -> str:
    if value is None:
        return _NONE
    return write(value) + (f" ({len(value.values)})" if count and len(value.values) > 1 else "")


def _columns(some: Sequence[Column], variants: Sequence[Variant]) -> list[Column]:
    """Those that any variant has a number for."""
    return [column for column in some if any(over(variant, column.of) for variant in variants)]


def results(variants: Sequence[Variant]) -> list[Child]:
    """The last line of metrics of each recipe, over its seeds."""
    if not any(variant.counted for variant in variants):
        return [node("p", "Nothing is measured yet.")]
    columns = _columns((*ACCURACY, LOSS), variants)
    rows: list[list[Child]] = [
        [[name, _unfinished(variant)], *(_cell(over(variant, c.of), c.write, count=True) for c in columns)]
        for name, variant in zip(named(variants), variants, strict=True)
    ]
    caption = "The last line of each run, never the best."
    if any(len(variant.counted) > 1 for variant in variants):
        caption += " Mean ± standard deviation of the sample, in brackets the number of runs."
    head = ["recipe", *(column.title.replace("SPLIT", held_of(variants)) for column in columns)]
    picture = final_picture(variants)
    return [
        node("h2", "Result"),
        table(head, rows, caption=caption, class_="numbers"),
        node("figure", shown(picture), class_="whole") if picture else None,
    ]


def _unfinished(variant: Variant) -> Child:
    """How far the runs are whose numbers are shown, where they are not at their end."""
    begun = [run for run in variant.counted if not run.finished]
    return (
        node("div", ", ".join(dict.fromkeys(f"step {_steps(run)}" for run in begun)), class_="muted") if begun else None
    )


def times(variants: Sequence[Variant]) -> Child:
    """Training time, throughput and waiting time of each recipe, over its seeds."""
    columns = _columns(TIME, variants)
    rows: list[list[Child]] = [
        [
            name,
            *(_cell(over(variant, column.of), column.write, count=True) for column in columns),
            ", ".join(dict.fromkeys(hardware(run) for run in variant.counted)) or _NONE,
        ]
        for name, variant in zip(named(variants), variants, strict=True)
    ]
    caption = (
        "Of training alone, without evaluation, compilation and checkpoints. Images a second and the share of the time"
        " that a step waits for its images are medians over the lines of metrics."
    )
    return table(["recipe", *(column.title for column in columns), "hardware"], rows, caption=caption, class_="numbers")


def each_run(variants: Sequence[Variant]) -> list[Child]:
    """A row for each run."""
    some = [(place, run) for place, variant in enumerate(variants) for run in variant.runs]
    columns = [c for c in (*ACCURACY, LOSS, *TIME) if any(c.of(run) is not None for _, run in some)]
    rows: list[list[Child]] = [
        [
            [swatch(place) if len(variants) > 1 else None, run.name],
            str(run.recipe.seed),
            _steps(run),
            *(_cell(_alone(column.of(run)), column.write) for column in columns),
        ]
        for place, run in some
    ]
    head = ["run", "seed", "steps", *(column.title.replace("SPLIT", held_of(variants)) for column in columns)]
    return [node("h2", "Runs"), table(head, rows, class_="numbers")]


def _alone(value: float | None) -> Spread | None:
    return None if value is None else spread([value])


def _steps(run: Run) -> str:
    step = run.lines[-1]["step"] if run.lines else 0
    return f"{step:,}" if run.finished else f"{step:,} of {run.steps:,}"
