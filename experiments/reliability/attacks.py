"""Attack training runs and count how often what was promised held.

    python experiments/reliability/attacks.py [--only kills damage] [--trials 20] [--out FOLDER]

Prints a table with a row for each attack. A trial has held if the parameters and the metrics of the run are those of a
run that nobody touched (the same bits, or equal up to rounding where the row says so), or if the run was refused in one
line and nothing was lost. The network is tiny, the data are the bundled digits, and the moments and places are random.
"""

import io
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

# Before jax is imported; the tests have eight devices of their own
if __name__ == "__main__":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from experiments import script
from resnet_jax import InputError, train_seeds
from resnet_jax.data.datasets import open_split
from resnet_jax.data.prepare import Packing, prepare_data
from resnet_jax.data.source import to_arrays
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Data, Model, Optimizer, Recipe, Schedule, to_json
from resnet_jax.run_dir.files import read_metrics
from resnet_jax.runtime.compilation_cache import enable_compilation_cache
from resnet_jax.training.options import RunOptions
from resnet_jax.training.run import train

# BatchNorm over 8 images, so that 8 devices hold whole groups; a rate at which rounding does not grow
RECIPE = Recipe(
    model=Model(name="resnet8", fields={"depths": (1,), "width": 4}, norm_group_size=8),
    data=Data(name="digits"),
    optimizer=Optimizer(lr=0.01),
    schedule=Schedule(warmup=0),
    batch_size=64,
    epochs=None,
    steps=40,
)
OPTIONS = RunOptions(devices=1, eval_every=5, checkpoint_every=5)
DEVICE_COUNT = "--xla_force_host_platform_device_count"
CLOCKS = {"train_seconds", "images_per_second", "data_wait_fraction"}
ROUNDING = 1e-4  # relative difference of losses


class Run(NamedTuple):
    """What is compared of a run: its parameters with all other state, and its rows without clocks."""

    state: list[np.ndarray]
    rows: list[dict[str, Any]]

    def equals(self, other: "Run | None") -> bool:
        if other is None or len(self.state) != len(other.state):
            return False
        same = all(np.array_equal(a, b) for a, b in zip(self.state, other.state, strict=True))
        return same and self.rows == other.rows

    def is_near(self, other: "Run") -> bool:
        """Return whether the losses are equal up to rounding, at the same steps."""
        if [row["step"] for row in self.rows] != [row["step"] for row in other.rows]:
            return False
        pairs = [(a[key], b[key]) for a, b in zip(self.rows, other.rows, strict=True) for key in a if "loss" in key]
        ours, theirs = np.array(pairs).T
        return np.allclose(ours, theirs, rtol=ROUNDING)


def trained(out: Path, recipe: Recipe = RECIPE, log: Any = (), **options: Any) -> str:
    """Train in this process; return what was printed."""
    console = quiet()
    train(recipe, out, options=replace(OPTIONS, **options), log=log, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=500)


def read_run(out: Path) -> Run:
    rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_metrics(out)]
    return Run([np.asarray(leaf) for leaf in jax.tree.leaves(load_run(out, 1, log=lambda line: None)[1])], rows)


def whole_run(out: Path, recipe: Recipe = RECIPE, **options: Any) -> Run:
    """Return the run that nobody touched."""
    trained(out / "whole", recipe, **options)
    return read_run(out / "whole")


def resumed(run: Path, recipe: Recipe = RECIPE) -> tuple[Run | None, str]:
    """Resume a run in this process; return it and what was printed, or None and the line with which it was refused."""
    try:
        printed = trained(run, recipe)
    except InputError as error:
        return None, str(error)
    return read_run(run), printed


def start(out: Path, flags: Mapping[str, Any] = MappingProxyType({}), visible: int = 8) -> subprocess.Popen[str]:
    """Train in a process of its own that sees as many devices, on one of them unless the flags say otherwise."""
    # Not beside the run, whose disk may be full
    recipe = out.parents[1] / "attacked.json"
    recipe.write_text(to_json(RECIPE))
    all_flags = {"devices": 1, "eval-every": 5, "checkpoint-every": 5} | dict(flags)
    words = [word for name, value in all_flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "resnet_jax", "train", str(recipe), "--out", str(out), *words]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {DEVICE_COUNT}={visible}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(seen: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something is seen, or the process has ended."""
    deadline = time.monotonic() + 120
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code of a process and what it wrote to standard error."""
    _, err = process.communicate(timeout=180)
    return process.returncode, err


# The attacks: each tries `n` times in an empty folder, and returns how often all was as promised


def kills(out: Path, n: int) -> int:
    """`kill -9` at a random moment, then resumed: the same bits."""
    whole, draw, held = whole_run(out), random.Random(0), 0
    for trial in range(n):
        run = out / str(trial)
        process = start(run)
        wait_for((run / "recipe.json").exists, process)
        time.sleep(draw.uniform(0, 2))
        process.kill()
        ended(process)
        held += whole.equals(resumed(run)[0])
    return held


def signals(out: Path, n: int) -> int:
    """SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGINT twice: exit 128 + n with a checkpoint, then resumed: the same bits."""
    whole, held = whole_run(out), 0
    kinds = [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], [signal.SIGUSR1], [signal.SIGINT] * 2]
    for trial, kind in zip(range(n), itertools.cycle(kinds), strict=False):
        run = out / str(trial)
        process = start(run)
        wait_for(partial(read_metrics, run), process)
        for number in kind:
            process.send_signal(number)
        code, _ = ended(process)
        found, _ = resumed(run)
        held += code in (0, 128 + kind[0]) and whole.equals(found)
    return held


def damage(out: Path, n: int) -> int:
    """A bit of a checkpoint flipped, a file of it cut short or removed: the same bits, or refused in one line."""

    def harm(path: Path, draw: random.Random, trial: int) -> None:
        content = bytearray(path.read_bytes())
        match trial % 3:
            case 0 if content:
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
                path.write_bytes(content)
            case 1:
                path.write_bytes(content[: draw.randrange(len(content) + 1)])
            case _:
                path.unlink()

    return _harmed(out, n, ["checkpoints"], harm)


def changed_bytes(out: Path, n: int) -> int:
    """A bit of recipe.json, dataset.json or metrics.jsonl flipped: the same bits, or refused in one line."""

    def harm(path: Path, draw: random.Random, trial: int) -> None:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return _harmed(out, n, ["recipe.json", "dataset.json", "metrics.jsonl"], harm)


def _harmed(out: Path, n: int, names: list[str], harm: Callable[[Path, random.Random, int], None]) -> int:
    """Harm a file of a stopped run, below one of the names, and resume it."""
    whole, draw, held = whole_run(out), random.Random(0), 0
    trained(out / "stopped", stop_at=22)
    for trial in range(n):
        run = shutil.copytree(out / "stopped", out / "run")
        top = run / names[trial % len(names)]
        files = [path for path in sorted(top.rglob("*")) if path.is_file()] or [top]
        harm(draw.choice(files), draw, trial)
        found, said = resumed(run)
        held += whole.equals(found) or (found is None and "\n" not in said)
        shutil.rmtree(run)
    return held


def full_disk(out: Path, n: int) -> int:
    """A disk that fills up at a random place: exit 1 with one line, or a later checkpoint; then the same bits."""
    whole, draw, held = whole_run(out), random.Random(0), 0
    for _ in range(n):
        with small_disk(out / "disk", "4m") as disk:
            filler = disk / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - draw.randrange(1_000, 400_000)))
            code, err = ended(start(disk / "run"))
            filler.unlink()
            found, _ = resumed(disk / "run")
            one_line = code == 0 or (code in (1, 2) and err.count("\n") == 1)
            held += one_line and whole.equals(found)
    return held


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        raise NotImplementedError("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def hosts(out: Path, n: int) -> int:
    """Two hosts with another rate, seed, evaluation or data: both exit 2 with one line, and nothing is written."""
    others = [("optimizer.lr", 0.02), ("seed", 1), ("eval-every", 7), ("data.name", f"folder:{out / 'none'}")]
    held = 0
    for trial, (name, value) in zip(range(n), itertools.cycle(others), strict=False):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        common = {"coordinator-address": address, "num-processes": 2, "devices": 8}
        named = "no such folder" if name == "data.name" else f"differ in --{name}"
        run = out / str(trial)
        both = [start(run, common | {"process-id": host} | ({name: value} if host else {}), 4) for host in (0, 1)]
        ends = [ended(process) for process in both]
        held += all(code == 2 and err.count("\n") == 1 and named in err for code, err in ends) and not run.exists()
    return held


def devices(out: Path, n: int) -> int:
    """Started on 1, 2 or 8 devices and resumed on another number of them: the curve of one device, up to rounding."""
    whole, held = whole_run(out), 0
    for trial, (first, then) in zip(range(n), itertools.cycle(itertools.permutations((1, 2, 8), 2)), strict=False):
        run = out / str(trial)
        trained(run, stop_at=18, devices=first)
        trained(run, devices=then)
        held += whole.is_near(read_run(run))
    return held


def seeds(out: Path, n: int) -> int:
    """Seeds side by side: each on a device, the bits of single runs; in one program, equal up to rounding."""
    held = 0
    layouts: list[Any] = ["devices", "vmap"]
    for trial, layout in zip(range(n), itertools.cycle(layouts), strict=False):
        folder, chosen = out / str(trial), [2 * trial, 2 * trial + 1]
        options = replace(OPTIONS, devices=2 if layout == "devices" else 1)
        train_seeds(RECIPE, chosen, folder, options=options, seed_layout=layout, console=quiet())
        single = [whole_run(out / f"single{seed}", replace(RECIPE, seed=seed)) for seed in chosen]
        found = [read_run(folder / f"seed{seed}") for seed in chosen]
        pairs = list(zip(single, found, strict=True))
        held += all(a.equals(b) if layout == "devices" else a.is_near(b) for a, b in pairs)
    return held


def corrupt_images(out: Path, n: int) -> int:
    """Images of a folder cut short or replaced by text: trained to the end, named, and the same bits when repeated."""
    recipe = replace(RECIPE, data=Data(name=f"folder:{out / 'folder'}"), steps=10)
    draw, held = random.Random(0), 0
    write_folder(out / "folder")
    for trial in range(n):
        harmed = draw.sample(sorted((out / "folder" / "train").rglob("*.png")), 3)
        kept = [path.read_bytes() for path in harmed]
        for path, content in zip(harmed, kept, strict=True):
            path.write_bytes(draw.choice((content[: len(content) // 2], b"text", b"")))
        said = [trained(out / f"{trial}-{half}", recipe, max_corrupt_fraction=0.2) for half in (0, 1)]
        named = all(path.name in said[0] for path in harmed)
        held += named and read_run(out / f"{trial}-0").equals(read_run(out / f"{trial}-1"))
        for path, content in zip(harmed, kept, strict=True):
            path.write_bytes(content)
    return held


def write_folder(folder: Path) -> None:
    """Write 320 digits to train and 64 to validate as PNG."""
    for split, count in (("train", 320), ("val", 64)):
        images, labels = to_arrays(open_split("digits", "train" if split == "train" else "test", Path()))
        for index in range(count):
            home = folder / split / str(labels[index])
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index, ..., 0]).save(home / f"image{index:03}.png")


def rewritten_shards(out: Path, n: int) -> int:
    """Shards packed again while a run reads them: its own bits, or one line; and with other images never resumed."""
    held = 0
    write_folder(out / "folder")
    shutil.copytree(out / "folder", out / "other")
    for path in (out / "other" / "train").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    for trial in range(n):
        shards = out / f"shards{trial}"
        prepare_data(f"folder:{out / 'folder'}", shards, Packing(shards=2), console=quiet())
        recipe = replace(RECIPE, data=Data(name=f"array_record:{shards}"), steps=20)
        whole = whole_run(out / f"unharmed{trial}", recipe, device_cache_gib=0)

        def rewrite(step: int, row: Any, shards: Path = shards, trial: int = trial) -> None:
            if step == 5:
                shutil.rmtree(shards)
                if trial % 2:
                    # As another program would: what this process has open, it goes on reading
                    command = [sys.executable, "-m", "resnet_jax", "prepare", f"folder:{out / 'other'}", str(shards)]
                    subprocess.run([*command, "--shards", "2"], check=True, capture_output=True)
                else:
                    prepare_data(f"folder:{out / 'other'}", shards, Packing(shards=2), console=quiet())

        run = out / str(trial)
        try:
            trained(run, recipe, log=[rewrite], stop_at=15, device_cache_gib=0)
            own = whole.rows[:3] == read_run(run).rows[:3]
        except InputError as error:
            own = "\n" not in str(error)
        found, said = resumed(run, recipe)
        held += own and found is None and "have changed" in said
    return held


def evaluation_beside(out: Path, n: int) -> int:
    """A run read while it is trained and saved after each step: each time a whole state of a step that was saved."""
    held, steps = 0, [0]
    process = start(out / "run", {"checkpoint-every": 1, "keep-checkpoints": 1, "steps": 4000})
    wait_for(lambda: bool(read_metrics(out / "run")), process)
    for _ in range(n):
        notes: list[str] = []
        state = load_run(out / "run", 1, log=notes.append)[1]
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
        held += finite and not notes and int(state.step) >= steps[-1] and process.poll() is None
        steps.append(int(state.step))
    process.terminate()
    ended(process)
    return held if steps[-1] > steps[1] or n == 1 else 0


# By name, with the number of trials
ATTACKS: dict[str, tuple[Callable[[Path, int], int], int]] = {
    "kills": (kills, 20),
    "signals": (signals, 10),
    "damage": (damage, 60),
    "changed-bytes": (changed_bytes, 60),
    "full-disk": (full_disk, 10),
    "hosts": (hosts, 4),
    "devices": (devices, 6),
    "seeds": (seeds, 4),
    "corrupt-images": (corrupt_images, 6),
    "rewritten-shards": (rewritten_shards, 4),
    "evaluation-beside": (evaluation_beside, 30),
}


def attack(name: str, trials: int | None, folder: Path) -> str:
    """Return the row of an attack."""
    function, default = ATTACKS[name]
    begun, n = time.perf_counter(), trials or default
    try:
        (folder / name).mkdir(parents=True)
        held = str(function(folder / name, n))
    except NotImplementedError as error:
        held = f"not tried: {error}"
    return f"| {name} | {(function.__doc__ or '').strip()} | {n} | {held} | {time.perf_counter() - begun:.0f} s |"


def main() -> None:
    words = script.parser(__doc__)
    words.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="NAME")
    words.add_argument("--trials", type=script.positive)
    words.add_argument("--out", type=Path)
    options = words.parse_args()
    enable_compilation_cache()
    print("| name | attack, and what is promised | tried | held | time |\n|---|---|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(attack(name, options.trials, options.out or Path(folder)), flush=True)


if __name__ == "__main__":
    script.run(main, large_pages=False)
