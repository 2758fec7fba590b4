"""A run's data opens while its first step is compiled."""

import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from resnet_jax.data.source import Example
from resnet_jax.errors import InputError
from resnet_jax.train import compiling
from resnet_jax.train.directory import read_metrics
from resnet_jax.train.job import open_sources
from resnet_jax.train.run import train_recipe


def splits_of(recipe, folder, read):
    sources = open_sources(recipe, folder)
    return sources.train._replace(read=read(sources.train.read)), sources.held


def test_neither_waits_for_the_other(tiny, tmp_path, monkeypatch):
    opened, compile_within = threading.Event(), compiling.compile_within

    def noting(read):
        def noted(index):
            if index:
                opened.set()  # all read the first, to see what the images look like
            return read(index)

        return noted

    def waiting(*given):
        assert opened.wait(60)
        return compile_within(*given)

    monkeypatch.setattr(compiling, "compile_within", waiting)
    splits = splits_of(tiny, tmp_path, noting)
    data = replace(tiny.data, name="")
    result = train_recipe(replace(tiny, data=data, steps=2), tmp_path / "run", devices=1, splits=splits)
    assert result.step == 2


def test_what_is_wrong_with_the_data_is_said(tiny, tmp_path, capsys):
    def uneven(read):
        return lambda index: Example(np.zeros((9, 9, 1), np.uint8), 0) if index == 7 else read(index)

    splits = splits_of(tiny, tmp_path, uneven)
    recipe = replace(tiny, data=replace(tiny.data, name=""))
    with pytest.raises(InputError, match="images of .* pixels; set data.size"):
        train_recipe(recipe, tmp_path / "run", devices=1, splits=splits)


def test_a_signal_while_it_compiles_is_not_lost(tiny, tmp_path, monkeypatch):
    """Nothing has been done yet, so it acts as it would without a run; and the same call trains."""
    compile_within, asked = compiling.compile_within, [signal.SIGINT]

    def interrupted(*given):
        if asked:
            signal.raise_signal(asked.pop())
        return compile_within(*given)

    monkeypatch.setattr(compiling, "compile_within", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, tmp_path / "run", devices=1)
    assert read_metrics(tmp_path / "run") == []
    assert train_recipe(tiny, tmp_path / "run", devices=1).step == 12
