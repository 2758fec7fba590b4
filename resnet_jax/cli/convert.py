"""resnet-jax convert."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tyro.conf import Positional

from resnet_jax.cli.parse import Unnamed, parse
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.runtime.terminal import show


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Source and target format of a conversion."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name."""
    out: Positional[Path]
    """File to write, in the safetensors format."""
    to: Literal["torchvision", "timm", "flax"]
    """Names and layout of the tensors; flax is this library's own, such as params/stem/conv/kernel."""
    model: str | None = None
    """Name of the network, if the source does not say it."""
    cast: bool = False
    """Round float64 weights to float32; float16 and bfloat16 need no flag."""


def convert(words: list[str]) -> int:
    """Convert weights to another format: convert SOURCE OUT.safetensors --to torchvision|timm|flax"""
    kind = cast(
        type[tuple[ConvertOptions, CheckpointChoice]], tuple[Unnamed[ConvertOptions], Unnamed[CheckpointChoice]]
    )
    options, checkpoint = parse(kind, words, prog="resnet-jax convert", description=convert.__doc__ or "")
    from resnet_jax.inference.convert import convert_weights

    done = convert_weights(
        options.source, options.out, options.to, model=options.model, cast=options.cast, checkpoint=checkpoint
    )
    show(f"{options.out}: {done.model}, {done.tensors:,} tensors, {done.classes:,} classes, names of {options.to}")
    return 0
