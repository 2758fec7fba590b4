"""Programs that are kept: found again, never a stale one, and never read where others may write."""

import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.run_dir.files import DatasetInfo, read_metrics
from resnet_jax.runtime.compilation_cache import cache_home
from resnet_jax.training import executables
from resnet_jax.training.executables import ingredients, keep, key_of, load_or_compile
from resnet_jax.training.setup import Parts, make_setup, program_identity

MESH = data_mesh(1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of kept programs."""
    monkeypatch.setattr(executables, "_home", lambda mesh: tmp_path)
    return tmp_path


@pytest.fixture
def traced():
    """A function that notes when it is traced, and the notes; JAX's own cache never has it."""
    notes, number = [], int.from_bytes(os.urandom(2))

    def function(x, y):
        notes.append("traced")
        return jnp.sin(x @ y + number).sum(0)

    return jax.jit(function), notes


def entries(home):
    return sorted(home.glob("*-cache"))


def test_a_program_is_traced_once(home, traced):
    function, notes = traced
    arguments = jnp.arange(6.0).reshape(2, 3), jnp.ones((3, 4))
    first = load_or_compile(lambda: function, arguments, MESH, "product")(*arguments)
    second = load_or_compile(lambda: pytest.fail("made again"), arguments, MESH, "product")(*arguments)
    np.testing.assert_array_equal(first, second)
    assert notes == ["traced"]
    assert len(entries(home)) == 1
    assert not entries(home)[0].stat().st_mode & 0o022


def test_what_has_no_identity_or_no_folder_is_not_kept(home, traced, monkeypatch):
    function, _ = traced
    arguments = jnp.ones((2, 3)), jnp.ones((3, 4))
    load_or_compile(lambda: function, arguments, MESH, None)
    assert keep(function, MESH, None) is function
    monkeypatch.setattr(executables, "_home", lambda mesh: None)
    load_or_compile(lambda: function, arguments, MESH, "product")
    assert keep(function, MESH, "product") is function
    assert not entries(home)


def test_each_layout_of_the_inputs_has_a_program(home, traced):
    function, _ = traced
    kept = keep(function, MESH, "product")
    for rows in (3, 4, 3):
        x, y = jnp.ones((2, rows)), jnp.ones((rows, 4))
        np.testing.assert_array_equal(kept(x, y), function.__wrapped__(x, y))
    assert len(entries(home)) == 2


def test_a_program_that_jax_had_in_its_cache_is_not_kept(home, traced, monkeypatch):
    """XLA writes it without its machine code."""
    counts = {}
    monkeypatch.setattr(executables, "_cache_hits", lambda: counts)

    class Hit:
        def lower(self, *arguments):
            counts[threading.get_ident()] = 1
            return traced[0].lower(*arguments)

    load_or_compile(Hit, (jnp.ones((2, 3)), jnp.ones((3, 4))), MESH, "product")
    assert not entries(home)


def test_a_hit_is_counted(tmp_path):
    program = """
import jax
from resnet_jax.training.executables import _cache_hits
counts = _cache_hits()
jax.jit(lambda x: x * 3.5)(1)
print(sum(counts.values()) > 0)
"""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    runs = [
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout for run in runs] == ["False\n", "True\n"]


def test_every_ingredient_counts(monkeypatch):
    x = jnp.ones((8, 2))
    base = ingredients((x,), MESH)
    assert key_of(base) == key_of(ingredients((jnp.zeros((8, 2)),), MESH))
    changed = {
        "another shape": ingredients((jnp.ones((8, 3)),), MESH),
        "another dtype": ingredients((x.astype(jnp.bfloat16),), MESH),
        "a weak type": ingredients((jnp.asarray(1.0) * 1,), MESH),
        "no weak type": ingredients((1.0,), MESH),
        "another tree": ingredients(({"x": x},), MESH),
        "another device": ingredients((x,), jax.sharding.Mesh(jax.devices()[1:2], MESH.axis_names)),
        "more devices": ingredients((x,), data_mesh(2)),
        "another sharding": ingredients(
            (jax.device_put(x, NamedSharding(data_mesh(2), PartitionSpec(data_mesh(2).axis_names[0]))),), MESH
        ),
    }
    with jax.default_matmul_precision("float32"):
        changed["another setting"] = ingredients((x,), MESH)
    with jax.enable_x64(True):
        changed["another width"] = ingredients((x,), MESH)
    for name in ("XLA_FLAGS", "RESNET_JAX_KERNELS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "something else")
            changed[name] = ingredients((x,), MESH)
    for name, value in {"_version": lambda package: "0", "_sources": lambda: "0"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(executables, name, value)
            changed[name] = ingredients((x,), MESH)
    changed["another identity"] = base | {"identity": "another"}
    assert len({key_of(parts) for parts in [base, *changed.values()]}) == len(changed) + 1


def test_sources_are_all_modules(monkeypatch, tmp_path):
    package = tmp_path / "package"
    (package / "room").mkdir(parents=True)
    (package / "room" / "leaf.py").write_text("x = 1\n")
    monkeypatch.setattr(executables, "__file__", str(package / "room" / "executables.py"))
    before = executables._sources.__wrapped__()
    (package / "room" / "leaf.py").write_text("x = 2\n")
    after = executables._sources.__wrapped__()
    (package / "room" / "leaf.py").rename(package / "leaf.py")
    assert len({before, after, executables._sources.__wrapped__()}) == 3


def test_damage_is_compiled_again(home, traced):
    function, _ = traced
    arguments = jnp.ones((2, 3)), jnp.ones((3, 4))
    expected = load_or_compile(lambda: function, arguments, MESH, "product")(*arguments)
    (entry,) = entries(home)
    content = entry.read_bytes()
    for place in (0, 40, len(content) // 2, len(content) - 1):
        entry.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        result = load_or_compile(lambda: function, arguments, MESH, "product")(*arguments)
        np.testing.assert_array_equal(result, expected)
        assert entry.read_bytes()[32:] != b""
    for harm in (b"", content[:20], content[:-1]):
        entry.write_bytes(harm)
        load_or_compile(lambda: function, arguments, MESH, "product")(*arguments)


def test_a_pickle_without_its_digest_is_never_opened(home, traced, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    function, _ = traced
    arguments = jnp.ones((2, 3)), jnp.ones((3, 4))
    load_or_compile(lambda: function, arguments, MESH, "product")
    (entry,) = entries(home)
    entry.write_bytes(bytes(32) + pickle.dumps(Payload()))
    load_or_compile(lambda: function, arguments, MESH, "product")
    assert not (tmp_path / "opened").exists()
    entry.write_bytes(executables._digest(pickle.dumps(Payload())) + pickle.dumps(Payload()))
    load_or_compile(lambda: function, arguments, MESH, "product")
    assert (tmp_path / "opened").exists(), "the payload is live"


def test_the_folder_is_the_users_alone(tmp_path, monkeypatch, request):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = cache_home() / "process-1"
    own.mkdir(parents=True)
    before = jax.config.jax_compilation_cache_dir
    request.addfinalizer(lambda: jax.config.update("jax_compilation_cache_dir", before))
    jax.config.update("jax_compilation_cache_dir", str(own))
    home = cache_home() / "executables"
    assert executables._home(MESH) == home
    home.chmod(0o770)
    assert executables._home(MESH) is None
    home.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    home.symlink_to(elsewhere)
    assert executables._home(MESH) is None
    # The user's own cache of JAX: only what commands compile is kept
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert executables._home(MESH) is None


def test_what_decides_the_programs_of_a_run(tiny):
    info = DatasetInfo(tuple("abcdefghij"), (8, 8, 1), 64, "here", "digest")
    setup = make_setup(tiny, info, 1)
    same = make_setup(replace(tiny, seed=5), replace(info, data_dir="there", digest="other"), 1)
    assert program_identity(setup) == program_identity(same)
    others = [
        make_setup(replace(tiny, batch_size=2 * tiny.batch_size), info, 1),
        make_setup(tiny, replace(info, train_size=128), 1),
        make_setup(tiny, info, 1, param_sharding="sharded"),
    ]
    assert len({program_identity(other) for other in [setup, *others]}) == 4
    assert program_identity(make_setup(tiny, info, 1, parts=Parts(model=setup.model))) is None


_CONVOLVE = """
import sys, jax.numpy as jnp, jax
from pathlib import Path
from resnet_jax.models import cpu_conv3x3, cpu_tiles
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.training import executables
executables._home = lambda mesh: Path(sys.argv[1])
if sys.argv[2] == "second":
    cpu_tiles.compile_module = lambda module: sys.exit("compiled again")
x, k = jnp.arange(2.0 * 7 * 7 * 8).reshape(2, 7, 7, 8), jnp.ones((3, 3, 8, 16))
make = lambda: jax.jit(cpu_conv3x3.conv3x3)
print(float(executables.load_or_compile(make, (x, k), data_mesh(1), "convolution")(x, k).sum()))
"""


@pytest.mark.skipif(find_spec("llvmlite") is None, reason="needs llvmlite")
def test_machine_code_is_kept_with_its_program(tmp_path):
    # What JAX's own cache has is not kept
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    found = []
    for name in ("first", "second"):
        command = [sys.executable, "-c", _CONVOLVE, str(tmp_path), name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-500:]
        found.append((done.stdout, [entry.stat().st_mtime_ns for entry in entries(tmp_path)]))
    assert found[0] == found[1]
    assert len(found[0][1]) == 1


@pytest.mark.slow
def test_a_second_command_compiles_nothing_and_has_the_same_bits(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    train = "train --model.name resnet8 --epochs None --steps 4 --schedule.warmup 0 --devices 1"
    rows = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "resnet_jax", *train.split(), "--out", name]
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
        rows.append([{k: v for k, v in row.items() if "loss" in k} for row in read_metrics(tmp_path / name)])
        found = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "cache").rglob("executables/*")}
        if name == "first":
            kept = found
    assert rows[0] == rows[1]
    assert len(kept) == 3
    assert found == kept
