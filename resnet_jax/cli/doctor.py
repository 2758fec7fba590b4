"""resnet-jax doctor."""

from dataclasses import dataclass
from pathlib import Path

from resnet_jax.cli.parse import recipe_and
from resnet_jax.cli.tables import plain_table
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Directories and devices to check."""

    out: Path = Path("runs")
    """Directory for runs."""
    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    devices: int | None = None
    """Devices to use; None is all."""
    download: bool = False
    """Download the data set unless it is there: cifar10, cifar100, imagenette, flowers102 or oxford_iiit_pet."""
    samples: Path = Path("samples.png")
    """Picture of augmented training images to write."""


def doctor(words: list[str]) -> int:
    """Check devices, data and disk before training: doctor [RECIPE.py] [--field value ...]"""
    recipe, options = recipe_and(DoctorOptions, words, "doctor", doctor.__doc__)
    from resnet_jax.data.formats.published import fetch
    from resnet_jax.tools.doctor import examine

    if options.download:
        fetch(recipe.data.name, options.data_dir or default_data_dir(), show)
    findings = examine(
        recipe,
        options.out,
        data_dir=options.data_dir or default_data_dir(),
        devices=options.devices,
        samples_at=options.samples,
    )
    table = plain_table("", "what", "finding")
    for finding in findings:
        table.add_row("" if finding.good else "!", finding.what, finding.value)
    show(table)
    bad = sum(not finding.good for finding in findings)
    show(f"{bad or 'no'} problem{'s' * (bad != 1)}; look at {options.samples} before you train")
    return 0
