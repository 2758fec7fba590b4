"""resnet-jax find-lr."""

from dataclasses import dataclass
from pathlib import Path

from resnet_jax.cli.parse import recipe_and
from resnet_jax.runtime.terminal import log_to_stderr, show


@dataclass(frozen=True, kw_only=True)
class FindLrOptions:
    """Learning rates to try."""

    lr_min: float = 1e-5
    """Learning rate of the first step."""
    lr_max: float = 10.0
    """Learning rate of the last step."""
    test_steps: int = 100
    """Number of steps; the test ends early once the loss has risen to four times its lowest value."""
    out: Path = Path("find-lr.png")
    """Picture to write."""
    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    devices: int | None = None
    """Devices to use; None is all."""


def find_lr(words: list[str]) -> int:
    """Find a learning rate by a range test: find-lr [RECIPE.py] [--field value ...]"""
    recipe, options = recipe_and(FindLrOptions, words, "find-lr", find_lr.__doc__)
    from resnet_jax.tools import find_lr as tool

    test = tool.find_lr(
        recipe,
        lr_min=options.lr_min,
        lr_max=options.lr_max,
        steps=options.test_steps,
        data_dir=options.data_dir,
        devices=options.devices,
        log=log_to_stderr,
    )
    title = f"{recipe.model.name} on {recipe.data.name}, {recipe.optimizer.name}, batches of {recipe.batch_size}"
    tool.draw_range_test(test, options.out, title)
    show(f"loss lowest at a learning rate of {test.lowest:.2g}, falling fastest at {test.steepest:.2g}")
    show(f"suggestion: --optimizer.lr {test.steepest:.2g}   (picture: {options.out})")
    return 0
