"""A run's data opens while its first step is compiled."""

import errno
import io
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from resnet_jax.data.source import Example, Source
from resnet_jax.errors import InputError, MachineError
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Recipe
from resnet_jax.training import aot
from resnet_jax.training import run as run_module
from resnet_jax.training.options import RunOptions
from resnet_jax.training.progress import RunConsole
from resnet_jax.training.run import ema_notes, train
from resnet_jax.training.sources import open_sources

ONE = RunOptions(devices=1)


def splits_of(recipe, folder, read):
    sources = open_sources(recipe, folder)
    return sources.train._replace(read=read(sources.train.read)), sources.evaluation


def test_an_ema_longer_than_the_run_is_noted():
    recipe = Recipe(ema_decay=0.9999, ema_update_every=2)
    (note,) = ema_notes(recipe, 92)
    assert note == "ema_decay 0.9999 averages over about 20,000 steps, the run has 92; its warm-up shortens the average"
    (note,) = ema_notes(replace(recipe, ema_warmup=False), 92)
    assert note.endswith("it includes the initial parameters: lower it")
    assert ema_notes(recipe, 20_001) == ema_notes(Recipe(), 92) == []


def test_neither_waits_for_the_other(tiny, tmp_path, monkeypatch):
    opened, compile_within = threading.Event(), aot.compile_within

    def noting(read):
        def noted(index):
            if index:
                opened.set()  # all read the first, to see what the images look like
            return read(index)

        return noted

    def waiting(*given):
        assert opened.wait(60)
        return compile_within(*given)

    monkeypatch.setattr(aot, "compile_within", waiting)
    splits = splits_of(tiny, tmp_path, noting)
    data = replace(tiny.data, name="")
    result = train(replace(tiny, data=data, steps=2), tmp_path / "run", options=ONE, data=splits)
    assert result.step == 2


def test_what_is_wrong_with_the_data_is_said(tiny, tmp_path, capsys):
    def uneven(read):
        return lambda index: Example(np.zeros((9, 9, 1), np.uint8), 0) if index == 7 else read(index)

    splits = splits_of(tiny, tmp_path, uneven)
    recipe = replace(tiny, data=replace(tiny.data, name=""))
    with pytest.raises(InputError, match="images of .* pixels; set data.image_size"):
        train(recipe, tmp_path / "run", options=ONE, data=splits)


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_on_a_full_disk_is_an_error_of_the_machine_and_the_run_is_saved(tiny, tmp_path):
    with pytest.raises(MachineError, match="standard output: No space left on device; the run is saved"):
        train(tiny, tmp_path / "run", options=ONE, console=RunConsole(file=Full()))
    assert int(load_run(tmp_path / "run", 1)[1].step) == 1


def test_channels_of_sources_are_last(tiny, tmp_path):
    first = Source(40, ("a", "b"), lambda index: Example(np.zeros((3, 8, 8), np.uint8), index % 2))
    with pytest.raises(InputError, match=r"data= have shape \(3, 8, 8\), with 3 channels on axis 0; move them to the"):
        train(tiny, tmp_path / "run", options=ONE, data=(first, first))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cache", [0.0, 2.0])
def test_bad_images_of_the_evaluation_split_are_named_before_anything_is_written(tiny, tmp_path, cache):
    """All of them at once, whether the split lies on the devices or is streamed."""

    def damaged(read):
        def reading(index):
            if index in (3, 8):
                raise InputError(f"{index}.jpg: damaged")
            return read(index)

        return reading

    train_split, held = splits_of(tiny, tmp_path, lambda read: read)
    recipe = replace(tiny, data=replace(tiny.data, name=""))
    options = RunOptions(devices=1, device_cache_gib=cache)
    with pytest.raises(InputError, match=r"^3\.jpg: damaged; 8\.jpg: damaged$"):
        train(recipe, tmp_path / "run", options=options, data=(train_split, held._replace(read=damaged(held.read))))
    assert not (tmp_path / "run").exists()
    originals = replace(recipe.augment, crop_padding=0, random_resized_crop=True, rrc_from="original")
    recipe = replace(recipe, data=replace(recipe.data, image_size=8), augment=originals)
    with pytest.raises(InputError, match="keeps no originals"):
        train(recipe, tmp_path / "run", options=options, data=(train_split, held))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def listening():
    """A process that SIGINT ends, which workers of pytest-xdist are not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_while_it_compiles_is_not_lost(tiny, tmp_path, monkeypatch, listening):
    compile_within, asked = aot.compile_within, [signal.SIGINT]

    def interrupted(*given):
        if asked:
            signal.raise_signal(asked.pop())
        return compile_within(*given)

    monkeypatch.setattr(aot, "compile_within", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(tiny, tmp_path / "run", options=ONE)
    assert stop.value.args == (signal.SIGINT,)
    assert int(load_run(tmp_path / "run", 1)[1].step) == 1
    assert train(tiny, tmp_path / "run", options=ONE).step == 12


def test_a_signal_before_anything_is_done_acts_at_once(tiny, tmp_path, monkeypatch, listening):
    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        return open_sources(*given)

    monkeypatch.setattr(run_module, "open_sources", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "run", options=ONE)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_nothing_more_is_read_once_the_other_has_failed(tiny, tmp_path, monkeypatch):
    """Forty images of which each takes long; a thread cannot be stopped from outside."""
    read_so_far = []

    def slow(read):
        def slowly(index):
            read_so_far.append(index)
            time.sleep(0.2 if index else 0)
            return read(index)

        return slowly

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(aot, "compile_within", interrupted)
    # Which would read all images of arrays before
    monkeypatch.setattr("resnet_jax.training.sources.are_quickly_compared", lambda *splits: False)
    recipe = replace(tiny, data=replace(tiny.data, name=""))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", options=ONE, data=splits_of(tiny, tmp_path, slow))
    assert len(read_so_far) < 30


def test_of_two_errors_that_of_the_data_is_told(tiny, tmp_path, monkeypatch):
    read_badly = threading.Event()

    def uneven(read):
        def unevenly(index):
            if index != 7:
                return read(index)
            read_badly.set()
            return Example(np.zeros((9, 9, 1), np.uint8), 0)

        return unevenly

    def failing(*given):
        assert read_badly.wait(60)
        time.sleep(0.5)
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(aot, "compile_within", failing)
    recipe = replace(tiny, data=replace(tiny.data, name=""))
    with pytest.raises(InputError, match="set data.image_size"):
        train(recipe, tmp_path / "run", options=ONE, data=splits_of(tiny, tmp_path, uneven))
