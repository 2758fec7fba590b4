"""resnet-jax summary."""

from dataclasses import dataclass

from tyro.conf import Positional

from resnet_jax.cli.parse import parse
from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError
from resnet_jax.runtime.terminal import show

# Far more than memory has room for
_MOST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """Network and input shape of a summary."""

    model: Positional[str]
    """Name of a network; `resnet-jax list` shows all."""
    size: int | None = None
    """Pixels of the images along every spatial axis; None is as published."""
    channels: int | None = None
    """Number of image channels; None is as published."""
    classes: int | None = None
    """Number of classes; 0 removes the head, None is as published."""


def summary(words: list[str]) -> int:
    """Show layers, shapes, parameters and multiply-adds of a network: summary MODEL [--size 224]"""
    options = parse(SummaryOptions, words, prog="resnet-jax summary", description=summary.__doc__ or "")
    from resnet_jax.models.summary import summarize
    from resnet_jax.weights.load import create_model

    for name in ("size", "channels"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= _MOST:
            raise InputError(f"--{name} is {value}; it must be 1 to {_MOST:,}")
    model = create_model(options.model)
    if options.classes is not None and not 0 <= options.classes <= 1 << 30:
        raise InputError(f"--classes is {options.classes}; it must be 0 to {1 << 30:,}")
    if options.classes is not None:
        model = model.clone(num_classes=options.classes)
    *spatial, channels = model.input_shape
    shape = (*((options.size,) * len(spatial) if options.size else spatial), options.channels or channels)
    rows = summarize(model, shape)
    table = plain_table("layer", "kind", "output")
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    for row in rows:
        output = " x ".join(map(str, row.output))
        table.add_row(row.path, row.kind, output, f"{row.parameters:,}", f"{row.multiply_adds:,}")
    show(table)
    parameters, multiply_adds = sum(r.parameters for r in rows), sum(r.multiply_adds for r in rows)
    show(
        f"{options.model} at {' x '.join(map(str, shape))}: {parameters:,} parameters,"
        f" {multiply_adds / 1e9:.3f} G multiply-adds per image"
    )
    return 0
