"""Numbers on the page: their format, and their tables."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from resnet_jax.report.curves import values_in
from resnet_jax.report.environment import hardware
from resnet_jax.report.figures import COLORS, final_picture, marker_of
from resnet_jax.report.nodes import Child, node, table
from resnet_jax.report.results import Quantity, aggregate, final_value, headline, keeps_ema, median_of
from resnet_jax.report.runs import RecipeGroup, Run, display_of_runs
from resnet_jax.report.statistics import MeanStd, mean_and_std
from resnet_jax.report.svg import as_svg
from resnet_jax.tasks.metrics import display_of

# Symbols of matplotlib's markers
_SYMBOLS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}
_NONE = "-"


def percent(value: MeanStd) -> str:
    """Return a fraction 0 to 1 in percent, with its standard deviation."""
    return mean_and_std(value.values, 0.01).format(2, " %")


def loss(value: MeanStd) -> str:
    """Return a loss with four digits."""
    return value.format(4)


def speed(value: MeanStd) -> str:
    """Return a whole number of images per second."""
    return value.format(0)


def duration(value: MeanStd) -> str:
    """Return a number of seconds in s, min or h."""
    unit, seconds = next(((u, s) for u, s in (("h", 3600), ("min", 60)) if value.mean >= 2 * s), ("s", 1))
    return f"{mean_and_std(value.values, seconds).format(1)} {unit}"


class Column(NamedTuple):
    """A column of a table of runs."""

    title: str  # SPLIT stands for the evaluation split
    of: Quantity
    write: Callable[[MeanStd], str]


def _writer(name: str, runs: Sequence[Run]) -> Callable[[MeanStd], str]:
    how = display_of(name, display_of_runs(runs))
    return percent if how.percent else lambda value: value.format(how.digits)


def value_columns(runs: Sequence[Run]) -> list[Column]:
    """Return a column per metric value of any run: evaluated, of the EMA, and on training images."""
    display = display_of_runs(runs)
    names = list(dict.fromkeys(name for run in runs if run.rows for name in values_in(run.rows[-1], display)))
    # The loss comes last: it means least to people
    names = [*(name for name in names if name != "loss"), "loss"]
    columns = []
    for prefix, title in (("SPLIT", "SPLIT {}"), ("ema/SPLIT", "EMA {}"), ("train", "train {}")):
        for name in names:
            if prefix != "SPLIT" and name == "loss" and len(names) > 1:
                continue
            words = title.format(name.replace("_", " "))
            columns.append(Column(words, final_value(f"{prefix}/{name}"), _writer(name, runs)))
    return columns


TIME = (
    Column("training time", final_value("train_seconds"), duration),
    Column("images/s", median_of("images_per_second"), speed),
    Column("waiting for data", median_of("data_wait_fraction"), percent),
)


def swatch(place: int) -> Element:
    """Return the colour and symbol of the recipe at a position."""
    style = f"color:var(--c{place % len(COLORS)})"
    return node("span", _SYMBOLS[marker_of(place)], class_="swatch", style=style, aria_hidden="true")


def named(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return the labels of recipes, with their colours if there are several."""
    several = len(variants) > 1
    return [[swatch(place) if several else None, variant.label] for place, variant in enumerate(variants)]


def held_of(variants: Sequence[RecipeGroup]) -> str:
    """Return the name of the evaluation split, or "evaluation" if recipes differ in it."""
    splits = {variant.split for variant in variants}
    return splits.pop() if len(splits) == 1 else "evaluation"


def headline_card(group: RecipeGroup) -> Element | None:
    """Return the main result of a single recipe in large type; None if nothing is measured yet."""
    key = headline(group)
    end, name = aggregate(group, final_value(key)), key.rpartition("/")[2]
    if end is None:
        return None
    mean, _, std = _writer(name, group.runs)(end).partition(" ± ")
    large = node("p", mean, node("small", f" ± {std}") if std else None, class_="number")
    row, count = group.counted[0].rows[-1], len(end.values)
    facts = {
        **({} if count > 1 else {"seed": str(group.counted[0].recipe.seed)}),
        "steps": f"{_steps(group.counted[0])} ({row['epoch']:,.3g} epochs)",
        "images/s": _cell(aggregate(group, TIME[1].of), speed),
        "training time" + (" per run" if count > 1 else ""): _cell(aggregate(group, TIME[0].of), duration),
        "hardware": ", ".join(dict.fromkeys(hardware(run) for run in group.counted)),
    }
    listed = [node("div", node("dt", name), node("dd", value)) for name, value in facts.items()]
    return node(
        "div",
        node("div", large, node("p", _what(group, key, count), class_="what")),
        node("dl", listed, class_="facts"),
        class_="answer",
    )


def _what(group: RecipeGroup, key: str, count: int) -> str:
    """Return the words for a value over `count` runs."""
    prefix, _, name = key.replace("SPLIT", group.split).rpartition("/")
    what = f"{group.split} {name.replace('_', ' ')}{' of the EMA' if keeps_ema(group) else ''}"
    if count > 1:
        return f"{what}, mean ± standard deviation over {count} runs"
    row = group.counted[0].rows[-1]
    errors, examples = row.get(f"{prefix}/errors"), row.get(f"{prefix}/count")
    counted = errors is not None and display_of(name, display_of_runs(group.runs)).complement == "error"
    return f"{what}, {errors:,} of {examples:,} wrong" if counted else what


def _cell(value: MeanStd | None, write: Callable[[MeanStd], str], *, count: bool = False) -> str:
    if value is None:
        return _NONE
    return write(value) + (f" ({len(value.values)})" if count and len(value.values) > 1 else "")


def _columns(some: Sequence[Column], variants: Sequence[RecipeGroup]) -> list[Column]:
    """Return the columns for which any recipe has a value."""
    return [column for column in some if any(aggregate(variant, column.of) for variant in variants)]


def results(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return the table of final values of each recipe, aggregated over its seeds."""
    if not any(variant.counted for variant in variants):
        return [node("p", "Nothing has been measured yet.")]
    columns = _columns(value_columns([run for v in variants for run in v.runs]), variants)
    rows: list[list[Child]] = [
        [[name, _unfinished(variant)], *(_cell(aggregate(variant, c.of), c.write, count=True) for c in columns)]
        for name, variant in zip(named(variants), variants, strict=True)
    ]
    caption = "The last row of each run (final epoch, not best epoch)."
    if any(len(variant.counted) > 1 for variant in variants):
        caption += " Mean ± standard deviation of the sample, in brackets the number of runs."
    head = ["recipe", *(column.title.replace("SPLIT", held_of(variants)) for column in columns)]
    picture = final_picture(variants)
    return [
        node("h2", "Result"),
        table(head, rows, caption=caption, class_="numbers sortable"),
        node("figure", as_svg(picture), class_="whole") if picture else None,
    ]


def _unfinished(variant: RecipeGroup) -> Child:
    """Return the progress of the aggregated runs that are not finished."""
    begun = [run for run in variant.counted if not run.finished]
    return (
        node("div", ", ".join(dict.fromkeys(f"step {_steps(run)}" for run in begun)), class_="muted") if begun else None
    )


def times(variants: Sequence[RecipeGroup]) -> Child:
    """Return the table of training time, speed and waiting time of each recipe, over its seeds."""
    columns = _columns(TIME, variants)
    rows: list[list[Child]] = [
        [
            name,
            *(_cell(aggregate(variant, column.of), column.write, count=True) for column in columns),
            ", ".join(dict.fromkeys(hardware(run) for run in variant.counted)) or _NONE,
        ]
        for name, variant in zip(named(variants), variants, strict=True)
    ]
    caption = (
        "Training alone, without evaluation, compilation and checkpoints. Images per second and the fraction of time"
        " spent waiting for data are medians over the rows of metrics."
    )
    return table(["recipe", *(column.title for column in columns), "hardware"], rows, caption=caption, class_="numbers")


def each_run(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return the table with a row per run."""
    some = [(place, run) for place, variant in enumerate(variants) for run in variant.runs]
    columns = [
        c for c in (*value_columns([run for _, run in some]), *TIME) if any(c.of(run) is not None for _, run in some)
    ]
    rows: list[list[Child]] = [
        [
            [swatch(place) if len(variants) > 1 else None, run.name],
            f"{run.recipe.seed}{f', fold {run.recipe.data.fold}' if run.recipe.data.fold else ''}",
            _steps(run),
            *(_cell(_alone(column.of(run)), column.write) for column in columns),
        ]
        for place, run in some
    ]
    head = ["run", "seed", "steps", *(column.title.replace("SPLIT", held_of(variants)) for column in columns)]
    return [node("h2", "Runs"), table(head, rows, class_="numbers")]


def _alone(value: float | None) -> MeanStd | None:
    return None if value is None else mean_and_std([value])


def _steps(run: Run) -> str:
    step = run.rows[-1]["step"] if run.rows else 0
    return f"{step:,}" if run.finished else f"{step:,} of {run.steps:,}"
