"""resnet-jax bench."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from resnet_jax.cli.parse import HELP, Unnamed, named, parse, recipe_and
from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe
from resnet_jax.recipe.bounds import POSITIVE, require_flag_bounds
from resnet_jax.recipe.overrides import rescale_times
from resnet_jax.runtime.terminal import log_to_stderr, show
from resnet_jax.training.options import default_data_dir

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_jax.tools.bench import BenchTarget, StepBenchmark


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of `bench data`."""

    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    devices: int | None = None
    """Devices to use; None is all."""
    num_threads: int | None = None
    """Threads that read images; None is one per core."""
    seconds: Annotated[float, POSITIVE] = 3.0
    """Seconds per stage."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of `bench train` and `bench eval`."""

    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    devices: int | None = None
    """Devices to use; None is all."""
    num_threads: int | None = None
    """Threads that read images; None is one per core."""
    seconds: Annotated[float, POSITIVE] = 10.0
    """Seconds per network; --measured-steps may end it earlier."""
    measured_steps: Annotated[int, POSITIVE] = 100
    """Maximum number of measured steps per network; --seconds may end them earlier."""
    json: bool = False
    """Print JSON."""
    csv: Path | None = None
    """CSV file to write, one line per network."""
    profile: Path | None = None
    """Folder to write a trace of some steps to, for Perfetto and XProf."""


def bench(words: list[str]) -> int:
    """Measure speed: bench data [RECIPE.py], bench train|eval NETWORK|RECIPE.py|RUN... [--field value ...]"""
    if words and words[0] in ("train", "eval"):
        return bench_step(words[0], words[1:])
    if not words or words[0] not in ("data", *HELP):
        raise InputError("bench: name what to measure: bench data [RECIPE.py], bench train NETWORK, bench eval NETWORK")
    return bench_data(words[1:] if words[0] == "data" else words)


def bench_data(words: list[str]) -> int:
    """Measure each stage of the data pipeline alone."""
    recipe, options = recipe_and(DataOptions, words, "bench data", bench.__doc__)
    require_flag_bounds(options)
    from resnet_jax.tools.bench import measure_data

    log_to_stderr(f"measuring each stage of {recipe.data.name} for {options.seconds:g} s")
    speeds = measure_data(
        recipe,
        data_dir=options.data_dir or default_data_dir(),
        num_threads=options.num_threads,
        seconds=options.seconds,
        devices=options.devices,
    )
    if options.json:
        show(json.dumps([speed._asdict() for speed in speeds]))
        return 0
    table = plain_table(f"{recipe.data.name}, batches of {recipe.batch_size}")
    table.add_column("images/s", justify="right")
    for speed in speeds:
        table.add_row(speed.stage, f"{speed.images_per_second:,.0f}")
    show(table)
    return 0


def bench_step(what: Any, words: list[str]) -> int:
    """Measure a step of training or evaluation of one or more networks."""
    count = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    names, flags = words[:count], words[count:]
    if {"-h", "--help"} & set(flags):
        parsed(Recipe(), flags, what)
    if not names:
        raise InputError(f"bench {what}: name a network, a recipe file or a run")
    from resnet_jax.tools.bench import MeasureFor, bench_target, measure_step

    # All of them are checked before the first is measured
    subjects = [
        vary(bench_target(name, network=named(flags, "--model.name"), data=named(flags, "--data.name")), flags, what)
        for name in names
    ]
    options = subjects[0][1]
    require_flag_bounds(options)
    if options.csv is not None and not options.csv.absolute().parent.is_dir():
        raise InputError(f"--csv {options.csv}: no such folder; create it first")
    measured = [
        measure_step(
            subject,
            what,
            bounds=MeasureFor(options.seconds, options.measured_steps),
            data_dir=options.data_dir or default_data_dir(),
            devices=options.devices,
            num_threads=options.num_threads,
            profile=options.profile,
            log=log_to_stderr,
        )
        for subject, _ in subjects
    ]
    if options.csv is not None:
        options.csv.write_text(as_csv(measured))
    if options.json:
        show(json.dumps([one._asdict() for one in measured], indent=2))
        return 0
    # Three of them fit in 100 columns
    for start in range(0, len(measured), 3):
        show(table_of(measured[start : start + 3]))
    if options.profile is not None:
        show(f"profile in {options.profile}: open perfetto_trace.json.gz in it at ui.perfetto.dev, or all with xprof")
    return 0


def parsed(base: Recipe, flags: list[str], what: str) -> tuple[Recipe, StepOptions]:
    """Return a recipe with the flags applied, and the options."""
    both = cast(type[tuple[Recipe, StepOptions]], tuple[Unnamed[Recipe], Unnamed[StepOptions]])
    default = (base, StepOptions())
    recipe, options = parse(
        both, flags, prog=f"resnet-jax bench {what}", description=bench.__doc__ or "", default=default
    )
    return rescale_times(recipe, base, flags), options


def vary(subject: "BenchTarget", flags: list[str], what: str) -> "tuple[BenchTarget, StepOptions]":
    """Return the target with the flags applied to its recipe, and the options."""
    recipe, options = parsed(subject.recipe, flags, what)
    return subject._replace(recipe=recipe), options


def as_csv(measured: "list[StepBenchmark]") -> str:
    """Return CSV with a header and a line per benchmark."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(measured[0]._fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(one._asdict() for one in measured)
    return text.getvalue()


def table_of(measured: "list[StepBenchmark]") -> "Table":
    """Return a table with a column per benchmark."""
    first = measured[0]
    table = plain_table(f"{first.what}, {first.devices} x {first.device}")
    for one in measured:
        table.add_column(one.name, justify="right", overflow="fold")

    def row(name: str, show_one: "Callable[[StepBenchmark], str]") -> None:
        table.add_row(name, *map(show_one, measured))

    row("images per step", lambda m: f"{m.batch:,}" + (f" of {m.asked:,}" if m.batch < m.asked else ""))
    row("image", lambda m: m.image)
    row("computed in", lambda m: m.dtype)
    row("images/s", lambda m: f"{m.images_per_second:,.1f}")
    row("ms per step, median", lambda m: f"{m.step_ms:,.1f}")
    row("  10 to 90 % of them", lambda m: f"{m.low_ms:,.1f} to {m.high_ms:,.1f}")
    row("steps measured", lambda m: f"{m.steps:,}")
    row("waiting for data", lambda m: f"{m.data_wait_fraction:.1%}")
    row("FLOPs per image", lambda m: f"{m.flops_per_image / 1e9:,.3f} G")
    row("peak", lambda m: f"{m.peak_flops / 1e12:,.3f} TFLOP/s")
    row("MFU", lambda m: f"{m.mfu:.1%}")
    row("memory, as the " + first.memory_source + " says", lambda m: f"{m.memory / 2**30:,.2f} GiB")
    row("main memory of the process", lambda m: f"{m.process_memory / 2**30:,.2f} GiB")
    row("compiled in", lambda m: f"{m.compile_cold_s:.1f} s")
    row("  again, from a cache", lambda m: f"{m.compile_warm_s:.1f} s")
    table.caption, table.caption_justify = f"the peak is {first.peak_source}", "left"
    return table
