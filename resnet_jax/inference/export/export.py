"""Export a run or weights to a file that other runtimes read, checked before it is written."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import open_eval_source
from resnet_jax.inference.export.check import LIMIT, Difference, Run, as_taken, compare, require_equal
from resnet_jax.inference.export.description import (
    as_recorded,
    card_path,
    describe,
    description_path,
    model_card,
    read_description,
    recorded,
    write_description,
)
from resnet_jax.inference.export.int8 import (
    calibration_pixels,
    halve_litert,
    layer_noise,
    quantize_litert,
    quantize_onnx,
)
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.litert import load_litert, require_litert, scales, write_litert
from resnet_jax.inference.export.measure import Errors, count_errors, milliseconds
from resnet_jax.inference.export.network import (
    Network,
    is_quantized,
    normalize,
    open_network,
    random_pixels,
    reference,
)
from resnet_jax.inference.export.onnx_file import load_onnx, require_onnx, write_onnx
from resnet_jax.inference.export.stablehlo import load_stablehlo, require_stablehlo, write_stablehlo
from resnet_jax.inference.predict import read_images
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.backbone import takes_text
from resnet_jax.runtime.safe_files import read_regular, write_atomic
from resnet_jax.training.setup import Parts
from resnet_jax.weights.entries import WEIGHTS
from resnet_jax.weights.locate import locate

# Random images of a check
_COUNT = 4
# More errors than this fraction are worth a warning
_DROP = 0.01
_ADVICE = "keep the noisiest layers in float with --keep-float, or train with --model.quantize"
# Between machines, int8 may be rounded to the next step
_INT8_LIMIT = 0.05


class Format(NamedTuple):
    """A file format."""

    name: str
    require: Callable[[], None]
    """Raises InputError if a package is missing."""
    write: Callable[[Network, Interface, dict[str, Any]], bytes]
    load: Callable[[bytes], Run]


FORMATS: dict[str, Format] = {
    ".onnx": Format("onnx", require_onnx, write_onnx, load_onnx),
    ".tflite": Format("litert", require_litert, write_litert, load_litert),
    ".stablehlo": Format("stablehlo", require_stablehlo, write_stablehlo, load_stablehlo),
}


class Exported(NamedTuple):
    """What was written."""

    file: Path
    bytes: int
    difference: Difference
    """From the network as it was trained, before a quantisation."""
    report: dict[str, str]
    """What was measured, by what it is about."""


def export(
    where: Path | str,
    out: Path | str,
    *,
    preprocess: bool = False,
    outputs: Literal["logits", "probabilities"] = "logits",
    batch_size: int | None = None,
    images: Sequence[Path | str] = (),
    int8: str | None = None,
    calibration_images: int = 256,
    keep_float: Sequence[str] = (),
    float16: bool = False,
    split: str | None = None,
    data_dir: Path | str | None = None,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
    force: bool = False,
) -> Exported:
    """Write a run or weights as ONNX, LiteRT or StableHLO, with a description and a model card beside it.

    Batch normalisation is folded into the convolutions. The file is first run in its target runtime: if its outputs
    differ from those of the network by more than rounding, nothing is written.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        out: the file; its extension, .onnx, .tflite or .stablehlo, chooses the format.
        preprocess: take uint8 (b, h, w, c) and normalise in the network; resize images yourself.
        outputs: logits or probabilities: softmax for classes, sigmoid for several labels.
        batch_size: images per call; None is any number, or 1 for LiteRT.
        images: image files to check the export with; () is random pixels.
        int8: quantise to 8 bits with these calibration images: a folder, a data set, or "train" for those of the run.
        calibration_images: maximum number of calibration images.
        keep_float: modules to leave in float, such as "stem/conv"; for ONNX.
        float16: store the weights as float16; for LiteRT.
        split: measure the accuracy on "train", "validation" or "test".
        data_dir: folder of the data sets.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.
        force: replace an existing file.

    Raises:
        InputError: A package is missing, the format has no such operation, the network takes text, the outputs differ,
            or the file exists.

    Example:
        >>> export("runs/digits", "digits.onnx").difference.relative < 1e-4  # doctest: +SKIP
        True
    """
    out = Path(out)
    file_format = require_format(out, force)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; it must be positive")
    if float16 and (file_format.name != "litert" or int8 is not None):
        raise InputError("--float16 is for .tflite, without --int8")
    network = open_network(where, weights, checkpoint, data_dir=Path(data_dir or "data"), parts=parts)
    _require_inputs(network, where, preprocess)
    batch_size = batch_size or (1 if file_format.name == "litert" else None)
    interface = Interface(preprocess=preprocess, outputs=outputs, batch_size=batch_size)
    description = describe(network, interface, file_format.name) | {"license": _license(str(where), weights)}
    content = file_format.write(network, interface, description)
    paths = [Path(image) for image in images]
    pixels = read_images(network.setup, paths) if paths else random_pixels(network.image_shape, _COUNT)
    run = file_format.load(content)
    difference = compare(run(as_taken(network, interface, pixels)), reference(network, interface, pixels))
    trained = is_quantized(network.model)
    if trained and int8 is not None:
        raise InputError(f"{where}: was trained with 8 bits; its own ranges are exported; leave --int8 out")
    if trained:
        description["int8"] = {"calibration": "training"}
    # Where a runtime rounds another way, a number moves by a level
    require_equal(difference, str(out), _INT8_LIMIT if trained else LIMIT)
    report = {"Check": difference.format()}
    runs = {file_format.name: run}
    if int8 is not None:
        folder = None if data_dir is None else Path(data_dir)
        pixels = calibration_pixels(network, str(where), int8, folder, calibration_images)
        plain, content = content, quantize(file_format, content, as_taken(network, interface, pixels), keep_float)
        runs[f"{file_format.name} int8"] = run = file_format.load(content)
        report |= smaller_report(file_format, "int8", plain, content, as_taken(network, interface, pixels[:64]))
        description["int8"] = {"calibration": int8, "images": len(pixels), "keep_float": list(keep_float)}
        if file_format.name == "litert":
            description["int8"] |= scales(content)
    elif float16:
        plain, content = content, halve_litert(content)
        runs[f"{file_format.name} float16"] = run = file_format.load(content)
        report |= smaller_report(file_format, "float16", plain, content, as_taken(network, interface, pixels))
    if split is not None:
        source = open_eval_source(where, network.setup, split, data_dir)
        errors = {name: count_errors(network, interface, each, source) for name, each in runs.items()}
        report |= _accuracy(errors, split, source.size)
    write_export(out, content, network, str(where), description, run, report)
    return Exported(out, len(content), difference, report)


def _accuracy(errors: Mapping[str, Errors], split: str, images: int) -> dict[str, str]:
    """Return the accuracy of the float file and, behind it, of the smaller one; and a warning if that is much worse."""
    report = {f"Accuracy, {split}, {name}": each.format() for name, each in errors.items()}
    (_, first), (smaller, last) = (list(errors.items())[place] for place in (0, -1))
    drop = last.errors - first.errors
    if drop > _DROP * images:
        report["Warning"] = f"{smaller} makes {drop:,} more errors; {_ADVICE}"
    return report


def _require_inputs(network: Network, where: Path | str, preprocess: bool) -> None:
    """Raise InputError for inputs that an export would not take as they are."""
    if takes_text(network.model):
        raise InputError(f"{where}: takes text, which cannot be exported yet; use load_run and model.apply")
    if preprocess and network.setup.recipe.data.sample_rate:
        raise InputError(f"{where}: takes sound, and --preprocess scales uint8 pixels; leave it out")


def quantize(file_format: Format, content: bytes, images: np.ndarray, keep_float: Sequence[str]) -> bytes:
    """Return a file with quantised operators; raise InputError for a format that has none."""
    if file_format.name == "onnx":
        return quantize_onnx(content, images, keep_float)
    if file_format.name == "litert" and not keep_float:
        return quantize_litert(content, images)
    what = "--int8 writes .onnx and .tflite" if not keep_float else "--keep-float is for .onnx"
    raise InputError(f"{what}, not {file_format.name}")


def smaller_report(file_format: Format, kind: str, plain: bytes, content: bytes, images: np.ndarray) -> dict[str, str]:
    """Return size, speed and answers before and after a quantisation to a `kind`, and the layers that it harms most."""
    before, after = (file_format.load(each) for each in (plain, content))
    agreement = compare(after(images), before(images))
    times = {n: [milliseconds(run, images[:n]) for run in (before, after)] for n in (1, 8)}
    report = {
        "Size": f"{len(plain):,} bytes, {kind} {len(content):,}",
        **{
            f"Time per image, batch of {n}": f"{old:.2f} ms, {kind} {new:.2f} ms, one thread"
            for n, (old, new) in times.items()
        },
        kind: agreement.format(),
    }
    if file_format.name == "onnx":
        noise = list(layer_noise(plain, content, images).items())[:3]
        report["Noisiest layers"] = ", ".join(f"{name.rpartition('/')[0]} {db:.0f} dB" for name, db in noise)
    if agreement.same < (1 - 5 * _DROP) * agreement.total:
        report["Warning"] = f"{kind} changes {agreement.total - agreement.same} of {agreement.total} classes; {_ADVICE}"
    return report


def require_format(out: Path, force: bool) -> Format:
    """Return the format of a file to write; raise InputError if it cannot be written."""
    if out.suffix not in FORMATS:
        raise InputError(f"{out}: unknown ending {out.suffix!r}; known: {', '.join(FORMATS)}")
    if out.is_dir() or (out.exists() and not force):
        raise InputError(
            f"{out}: exists; choose another name" + ("" if out.is_dir() else ", or replace it with --force")
        )
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out.parent}: no such folder")
    FORMATS[out.suffix].require()
    return FORMATS[out.suffix]


def write_export(
    out: Path,
    content: bytes,
    network: Network,
    source: str,
    description: dict[str, Any],
    run: Run,
    measured: dict[str, str],
) -> None:
    """Write an export and what belongs beside it; the file itself comes last, so that it is never alone."""
    interface = Interface(**{name: description[name] for name in Interface.__dataclass_fields__})
    pixels = random_pixels(network.image_shape, _COUNT)
    outputs = recorded(run(as_taken(network, interface, pixels)))
    description = {
        **description,
        "file_sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "check": {"images": _COUNT, "outputs": outputs},
    }
    labels = "\n".join(network.setup.dataset.classes) + "\n"
    card = model_card(network, source, description, measured)
    beside: list[tuple[Path, str | bytes]] = [
        (description_path(out), write_description(description)),
        (card_path(out), card),
        *([(out.with_suffix(".labels.txt"), labels)] if out.suffix == ".tflite" else []),
        (out, content),
    ]
    for path, text in beside:
        try:
            write_atomic(path, text)
        except OSError:
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
            raise


def _license(where: str, weights: WeightsInfo) -> str:
    """Return the licence of published weights, or nothing."""
    if Path(where).is_dir():
        return ""
    entry = locate(where)[1] or WEIGHTS.get(weights.model or "")
    return entry.license if entry else ""


class Verified(NamedTuple):
    """The check of an export, repeated."""

    network: str
    difference: Difference


def verify_export(file: Path | str) -> Verified:
    """Run an exported file on its check images, and compare the outputs with the recorded ones.

    Args:
        file: the exported file, with its description FILE.json beside it.

    Raises:
        InputError: A file is missing or damaged, or the outputs differ.

    Example:
        >>> verify_export("digits.onnx").difference.same  # doctest: +SKIP
        4
    """
    file = Path(file)
    if file.suffix not in FORMATS:
        raise InputError(f"{file}: unknown ending {file.suffix!r}; known: {', '.join(FORMATS)}")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    description, content = read_description(file), read_regular(file)
    if hashlib.sha256(content).hexdigest() != description.get("file_sha256"):
        raise InputError(f"{file}: is not the file that {description_path(file).name} describes; export it again")
    FORMATS[file.suffix].require()
    pixels = random_pixels(tuple(description["image_shape"]), _COUNT)
    data = description["preprocessing"]
    images = pixels if description["preprocess"] else normalize(pixels, data["mean"], data["std"])
    found = as_recorded(FORMATS[file.suffix].load(content)(images))
    expected = [np.asarray(output, np.float32) for output in description["check"]["outputs"]]
    difference = compare(found, expected)
    require_equal(difference, str(file), _INT8_LIMIT if "int8" in description else LIMIT)
    return Verified(description["network"], difference)
