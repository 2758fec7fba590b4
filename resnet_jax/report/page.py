"""The page of a report: a pure function of what was read and measured."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from resnet_jax.report.boxes import BoxPredictions
from resnet_jax.report.boxes_page import boxed
from resnet_jax.report.confusion_page import answered
from resnet_jax.report.dense import MaskPredictions
from resnet_jax.report.dense_page import segmented
from resnet_jax.report.environment import commands, environments
from resnet_jax.report.figures import SPEED, Picture, pictures, quality_panels
from resnet_jax.report.nodes import Child, node, render, table
from resnet_jax.report.predictions import Collected
from resnet_jax.report.results import keeps_ema
from resnet_jax.report.runs import RecipeGroup, differing_fields, format_value, recipe_fields
from resnet_jax.report.svg import as_svg, palette_css
from resnet_jax.report.tables import each_run, headline_card, held_of, named, results, times
from resnet_jax.version import __version__

GENERATOR = "resnet-jax report"
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src '{}'"


class Contents(NamedTuple):
    """The contents of a page."""

    variants: Sequence[RecipeGroup]
    answers: Sequence[Collected | None]  # one per variant
    notes: Sequence[str]
    pictures: Sequence[str] = ()  # names of the files beside the page


def make_page(contents: Contents) -> bytes:
    """Return the whole self-contained page, in UTF-8."""
    variants, title = contents.variants, title_of(contents.variants)
    script = Path(__file__).with_name("script.js").read_text()
    allowed = f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    several = len(variants) > 1
    head = node(
        "head",
        node("meta", charset="utf-8"),
        # No network, and no script but that of the page
        node("meta", http_equiv="Content-Security-Policy", content=_POLICY.format(allowed)),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="generator", content=GENERATOR),
        node("meta", name="pictures", content=" ".join(contents.pictures)),
        node("meta", name="color-scheme", content="light dark"),
        node("title", title),
        node("link", rel="icon", href="data:,"),
        node("style", palette_css(), Path(__file__).with_name("style.css").read_text()),
    )
    main = node(
        "main",
        None if several else headline_card(variants[0]),
        node("ul", [node("li", note) for note in contents.notes], class_="notes") if contents.notes else None,
        differences(variants) if several else None,
        results(variants),
        curves(variants),
        [predicted(v, a, several=several) for v, a in zip(variants, contents.answers, strict=True)],
        schedule_and_speed(variants),
        recipes(variants),
        each_run(variants) if sum(len(variant.runs) for variant in variants) > 1 else None,
        surroundings(variants),
    )
    header = node("header", node("h1", title), node("p", size_of(variants), class_="muted"))
    footer = node("footer", f"Made by resnet-jax {__version__}. The pictures are also saved as PNG beside this page.")
    return render(node("html", head, node("body", header, main, footer, node("script", script)), lang="en"))


def predicted(variant: RecipeGroup, answers: Collected | None, *, several: bool) -> list[Child]:
    """Return the section with the predictions of a recipe, of images, their pixels or boxes in them."""
    if isinstance(answers, MaskPredictions):
        return segmented(variant, answers, several=several)
    if isinstance(answers, BoxPredictions):
        return boxed(variant, answers, several=several)
    return answered(variant, answers, several=several)


def title_of(variants: Sequence[RecipeGroup]) -> str:
    """Return the title: networks and data sets."""
    recipes = [variant.runs[0].recipe for variant in variants]
    models = list(dict.fromkeys(variant.runs[0].network for variant in variants))
    data = list(dict.fromkeys(recipe.data.name for recipe in recipes))
    more = f" and {len(models) - 3} more" if len(models) > 3 else ""
    return f"{', '.join(models[:3])}{more} on {', '.join(data)}"


def size_of(variants: Sequence[RecipeGroup]) -> str:
    """Return the number of recipes and runs, and the evaluation split, as text."""
    runs = sum(len(variant.runs) for variant in variants)
    recipes = f"{len(variants)} recipes, " if len(variants) > 1 else ""
    return f"{recipes}{runs} run{'s' * (runs != 1)}, measured on the {held_of(variants)} split"


def differences(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return a table of the fields in which the recipes differ."""
    names, fields = differing_fields(variants), [recipe_fields(variant.runs[0]) for variant in variants]
    if not names:
        return [node("p", "The recipes are the same; the class names of their data differ.")]
    rows: list[list[Child]] = [[name, *(format_value(one[name]) for one in fields)] for name in names]
    but = ", except for the seeds" if any(len(variant.runs) > 1 for variant in variants) else ""
    caption = f"All other fields are the same{but}."
    return [node("h2", "What differs"), table(["field", *named(variants)], rows, caption=caption, class_="fields")]


def panels(some: Sequence[Picture]) -> Element:
    """Return pictures side by side."""
    class_ = "panels three" if len(some) == 3 else "panels"
    return node("div", [node("figure", as_svg(picture)) for picture in some], class_=class_)


def curves(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return the curves of each metric on training images and the evaluation split."""
    some = pictures(quality_panels(variants), variants)
    if not some:
        return []
    text = (
        f"Solid: the whole {held_of(variants)} split. Dashed: augmented training images, with the loss"
        " that is minimised, averaged since the previous row of metrics. Zero cannot be shown on a log scale."
    )
    if any(map(keeps_ema, variants)):
        text += " For runs with an EMA, solid is the EMA."
    if any(len(variant.counted) > 1 for variant in variants):
        text += " Lines are means over the seeds, in a band from the lowest to the highest."
    legend = node("ul", [node("li", name) for name in named(variants)], class_="legend")
    return [node("h2", "Curves"), legend if len(variants) > 1 else None, panels(some), node("p", text, class_="muted")]


def schedule_and_speed(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return learning rate, images per second and waiting time."""
    some = pictures(SPEED, variants)
    return [node("h2", "Schedule and speed"), times(variants), panels(some)] if some else []


def recipes(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return a folded table of all fields of all recipes; fields that differ are bold."""
    fields, changed = [recipe_fields(variant.runs[0]) for variant in variants], set(differing_fields(variants))
    rows: list[list[Child]] = [[name, *(format_value(one[name]) for one in fields)] for name in fields[0]]
    whole = table(["field", *named(variants)], rows, class_="fields")
    for row, name in zip(whole.iter("tr"), ["", *fields[0]], strict=True):
        if name in changed:
            row.set("class", "changed")
    of = "" if len(variants) == 1 else f" of {len(variants)} recipes"
    return [node("h2", "Recipe"), node("details", node("summary", f"All {len(fields[0])} fields{of}"), whole)]


def surroundings(variants: Sequence[RecipeGroup]) -> list[Child]:
    """Return versions, devices and commits, and the commands of each run."""
    runs = [run for variant in variants for run in variant.runs]
    known, lines = environments(runs), "\n".join(commands(runs))
    if not known:
        return []
    head: list[Child] = ["", *("all runs" if len(known) == 1 else ", ".join(one.runs) for one in known)]
    facts = dict.fromkeys(name for one in known for name in one.facts)
    rows: list[list[Child]] = [[name, *(one.facts.get(name, "-") for one in known)] for name in facts]
    return [
        node("h2", "Environment"),
        table(head, rows, class_="fields"),
        node("details", node("summary", "Commands"), node("pre", lines)) if lines else None,
    ]
