"""Strict settings for all tests, eight virtual devices, and where the real data is."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# Before jax is imported, here and in every process that a test starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests compile the same few networks again and again. A cache of its own for each worker: JAX does not write an entry
# in one piece, so another process may read half of it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="resnet-jax-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import pytest

from resnet_jax.cli import main
from resnet_jax.data.datasets import DATASETS
from resnet_jax.data.source import from_arrays
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.shortcuts import PadShortcut
from resnet_jax.model.stems import CifarStem
from resnet_jax.model.zoo import MODELS
from resnet_jax.recipe import Augment, Data, Model, Recipe, Schedule, to_json

ROOT = Path(__file__).parent.parent
QUICKLY = {"xla_backend_optimization_level": 1}  # options of the compiler for what runs once, and is not its test


def pytest_configure(config: pytest.Config) -> None:
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    config.add_cleanup(lambda: shutil.rmtree(cache))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data and weights; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("RESNET_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "make_cifar10.py").is_file():
        pytest.skip(f"no real data under {folder}; name it with RESNET_JAX_TEST_DATA")
    return folder


@pytest.fixture
def script() -> Iterator[Callable[..., ModuleType]]:
    """A function that reads a script below experiments/ as a module; networks that it adds to MODELS are gone again."""
    before = dict(MODELS)

    def read(*names: str) -> ModuleType:
        path = ROOT.joinpath("experiments", *names)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield read
    for name in MODELS.keys() - before.keys():
        del MODELS[name]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe that compiles in a second: a network of four layers on 40 + 10 noisy images of 8x8 pixels."""
    network = ResNet((1,), stem=CifarStem, shortcut=PadShortcut, width=4, num_classes=3)
    monkeypatch.setitem(MODELS, "tiny", network)

    def source(split, folder):
        size = 40 if split == "train" else 10
        labels = jax.numpy.arange(size) % 3
        noise = jax.random.randint(jax.random.key(size), (size, 8, 8, 1), 0, 100)
        images = noise + 50 * labels[:, None, None, None]
        return from_arrays(jax.device_get(images).astype("uint8"), jax.device_get(labels), ("a", "b", "c"))

    monkeypatch.setitem(DATASETS, "tiny", source)
    return Recipe(
        model=Model(name="tiny"),
        data=Data(name="tiny"),
        augment=Augment(pad=1, flip=True),
        schedule=Schedule(warmup=2),
        batch_size=16,
        epochs=None,
        steps=12,
    )


@pytest.fixture
def tiny_run(
    tiny: Recipe,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[Path, str]:
    """A finished run of the tiny recipe, of two stages, in an empty folder, and what it said; trained once."""
    monkeypatch.setitem(MODELS, "tiny", MODELS["tiny"].clone(depths=(1, 1)))
    once = tmp_path_factory.getbasetemp() / "tiny-run"
    if not (once / "said").exists():
        once.mkdir()
        monkeypatch.chdir(once)
        Path("recipe.json").write_text(to_json(tiny))
        assert main(["train", "recipe.json", "--devices", "1", "--steps", "30", "--out", "run"]) == 0
        Path("said").write_text(capsys.readouterr().out)
    for name in ("recipe.json", "run"):
        copy = shutil.copytree if (once / name).is_dir() else shutil.copy
        copy(once / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Path("run"), (once / "said").read_text()
