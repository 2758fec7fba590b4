"""Strict settings for all tests, eight virtual devices, and where the real data is."""

import gc
import importlib.util
import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from resnet_jax.runtime import compilation_cache

# Before jax is imported, here and in every process that a test starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests compile the same few networks again and again: workers exchange what they compile, and leave it to the next run.
ROOT = Path(__file__).parent.parent
COMPILED = ROOT / ".pytest_cache" / "compiled"
OWN_COMPILED, COMPILED_LOCK = compilation_cache.join(COMPILED)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(OWN_COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Otherwise the path of the folder would be in the key of every entry
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
# Most of the time goes into compiling: without its expensive passes the compiler takes a third of it. `make test-slow`
# sets RESNET_JAX_OPTIMIZE=1 and compiles as users do.
UNOPTIMIZED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
OPTIMIZE = os.environ.get("RESNET_JAX_OPTIMIZE") == "1"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {'' if OPTIMIZE else UNOPTIMIZED}".strip()

import jax
import pytest

from resnet_jax.cli.main import main
from resnet_jax.data.datasets import DATASETS
from resnet_jax.data.source import from_arrays
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.sharding import place
from resnet_jax.recipe import Augment, Data, Model, Recipe, Schedule, to_json
from resnet_jax.tasks.metrics import METRICS
from resnet_jax.training import aot, opening, run
from resnet_jax.training.init import shardings
from resnet_jax.training.make_step import make_train_step

# Tracing makes millions of small objects; collecting them as often as Python does costs a tenth of the time
gc.set_threshold(100_000, 50, 100)

QUICKLY = {"xla_backend_optimization_level": 0}  # options of the compiler for what runs once, and is not its test


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts jobs in the background with these ignored, and so would be the processes that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.add_cleanup(lambda: compilation_cache.leave(COMPILED, OWN_COMPILED, COMPILED_LOCK))


def pytest_collection_finish() -> None:
    # What is imported by now stays, and is not to be looked through again after each module
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data and weights; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("RESNET_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "make_cifar10.py").is_file():
        pytest.skip(f"no real data under {folder}; name it with RESNET_JAX_TEST_DATA")
    return folder


_programs: dict[Any, Any] = {}
_exchanged = time.monotonic()


@pytest.fixture(scope="module", autouse=True)
def _free_memory() -> Iterator[None]:
    """Forget what modules have compiled, or a worker would grow to gigabytes; exchange it with the other workers."""
    yield
    if _resident_gib() > 2:
        _programs.clear()
        jax.clear_caches()
        gc.collect()
    global _exchanged
    if time.monotonic() - _exchanged > 30:
        compilation_cache.publish_entries(COMPILED, OWN_COMPILED)
        compilation_cache.link_entries(COMPILED, OWN_COMPILED)
        _exchanged = time.monotonic()


def _resident_gib() -> float:
    """Return the memory of this process; infinite if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**30
    except OSError:
        return math.inf


@pytest.fixture(autouse=True)
def _shared_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all runs share their compiled steps and initial states: most of them train the same recipe."""

    def shared(module: ModuleType, name: str, key_of: Callable[..., Any], copy: Callable[..., Any]) -> None:
        original = getattr(module, name)

        def remembered(*args: Any, **options: Any) -> Any:
            key = key_of(*args, **options)
            if key is None:
                return original(*args, **options)
            key = name, key, bool(jax.config.jax_enable_x64)
            if key not in _programs:
                _programs[key] = copy(None, original(*args, **options), *args)
            return copy(_programs[key], None, *args)

        monkeypatch.setattr(module, name, remembered)

    def of_setup(setup: Any) -> Any:
        """Return what decides the programs of a setup; None if it is code of the test."""
        if setup.given or ":" in setup.recipe.model.name or aot.make_train_step is not make_train_step:
            return None
        dataset = replace(setup.dataset, digest="", data_dir="")
        return setup.recipe, dataset, setup.mesh, setup.grad_accum_steps, setup.param_sharding

    def of_step(setup: Any, accum: Any, size: Any, arguments: Any) -> Any:
        leaves = tuple((x.shape, str(x.dtype), x.sharding) for x in jax.tree.leaves(arguments))
        kind = str(jax.tree.structure(arguments))
        known = of_setup(setup._replace(recipe=replace(setup.recipe, seed=0)))
        return known and (*known, tuple(accum), size, kind, leaves)

    def of_init(setup: Any, pretrained: Any = None) -> Any:
        return None if pretrained else of_setup(setup)

    def of_eval(model: Any, data: Any, mesh: Any, metrics: Any) -> Any:
        known = all(metric == METRICS.get(name, metric) for name, metric in metrics.items())
        return (
            (model, data, mesh, tuple(metrics), str(metrics["loss"])) if known and isinstance(model, ResNet) else None
        )

    def same(kept: Any, new: Any, *args: Any) -> Any:
        return new if kept is None else kept

    def on_devices(kept: Any, new: Any, setup: Any, *args: Any) -> Any:
        # The state is donated to the first step, so each run is given a copy
        return jax.device_get(new) if kept is None else jax.tree.map(place, kept, shardings(setup))

    shared(aot, "compile_within", of_step, same)
    shared(run, "init_train_state", of_init, on_devices)
    shared(opening, "make_eval_step", of_eval, same)


@pytest.fixture
def script() -> Callable[..., ModuleType]:
    """A function that reads a script below experiments/ as a module."""

    def read(*names: str) -> ModuleType:
        path = ROOT.joinpath("experiments", *names)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return read


# A network of four layers
TINY = Model(name="resnet8", fields={"depths": (1,), "width": 4})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe that compiles in a second: a network of four layers on 40 + 10 noisy images of 8x8 pixels."""

    def source(split, folder):
        size = 40 if split == "train" else 10
        labels = jax.numpy.arange(size) % 3
        noise = jax.random.randint(jax.random.key(size), (size, 8, 8, 1), 0, 100)
        images = noise + 50 * labels[:, None, None, None]
        return from_arrays(jax.device_get(images).astype("uint8"), jax.device_get(labels), ("a", "b", "c"))

    monkeypatch.setitem(DATASETS, "tiny", source)
    return Recipe(
        model=TINY,
        data=Data(name="tiny"),
        augment=Augment(crop_padding=1, hflip=True),
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
    tiny = replace(tiny, model=Model(name="resnet8", fields={"depths": (1, 1), "width": 4}))
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
