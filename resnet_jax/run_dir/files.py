"""The directory of a run: recipe.json, dataset.json, environment.json, metrics.jsonl and checkpoints/."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, differences, from_json, to_json, total_steps
from resnet_jax.run_dir.environment import environment, read_environments
from resnet_jax.run_dir.given import given_json, require_given
from resnet_jax.runtime.checksum import add_checksum, file_sha256, remove_checksum
from resnet_jax.runtime.safe_files import append, numbered, read_regular, write_atomic
from resnet_jax.runtime.strict_json import parse_json

# Options that decide which rows and checkpoints a run has: `resnet-jax train RUN` takes them again
_RESUMED = ("metrics", "monitor", "eval_every", "checkpoint_every", "keep_checkpoints")
# An interrupted start may leave these in a directory without recipe.json
_OWN = ("recipe.json.tmp", "lock")


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set that prediction needs, when the data may be missing."""

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    """(h, w, c); sequences (l, c), video (t, h, w, c)."""
    train_size: int
    data_dir: str
    digest: str = ""
    """SHA-256 of the examples of both splits; empty if unknown."""
    class_counts: tuple[int, ...] = ()
    """Training images, or pixels, of each class or with each label; empty if the recipe does not need them."""


def is_run(where: Path | str) -> bool:
    """Return whether a path is a run directory."""
    return (Path(where) / "recipe.json").is_file()


def require_run(run: Path) -> None:
    """Raise InputError if a path is not a run directory."""
    if not is_run(run):
        raise InputError(f"{run}: not a run directory (no recipe.json); `resnet-jax train` creates one")


def read_recipe(run: Path) -> Recipe:
    """Return the recipe of a run without importing its network; raise InputError if there is none."""
    require_run(run)
    path = run / "recipe.json"
    return from_json(read_regular(path).decode(errors="replace"), str(path))


def read_dataset_info(run: Path) -> DatasetInfo:
    """Return the data set facts of a run; raise InputError if dataset.json is missing or damaged."""
    path = run / "dataset.json"
    try:
        values = remove_checksum(parse_json(read_regular(path)))
        shape = tuple(int(length) for length in values["image_shape"])
        if min(*shape, values["train_size"]) < 1 or len(shape) not in (2, 3, 4) or not values["classes"]:
            raise ValueError("sizes must be positive")
        classes, digest = tuple(values["classes"]), values.get("digest", "")
        counts = tuple(int(count) for count in values.get("class_counts", ()))
        return DatasetInfo(classes, shape, values["train_size"], values["data_dir"], digest, counts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        again = f"move it away and run `resnet-jax train {run}`, which writes it again"
        raise InputError(f"{path}: missing or damaged; restore it, or {again}") from error


def require_same_run(
    out: Path, recipe: Recipe, dataset: DatasetInfo | None = None, given: Collection[str] | None = None
) -> None:
    """Raise InputError unless a directory is free or holds a run of this recipe and data; change nothing."""
    if (out / "recipe.json").is_file():
        changed = differences(read_recipe(out), recipe)
        if changed:
            raise InputError(f"{out}: holds a run of another recipe ({'; '.join(changed)}); choose another --out")
        if given is not None:
            require_given(out, given)
        if dataset is not None and (out / "dataset.json").is_file():
            _require_same_data(out, read_dataset_info(out), dataset)
    elif set(str(out.absolute())) & set("*?[]"):
        raise InputError(f"{out}: the checkpoint writer cannot handle *, ?, [ or ] in a path; choose another --out")
    elif out.exists() and (not out.is_dir() or any(path.name not in _OWN for path in out.iterdir())):
        raise InputError(f"{out}: exists and is not a run directory; choose another --out")


def read_options(run: Path) -> dict[str, Any]:
    """Return the options that a run is resumed with; empty if none are recorded. Raise InputError if damaged."""
    path = run / "options.json"
    if not path.is_file():
        return {}
    try:
        found = remove_checksum(parse_json(read_regular(path)))
        options = {name: found[name] for name in _RESUMED if name in found}
        texts = ("metrics", "monitor")
        if any(value is not None and type(value) is not int for name, value in options.items() if name not in texts):
            raise ValueError("not a number")
        if type(options.get("monitor", "")) not in (str, type(None)):
            raise ValueError("not a name")
        return options | {"metrics": tuple(map(str, options.get("metrics", ())))}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged; delete it, and give options such as --eval-every again") from error


def require_same_monitor(out: Path, monitor: str | None) -> None:
    """Raise InputError if a run picked its best checkpoint by another metric than `monitor` (None: the task's)."""
    if (out / "options.json").is_file() and (before := read_options(out).get("monitor")) != monitor:
        how = f"give --monitor {before}" if before else "leave --monitor out"
        raise InputError(f"{out}: its best checkpoint is not chosen by --monitor {monitor or 'by default'}; {how}")


def _require_same_data(out: Path, old: DatasetInfo, new: DatasetInfo) -> None:
    for name in ("classes", "image_shape", "train_size"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            raise InputError(
                f"{out}: its data had {name} {before}, now {now}; restore the data or choose another --out"
            )
    if old.digest and new.digest and old.digest != new.digest:
        raise InputError(f"{out}: its images or labels have changed; restore the data or choose another --out")


def identity(recipe: Recipe, dataset: DatasetInfo) -> dict[str, Any]:
    """Return what a checkpoint keeps of its run, for `foreign_reason`."""
    return {"recipe": parse_json(to_json(recipe)), "data": dataset.digest}


def foreign_reason(saved: Mapping[str, Any], recipe: Recipe, dataset: DatasetInfo) -> str:
    """Return why the `identity` of a checkpoint is that of another run, or nothing if it is not."""
    try:
        changed = differences(from_json(json.dumps(saved["recipe"])), recipe)
    except (KeyError, InputError):
        return "of an unknown recipe"
    if changed:
        return f"of another recipe: {'; '.join(changed)}"
    return "of other data" if dataset.digest and saved["data"] not in ("", dataset.digest) else ""


def init_run_dir(
    out: Path,
    recipe: Recipe,
    dataset: DatasetInfo,
    given: Mapping[str, Any] = MappingProxyType({}),
    pretrained: Path | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    teacher: str | None = None,
) -> None:
    """Write the run directory of a recipe, and append this start to environment.json.

    Args:
        out: the run directory.
        recipe: goes to recipe.json.
        dataset: goes to dataset.json.
        given: what given.json records of the parts that are given as values.
        pretrained: file of the weights or of the state of the parent that the run starts from; its SHA-256 is recorded,
            since the file may change.
        options: of the run; those that it is resumed with go to options.json.
        teacher: digest of the teacher that it learns from, which is recorded likewise.

    Raises:
        InputError: The directory holds something else or cannot be written.
    """
    require_same_run(out, recipe, given=given)
    start = environment()
    if pretrained is not None:
        start["parent" if recipe.parent else "pretrained"] = {
            "file": str(pretrained.absolute()),
            "sha256": file_sha256(pretrained),
        }
    if teacher is not None:
        start["teacher"] = {"sha256": teacher}
    starts = [*read_environments(out), start]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "recipe.json", to_json(recipe))
        write_atomic(out / "dataset.json", json.dumps(add_checksum(dataclasses.asdict(dataset)), indent=2) + "\n")
        resumed = {name: options[name] for name in _RESUMED if name in options}
        write_atomic(out / "options.json", json.dumps(add_checksum(resumed)) + "\n")
        if given:
            write_atomic(out / "given.json", given_json(given))
        write_atomic(out / "environment.json", json.dumps(starts, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another --out") from error


def next_run_dir(stem: Path, recipe: Recipe) -> Path:
    """Return the first of STEM, STEM-2, ... that is free or holds an unfinished run of this recipe."""

    def is_free(run: Path) -> bool:
        return not run.exists() or (is_run(run) and read_recipe(run) == recipe and not is_finished(run))

    return next(run for run in numbered(stem) if is_free(run))


def is_finished(run: Path) -> bool:
    """Return whether the last row of metrics belongs to the last step."""
    lines = read_metrics(run)
    return bool(lines) and lines[-1]["step"] == total_steps(read_recipe(run), read_dataset_info(run).train_size)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, oldest first, without lines that are cut short or damaged."""
    path, lines = run / "metrics.jsonl", []
    if not path.is_file():
        return []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = parse_json(text, nonfinite=True)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
    return lines


def restore_metrics(run: Path, rows: Sequence[Mapping[str, Any]], log: Callable[[str], None]) -> None:
    """Make metrics.jsonl the rows of a checkpoint, on the first host; a resumed run writes the rows after them again.

    If the file does not begin with these rows, it is kept under another name, which is logged.
    """
    if jax.process_index() != 0:
        return
    path, lines = run / "metrics.jsonl", [json.dumps(row) for row in rows]
    found = path.read_text(errors="replace").splitlines() if path.is_file() else []
    if found[: len(lines)] != lines:
        number = next(n for n, line in enumerate(lines) if found[n : n + 1] != [line]) + 1
        what = f"{path}: line {number} is not what was written; the rows are restored from the checkpoint"
        if found:
            old = next(p for n in itertools.count(1) if not (p := run / f"metrics-damaged-{n}.jsonl").exists())
            path.rename(old)
            what += f", and the damaged file is {old}"
        log(what)
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def append_metrics(run: Path, line: dict[str, Any]) -> None:
    """Append a row to metrics.jsonl, on the first host."""
    if jax.process_index() == 0:
        append(run / "metrics.jsonl", json.dumps(line) + "\n")
