"""Several seeds side by side: each is the run that it would be alone, whatever happens to the others."""

import gc
import io
import os
import signal
import time
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from rich.console import Console
from runs import curve, quietly

from resnet_jax.errors import InputError
from resnet_jax.inference.load_run import load_run
from resnet_jax.input_pipeline.device_input import open_device_split, training_batches
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.run_dir.files import read_recipe
from resnet_jax.training import loop as loop_module
from resnet_jax.training import seed_groups, seed_layout
from resnet_jax.training import stacked as stacked_module
from resnet_jax.training.init import abstract_train_state, init_train_state
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.options import RunOptions
from resnet_jax.training.seed_layout import device_slices, possible_layouts
from resnet_jax.training.seeds import train_each_seed, train_seeds
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources
from resnet_jax.training.stacked import make_stacked_step, seed_of, seeds_that_fit, stack_trees

LAYOUTS = {"sequential": 1, "devices": 2, "vmap": 1}  # on that many devices


def layouts(*quick):
    """All layouts, of which those that are not named are tested with the slow tests."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in LAYOUTS]


def several(train, recipe, seeds, out, *, seed_layout="auto", **options):
    """Train several seeds; return what `train` returns and what was printed."""
    printed = io.StringIO()
    console = Console(file=printed, width=300)
    result = train(recipe, seeds, out, options=RunOptions(**options), seed_layout=seed_layout, console=console)
    return result, printed.getvalue()


@pytest.fixture(scope="module")
def singles():
    return []


@pytest.fixture
def alone(tiny, tmp_path_factory, singles):
    """The single run of each seed on one device, and its folder; trained once."""
    for seed in range(len(singles), 3):
        folder = tmp_path_factory.mktemp("alone") / f"seed{seed}"
        singles.append((quietly(replace(tiny, seed=seed), folder)[0], folder))
    return singles


def assert_single_run(layout, folder, result, single, single_folder):
    """Bitwise, or where all are one program to rounding."""
    if layout != "vmap":
        chex.assert_trees_all_equal(result.state, jax.device_get(single.state))
        assert curve(folder) == curve(single_folder)
        return
    chex.assert_trees_all_close(result.state.params, jax.device_get(single.state.params), rtol=1e-3, atol=1e-4)
    for line, other in zip(curve(folder), curve(single_folder), strict=True):
        assert line == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("layout", layouts("devices"))
def test_each_replica_is_its_single_run(tiny, tmp_path, alone, layout):
    results, said = several(train_seeds, tiny, range(3), tmp_path / "x", devices=LAYOUTS[layout], seed_layout=layout)
    for seed, result in enumerate(results):
        assert_single_run(layout, tmp_path / f"x/seed{seed}", result, *alone[seed])
        assert read_recipe(tmp_path / f"x/seed{seed}") == replace(tiny, seed=seed)
        assert f"seed {seed}: 12/12  epoch   4.80  train" in said
    state = load_run(tmp_path / "x" / "seed2", 1)[1]
    chex.assert_trees_all_equal(jax.device_get(state), results[2].state)
    gone_on, _ = quietly(replace(tiny, seed=2), tmp_path / "x" / "seed2")
    assert gone_on.rows == results[2].rows


@pytest.mark.parametrize("layout", layouts("vmap"))
def test_from_wherever_each_of_them_is_they_go_on(tiny, tmp_path, alone, layout):
    """As after kill -9 between two saves: one is further than the other, and one has not begun."""
    options = {"devices": LAYOUTS[layout], "seed_layout": layout}
    for seed, stop in ((0, 5), (1, 2)):
        quietly(replace(tiny, seed=seed), tmp_path / f"x/seed{seed}", stop_at=stop)
    ended, _ = several(train_each_seed, tiny, range(3), tmp_path / "x", stop_at=7, **options)
    assert [end.step for end in ended.values()] == [7, 7, 7]
    results, said = several(train_seeds, tiny, range(3), tmp_path / "x", **options)
    assert said.count("resuming at step 7") == 3
    for seed, result in enumerate(results):
        assert_single_run(layout, tmp_path / f"x/seed{seed}", result, *alone[seed])


@pytest.mark.slow
def test_replicas_at_different_steps_are_one_program(tiny, tmp_path, alone):
    quietly(tiny, tmp_path / "x/seed0", stop_at=5)
    results, said = several(train_seeds, tiny, range(2), tmp_path / "x", devices=1, seed_layout="vmap")
    assert "seed 0: resuming at step 5" in said
    for seed in range(2):
        assert_single_run("vmap", tmp_path / f"x/seed{seed}", results[seed], *alone[seed])


@pytest.mark.slow
def test_in_one_program_they_differ_by_rounding_alone(tiny, tmp_path):
    """In float64 to 1e-10, over several steps."""
    recipes = [replace(tiny, seed=seed, ema_decay=0.9) for seed in range(2)]
    sources = open_sources(tiny, tmp_path)
    setups = [make_setup(recipe, sources.dataset, 1) for recipe in recipes]
    states = [jax.device_get(init_train_state(setup)) for setup in setups]
    with jax.enable_x64(True):
        setups = [setup._replace(model=setup.model.clone(dtype=jnp.float64)) for setup in setups]
        device = setups[0].mesh.devices.flat[0]
        double = [jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, s) for s in states]
        split, keys = open_device_split(sources.train, setups[0].mesh), [step_key(setup) for setup in setups]
        inputs = [list(training_batches(split, recipe, range(4))) for recipe in recipes]
        single, step = [], make_train_step(setups[0])
        for k in range(2):
            state = jax.device_put(double[k], device)
            for one in inputs[k]:
                state, sums = step(state, one, keys[k])
            single.append((state, sums))
        stacked, states = make_stacked_step(setups[0]), jax.device_put(stack_trees(double), device)
        for number in range(4):
            states, statuses = stacked(states, [one[number] for one in inputs], jnp.stack(keys))
        for k in range(2):
            chex.assert_trees_all_close(seed_of(states, k), single[k][0], rtol=1e-10, atol=1e-12)
            chex.assert_trees_all_close(seed_of(statuses, k), single[k][1], rtol=1e-10)


@pytest.mark.slow
def test_replicas_share_out_the_devices(tiny, tmp_path):
    """Two of four each, as a run with --devices 2."""
    results, _ = several(train_seeds, tiny, (4, 7), tmp_path / "x", devices=4, seed_layout="devices")
    for seed, result in zip((4, 7), results, strict=True):
        single, _ = quietly(replace(tiny, seed=seed), tmp_path / f"alone{seed}", devices=2)
        assert_single_run("devices", tmp_path / f"x/seed{seed}", result, single, tmp_path / f"alone{seed}")


@pytest.mark.slow
def test_images_from_the_host_and_more_replicas_than_devices(tiny, tmp_path, alone):
    options = {"devices": 2, "seed_layout": "devices", "device_cache_gib": 0.0, "num_threads": 0}
    results, _ = several(train_seeds, tiny, range(3), tmp_path / "x", **options)
    for seed, result in enumerate(results):
        assert_single_run("devices", tmp_path / f"x/seed{seed}", result, *alone[seed])
    options = {"devices": 1, "seed_layout": "vmap", "device_cache_gib": 0.0, "num_threads": 0}
    results, _ = several(train_seeds, tiny, range(2), tmp_path / "y", **options)
    for seed, result in enumerate(results):
        assert_single_run("vmap", tmp_path / f"y/seed{seed}", result, *alone[seed])


def test_seeds_that_are_added_are_trained_and_those_that_have_ended_are_left_alone(tiny, tmp_path):
    first, _ = several(train_seeds, tiny, (0, 1), tmp_path / "x", devices=1)
    files = [p for p in (tmp_path / "x").rglob("*") if p.is_file() and p.name != "environment.json"]
    before = {path: path.read_bytes() for path in files}
    both, said = several(train_seeds, tiny, range(3), tmp_path / "x", devices=1)
    assert "seed 2: training" in said
    assert "seed 0" not in said
    assert {path: path.read_bytes() for path in before} == before
    assert [result.rows for result in both[:2]] == [result.rows for result in first]
    chex.assert_trees_all_equal(both[1].state, first[1].state)


@pytest.mark.parametrize("layout", layouts("sequential"))
def test_a_replica_that_is_not_finite_stops_and_the_others_go_on(tiny, tmp_path, alone, monkeypatch, layout):
    plain = seed_groups.restore_or_init

    def restore_or_init(setup, *rest):
        run = plain(setup, *rest)
        if setup.recipe.seed != 1:
            return run
        params = jax.tree.map(lambda x: x * jnp.nan, run.state.params)
        return run._replace(state=run.state.replace(params=params))

    monkeypatch.setattr(seed_groups, "restore_or_init", restore_or_init)
    options = {"devices": LAYOUTS[layout], "seed_layout": layout}
    ended, said = several(train_each_seed, tiny, range(3), tmp_path / "x", **options)
    message = "seed 1: loss or gradient of step 1 is not finite"
    assert isinstance(ended[1], InputError)
    assert str(ended[1]).startswith(message)
    assert said.count(message) == 1
    assert said.index(message) < said.rindex("12/12  epoch")  # at once, and not when all have ended
    assert (tmp_path / "x" / "seed1" / "nonfinite.jsonl").is_file()
    for seed in (0, 2):
        assert_single_run(layout, tmp_path / f"x/seed{seed}", ended[seed], *alone[seed])
    with pytest.raises(InputError, match=message):
        several(train_seeds, tiny, range(3), tmp_path / "x", **options)


@pytest.mark.parametrize("layout", layouts("devices"))
def test_the_data_lies_on_a_device_once(tiny, tmp_path, monkeypatch, layout):
    gc.collect()
    plain, found = loop_module.append_metrics, []

    def splits():
        return [x for x in jax.live_arrays() if (x.shape, x.dtype) == ((40, 8, 8, 1), np.uint8)]

    before = {id(x) for x in splits()}

    def append_metrics(*given):
        found.append([x.devices() for x in splits() if id(x) not in before])
        plain(*given)

    monkeypatch.setattr(loop_module, "append_metrics", append_metrics)
    several(train_each_seed, tiny, range(3), tmp_path / "x", devices=LAYOUTS[layout], seed_layout=layout)
    assert found
    for devices in found:
        assert sorted(device.id for some in devices for device in some) == list(range(LAYOUTS[layout]))


@pytest.mark.parametrize("layout", layouts("sequential"))
def test_a_signal_ends_all_of_them_and_the_same_command_goes_on(tiny, tmp_path, alone, monkeypatch, layout):
    module = stacked_module if layout == "vmap" else loop_module

    def batches(split, recipe, steps, original=module.training_batches):
        for number, inputs in enumerate(original(split, recipe, steps)):
            if number == 5 and recipe.seed == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            yield inputs

    options = {"devices": LAYOUTS[layout], "seed_layout": layout}
    with monkeypatch.context() as patch:
        patch.setattr(module, "training_batches", batches)
        ended, _ = several(train_each_seed, tiny, range(3), tmp_path / "x", **options)
    steps = {seed: end.step for seed, end in ended.items()}
    if layout == "devices":  # on threads, which notice it as soon as the main thread has: a step later, or a few
        assert steps[0] >= 6
        # Of two devices; the third seed has not begun
        assert len(steps) == 2
    else:
        assert steps == ({0: 6} if layout == "sequential" else {0: 6, 1: 6, 2: 6})
    assert all(end.signal == signal.SIGTERM or end.step == 12 for end in ended.values())
    assert (tmp_path / "x" / "seed2").exists() == (layout == "vmap")
    results, _ = several(train_seeds, tiny, range(3), tmp_path / "x", **options)
    for seed, result in enumerate(results):
        assert_single_run(layout, tmp_path / f"x/seed{seed}", result, *alone[seed])


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ((), {}, "--seeds is empty"),
        ((1, 2, 1), {}, "--seeds has 1 twice"),
        ((0, 2**32), {}, "seed is 4294967296"),
        ((0, 1), {"seed_layout": "devices", "devices": 1}, "--seed-layout is devices; there is one device"),
        ((0, 1), {"devices": 9}, "--devices is 9; this machine has 8"),
        ((0, 1), {"stop_at": 0}, "--stop-at is 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tiny, tmp_path, seeds, options, message):
    with pytest.raises(InputError, match=message):
        several(train_each_seed, tiny, seeds, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_directories_of_other_runs_are_refused_before_anything_is_trained(tiny, tmp_path):
    quietly(replace(tiny, seed=1, batch_size=8), tmp_path / "x" / "seed1", stop_at=1)
    with pytest.raises(InputError, match="seed1: holds a run of another recipe"):
        several(train_each_seed, tiny, range(2), tmp_path / "x", devices=1)
    assert not (tmp_path / "x" / "seed0").exists()
    with pytest.raises(InputError, match="seed1: is a run itself; choose another --out"):
        several(train_each_seed, tiny, range(2), tmp_path / "x" / "seed1", devices=1)


@pytest.mark.slow
def test_the_fastest_layout_is_measured_and_told(tiny, tmp_path, monkeypatch):
    """One after the other on two devices, or each on its own."""
    grouped = replace(tiny, model=replace(TINY, norm_group_size=2), steps=3)
    _, said = several(train_each_seed, grouped, range(2), tmp_path / "x", devices=2)
    assert "a step of all 2 seeds: in sequence " in said
    assert ", each on its own devices " in said
    monkeypatch.setattr(seed_layout, "seconds_per_round", lambda shared, meshes, name: 0.5 if len(meshes) == 1 else 0.9)
    results, said = several(train_each_seed, grouped, range(2), tmp_path / "y", devices=2)
    assert "in sequence 1000.0 ms, each on its own devices 900.0 ms; training each on its own devices" in said
    assert all(len(x.state.step.shape) == 0 for x in results.values())
    _, said = several(train_each_seed, grouped, range(2), tmp_path / "z", devices=1)
    assert "a step of all" not in said  # on a CPU there is one layout


def test_seeds_that_fit_into_memory(tiny, tmp_path, monkeypatch):
    sources = open_sources(tiny, tmp_path)
    setup = make_setup(tiny, sources.dataset, 1)
    inputs = next(training_batches(open_device_split(sources.train, setup.mesh), tiny, range(1)))
    given = setup, abstract_train_state(setup), inputs, step_key(setup), 2
    assert seeds_that_fit(*given) == 2  # a CPU does not say how much there is
    monkeypatch.setattr(stacked_module, "device_memory_limit", lambda mesh: 1)
    assert seeds_that_fit(*given) == 1


def test_layouts_that_a_machine_has(monkeypatch):
    assert possible_layouts("auto", 3, 16, data_mesh(1)) == ["sequential"]
    assert possible_layouts("auto", 1, 16, data_mesh(8)) == ["sequential"]
    assert possible_layouts("auto", 3, 16, data_mesh(8)) == ["sequential", "devices"]
    assert possible_layouts("auto", 3, 16, data_mesh(3)) == ["devices"]  # which do not divide a batch
    assert possible_layouts("vmap", 3, 16, data_mesh(8)) == ["vmap"]
    with pytest.raises(InputError, match="batch_size is 16, which 3 devices do not divide; use --devices 2"):
        possible_layouts("sequential", 3, 16, data_mesh(3))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert possible_layouts("auto", 3, 16, data_mesh()) == ["sequential"]
    with pytest.raises(InputError, match="--seed-layout is vmap; on several hosts"):
        possible_layouts("vmap", 3, 16, data_mesh())


def test_slices_of_the_devices():
    def sizes(devices, count, batch_size):
        return [mesh.size for mesh in device_slices(data_mesh(devices), count, batch_size)]

    assert sizes(8, 3, 16) == [2, 2, 2]
    assert sizes(8, 1, 16) == [8]
    assert sizes(7, 2, 16) == [2, 2]  # three would not divide the batch
    assert sizes(4, 9, 16) == [1, 1, 1, 1]


@pytest.mark.slow
def test_compiling_one_program_is_not_training(tiny, tmp_path, monkeypatch):
    make, clock, hours = seed_layout.make_stacked_step, time.perf_counter, []

    def slow(*given):
        step, calls = make(*given), []

        def first_call_compiles(*arguments):
            if not calls:
                calls.append(arguments)
                hours.append(3600)
            return step(*arguments)

        return first_call_compiles

    monkeypatch.setattr(seed_layout, "make_stacked_step", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(hours))
    results, _ = several(train_seeds, replace(tiny, steps=4), range(2), tmp_path / "x", devices=1, seed_layout="vmap")
    assert hours
    assert all(row["train_seconds"] < 3600 for result in results for row in result.rows)
