"""resnet-jax preflight."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnet_jax.cli.parse import recipe_and
from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError, MachineError
from resnet_jax.recipe import Recipe
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_jax.tools.hlo import Collective
    from resnet_jax.tools.preflight import Report


# Data of a network that is named alone, whose published shape is taken
_NO_DATA = "synthetic"


@dataclass(frozen=True, kw_only=True)
class PreflightOptions:
    """Chips and program to compile for."""

    topology: tuple[str, ...] = ()
    """TPU slices such as v5e:2x4 or GPUs such as h200:8, which need not be present; each takes minutes."""
    grad_accum_steps: int = 1
    """Microbatches per step, to save memory."""
    param_sharding: Literal["replicated", "sharded"] = "replicated"
    """Sharding of parameters, optimiser state and EMA over the chips."""
    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    image_size: int | None = None
    """Height and width in pixels of the images; None reads the data or, if they are missing, the recipe."""
    classes: int | None = None
    """Number of classes; None reads the data or, if they are missing, the network."""
    json: bool = False
    """Print JSON."""


def preflight(words: list[str]) -> int:
    """Check whether a step fits TPUs or GPUs: preflight NETWORK|RECIPE.py --topology v5e:2x4 h200:8"""
    from resnet_jax.models.zoo import MODELS

    recipe, options = recipe_and(PreflightOptions, words, "preflight", preflight.__doc__, _recipe_of)
    if not options.topology:
        raise InputError("preflight: name the chips, --topology v5e:2x4 or h200:8")
    import jax

    # Otherwise jax would look for the chips that the compilers are for
    jax.config.update("jax_platforms", "cpu")
    from resnet_jax.tools.chips import slice_of
    from resnet_jax.tools.preflight import data_of
    from resnet_jax.tools.preflight import preflight as compile_for
    from resnet_jax.tools.topology import no_stderr

    with no_stderr():
        jax.devices()

    # Check all of them before the first one takes minutes
    for topology in options.topology:
        slice_of(topology)
    published = MODELS[recipe.model.name].num_classes if words[0] in MODELS and recipe.data.name == _NO_DATA else None
    classes = options.classes or published
    dataset, note = data_of(recipe, options.data_dir or default_data_dir(), options.image_size, classes)
    log = (lambda line: None) if options.json else show
    if note:
        log(note)
    reports = []
    for topology in options.topology:
        log(f"compiling for {topology}, which may take minutes")
        reports.append(
            compile_for(
                recipe,
                dataset,
                topology,
                grad_accum_steps=options.grad_accum_steps,
                param_sharding=options.param_sharding,
            )
        )
    if options.json:
        show(json.dumps([as_json(report) for report in reports], indent=2))
    else:
        side = max(recipe.augment.progressive_sizes, default=None)
        extent = (side, side) if side else dataset.image_shape[:-1]
        pixels = " x ".join(map(str, extent))
        gpu = any(slice_of(topology)[0].gpu for topology in options.topology)
        dtype = "float32 as TF32" if gpu and recipe.model.dtype == "float32" else recipe.model.dtype
        show(table_of(reports, f"{recipe.model.name}, {dtype}, {pixels} pixels"))
    require_room(reports)
    return 0


def _recipe_of(path: Path, network: str | None, data: str | None) -> Recipe:
    """Return the recipe of a file or run, or one for a network."""
    from resnet_jax.tools.bench import bench_target

    return bench_target(str(path), network=network, data=data).recipe


def require_room(reports: "list[Report]") -> None:
    """Raise MachineError with the compiler's message if a step does not fit."""
    if refused := [f"{report.topology}: {report.refusal}" for report in reports if report.refusal]:
        raise MachineError(
            f"does not fit, {'; '.join(refused)}; take a smaller --batch-size, more chips, --param-sharding sharded or,"
            " with a --model.norm-group-size, --grad-accum-steps 2"
        )


def as_json(report: "Report") -> dict[str, Any]:
    """Return all figures of a report, in its units."""
    kinds = {kind: asdict(collective) for kind, collective in report.collectives.items()}
    derived = {"fits": not report.refusal, "images_per_second": report.images_per_second, "bound": report.bound}
    return report._asdict() | {"collectives": kinds} | derived


def table_of(reports: "list[Report]", title: str) -> "Table":
    """Return a table with a column per topology; figures are per chip or per image."""
    table = plain_table(title)
    for report in reports:
        table.add_column(report.topology, justify="right")

    def row(name: str, show_one: "Callable[[Report], str]", always: bool = False) -> None:
        table.add_row(name, *(show_one(r) if always or not r.refusal else "" for r in reports))

    row("images per step, per chip", lambda r: f"{r.batch:,}, {r.batch // r.chips:,}", always=True)
    row(
        "fits",
        lambda r: "no" if r.refusal else f"yes, {needed(r) / r.memory:.0%} of {r.memory / 2**30:.4g} GiB",
        always=True,
    )
    row("state and batch", lambda r: gib(r.arguments))
    row("temporaries", lambda r: gib(r.temporaries))
    row("code", lambda r: gib(r.code))
    row("FLOPs per image", lambda r: f"{r.flops / 1e9:,.3f} G")
    row("6 x its multiply-adds", lambda r: f"{6 * r.multiply_adds / 1e9:,.3f} G")
    if any(report.bytes_accessed for report in reports):
        row("bytes accessed per image", lambda r: f"{r.bytes_accessed / 1e6:,.1f} MB" if r.bytes_accessed else "")
    row("bytes in HBM per image", lambda r: f"{r.memory_traffic / 1e6:,.1f} MB")
    for kind in dict.fromkeys(kind for report in reports for kind in report.kernels):
        row(f"{kind} per step", lambda r, kind=kind: f"{r.kernels.get(kind, 0):,}")  # type: ignore[misc]
    for kind in dict.fromkeys(kind for report in reports for kind in report.collectives):
        row(f"{kind} per step", lambda r, kind=kind: met(r.collectives.get(kind)))  # type: ignore[misc]
    row("of these, asynchronous", lambda r: f"{sum(c.asynchronous for c in r.collectives.values())}")
    row("at full speed of the links", lambda r: f"{1e3 * r.link_seconds:,.2f} ms")
    row("roofline, per step", lambda r: f"{1e3 * max(r.compute_seconds, r.memory_seconds):,.2f} ms")
    row("roofline, images/s per chip", lambda r: f"{r.images_per_second:,.0f}")
    row("bound by", lambda r: r.bound)
    row("compiled in", lambda r: f"{r.compile_seconds:.0f} s", always=True)
    return table


def needed(report: "Report") -> float:
    """Return the bytes that a step needs on a chip."""
    return report.arguments + report.temporaries + report.code


def gib(count: float) -> str:
    """Return a number of bytes as text in GiB."""
    return f"{count / 2**30:,.2f} GiB"


def met(collective: "Collective | None") -> str:
    """Return the number of collectives of a kind and their bytes, as text."""
    return f"{collective.count:,}, {collective.bytes / 1e6:,.1f} MB" if collective else "none"
