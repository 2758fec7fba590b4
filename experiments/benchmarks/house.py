"""Figures of the house: how much code a batch passes, how long functions and files are, how large the spine is.

    python experiments/benchmarks/house.py [--package PATH]

Prints the functions of the package, without models/, that a profiler counts while the step of the default recipe is
traced on one device, from the loader to the loss; median and longest function and file; and the lines of the rooms
between the data and the network. For another checkout, `--package` gives the sizes alone.
"""

import argparse
import ast
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax

import resnet_jax
from resnet_jax.input_pipeline.device_input import open_device_split, training_batches
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.recipe import Recipe
from resnet_jax.training.init import abstract_train_state
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.options import default_data_dir
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources

PACKAGE = Path(resnet_jax.__file__).parent
SPINE = ("training", "checkpoint", "run_dir", "parallel", "input_pipeline", "optim", "tasks")
BEFORE = ("train", "data/stream.py", "data/batches.py", "hosts.py")


class Sizes(NamedTuple):
    """Lines of files and functions."""

    files: dict[str, int]
    functions: dict[str, int]
    code: dict[str, int]
    """Lines of each file that are neither empty, nor a comment, nor part of a docstring."""


def functions_to_the_loss() -> list[str]:
    """Return the functions that run while a step of the default recipe is traced, from the loader to the loss."""
    recipe = Recipe()
    sources = open_sources(recipe, default_data_dir())
    setup = make_setup(recipe, sources.dataset, 1)
    split = open_device_split(sources.train, setup.mesh, DataLoading())
    state, step, key = abstract_train_state(setup), make_train_step(setup), step_key(setup)
    seen: dict[str, None] = {}
    reached = False

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal reached
        code = frame.f_code
        ours = event == "call" and code.co_filename.startswith(str(PACKAGE))
        if reached or not ours or code.co_name.startswith("<"):
            return
        name = Path(code.co_filename).relative_to(PACKAGE)
        if name.parts[0] != "models":
            seen[f"{name}: {code.co_name}"] = None
        reached = code.co_name == "cross_entropy"

    batch = next(training_batches(split, recipe, range(1)))
    sys.setprofile(count)
    try:
        jax.eval_shape(step, state, batch, key)
    finally:
        sys.setprofile(None)
    return list(seen)


def sizes_of(package: Path) -> Sizes:
    """Return the lengths of all files and functions of a package."""
    files, functions, code = {}, {}, {}
    for path in sorted(package.rglob("*.py")):
        name, text = str(path.relative_to(package)), path.read_text()
        tree = ast.parse(text)
        files[name], code[name] = len(text.splitlines()), len(set(_code_lines(tree)))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions[f"{name}: {node.name}"] = node.end_lineno - node.lineno + 1  # type: ignore[operator]
    return Sizes(files, functions, code)


def _code_lines(tree: ast.Module) -> Iterator[int]:
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.expr, ast.alias, ast.arg, ast.stmt)) and id(node) not in docs:
            yield node.lineno
            if not isinstance(node, ast.stmt):
                yield node.end_lineno or node.lineno


def room_lines(lines: dict[str, int], rooms: tuple[str, ...]) -> int:
    """Return the lines of all files below these folders, or of these files."""
    return sum(
        count for name, count in lines.items() if name.startswith(tuple(f"{room}/" for room in rooms)) or name in rooms
    )


def main(package: Path | None) -> None:
    """Print the figures."""
    if package is None:
        passed = functions_to_the_loss()
        print(f"{len(passed)} functions from the loader to the loss: {', '.join(passed)}")
    sizes = sizes_of(package or PACKAGE)
    for what, lengths in (("function", sizes.functions), ("file", sizes.files)):
        longest = max(lengths, key=lengths.__getitem__)
        median = statistics.median(lengths.values())
        print(f"{what}s: {len(lengths):,}, median {median:g} lines, longest {lengths[longest]} ({longest})")
    rooms = SPINE if (package or PACKAGE).joinpath("training").is_dir() else BEFORE
    total, code = (room_lines(lines, rooms) for lines in (sizes.files, sizes.code))
    print(f"{' + '.join(rooms)}: {total:,} lines, of which {code:,} are code")
    whole = [sum(itertools.chain(lines.values())) for lines in (sizes.files, sizes.code)]
    print(f"package: {whole[0]:,} lines, of which {whole[1]:,} are code")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="folder of another version of the package")
    main(parser.parse_args().package)
