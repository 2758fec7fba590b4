"""The house: imports point down only, and the public names are these."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_jax

PACKAGE = Path(resnet_jax.__file__).parent
LAYERS = (
    {"errors", "backend", "cache", "huge_pages"},
    {"model", "data", "hosts"},
    {"recipe", "weights"},
    {"train"},
    {"trained", "summary", "curves", "sheet", "spread"},
    {"evaluation", "predict", "conversion", "preparation", "doctor", "fitting", "preflight"},
    {"bench", "explain", "report"},
    {"parse"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnet_jax."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize(
    "path", [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path):
    here = room(path)
    for other in imports(path) - {here}:
        assert LAYER_OF[other] < LAYER_OF[here], f"{here} imports {other}"


def test_public_names():
    assert resnet_jax.__all__ == [
        "BasicBlock",
        "BatchNorm",
        "Bottleneck",
        "DATASETS",
        "FPN",
        "InputError",
        "Like",
        "MODELS",
        "Recipe",
        "ResNet",
        "SHORTCUTS",
        "Source",
        "SqueezeExcite",
        "TrainState",
        "WEIGHTS",
        "compiler_options",
        "convert_weights",
        "create",
        "eval_step",
        "evaluate_run",
        "explain_images",
        "fit",
        "grad_cam",
        "load_recipe",
        "load_run",
        "make_report",
        "predict_images",
        "summarize",
        "train_recipe",
        "train_seeds",
        "train_step",
    ]
    for name in resnet_jax.__all__:
        assert getattr(resnet_jax, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        resnet_jax.nothing  # noqa: B018


def test_type_checkers_see_the_same_public_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: f"{node.module}" for node in block.body for alias in node.names}
    assert seen == {name: f"resnet_jax.{home}" for name, home in resnet_jax._HOMES.items()}


def test_public_names_have_docstrings():
    missing = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(path.name)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{path.name}:{node.name}")
    assert not missing


@pytest.mark.parametrize("code", ["import resnet_jax", "import resnet_jax.cli as c; c.main(['--help'])"])
def test_import_and_help_are_light(code):
    heavy = ["tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "jax", "orbax.checkpoint"]
    check = f"import sys\n{code}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
