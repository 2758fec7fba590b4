"""The house: imports point down, between rooms and inside them; the public names are these; old names stay gone."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import resnet_jax

PACKAGE = Path(resnet_jax.__file__).parent
ROOT = PACKAGE.parent
ROOMS = (
    "cli",
    "tools",
    "report",
    "inference",
    "training",
    "checkpoint",
    "run_dir",
    "input_pipeline",
    "parallel",
    "tasks",
    "optim",
    "weights",
    "recipe",
    "data",
    "models",
    "runtime",
    "errors",
    "version",
)
HEIGHT = {room: -number for number, room in enumerate(ROOMS)}
PUBLIC = {
    "DATASETS",
    "FPN",
    "METRICS",
    "MODELS",
    "SHORTCUTS",
    "WEIGHTS",
    "BasicBlock",
    "BatchNorm",
    "Bottleneck",
    "CheckpointChoice",
    "InputError",
    "Metric",
    "Parts",
    "Preprocessing",
    "Recipe",
    "ResNet",
    "RunOptions",
    "Source",
    "SqueezeExcite",
    "Task",
    "TrainState",
    "WeightsInfo",
    "average",
    "classification",
    "compiler_options",
    "convert_weights",
    "create_model",
    "detection",
    "embed_each",
    "embed_to",
    "eval_step",
    "evaluate",
    "explain",
    "export",
    "fit",
    "fold_batch_norm",
    "grad_cam",
    "load_recipe",
    "load_run",
    "make_report",
    "multilabel",
    "neighbours",
    "predict",
    "predict_each",
    "predict_to",
    "probe",
    "read_features",
    "regression",
    "segmentation",
    "summarize",
    "train",
    "train_seeds",
    "train_step",
    "verify_export",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, f"{path}: relative import"
            if module in MODULES:
                children = {f"{module}.{alias.name}" for alias in node.names}
                found |= (children & MODULES.keys()) or {module}
    return found


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_module_is_in_a_room():
    assert {room_of(name) for name in MODULES if "." in name} - {"__main__"} == set(ROOMS)


def test_imports_point_down_between_rooms():
    upward = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if name not in ("resnet_jax", "resnet_jax.__main__")
        for other in imports(path)
        if room_of(other) != room_of(name) and HEIGHT[room_of(other)] > HEIGHT[room_of(name)]
    ]
    assert not upward


def test_no_module_imports_what_imports_it():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
    assert len(order) == len(MODULES)


def test_public_names():
    assert set(resnet_jax.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(resnet_jax, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        resnet_jax.nothing  # noqa: B018


def public_objects():
    return [(name, getattr(resnet_jax, name)) for name in sorted(PUBLIC) if not name.isupper()]


@pytest.mark.parametrize(("name", "value"), public_objects(), ids=[name for name, _ in public_objects()])
def test_public_functions_say_what_they_do(name, value):
    doc = value.__doc__ or ""
    first = doc.strip().splitlines()[0]
    assert len(first) < 100
    assert first.endswith((".", ";", ":"))


def test_modules_and_public_classes_have_docstrings():
    missing = []
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(name)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{name}.{node.name}")
    assert not missing


@pytest.mark.parametrize("code", ["import resnet_jax", "import resnet_jax.cli.main as c; c.main(['--help'])"])
def test_import_and_help_are_light(code):
    heavy = ["tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "jax", "orbax.checkpoint"]
    check = f"import sys\n{code}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


OLD_NAMES = [
    line for line in (ROOT / "tests" / "old_names.txt").read_text().splitlines() if line and not line.startswith("#")
]


def words_of_the_house() -> list[tuple[str, str]]:
    kinds = {".py", ".pyi", ".md", ".toml", ".yaml", ".sh", ".sbatch"}
    folders = ("resnet_jax", "experiments", "tests", "docs")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    # The change log says what a name was called before; it is a generated page of the site too
    made = {ROOT / "docs" / folder for folder in ("_build", "generated", "experiments")}
    paths = [path for path in paths if not made & {*path.parents}]
    paths += [ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "Makefile"]
    return [(str(path.relative_to(ROOT)), path.read_text()) for path in paths]


def test_names_that_are_gone_stay_gone():
    texts, found = words_of_the_house(), []
    words = {word for _, text in texts for word in re.findall(r"\w+", text)}
    for pattern in OLD_NAMES:
        compiled, plain = re.compile(pattern, re.MULTILINE), re.fullmatch(r"\\b(\w+)\\b", pattern)
        # A set of all words is faster than a search for each
        if plain and plain[1] not in words:
            continue
        for name, text in texts:
            for number, line in enumerate(text.splitlines() if compiled.search(text) else (), 1):
                if compiled.search(line):
                    found.append(f"{name}:{number}: {pattern}: {line.strip()[:100]}")
    assert not found, "\n" + "\n".join(found)
