"""One trainer to a directory, by real processes."""

import errno
import fcntl
import signal
import socket
import subprocess
import sys

import pytest

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe
from resnet_jax.run_dir.files import require_same_run
from resnet_jax.run_dir.lock import run_lock

HOLDER = """
import sys
from pathlib import Path
from resnet_jax.run_dir.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path / "run" until it is killed or its input ends."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_trainer_is_refused_until_the_first_is_killed(tmp_path, holder):
    refused = f"run: process {holder.pid} on {socket.gethostname()} is training there; wait for it, or choose another"
    for _ in range(2):
        with pytest.raises(InputError, match=refused), run_lock(tmp_path / "run"):
            pass
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert (tmp_path / "run" / "lock").exists()  # which means nothing
    require_same_run(tmp_path / "run", Recipe())
    with run_lock(tmp_path / "run"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # it was there before


def test_a_trainer_that_ends_leaves_no_trace(tmp_path, holder):
    holder.communicate("")
    assert holder.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_within_one_process_as_well(tmp_path):
    run = tmp_path / "runs" / "new"
    with run_lock(run):
        with pytest.raises(InputError, match="is training there"), run_lock(run):
            pass
        (run / "recipe.json").touch()
    assert [path.name for path in run.iterdir()] == ["recipe.json"]
    with run_lock(run):
        assert sorted(path.name for path in run.iterdir()) == ["lock", "recipe.json"]


def test_an_error_frees_the_directory(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), run_lock(tmp_path / "runs" / "new"):
        raise RuntimeError("inside")
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "run").touch()
    with (
        pytest.raises(InputError, match=r"run: cannot write there \(File exists\); choose"),
        run_lock(tmp_path / "run"),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"run/a: cannot write there \(Not a directory\)"),
        run_lock(tmp_path / "run/a"),
    ):
        pass


def test_a_file_that_the_holder_before_has_just_removed_is_no_lock(tmp_path, monkeypatch):
    """Between the opening of the file and the lock on it the other one ended, and a third may lock a new file."""
    path, flock, calls = tmp_path / "lock", fcntl.flock, []

    def after_removal(descriptor, operation):
        if not calls:
            path.unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_removal)
    with run_lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(InputError, match="is training there"), run_lock(tmp_path):
            pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").exists()
    assert capsys.readouterr().err == (
        f"{tmp_path / 'run'}: its file system has no locks; make sure that nothing else is training there\n"
    )


def test_a_lock_that_is_a_link_is_refused_and_its_target_untouched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"run: cannot write there \(Too many levels of symbolic links\)"):  # noqa: SIM117
        with run_lock(tmp_path / "run"):
            pass
    assert (tmp_path / "precious").read_text() == "precious"
