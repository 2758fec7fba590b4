"""Several seeds side by side: each is the run that it would be alone, whatever happens to the others."""

import gc
import io
import os
import signal
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from resnet_jax.errors import InputError
from resnet_jax.recipe import Model
from resnet_jax.train import run as run_module
from resnet_jax.train import seeds as seeds_module
from resnet_jax.train import stacked as stacked_module
from resnet_jax.train import ways
from resnet_jax.train.checkpoint import load_run
from resnet_jax.train.devices import data_mesh
from resnet_jax.train.directory import read_metrics, read_recipe
from resnet_jax.train.feed import Feeding, supply, training_items
from resnet_jax.train.habits import Habits
from resnet_jax.train.job import initial, make_advance, open_sources, prepare, step_key
from resnet_jax.train.run import train_recipe
from resnet_jax.train.seeds import train_each, train_seeds
from resnet_jax.train.stacked import make_stacked, room_for, stacker

CLOCKS = {"seconds", "images_per_second", "data_wait"}
WAYS = {"none": 1, "devices": 3, "vmap": 1}  # on so many devices


def quietly(train, recipe, *where, **options):
    chosen = {name: options.pop(name) for name in list(options) if hasattr(Habits, name)}
    printed = io.StringIO()
    result = train(recipe, *where, habits=Habits(**chosen), console=Console(file=printed, width=300), **options)
    return result, printed.getvalue()


def curve(run):
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_metrics(run)]


@pytest.fixture(scope="module")
def singles():
    return []


@pytest.fixture
def alone(tiny, tmp_path_factory, singles):
    """The single run of each seed on one device, and its folder; trained once."""
    for seed in range(len(singles), 3):
        folder = tmp_path_factory.mktemp("alone") / f"seed{seed}"
        singles.append((quietly(train_recipe, replace(tiny, seed=seed), folder, devices=1)[0], folder))
    return singles


def assert_single_run(way, folder, result, single, single_folder):
    """Bitwise, or where all are one program to rounding."""
    if way != "vmap":
        chex.assert_trees_all_equal(result.state, jax.device_get(single.state))
        assert curve(folder) == curve(single_folder)
        return
    chex.assert_trees_all_close(result.state.params, jax.device_get(single.state.params), rtol=1e-3, atol=1e-4)
    for line, other in zip(curve(folder), curve(single_folder), strict=True):
        assert line == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_each_replica_is_its_single_run(tiny, tmp_path, alone, way):
    results, said = quietly(train_seeds, tiny, range(3), tmp_path / "x", devices=WAYS[way], side_by_side=way)
    for seed, result in enumerate(results):
        assert_single_run(way, tmp_path / f"x/seed{seed}", result, *alone[seed])
        assert read_recipe(tmp_path / f"x/seed{seed}") == replace(tiny, seed=seed)
        assert f"seed {seed}: 12/12  epoch   4.80  train" in said
    assert ("for 3 side by side" in said) == (way == "vmap")
    state = load_run(tmp_path / "x" / "seed2", 1)[1]
    chex.assert_trees_all_equal(jax.device_get(state), results[2].state)
    gone_on, _ = quietly(train_recipe, replace(tiny, seed=2), tmp_path / "x" / "seed2", devices=1)
    assert gone_on.lines == results[2].lines


@pytest.mark.parametrize("way", WAYS)
def test_from_wherever_each_of_them_is_they_go_on(tiny, tmp_path, alone, way):
    """As after kill -9 between two saves: one is further than the other, and one has not begun."""
    options = {"devices": WAYS[way], "side_by_side": way}
    for seed, stop in ((0, 5), (1, 2)):
        quietly(train_recipe, replace(tiny, seed=seed), tmp_path / f"x/seed{seed}", devices=1, stop_at=stop)
    ended, _ = quietly(train_each, tiny, range(3), tmp_path / "x", stop_at=7, **options)
    assert [end.step for end in ended.values()] == [7, 7, 7]
    results, said = quietly(train_seeds, tiny, range(3), tmp_path / "x", **options)
    assert said.count("resuming at step 7") == 3
    for seed, result in enumerate(results):
        assert_single_run(way, tmp_path / f"x/seed{seed}", result, *alone[seed])


def test_replicas_at_different_steps_are_one_program(tiny, tmp_path, alone):
    quietly(train_recipe, tiny, tmp_path / "x/seed0", devices=1, stop_at=5)
    results, said = quietly(train_seeds, tiny, range(2), tmp_path / "x", devices=1, side_by_side="vmap")
    assert "seed 0: resuming at step 5" in said
    assert "for 2 side by side" in said
    for seed in range(2):
        assert_single_run("vmap", tmp_path / f"x/seed{seed}", results[seed], *alone[seed])


def test_in_one_program_they_differ_by_rounding_alone(tiny, tmp_path):
    """In float64 to 1e-10, over several steps."""
    sources = open_sources(tiny, tmp_path)
    jobs = [prepare(replace(tiny, seed=seed, ema=0.9), sources.dataset, 1) for seed in range(2)]
    begun = [jax.device_get(initial(job)) for job in jobs]
    with jax.enable_x64(True):
        jobs = [job._replace(model=job.model.clone(dtype=jnp.float64)) for job in jobs]
        double = [jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, b[0]) for b in begun]
        data, keys = supply(sources.train, jobs[0].mesh), tuple(step_key(job) for job in jobs)
        items = [list(training_items(data, k, 16, range(4))) for k in range(2)]
        single, advance = [], make_advance(jobs[0])
        for k in range(2):
            state, sums = jax.device_put((double[k], begun[k][1]), jobs[0].mesh.devices.flat[0])
            for item in items[k]:
                state, sums, _ = advance(state, sums, item, keys[k], None)
            single.append((state, sums))
        stacked = make_stacked(jobs[0], 2)
        states, sums = (jax.device_put(tuple(x), jobs[0].mesh.devices.flat[0]) for x in (double, [b[1] for b in begun]))
        for step in range(4):
            states, sums, told = zip(*stacked(states, sums, tuple(i[step] for i in items), keys), strict=True)
        assert [int(one.step) for one in told] == [4, 4]
        for k in range(2):
            chex.assert_trees_all_close(states[k], single[k][0], rtol=1e-10, atol=1e-12)
            chex.assert_trees_all_close(sums[k], single[k][1], rtol=1e-6)  # totals are float32 in any case


def test_replicas_share_out_the_devices(tiny, tmp_path):
    """Two of four each, as a run with --devices 2."""
    results, _ = quietly(train_seeds, tiny, (4, 7), tmp_path / "x", devices=4, side_by_side="devices")
    for seed, result in zip((4, 7), results, strict=True):
        single, _ = quietly(train_recipe, replace(tiny, seed=seed), tmp_path / f"alone{seed}", devices=2)
        assert_single_run("devices", tmp_path / f"x/seed{seed}", result, single, tmp_path / f"alone{seed}")


def test_images_from_the_host_and_more_replicas_than_devices(tiny, tmp_path, alone):
    options = {"devices": 2, "side_by_side": "devices", "feeding": Feeding(resident_gib=0.0, threads=0)}
    results, _ = quietly(train_seeds, tiny, range(3), tmp_path / "x", **options)
    for seed, result in enumerate(results):
        assert_single_run("devices", tmp_path / f"x/seed{seed}", result, *alone[seed])
    options = {"devices": 1, "side_by_side": "vmap", "feeding": Feeding(resident_gib=0.0, threads=0)}
    results, _ = quietly(train_seeds, tiny, range(2), tmp_path / "y", **options)
    for seed, result in enumerate(results):
        assert_single_run("vmap", tmp_path / f"y/seed{seed}", result, *alone[seed])


def test_seeds_that_are_added_are_trained_and_those_that_have_ended_are_left_alone(tiny, tmp_path):
    first, _ = quietly(train_seeds, tiny, (0, 1), tmp_path / "x", devices=1)
    files = [p for p in (tmp_path / "x").rglob("*") if p.is_file() and p.name != "environment.json"]
    before = {path: path.read_bytes() for path in files}
    both, said = quietly(train_seeds, tiny, range(3), tmp_path / "x", devices=1)
    assert "seed 2: training" in said
    assert "seed 0" not in said
    assert {path: path.read_bytes() for path in before} == before
    assert [result.lines for result in both[:2]] == [result.lines for result in first]
    chex.assert_trees_all_equal(both[1].state, first[1].state)


@pytest.mark.parametrize("way", WAYS)
def test_a_replica_that_is_not_finite_stops_and_the_others_go_on(tiny, tmp_path, alone, monkeypatch, way):
    plain = seeds_module.begin

    def begin(job, *rest):
        begun = plain(job, *rest)
        if job.recipe.seed != 1:
            return begun
        params = jax.tree.map(lambda x: x * jnp.nan, begun.state.params)
        return begun._replace(state=begun.state.replace(params=params))

    monkeypatch.setattr(seeds_module, "begin", begin)
    options = {"devices": WAYS[way], "side_by_side": way}
    ended, said = quietly(train_each, tiny, range(3), tmp_path / "x", **options)
    message = "seed 1: loss or gradient of step 1 is not finite"
    assert isinstance(ended[1], InputError)
    assert str(ended[1]).startswith(message)
    assert said.count(message) == 1
    assert said.index(message) < said.rindex("12/12  epoch")  # at once, and not when all have ended
    assert (tmp_path / "x" / "seed1" / "nonfinite.jsonl").is_file()
    for seed in (0, 2):
        assert_single_run(way, tmp_path / f"x/seed{seed}", ended[seed], *alone[seed])
    with pytest.raises(InputError, match=message):
        quietly(train_seeds, tiny, range(3), tmp_path / "x", **options)


@pytest.mark.parametrize("way", WAYS)
def test_the_data_lies_on_a_device_once(tiny, tmp_path, monkeypatch, way):
    gc.collect()
    plain, found = run_module.add_metrics, []

    def splits():
        return [x for x in jax.live_arrays() if (x.shape, x.dtype) == ((40, 8, 8, 1), np.uint8)]

    before = {id(x) for x in splits()}

    def add_metrics(*given):
        found.append([x.devices() for x in splits() if id(x) not in before])
        plain(*given)

    monkeypatch.setattr(run_module, "add_metrics", add_metrics)
    quietly(train_each, tiny, range(3), tmp_path / "x", devices=WAYS[way], side_by_side=way)
    assert found
    for devices in found:
        assert sorted(device.id for some in devices for device in some) == list(range(WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_ends_all_of_them_and_the_same_command_goes_on(tiny, tmp_path, alone, monkeypatch, way):
    def items(data, seed, *rest, original=run_module.training_items):
        for step, item in enumerate(original(data, seed, *rest)):
            if step == 5 and seed == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    options = {"devices": WAYS[way], "side_by_side": way}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "training_items", items)
        ended, _ = quietly(train_each, tiny, range(3), tmp_path / "x", **options)
    steps = {seed: end.step for seed, end in ended.items()}
    assert steps == ({0: 6} if way == "none" else {0: 6, 1: 5, 2: 5})  # the others had not been given theirs
    assert all(end.signal == signal.SIGTERM for end in ended.values())
    assert (tmp_path / "x" / "seed2").exists() == (way != "none")
    results, _ = quietly(train_seeds, tiny, range(3), tmp_path / "x", **options)
    for seed, result in enumerate(results):
        assert_single_run(way, tmp_path / f"x/seed{seed}", result, *alone[seed])


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ((), {}, "--seeds names none"),
        ((1, 2, 1), {}, "--seeds names 1 twice"),
        ((0, 2**32), {}, "seed is 4294967296"),
        ((0, 1), {"side_by_side": "devices", "devices": 1}, "--side-by-side is devices; there is one device"),
        ((0, 1), {"devices": 9}, "--devices is 9; this machine has 8"),
        ((0, 1), {"stop_at": 0}, "--stop-at is 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tiny, tmp_path, seeds, options, message):
    with pytest.raises(InputError, match=message):
        quietly(train_each, tiny, seeds, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_directories_of_other_runs_are_refused_before_anything_is_trained(tiny, tmp_path):
    quietly(train_recipe, replace(tiny, seed=1, batch_size=8), tmp_path / "x" / "seed1", devices=1, stop_at=1)
    with pytest.raises(InputError, match="seed1: holds a run of another recipe"):
        quietly(train_each, tiny, range(2), tmp_path / "x", devices=1)
    assert not (tmp_path / "x" / "seed0").exists()
    with pytest.raises(InputError, match="seed1: is a run itself; choose another --out"):
        quietly(train_each, tiny, range(2), tmp_path / "x" / "seed1", devices=1)


def test_the_fastest_way_is_measured_and_told(tiny, tmp_path, monkeypatch):
    """One after the other on two devices, or each on its own."""
    grouped = replace(tiny, model=Model(name="tiny", norm_group=2), steps=3)
    _, said = quietly(train_each, grouped, range(2), tmp_path / "x", devices=2)
    assert "a step of all 2 seeds: one after the other " in said
    assert ", each on devices of its own " in said
    monkeypatch.setattr(ways, "seconds_a_round", lambda way, _: 0.5 if len(way.meshes) == 1 else 0.9)
    results, said = quietly(train_each, grouped, range(2), tmp_path / "y", devices=2)
    assert "one after the other 1000.0 ms, each on devices of its own 900.0 ms; they are trained each on dev" in said
    assert all(len(x.state.step.shape) == 0 for x in results.values())
    _, said = quietly(train_each, grouped, range(2), tmp_path / "z", devices=1)
    assert "a step of all" not in said  # on a CPU there is one way


def test_what_the_memory_has_room_for(tiny, tmp_path, monkeypatch):
    sources = open_sources(tiny, tmp_path)
    job = prepare(tiny, sources.dataset, 1)
    shared = run_module.share(job, supply(sources.train, job.mesh), supply(sources.train, job.mesh), None)
    said = []
    ask, stacked = ways.abstract_ask(shared), stacker(job, said.append)
    assert room_for(ask, 2, stacked) == 2  # a CPU does not say how much there is

    monkeypatch.setattr(stacked_module, "limit_of", lambda mesh: 1)
    assert room_for(ask, 2, stacked) == 1
    assert len(said) == 1


def test_ways_that_a_machine_has(monkeypatch):
    assert ways.possible("auto", 3, 16, data_mesh(1)) == ["none"]
    assert ways.possible("auto", 1, 16, data_mesh(8)) == ["none"]
    assert ways.possible("auto", 3, 16, data_mesh(8)) == ["none", "devices"]
    assert ways.possible("auto", 3, 16, data_mesh(3)) == ["devices"]  # which do not divide a batch
    assert ways.possible("vmap", 3, 16, data_mesh(8)) == ["vmap"]
    with pytest.raises(InputError, match="batch_size is 16, which 3 devices do not divide; use --devices 2"):
        ways.possible("none", 3, 16, data_mesh(3))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert ways.possible("auto", 3, 16, data_mesh()) == ["none"]
    with pytest.raises(InputError, match="--side-by-side is vmap; on several hosts"):
        ways.possible("vmap", 3, 16, data_mesh())


def test_shares_of_the_devices():
    def sizes(devices, count, batch_size):
        return [mesh.size for mesh in ways.slices(data_mesh(devices), count, batch_size)]

    assert sizes(8, 3, 16) == [2, 2, 2]
    assert sizes(8, 1, 16) == [8]
    assert sizes(7, 2, 16) == [2, 2]  # three would not divide the batch
    assert sizes(4, 9, 16) == [1, 1, 1, 1]
