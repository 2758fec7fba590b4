"""Read images that a CSV file lists."""

import csv
from collections.abc import Mapping
from pathlib import Path

from resnet_jax.data.formats.folder import resolve_root
from resnet_jax.data.formats.listing import Listed, source_of
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, first_line

_LAYOUT = "expected a column path, and one of label, labels, target or target_NAME"


def csv_file(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Images that a CSV file lists: columns path, label (or labels, or target), and perhaps split.

    Paths are below the folder of the file. A `label` is the name of a class. `labels` are several, separated by "|", or
    by spaces if no row has "|"; a row may have none. `target`, or columns target_NAME, are numbers, for regression.
    Without a column `split`, all images are training images. All other columns are groups for data.group_by.

    Raises:
        InputError: The file is missing or no CSV, a column is missing, or a cell has no value.
    """
    file = (resolve_file(path, folder) / Path(path).expanduser()).resolve()
    rows = _rows(file)
    columns = list(rows[0])
    numbers = [name for name in columns if name == "target" or name.startswith("target_")]
    kinds = [name for name in ("label", "labels") if name in columns] + (["target"] if numbers else [])
    if "path" not in columns or len(kinds) != 1:
        raise InputError(f"{file}: has the columns {', '.join(columns)}; {_LAYOUT}")
    separator = "|" if any("|" in row.get("labels", "") for row in rows) else None
    listed = []
    for number, row in enumerate(rows, 2):
        where = f"{file}: line {number}"
        target: object
        if kinds[0] == "target":
            target = {name.removeprefix("target_"): _number(row[name], name, where) for name in numbers}
        elif kinds[0] == "labels":
            target = [name.strip() for name in row["labels"].split(separator) if name.strip()]
        else:
            target = _given(row, "label", where)
        listed.append(Listed(_given(row, "path", where), row.get("split", ""), target, row))
    kind = {"label": "class", "labels": "labels", "target": "numbers"}[kinds[0]]
    source = source_of(file.parent, listed, split, preprocessing, test_split, kind)
    if not source.size:
        raise InputError(f"{file}: no images in this split")
    return source


def resolve_file(path: str, folder: Path) -> Path:
    """Return the base of the path of a file: the working directory if it exists only there, otherwise `folder`."""
    here = Path(path).expanduser()
    return Path() if here.is_file() and not (folder / here).is_file() else resolve_root(path, folder)


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        raise InputError(f"{file}: no such CSV file")
    try:
        # Excel begins its files with a mark
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restkey="", restval="", strict=True)
            rows = [{name: value.strip() for name, value in row.items() if name} for row in reader]
            names = [name.strip() for name in reader.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8 ({first_line(error)})") from error
    if not rows or len(set(names)) < len(names):
        raise InputError(f"{file}: {'two columns have the same name' if rows else 'no rows'}; {_LAYOUT}")
    return rows


def _given(row: Mapping[str, str], name: str, where: str) -> str:
    if not row[name]:
        raise InputError(f"{where} has no {name}; add it, or remove the line")
    return row[name]


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if abs(value) == float("inf") or value != value:
        raise InputError(f"{where}: {name} is {text[:100]!r}; give a finite number")
    return value
