"""What commands keep of what they compiled, whatever ends them."""

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from resnet_jax.runtime.compilation_cache import bound, cache_home, is_whole, join, leave

PROGRAM = """
import sys
from resnet_jax.runtime.compilation_cache import enable_compilation_cache
enable_compilation_cache()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.monitoring.register_event_listener(lambda name, **_: name.endswith("cache_hits") and print("hit"))
print(jax.jit(lambda x: x + {number})(1))
"""


def environment(folder: Path) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return known | {"XDG_CACHE_HOME": str(folder), "PYTHONWARNINGS": "error"}


def begin(folder: Path, end: str = "", number: int = 1, **more: str) -> subprocess.Popen:
    words = [sys.executable, "-c", PROGRAM.format(number=number) + end]
    return subprocess.Popen(words, env=environment(folder) | more, stdout=-1, stderr=-1, text=True)


def said(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert err == ""
    return out


def folders(home: Path) -> list[str]:
    return [path.name for path in home.glob("process-*")]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_home()


def test_the_next_command_takes_what_the_first_compiled(home, tmp_path):
    assert said(begin(tmp_path)) == "2\n"
    assert list(home.glob("*-cache"))
    assert not folders(home)
    assert "hit" in said(begin(tmp_path))


def test_half_an_entry_is_thrown_away_and_whole_ones_are_kept(home, tmp_path):
    half = "import os, signal; from pathlib import Path\nown = Path(jax.config.values['jax_compilation_cache_dir'])\n"
    half += "entry = next(own.glob('jit*-cache')); (own / ('x' + entry.name)).write_bytes(entry.read_bytes()[:-9])\n"
    killed = begin(tmp_path, half + "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    assert said(killed) == "2\n"
    assert killed.returncode == -signal.SIGKILL
    assert not list(home.glob("*-cache"))
    assert len(folders(home)) == 1
    assert "hit" in said(begin(tmp_path))
    assert not folders(home)
    assert all(is_whole(entry.read_bytes()) for entry in home.glob("*-cache"))
    assert not list(home.glob("x*"))


@pytest.mark.slow
def test_two_at_once(home, tmp_path):
    both = [begin(tmp_path, number=number) for number in (1, 2)]
    assert [said(process) for process in both] == ["2\n", "3\n"]
    assert not folders(home)
    assert "hit" in said(begin(tmp_path, number=2))


@pytest.mark.parametrize("setting", [{"JAX_ENABLE_COMPILATION_CACHE": "false"}, {"JAX_COMPILATION_CACHE_DIR": "own"}])
def test_jax_settings_win(home, tmp_path, setting):
    setting = {name: str(tmp_path / value) if value == "own" else value for name, value in setting.items()}
    assert said(begin(tmp_path, **setting)) == "2\n"
    assert not home.exists()


def test_without_a_folder_that_can_be_written_there_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert said(begin(tmp_path / "file")) == "2\n"


def test_a_folder_in_use_is_left_alone(tmp_path):
    first, lock = join(tmp_path)
    second, other = join(tmp_path)
    assert first.is_dir()
    (first / "new-cache").write_bytes(zlib.compress(b"program"))
    leave(tmp_path, first, lock)
    assert (tmp_path / "new-cache").exists()
    assert not (second / "new-cache").exists()
    leave(tmp_path, second, other)
    third, lock = join(tmp_path)
    assert (third / "new-cache").samefile(tmp_path / "new-cache")
    leave(tmp_path, third, lock)
    assert [path.name for path in tmp_path.iterdir()] == ["new-cache"]


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for age, name in enumerate(("young", "old", "oldest")):
        (tmp_path / f"{name}-cache").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}-cache", (1000 - age, 1000 - age))
    bound(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old-cache", "young-cache"]


def test_the_library_leaves_the_cache_of_its_user_alone():
    code = "import jax, resnet_jax.training.run, resnet_jax.tools.bench\n"
    code += "print(jax.config.values['jax_compilation_cache_dir'])"
    env = environment(Path("/nonexistent"))
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "None\n"
