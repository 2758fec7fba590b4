"""resnet-jax report."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from resnet_jax.cli.parse import parse
from resnet_jax.runtime.terminal import log_to_stderr, show


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Runs and contents of a report."""

    runs: Positional[tuple[Path, ...]]
    """Run directories, finished or not; runs that differ only in the seed or the fold are averaged."""
    out: Path | None = None
    """Directory to write; None is RUN/report, or report/ for several runs."""
    curves_only: bool = False
    """Leave out confusion matrix and mistakes, which need an evaluation of the networks."""
    tensorboard: bool = False
    """Also write TensorBoard event files, in OUT/tensorboard."""
    data_dir: Path | None = None
    """Folder of the data sets; None is that of each run."""
    devices: int | None = None
    """Devices to use; None is all."""
    network: str | None = None
    """Your own network, `package.module:network`, if a run uses one; it is imported only if you name it."""


def report(words: list[str]) -> int:
    """Write one page about runs, with pictures: report RUN... [--out DIR]"""
    options = parse(ReportOptions, words, prog="resnet-jax report", description=report.__doc__ or "")
    from resnet_jax.report import make_report

    made = make_report(
        options.runs,
        options.out,
        answers=not options.curves_only,
        tensorboard=options.tensorboard,
        data_dir=options.data_dir,
        devices=options.devices,
        network=options.network,
        log=log_to_stderr,
    )
    for note in made.notes:
        show(note)
    runs = sum(len(variant.runs) for variant in made.variants)
    show(f"{made.page}: {runs} run{'s' * (runs != 1)} of {len(made.variants)} recipe{'s' * (len(made.variants) != 1)}")
    return 0
