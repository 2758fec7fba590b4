"""A run directory is not believed: a change is harmless, refused or named."""

import random
import shutil
from dataclasses import replace

import chex
import numpy as np
import pytest
from runs import curve, quietly

from resnet_jax.data.datasets import DATASETS, open_split
from resnet_jax.data.source import Source, from_arrays, sample_digest, to_arrays
from resnet_jax.errors import InputError
from resnet_jax.inference.load_run import load_run
from resnet_jax.report.fit import fit
from resnet_jax.training.options import RunOptions

WATCHED = ("recipe.json", "dataset.json", "metrics.jsonl", "environment.json", "checkpoints")


@pytest.mark.parametrize("changes", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_a_changed_byte_anywhere_is_harmless_refused_or_named(tiny, tmp_path, changes):
    whole, _ = quietly(tiny, tmp_path / "whole")
    quietly(tiny, tmp_path / "stopped", stop_at=7)
    draw, found = random.Random(0), {name: [] for name in WATCHED}
    for number in range(changes):
        run = shutil.copytree(tmp_path / "stopped", tmp_path / "run")
        name = WATCHED[number % len(WATCHED)]
        below = [path for path in sorted((run / name).rglob("*")) if path.is_file() and path.stat().st_size]
        path = draw.choice(below or [run / name])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            result, said = quietly(tiny, run)
        except InputError as error:
            found[name].append(str(error))
        else:
            chex.assert_trees_all_equal(result.state, whole.state)
            assert curve(run) == curve(tmp_path / "whole")
            found[name].append("named" if "damaged" in said else "")
        shutil.rmtree(run)
    assert set(found["environment.json"]) == {""}
    assert all(found["recipe.json"]), found
    assert not any("\n" in outcome for outcomes in found.values() for outcome in outcomes)


def test_checkpoints_of_another_run_are_not_resumed(tiny, tmp_path):
    quietly(tiny, tmp_path / "run", stop_at=4)
    quietly(replace(tiny, seed=1), tmp_path / "other", stop_at=6)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "6", tmp_path / "run" / "checkpoints" / "6")
    notes = []
    assert int(load_run(tmp_path / "run", 1, log=notes.append)[1].step) == 4
    assert "(of another recipe: seed 1 -> 0)" in notes[0]
    result, said = quietly(tiny, tmp_path / "run")
    assert "checkpoints/6: damaged checkpoint (of another recipe" in said
    chex.assert_trees_all_equal(result.state, quietly(tiny, tmp_path / "whole")[0].state)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match=r"no intact checkpoint \(step 6: of another recipe"):
        quietly(tiny, tmp_path / "run")


def test_a_damaged_row_comes_back_from_the_checkpoint(tiny, tmp_path):
    quietly(tiny, tmp_path / "run", stop_at=7)
    metrics = tmp_path / "run" / "metrics.jsonl"
    content = metrics.read_text()
    metrics.write_text(content.replace('"test/loss": ', '"test/loss": 1', 1))
    _, said = quietly(tiny, tmp_path / "run")
    assert "line 1 is not what was written; the rows are restored from the checkpoint" in said
    quietly(tiny, tmp_path / "whole")
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_other_arrays_of_the_same_shape_are_refused_and_a_finished_run_says_so(tiny, tmp_path, capsys):
    train, test = (to_arrays(open_split("tiny", split, tmp_path)) for split in ("train", "test"))
    once, out = RunOptions(devices=1, stop_at=3), tmp_path / "run"
    fit(tiny, train, test, out, options=once)
    capsys.readouterr()
    assert fit(tiny, train, (test[0], test[1].astype(np.uint8)), out, options=once).step == 3
    assert "already at step 3, nothing trained" in " ".join(capsys.readouterr().out.split())
    darker, relabelled = (train[0] // 2, train[1]), (train[0], (train[1] + 1) % 3)
    for other in ((darker, test), (relabelled, test), (train, (test[0], (test[1] + 1) % 3))):
        with pytest.raises(InputError, match="its images or labels have changed; restore the data"):
            fit(tiny, *other, out, options=once)


def test_a_source_without_digest_is_told_by_a_sample(tiny, tmp_path):
    plain = open_split("tiny", "train", tmp_path)

    def digest(change):
        return sample_digest(Source(plain.size, plain.classes, lambda index: change(plain.read(index))))

    same = digest(lambda example: example)
    assert digest(lambda example: example._replace(image=example.image + 0)) == same
    assert digest(lambda example: example._replace(image=example.image ^ 1)) != same
    assert digest(lambda example: example._replace(target=(example.target + 1) % 3)) != same

    def unreadable(example):
        raise InputError("photo.jpg: damaged")

    assert digest(unreadable) != same


def test_a_relabelled_data_set_is_refused(tiny, tmp_path, monkeypatch):
    quietly(tiny, tmp_path / "run", stop_at=3)
    plain = DATASETS["tiny"]

    def relabelled(split, folder):
        images, labels = to_arrays(plain(split, folder))
        return from_arrays(images, (labels + 1) % 3, ("a", "b", "c"))

    monkeypatch.setitem(DATASETS, "tiny", relabelled)
    with pytest.raises(InputError, match="its images or labels have changed"):
        quietly(tiny, tmp_path / "run")
