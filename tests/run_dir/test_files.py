"""Run directories: what is refused, what is kept."""

from dataclasses import replace

import pytest

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, from_json
from resnet_jax.run_dir.environment import git_state, read_environments
from resnet_jax.run_dir.files import (
    DatasetInfo,
    append_metrics,
    init_run_dir,
    next_run_dir,
    read_dataset_info,
    read_metrics,
    read_recipe,
    truncate_metrics,
)

DATASET = DatasetInfo(("a", "b"), (8, 8, 1), 1437, "data")
OTHER = replace(Recipe(), seed=1)


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_run_holds_recipe_data_set_and_environment(tmp_path):
    run = tmp_path / "a" / "b"
    init_run_dir(run, Recipe(), DATASET)
    assert from_json((run / "recipe.json").read_text()) == Recipe()
    assert read_dataset_info(run) == DATASET
    (environment,) = read_environments(run)
    assert {"jax", "flax", "resnet-jax"} <= set(environment["packages"])
    assert {"python", "devices", "git_commit", "git_changed", "command"} <= set(environment)


def test_every_start_is_written_down(tmp_path):
    for _ in range(2):
        init_run_dir(tmp_path, Recipe(), DATASET)
    assert len(read_environments(tmp_path)) == 2
    (tmp_path / "environment.json").write_text("{")
    init_run_dir(tmp_path, Recipe(), DATASET)
    assert len(read_environments(tmp_path)) == 1


def test_another_recipe_is_refused_and_nothing_is_touched(tmp_path):
    init_run_dir(tmp_path, Recipe(), DATASET)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"holds a run of another recipe \(seed 0 -> 1\); choose another --out"):
        init_run_dir(tmp_path, OTHER, DATASET)
    assert snapshot(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="exists and is not a run directory"):
        init_run_dir(tmp_path, Recipe(), DATASET)
    with pytest.raises(InputError, match="exists and is not a run directory"):
        init_run_dir(tmp_path / "thesis.tex", Recipe(), DATASET)
    assert list(snapshot(tmp_path).values()) == [b"precious"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        init_run_dir(tmp_path / "file" / "run", Recipe(), DATASET)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"not a run directory \(no recipe.json\)"):
        read_recipe(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"dataset.json: missing or damaged"):
        read_dataset_info(tmp_path)


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    for step in (1, 2, 3):
        append_metrics(tmp_path, {"step": step})
    assert truncate_metrics(tmp_path, 2) == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("rest", [b'{"ste', b"[1]\n", b"{}\n", b"\xff\x00\n", b"7"])
def test_a_line_cut_short_ends_the_metrics(tmp_path, rest):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + rest)
    assert read_metrics(tmp_path) == [{"step": 1}]
    truncate_metrics(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_free_name_is_new_or_an_unfinished_run_of_the_same_recipe(tmp_path):
    stem = tmp_path / "digits"
    assert next_run_dir(stem, Recipe()) == stem
    init_run_dir(stem, Recipe(), DATASET)
    assert next_run_dir(stem, Recipe()) == stem  # goes on
    assert next_run_dir(stem, OTHER) == tmp_path / "digits-2"
    append_metrics(stem, {"step": 674})
    assert next_run_dir(stem, Recipe()) == tmp_path / "digits-2"  # the first is finished
    (tmp_path / "digits-2").mkdir()
    assert next_run_dir(stem, Recipe()) == tmp_path / "digits-3"


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    assert git_state(tmp_path) == {"git_commit": None, "git_changed": None}
