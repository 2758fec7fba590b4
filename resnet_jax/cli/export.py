"""resnet-jax export and resnet-jax verify."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from resnet_jax.cli.parse import options_and_weights, parse
from resnet_jax.errors import InputError
from resnet_jax.inference.export.interface import Interface
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Interface):
    """What to export, and how to check it."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name."""
    out: Positional[Path]
    """File to write: .onnx, .tflite (LiteRT) or .stablehlo."""
    to: Literal["file", "web"] = "file"
    """web: write a folder OUT with a page that classifies images in a browser."""
    runtime: Path | None = None
    """For --to web: the npm tarball of onnxruntime-web, or its folder dist."""
    images: tuple[Path, ...] = ()
    """Image files to check the export with; () is random pixels."""
    int8: str | None = None
    """Quantise to 8 bits; calibration images: a folder, a data set, or train for the training split of the run."""
    calibration_images: int = 256
    """Maximum number of calibration images."""
    keep_float: tuple[str, ...] = ()
    """Layers to leave in float, such as stem/conv."""
    float16: bool = False
    """Store the weights as float16; for .tflite."""
    split: Literal["train", "validation", "test"] | None = None
    """Measure the accuracy on a split; weights need --data."""
    data_dir: Path | None = None
    """Folder of the data sets; None is that of the run or, for weights, $RESNET_JAX_DATA or data/."""
    force: bool = False
    """Replace an existing file."""


def export(words: list[str]) -> int:
    """Write a network for other runtimes: export RUN|WEIGHTS OUT.onnx|.tflite|.stablehlo"""
    options, weights, checkpoint = options_and_weights(ExportOptions, words, "export", export.__doc__)
    from resnet_jax.inference.export.export import export as export_network
    from resnet_jax.inference.export.web import export_web
    from resnet_jax.run_dir.files import is_run

    shared: dict[str, Any] = {
        "images": options.images,
        "int8": options.int8,
        "calibration_images": options.calibration_images,
        "keep_float": options.keep_float,
        "float16": options.float16,
        "split": options.split,
        "data_dir": options.data_dir or (None if is_run(options.source) else default_data_dir()),
        "weights": weights,
        "checkpoint": checkpoint,
        "force": options.force,
    }
    if options.to == "web":
        done = export_web(options.source, options.out, _required(options.runtime), **shared)
    else:
        interface = {name: getattr(options, name) for name in Interface.__dataclass_fields__}
        done = export_network(options.source, options.out, **interface, **shared)
    for name, line in done.report.items():
        show(f"{name}: {line}")
    show(f"{done.file}: {done.bytes:,} bytes")
    return 0


def _required(runtime: Path | None) -> Path:
    if runtime is None:
        raise InputError(
            "--to web needs --runtime: the tarball that `npm pack onnxruntime-web` writes, or its folder dist"
        )
    return runtime


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """The export to check."""

    file: Positional[Path]
    """File written by `resnet-jax export`, with its .json beside it."""


def verify(words: list[str]) -> int:
    """Repeat the check of an export on this machine: verify FILE"""
    options = parse(VerifyOptions, words, prog="resnet-jax verify", description=verify.__doc__ or "")
    from resnet_jax.inference.export.export import verify_export

    done = verify_export(options.file)
    show(f"{options.file}: {done.network}; {done.difference.format()}")
    return 0
