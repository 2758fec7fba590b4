"""The directory of a run: recipe.json, dataset.json, environment.json, metrics.jsonl and checkpoints/."""

import dataclasses
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, differences, load_recipe, to_json, total_steps

_OWN = ("recipe.json.tmp", "lock")  # what an interrupted start may leave in a directory without recipe.json
_PACKAGES = ("resnet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class Dataset:
    """What prediction has to know of the data set, which may not be at hand by then."""

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]  # (h, w, c); of sequences (l, c), of video (t, h, w, c)
    train_size: int
    data_dir: str


def write_whole(path: Path, text: str) -> None:
    """Writes a file all or not at all."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run directory; raises InputError where it is none."""
    path = run / "recipe.json"
    if not path.is_file():
        raise InputError(f"{run}: not a run directory (no recipe.json); `resnet-jax train` makes one")
    return load_recipe(path)


def read_dataset(run: Path) -> Dataset:
    path = run / "dataset.json"
    try:
        values = json.loads(path.read_text())
        shape = tuple(int(length) for length in values["image_shape"])
        if min(*shape, values["train_size"]) < 1 or len(shape) not in (2, 3, 4) or not values["classes"]:
            raise ValueError("sizes must be positive")
        return Dataset(tuple(values["classes"]), shape, values["train_size"], values["data_dir"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: missing or damaged; train again to write it") from error


def require_same_run(out: Path, recipe: Recipe, dataset: Dataset | None = None) -> None:
    """Raises InputError where a directory is not free for, or of, this very recipe and data set; changes nothing."""
    if (out / "recipe.json").is_file():
        changed = differences(read_recipe(out), recipe)
        if changed:
            raise InputError(f"{out}: holds a run of another recipe ({'; '.join(changed)}); choose another --out")
        if dataset is not None and (out / "dataset.json").is_file():
            _require_same_data(out, read_dataset(out), dataset)
    elif set(str(out.absolute())) & set("*?[]"):
        raise InputError(f"{out}: the checkpoint writer cannot handle *, ?, [ or ] in a path; choose another --out")
    elif out.exists() and (not out.is_dir() or any(path.name not in _OWN for path in out.iterdir())):
        raise InputError(f"{out}: exists and is not a run directory; choose another --out")


def _require_same_data(out: Path, old: Dataset, new: Dataset) -> None:
    for name in ("classes", "image_shape", "train_size"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            raise InputError(
                f"{out}: its data had {name} {before}, now {now}; restore the data or choose another --out"
            )


def open_run(out: Path, recipe: Recipe, dataset: Dataset, pretrained: Path | None = None) -> None:
    """Makes the directory of a recipe, and notes this start; raises InputError where it cannot be written.

    `pretrained` is the file that the run starts from; its digest is kept, for a path does not say what was in it.
    """
    require_same_run(out, recipe)
    start = environment()
    if pretrained is not None:
        with pretrained.open("rb") as file:
            start["pretrained"] = {
                "file": str(pretrained.absolute()),
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    starts = [*read_environments(out), start]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "recipe.json", to_json(recipe))
        write_whole(out / "dataset.json", json.dumps(dataclasses.asdict(dataset), indent=2) + "\n")
        write_whole(out / "environment.json", json.dumps(starts, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another --out") from error


def free_run(stem: Path, recipe: Recipe) -> Path:
    """The first of STEM, STEM-2, STEM-3, ... that does not exist or holds an unfinished run of this very recipe."""
    for number in itertools.count(1):
        run = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        if not run.exists():
            return run
        if (run / "recipe.json").is_file() and read_recipe(run) == recipe and not is_finished(run):
            return run
    raise AssertionError("unreachable")


def is_finished(run: Path) -> bool:
    """Whether the last line of metrics is that of the last step."""
    lines = read_metrics(run)
    return bool(lines) and lines[-1]["step"] >= total_steps(read_recipe(run), read_dataset(run).train_size)


def read_environments(run: Path) -> list[dict[str, Any]]:
    """What `environment` said at each start of a run, oldest first; a damaged file counts as none."""
    try:
        starts = json.loads((run / "environment.json").read_text())
    except (OSError, ValueError):
        return []
    return starts if isinstance(starts, list) else []


def environment() -> dict[str, Any]:
    """Command, versions, devices and git commit that a result may depend on."""
    devices = jax.devices()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        **git_state(Path(__file__).parent),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of a checkout, and whether tracked files differ from it; None for both outside one."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_changed": None if changed is None else bool(changed)}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, oldest first; a line cut short by a crash ends them."""
    path, lines = run / "metrics.jsonl", []
    if not path.is_file():
        return []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines


def keep_metrics(run: Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines after a step, which a resumed run writes again; returns those that stay."""
    lines = [line for line in read_metrics(run) if line["step"] <= step]
    if jax.process_index() == 0:
        write_whole(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def add_metrics(run: Path, line: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
