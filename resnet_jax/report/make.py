"""A report of runs: read, measured, drawn, and only then written."""

import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from resnet_jax.errors import InputError
from resnet_jax.report.answers import Answers, answers_of, mistakes
from resnet_jax.report.events import event_files
from resnet_jax.report.figures import NAMES, QUALITY, SPEED, as_png, confusion_picture, final_picture, pictures
from resnet_jax.report.page import GENERATOR, Contents, make_page
from resnet_jax.report.runs import Variant, notes_on, read_runs, variants_of
from resnet_jax.sheet import can_show, draw_sheet
from resnet_jax.train.habits import Feeding

PAGE = "index.html"


class Report(NamedTuple):
    """What was made."""

    page: Path
    variants: list[Variant]
    notes: list[str]  # what a reader of the numbers has to know


def make_report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    answers: bool = True,
    tensorboard: bool = False,
    data_dir: Path | None = None,
    devices: int | None = None,
    feeding: Feeding = Feeding(),
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Writes one page about runs, which needs nothing beside it, and its pictures as PNG.

    Args:
        runs: run directories, finished or not; those that differ in their seeds alone are taken together.
        out: where to; None is RUN/report or, of several runs, report.
        answers: whether to evaluate the networks, for confusion matrix and mistakes.
        tensorboard: whether to write event files too, in OUT/tensorboard.
        data_dir: where data sets are looked for; None is where each run found its own.
        devices: how many to use; None is all.
        feeding: how data gets to the devices.
        say: is told, a line each, what takes time.

    What cannot be evaluated, because data or checkpoint are gone, is left out, and the page says why. Raises InputError
    where a directory is no run, where none has metrics, or where `out` holds something else, having written nothing.
    """
    read = read_runs(runs)
    if not any(run.lines for run in read):
        raise InputError(f"{', '.join(run.name for run in read)}: no metrics yet; a report needs an epoch or more")
    out = out or (read[0].path / "report" if len(read) == 1 else Path("report"))
    require_free(out)
    events = event_files(read) if tensorboard else {}
    variants = variants_of(read)
    notes = notes_on(runs, variants)
    found: list[Answers | None] = []
    for variant in variants:
        if answers:
            say(f"evaluating {variant.label} on its {variant.split} split")
        one, why = answers_of(variant, data_dir=data_dir, devices=devices, feeding=feeding) if answers else (None, [])
        found.append(one)
        notes += why
    files = {**png_files(variants, found), **events, PAGE: make_page(Contents(variants, found, notes))}
    write_all(out, files)
    return Report(out / PAGE, variants, notes)


def png_files(variants: Sequence[Variant], answers: Sequence[Answers | None]) -> dict[str, bytes]:
    """The pictures, by the names of their files."""
    known = [(variant.label, one) for variant, one in zip(variants, answers, strict=True) if one is not None]
    some = [*pictures((*QUALITY, *SPEED), variants), final_picture(variants), confusion_picture(known)]
    files = {f"{picture.name}.png": as_png(picture) for picture in some if picture is not None}
    sheet = mistakes_png([one for _, one in known])
    return files | ({"mistakes.png": sheet} if sheet else {})


def mistakes_png(answers: Sequence[Answers]) -> bytes | None:
    """The most confident mistakes of all variants, one after the other; None where there is none to be seen."""
    images, captions = [], []
    for one in answers:
        classes = one.source.classes
        for wrong in mistakes(one):
            image = one.source.read(wrong.place).image
            if can_show(image):
                images.append(image)
                captions.append(f"{classes[wrong.answer]}\nfor {classes[wrong.label]}")
    if not images:
        return None
    file = io.BytesIO()
    draw_sheet(images, captions).save(file, "png")
    return file.getvalue()


def require_free(out: Path) -> None:
    """Raises InputError where a directory holds anything but an earlier report."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    page = out / PAGE
    ours = page.is_file() and f'content="{GENERATOR}"' in page.read_text(errors="replace")[:2000]
    if not ours and any(out.iterdir()):
        raise InputError(f"{out}: holds something else than a report; choose another --out")


def write_all(out: Path, files: dict[str, bytes]) -> None:
    """Writes each file all or not at all, the page last, and removes what an earlier report has left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
        for name in NAMES:
            if f"{name}.png" not in files:
                (out / f"{name}.png").unlink(missing_ok=True)
        for name, content in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".tmp")
            partial.write_bytes(content)
            os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another --out") from error
