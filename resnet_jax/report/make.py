"""Make a report on runs: read, measure and draw everything before anything is written."""

import io
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.report.boxes import BoxPredictions
from resnet_jax.report.boxes_page import precision_pictures, worst_boxes_png
from resnet_jax.report.calibration import calibration_picture
from resnet_jax.report.dense import MaskPredictions
from resnet_jax.report.dense_page import worst_png
from resnet_jax.report.events import event_files
from resnet_jax.report.figures import SPEED, as_png, confusion_picture, final_picture, pictures, quality_panels
from resnet_jax.report.page import GENERATOR, Contents, make_page
from resnet_jax.report.predictions import Collected, Predictions, collect_predictions, mistakes
from resnet_jax.report.runs import RecipeGroup, group_runs, notes_on, read_runs
from resnet_jax.report.sheet import as_pixels, draw_sheet
from resnet_jax.runtime.safe_files import write_atomic

PAGE = "index.html"


class Report(NamedTuple):
    """The result of `make_report`."""

    page: Path
    variants: list[RecipeGroup]
    notes: list[str]  # remarks on the numbers, such as unfinished runs


def make_report(
    runs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    answers: bool = True,
    tensorboard: bool = False,
    data_dir: Path | str | None = None,
    devices: int | None = None,
    network: str | None = None,
    loading: DataLoading = DataLoading(),
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Write a self-contained HTML page about runs, and its pictures as PNG.

    A run that cannot be evaluated, because its data or checkpoint is missing, is left out with a note that says why.

    Args:
        runs: run directories, finished or not; runs that differ only in the seed or the fold are averaged.
        out: directory to write; None is RUN/report, or report/ for several runs.
        answers: whether to evaluate the networks, for confusion matrix and mistakes.
        tensorboard: whether to also write event files, in OUT/tensorboard.
        data_dir: folder of the data sets; None is that of each run.
        devices: number of devices; None is all.
        network: your own network, `package.module:network`, if a recipe names one; imported only if you name it.
        loading: how data reaches the devices.
        log: called with a line before each slow part.

    Raises:
        InputError: A directory is not a run, no run has metrics, or `out` is not a report. Nothing was written.

    Example:
        >>> from resnet_jax import make_report
        >>> make_report([Path("runs/digits")]).page  # doctest: +SKIP
        PosixPath('runs/digits/report/index.html')
    """
    paths = [Path(run) for run in runs]
    read = read_runs(paths)
    if not any(run.rows for run in read):
        raise InputError(f"{', '.join(run.name for run in read)}: no metrics yet; a report needs at least one epoch")
    out = Path(out) if out else (read[0].path / "report" if len(read) == 1 else Path("report"))
    require_free(out)
    events = event_files(read) if tensorboard else {}
    variants = group_runs(read)
    notes = notes_on(paths, variants)
    found: list[Collected | None] = []
    for variant in variants if answers else ():
        log(f"evaluating {variant.label} on its {variant.split} split")
        one, why = collect_predictions(variant, data_dir=data_dir, devices=devices, network=network, loading=loading)
        found.append(one)
        notes += why
    found = found or [None] * len(variants)
    pngs = png_files(variants, found)
    page = make_page(Contents(variants, found, notes, tuple(pngs)))
    write_all(out, {**pngs, **events, PAGE: page})
    return Report(out / PAGE, variants, notes)


def png_files(variants: Sequence[RecipeGroup], answers: Sequence[Collected | None]) -> dict[str, bytes]:
    """Return the pictures by file name."""
    known = [(v.label, one) for v, one in zip(variants, answers, strict=True) if isinstance(one, Predictions)]
    some = [*pictures((*quality_panels(variants), *SPEED), variants), final_picture(variants), confusion_picture(known)]
    boxes = [one for one in answers if isinstance(one, BoxPredictions)]
    some += [picture for place, one in enumerate(boxes, 1) for picture in precision_pictures(one, place)]
    some += [calibration_picture(one, place) for place, (_, one) in enumerate(known, 1)]
    files = {f"{picture.name}.png": as_png(picture) for picture in some if picture is not None}
    sheet = mistakes_png([one for _, one in known])
    sheets = [worst_png(one) for one in answers if isinstance(one, MaskPredictions)] + list(map(worst_boxes_png, boxes))
    worst = {f"worst-{place}.png" if place > 1 else "worst.png": png for place, png in enumerate(sheets, 1) if png}
    return files | ({"mistakes.png": sheet} if sheet else {}) | worst


def mistakes_png(answers: Sequence[Predictions]) -> bytes | None:
    """Return a PNG of the most confident mistakes of all recipes; None if there are none to show."""
    images, captions = [], []
    for one in answers:
        classes = one.source.classes
        for wrong in mistakes(one):
            image = as_pixels(one.source.read(wrong.place).image, one.sample_rate)
            if image is not None:
                images.append(image)
                captions.append(f"{classes[wrong.answer]}\ntrue {classes[wrong.label]}")
    if not images:
        return None
    file = io.BytesIO()
    draw_sheet(images, captions).save(file, "png")
    return file.getvalue()


def require_free(out: Path) -> None:
    """Raise InputError if a directory holds anything but an earlier report."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if f'content="{GENERATOR}"' not in _head_of(out) and any(out.iterdir()):
        raise InputError(f"{out}: exists and is not a report; choose another --out")


def _head_of(out: Path) -> str:
    """Return the beginning of the page in a directory; empty if there is no page."""
    page = out / PAGE
    return page.read_text(errors="replace")[:5000] if page.is_file() else ""


def pictures_in(out: Path) -> list[str]:
    """Return the names of the pictures that the page in a directory lists as its own."""
    found = re.search(r'<meta name="pictures" content="([\w. -]*)">', _head_of(out))
    return [name for name in found[1].split() if name.endswith(".png")] if found else []


def write_all(out: Path, files: dict[str, bytes]) -> None:
    """Write each file atomically, the page last, and remove files of an earlier report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
        for name in pictures_in(out):
            if name not in files:
                (out / name).unlink(missing_ok=True)
        for name, content in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another --out") from error
