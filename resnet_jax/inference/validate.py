"""Evaluate several weights, and write a table as timm's results files are, with the published numbers beside."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.data.image import Preprocessing
from resnet_jax.data.resize import height_and_width
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import Evaluation, evaluate
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.inference.views import Views
from resnet_jax.models.zoo import known_as
from resnet_jax.run_dir.files import is_run
from resnet_jax.runtime.safe_files import read_regular, write_atomic
from resnet_jax.weights.entries import WEIGHTS
from resnet_jax.weights.locate import locate

# The published number for each set that uses ImageNet's classes
_SETS = {f"imagenet_{name}": name for name in ("real", "v2", "a", "r", "sketch")}
_TIMM = ("model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation")
COLUMNS = (
    *_TIMM,
    *("loss", "calibration_error", "errors", "count", "data", "split", "views", "published", "difference"),
)
Row = dict[str, str]


def evaluate_several(
    sources: Sequence[str],
    split: str,
    table: Path | None,
    *,
    weights: WeightsInfo = WeightsInfo(),
    views: Views = 1,
    clips: int = 1,
    metrics: tuple[str, ...] = (),
    log: Callable[[str, Evaluation, float | None], None] = lambda source, found, published: None,
    **options: Any,
) -> list[tuple[str, Evaluation]]:
    """Evaluate runs or weights in turn, and return what was measured now.

    With a table, those that have a row in it already are passed over, and one that was interrupted goes on.

    Args:
        sources: runs or weights.
        split: of the data.
        table: CSV file whose first columns are those of timm's results; None is none.
        weights: as in `evaluate`, for each.
        views: as in `evaluate`.
        clips: as in `evaluate`.
        metrics: as in `evaluate`; a table needs those of its columns too.
        log: called for each source, with what was measured and the published top-1 accuracy in percent, if any.
        options: further arguments of `evaluate`.

    Raises:
        InputError: As `evaluate`, or the table is of something else.
    """
    rows, found = read_table(table) if table else [], []
    needed = (*metrics, *(name for name in ("accuracy", "top5", "calibration_error") if name not in metrics))
    for source in sources:
        if any(_is_of(row, source, split, weights, _views(views, clips)) for row in rows):
            continue
        each = evaluate(
            source,
            split,
            weights=weights,
            views=views,
            clips=clips,
            metrics=needed if table else metrics,
            progress=table and table.with_name(f"{table.name}.part"),
            **options,
        )
        published = published_accuracy(source, weights, each, views)
        log(source, each, published)
        found.append((source, each))
        if table:
            rows.append(_row(source, each, weights, split, _views(views, clips), published))
            write_atomic(table, _format(rows))
    return found


def published_accuracy(source: str, weights: WeightsInfo, found: Evaluation, views: Views) -> float | None:
    """Return the published top-1 accuracy in percent of weights on a data set, None if there is none to compare."""
    if is_run(source) or views != 1:
        return None
    name, family = known_as(weights.model or source), (weights.data or "").partition(":")[0]
    entry = WEIGHTS.get(name) or locate(source).entry
    if entry is None or any(getattr(weights, name) is not None for name in Preprocessing.__dataclass_fields__):
        return None
    if family == "imagenet" and entry.classes == 1000:
        return entry.top1
    return entry.top1 if entry.tag.endswith(family) and family else dict(entry.scores).get(_SETS.get(family, ""))


def _views(views: Views, clips: int) -> str:
    return str(views) if clips == 1 else f"{views} of {clips} clips"


def _is_of(row: Row, source: str, split: str, weights: WeightsInfo, views: str) -> bool:
    known = (row["model"], row["data"], row["split"], row["views"])
    size = weights.image_size
    same_size = size is None or row["img_size"] == _size(size)
    return known == (source, weights.data or "", split, views) and same_size


def _size(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return ""
    height, width = height_and_width(size)
    return str(height) if height == width else f"{height}x{width}"


def _row(source: str, found: Evaluation, weights: WeightsInfo, split: str, views: str, published: float | None) -> Row:
    values, geometry = found.values, found.preprocessing
    top1, top5 = (100 * float(values[name]) for name in ("accuracy", "top5"))
    return {
        "model": source,
        "img_size": _size(geometry.image_size),
        "top1": f"{top1:.3f}",
        "top1_err": f"{100 - top1:.3f}",
        "top5": f"{top5:.3f}",
        "top5_err": f"{100 - top5:.3f}",
        "param_count": f"{found.parameters / 1e6:.2f}",
        "crop_pct": "" if geometry.crop_pct is None else f"{geometry.crop_pct:.3f}",
        "interpolation": geometry.interpolation or "",
        "loss": f"{values['loss']:.6f}",
        "calibration_error": f"{values['calibration_error']:.6f}",
        "errors": str(values["errors"]),
        "count": str(values["count"]),
        "data": weights.data or "",
        "split": split,
        "views": views,
        "published": "" if published is None else f"{published:.3f}",
        "difference": "" if published is None else f"{top1 - published:+.3f}",
    }


def read_table(file: Path) -> list[Row]:
    """Return the rows of a table; none if it is missing. Raises InputError if it has other columns."""
    if not file.exists():
        if not file.parent.is_dir():
            raise InputError(f"{file.parent}: no such folder; make it, or name another file")
        return []
    rows = csv.DictReader(io.StringIO(read_regular(file).decode(errors="replace"), newline=""))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise InputError(f"{file}: not a table that `resnet-jax evaluate --csv` wrote; name another file")
    return list(rows)


def _format(rows: Sequence[Row]) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
