"""Checkpoints that can be trusted: damage, kill -9, full disks, retention, other devices."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet_jax.checkpoint import checkpoint, manifest
from resnet_jax.checkpoint.checkpoint import open_checkpoints, save
from resnet_jax.checkpoint.store import committed
from resnet_jax.errors import InputError, MachineError
from resnet_jax.parallel.sharding import batch_sharding, data_mesh, replicated
from resnet_jax.training.state import TrainState


def state_at(step, size=64):
    """State and progress that say their step in every leaf, with all kinds of leaves that a state has."""
    rng = np.random.default_rng(step)
    params = {name: {"kernel": rng.normal(size=(8, size)).astype(np.float32)} for name in ("stem", "head")}
    state = TrainState(
        step=np.int32(step),
        params=params,
        batch_stats={"norm": {"mean": np.full(8, step, np.float32)}},
        opt_state=({"trace": jax.tree.map(lambda leaf: -leaf, params)}, {}),
        ema={"params": params},
    )
    totals = {"loss": np.float64(step / 3), "count": np.int64(2**40 + step), "hits": np.full(3, step, np.int64)}
    return jax.tree.map(jnp.asarray, state), {"totals": totals, "timer": {"seconds": step / 7}}


def like(mesh=None, size=64):
    """What `restore` shall fit, here on one device."""
    sharding = replicated(mesh or data_mesh(1))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: state_at(0, size)[0]),
    )


def restore(folder, abstract_state=None, **options):
    return checkpoint.restore(folder, abstract_state or like(), **options)


def write(folder, *steps, metrics=(), **options):
    with open_checkpoints(folder, **options) as checkpoints:
        for number, step in enumerate(steps):
            save(checkpoints, *state_at(step), metric=metrics[number] if metrics else None)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# Saving and keeping


def test_what_is_saved_is_restored(tmp_path):
    assert restore(tmp_path / "c") is None
    write(tmp_path / "c", 3)
    chex.assert_trees_all_equal(restore(tmp_path / "c"), state_at(3))
    manifest = committed(tmp_path / "c")[3]
    assert manifest.leaves["state/params/head/kernel"] == "float32[8, 64]"
    assert manifest.progress["totals"]["count"] == 2**40 + 3  # beyond what an int32 holds


def test_the_newest_two_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 5, metrics=(0.9, 0.1, 0.2, 0.3))
    assert names(tmp_path) == ["3", "5"]
    write(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["6"]


def test_a_step_that_is_saved_again_keeps_its_files_and_learns_its_metric(tmp_path):
    write(tmp_path, 1, 2, metrics=(0.5, None))
    before = contents(tmp_path / "2")
    write(tmp_path, 2, metrics=(0.8,))
    manifest = tmp_path / "2" / "manifest.json"
    assert before.pop(manifest) != manifest.read_bytes()
    assert before.items() <= contents(tmp_path / "2").items()
    assert committed(tmp_path)[2].metric == 0.8
    chex.assert_trees_all_equal(restore(tmp_path, best=True), state_at(2))
    assert names(tmp_path) == ["1", "2"]


def test_the_best_is_kept_and_of_equal_ones_the_newest(tmp_path):
    write(tmp_path, 1, 2, 3, 4, 5, metrics=(0.5, 0.9, 0.9, None, float("nan")), best=True, keep=1)
    assert names(tmp_path) == ["3", "5"]
    write(tmp_path, 6, 7, 8, metrics=(0.95, None, 0.1), best=True, keep=1)  # resumed
    assert names(tmp_path) == ["6", "8"]
    chex.assert_trees_all_equal(restore(tmp_path, best=True), state_at(6))
    chex.assert_trees_all_equal(restore(tmp_path), state_at(8))


def test_without_metrics_none_is_the_best(tmp_path):
    write(tmp_path, 1, 2, best=True)
    with pytest.raises(
        InputError, match="no checkpoint has been evaluated yet.* to use the newest, of step 2, leave out --best"
    ):
        restore(tmp_path, best=True)


def test_there_is_always_a_sealed_one(tmp_path, monkeypatch):
    """What is superfluous goes only after the new one has its manifest and its name."""
    seen, remove = [], checkpoint.prune

    def removing(folder, *options):
        seen.append(names(folder))
        remove(folder, *options)

    monkeypatch.setattr(checkpoint, "prune", removing)
    write(tmp_path, 1, 2, 3, keep=1)
    assert [[name for name in there if name != "incomplete"] for there in seen] == [["1"], ["1", "2"], ["2", "3"]]


def test_training_does_not_wait_and_may_change_the_state_at_once(tmp_path, monkeypatch):
    make, trained = checkpoint.commit, threading.Event()

    def slowly(*args, **about):
        assert trained.wait(60)
        make(*args, **about)

    monkeypatch.setattr(checkpoint, "commit", slowly)
    change = jax.jit(partial(jax.tree.map, lambda leaf: leaf + 1), donate_argnums=0)
    state, progress = state_at(4, 2**17)  # 4 MiB a kernel
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, state, progress)
        for _ in range(3):
            state = change(state)
        jax.block_until_ready(state)
        assert not (tmp_path / "4").exists()
        trained.set()
    chex.assert_trees_all_equal(restore(tmp_path, like(size=2**17)), state_at(4, 2**17))


@pytest.mark.parametrize("part", ["params", "batch_stats", "ema"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_never_saved(tmp_path, part, value):
    state, progress = state_at(3)
    wild = state.replace(**{part: jax.tree.map(lambda leaf: leaf.at[-1].set(value), getattr(state, part))})
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, *state_at(2))
        with pytest.raises(InputError, match="no longer finite at step 3 and are not saved; lower optimizer.lr"):
            save(checkpoints, wild, progress)
    assert names(tmp_path) == ["2"]


# On other devices, or for another network


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_saved_from_eight_devices_restored_on_any_number(tmp_path, devices, capfd):
    """Kernels are split over eight devices when they are saved, and over others, or none, when they are restored."""

    def spread(leaf, mesh):
        return batch_sharding(mesh) if leaf.ndim == 2 else replicated(mesh)

    state, progress = state_at(3)
    state = jax.tree.map(lambda leaf: jax.device_put(leaf, spread(leaf, data_mesh())), state)
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, state, progress)
    mesh = data_mesh(devices)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread(leaf, mesh)), like()
    )
    found = restore(tmp_path, abstract)
    chex.assert_trees_all_equal(found, state_at(3))
    assert found[0].params["head"]["kernel"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
    assert capfd.readouterr().err == ""


def test_leaves_that_do_not_fit_are_named_before_anything_is_read(tmp_path, monkeypatch):
    write(tmp_path / "c", 3)
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", None)
    with pytest.raises(
        InputError,
        match=r"c/3: does not fit this network and optimiser \(state/ema/params/head/kernel is float32\[8, 64\], not"
        r" float32\[8, 65\]; state/ema/params/stem/kernel is .*; and 3 more\); another version of them saved it",
    ):
        restore(tmp_path / "c", like(size=65))
    state = like()
    half = state.replace(batch_stats={"norm": {"mean": jax.ShapeDtypeStruct((8,), jnp.bfloat16)}}, ema={})
    with pytest.raises(
        InputError,
        match=r"\(state/batch_stats/norm/mean is float32\[8\], not bfloat16\[8\];"
        r" state/ema/params/head/kernel is not expected; .*stem/kernel is not expected\);",
    ):
        restore(tmp_path / "c", half)
    with pytest.raises(InputError, match=r"\(state/ema/more is missing\)"):
        restore(tmp_path / "c", state.replace(ema={"more": state.step, **state.ema}))


# Damage


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_found_and_the_step_before_is_used(tmp_path, damage):
    write(tmp_path, 1, 2)
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        DAMAGE[damage](path)
        notes = []
        chex.assert_trees_all_equal(restore(tmp_path, log=notes.append), state_at(1))
        (note,) = notes
        assert note.startswith(f"{tmp_path / '2'}: damaged checkpoint (")
        assert str(path.relative_to(tmp_path / "2")) in note
        assert note.endswith("skipped; step 1 is used instead")
        path.write_bytes(content)
    chex.assert_trees_all_equal(restore(tmp_path, log=pytest.fail), state_at(2))


def test_a_trainer_puts_what_is_damaged_aside_and_a_reader_does_not(tmp_path, capsys):
    write(tmp_path, 1, 2)
    (tmp_path / "2" / "new").touch()
    before = contents(tmp_path)
    restore(tmp_path)
    assert contents(tmp_path) == before
    assert capsys.readouterr().err.count("\n") == 1
    for again in ("2", "2-2"):
        notes = []
        restore(tmp_path, quarantine=True, log=notes.append)
        aside = tmp_path / "damaged" / again
        assert notes == [
            f"{tmp_path / '2'}: damaged checkpoint (new does not belong there), moved to {aside};"
            " step 1 is used instead"
        ]
        assert names(tmp_path) == ["1", "damaged"]
        assert (aside / "new").exists()
        write(tmp_path, 2)
        chex.assert_trees_all_equal(restore(tmp_path, log=pytest.fail), state_at(2))
        (tmp_path / "2" / "new").touch()


def test_a_damaged_checkpoint_does_not_stand_for_its_step(tmp_path):
    write(tmp_path, 1, 2)
    flip(max((path for path in (tmp_path / "2").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))
    write(tmp_path, 2)
    assert names(tmp_path) == ["1", "2", "damaged"]
    chex.assert_trees_all_equal(restore(tmp_path, log=pytest.fail), state_at(2))


def test_where_none_is_intact_nothing_is_moved_and_nothing_begins_anew(tmp_path):
    write(tmp_path / "c", 1, 2, 3, 4, keep=4)
    for step in "1234":
        (tmp_path / "c" / step / "manifest.json").unlink()  # as in the first version of these checkpoints
    message = (
        rf"^{tmp_path}/c: no intact checkpoint \(step 4: no manifest.json; step 3: no manifest.json;"
        r" step 2: no manifest.json; and 1 more\); restore one from a backup, or move this folder away to start over$"
    )
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            restore(tmp_path / "c", quarantine=True)
    assert names(tmp_path / "c") == ["1", "2", "3", "4"]


def test_folders_that_are_no_checkpoints_are_not_taken_for_some(tmp_path):
    for name in ("damaged/8", "incomplete/9", "007", "note", "6.orbax-checkpoint-tmp", "x1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "12").touch()
    assert restore(tmp_path, log=pytest.fail) is None
    write(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "2", tmp_path / "10")
    (tmp_path / "11").mkdir()
    notes = []
    chex.assert_trees_all_equal(restore(tmp_path, log=notes.append), state_at(2))
    assert [note.split(": ", 1)[1] for note in notes] == [
        "damaged checkpoint (no manifest.json), skipped; step 2 is used instead",
        "damaged checkpoint (manifest.json is of step 2), skipped; step 2 is used instead",
    ]
    write(tmp_path, 10, 11)  # takes their place, and still nothing is lost
    assert names(tmp_path / "damaged") == ["10", "11", "8"]
    assert sorted(committed(tmp_path)) == [10, 11]


def test_a_checkpoint_that_is_removed_while_it_is_looked_at_is_no_damage(tmp_path, monkeypatch):
    """Evaluation reads what training replaces, and takes no older one that is kept as the best."""
    import resnet_jax.checkpoint.store as module

    verify = module.verify

    def meanwhile(folder):
        monkeypatch.setattr(module, "verify", verify)
        write(tmp_path, 3, metrics=(0.0,), keep=1, best=True)
        return verify(folder)

    write(tmp_path, 1, 2, metrics=(1.0, 0.0), best=True)
    monkeypatch.setattr(module, "verify", meanwhile)
    chex.assert_trees_all_equal(restore(tmp_path, log=pytest.fail), state_at(3))


@pytest.mark.parametrize("name", ["read_manifest", "_read"])
def test_a_checkpoint_that_is_removed_before_it_is_read_gives_way_to_the_newer_one(tmp_path, monkeypatch, name):
    import resnet_jax.checkpoint.checkpoint as module

    original = getattr(module, name)

    def meanwhile(*args):
        monkeypatch.setattr(module, name, original)
        write(tmp_path, 2, keep=1)
        return original(*args)

    write(tmp_path, 1)
    monkeypatch.setattr(module, name, meanwhile)
    chex.assert_trees_all_equal(restore(tmp_path, log=pytest.fail), state_at(2))


def test_a_part_of_the_leaves_is_read_and_has_to_fit(tmp_path):
    write(tmp_path, 1)
    state = state_at(1)[0]
    part, abstract = ({"params": one.params, "ema": one.ema} for one in (state, like()))
    found, progress = checkpoint.restore(tmp_path, abstract, partial=True)
    chex.assert_trees_all_equal(found, part)
    assert progress["timer"] == state_at(1)[1]["timer"]
    with pytest.raises(InputError, match="state/opt_state/0/trace/head/kernel is not expected"):
        checkpoint.restore(tmp_path, abstract)
    abstract["params"]["head"]["kernel"] = jax.ShapeDtypeStruct((8, 65), jnp.float32)
    with pytest.raises(InputError, match=r"state/params/head/kernel is float32\[8, 64\], not float32\[8, 65\]"):
        checkpoint.restore(tmp_path, abstract, partial=True)


def test_what_orbax_cannot_read_is_one_line(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def fail(*args):
        raise ValueError("NOT_FOUND: gone\nmore")

    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    with pytest.raises(InputError, match=r"/1: this checkpoint cannot be read \(NOT_FOUND: gone\); repeat the command"):
        restore(tmp_path)


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


FULL = (
    "checkpoints: a checkpoint cannot be written (No space left on device); free disk space and repeat the same command"
)


def test_a_full_disk_is_one_line_and_the_next_save_works_once_there_is_room(small_disk, capfd, caplog):
    folder, other = small_disk / "checkpoints", small_disk / "other"
    size = 2**12  # 128 KiB a kernel, about 0.8 MB in all, of random numbers
    with open_checkpoints(folder) as checkpoints:
        save(checkpoints, *state_at(1, size))
        checkpoints.wait()
        free = shutil.disk_usage(small_disk).free
        other.write_bytes(bytes(free - 300_000))
        for step in (2, 4):
            save(checkpoints, *state_at(step, size))
            with pytest.raises(MachineError) as error:
                save(checkpoints, *state_at(step + 1, size))
            assert FULL in str(error.value)
            assert "\n" not in str(error.value)
            assert names(folder) == ["1"]
            assert shutil.disk_usage(small_disk).free > 200_000  # nothing is left behind
        other.unlink()
        save(checkpoints, *state_at(6, size))
    chex.assert_trees_all_equal(restore(folder, like(size=size)), state_at(6, size))
    assert names(folder) == ["1", "6"]
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_a_disk_that_fills_up_anywhere_in_a_save_leaves_the_checkpoint_before(small_disk, capfd):
    folder, other = small_disk / "checkpoints", small_disk / "other"
    with open_checkpoints(folder, keep=1) as checkpoints:
        save(checkpoints, *state_at(1))
        checkpoints.wait()
        outcomes, newest = [], 1
        for step, room in enumerate(range(0, 100_000, 4096), start=2):
            other.write_bytes(b"")
            other.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
            try:
                save(checkpoints, *state_at(step))
                checkpoints.wait()
                newest = step
            except MachineError as error:
                outcomes.append(str(error))
            assert sorted(committed(folder)) == [newest]
            chex.assert_trees_all_equal(restore(folder, log=pytest.fail), state_at(newest))
    assert 0 < len(outcomes) < 25
    assert all(FULL in error for error in outcomes)
    assert capfd.readouterr().err == ""


def test_a_failure_in_the_end_is_raised_in_the_end(tmp_path, monkeypatch):
    def fail(*args, **about):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(checkpoint, "commit", fail)
    with pytest.raises(MachineError, match=r"written \(Disk quota exceeded\); free"):
        write(tmp_path, 1)
    with pytest.raises(RuntimeError, match="of its own"), open_checkpoints(tmp_path) as checkpoints:  # noqa: PT012
        save(checkpoints, *state_at(1))
        raise RuntimeError("of its own")  # is not hidden by that of the disk
    assert names(tmp_path) == []


def test_a_save_that_fails_at_once(tmp_path, monkeypatch):
    def fail(self, *args):
        raise ValueError("RESOURCE_EXHAUSTED: of another kind\nmore")

    write(tmp_path, 1)
    with open_checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.StandardCheckpointer, "save", fail)
            with pytest.raises(MachineError, match=r"written \(RESOURCE_EXHAUSTED: of another kind\); free"):
                save(checkpoints, *state_at(2))
        save(checkpoints, *state_at(3))
    assert names(tmp_path) == ["1", "3"]


# kill -9


def save_for_ever(folder):
    """Saves the steps after the newest one, as fast as it can, until it is killed."""
    jax.config.update("jax_enable_compilation_cache", False)  # of which a kill may leave half an entry
    with open_checkpoints(folder) as checkpoints:
        step = max(committed(folder), default=0)
        while True:
            step += 1
            save(checkpoints, *state_at(step, 2**12))


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_newest_checkpoint_is_whole(tmp_path, kills):
    """Its state is exactly that of its step, no later one is lost, and what was half written goes at the next start."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["resnet_jax.checkpoint.checkpoint"])
    moments, newest, left_behind = random.Random(0), 0, 0
    for _ in range(kills):
        saver = processes.Process(target=save_for_ever, args=(tmp_path,))
        saver.start()
        deadline = time.monotonic() + 60
        while max(committed(tmp_path), default=0) <= newest and time.monotonic() < deadline and saver.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.15))
        saver.kill()
        saver.join()
        assert saver.exitcode == -signal.SIGKILL
        left_behind += (tmp_path / "incomplete").exists()
        state, progress = restore(tmp_path, like(size=2**12), log=pytest.fail)
        assert int(state.step) > newest
        newest = int(state.step)
        chex.assert_trees_all_equal((state, progress), state_at(newest, 2**12))
        assert 1 <= len(committed(tmp_path)) <= 3
    assert kills < 10 or left_behind > kills // 3  # otherwise they missed the saves
    write(tmp_path)
    assert set(names(tmp_path)) == {str(step) for step in committed(tmp_path)}


@pytest.mark.parametrize("name", ["manifest.json", "pipe"])
def test_a_pipe_or_device_in_a_checkpoint_is_damage_and_not_waited_for(tmp_path, name):
    folder = tmp_path / "3"
    folder.mkdir()
    (folder / "pipe").touch()
    manifest.write_manifest(folder, 3, metric=None, progress={}, leaves={})
    assert manifest.verify(folder).step == 3
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(manifest.DamageError, match=f"{name}: not a file"):
        manifest.verify(folder)
