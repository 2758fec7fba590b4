"""Run directories: what is refused, what is kept."""

import json
from dataclasses import replace

import pytest

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, from_json
from resnet_jax.run_dir.environment import git_state, read_environments
from resnet_jax.run_dir.files import (
    DatasetInfo,
    append_metrics,
    foreign_reason,
    identity,
    init_run_dir,
    next_run_dir,
    read_dataset_info,
    read_metrics,
    read_recipe,
    require_same_run,
    restore_metrics,
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
    assert {"jax", "flax", "resnet_jax"} <= set(environment["packages"])
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


def test_a_change_by_hand_of_recipe_or_data_set_is_refused_until_the_checksum_is_deleted(tmp_path):
    init_run_dir(tmp_path, Recipe(), DATASET)
    for name, old, new, read in (
        ("recipe.json", '"seed": 0', '"seed": 3', read_recipe),
        ("dataset.json", '"a"', '"c"', read_dataset_info),
    ):
        path = tmp_path / name
        content = path.read_text()
        path.write_text(content.replace(old, new))
        assert path.read_text() != content
        with pytest.raises(InputError, match=f"{name}: .*restore it"):
            read(tmp_path)
        path.write_text(content)
    values = json.loads((tmp_path / "recipe.json").read_text()) | {"seed": 3}
    del values["sha256"]
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    assert read_recipe(tmp_path).seed == 3


def test_other_data_of_the_same_shape_are_refused(tmp_path):
    known = replace(DATASET, digest="1" * 64)
    init_run_dir(tmp_path, Recipe(), known)
    require_same_run(tmp_path, Recipe(), replace(known, data_dir="moved"))
    with pytest.raises(InputError, match="its images or labels have changed; restore the data or choose another --out"):
        require_same_run(tmp_path, Recipe(), replace(known, digest="2" * 64))


@pytest.mark.parametrize(
    ("recipe", "digest", "reason"),
    [(Recipe(), "1", ""), (OTHER, "1", "of another recipe: seed 1 -> 0"), (Recipe(), "2", "of other data")],
)
def test_a_checkpoint_of_another_run_is_named(recipe, digest, reason):
    saved = identity(recipe, replace(DATASET, digest=digest))
    assert foreign_reason(saved, Recipe(), replace(DATASET, digest="1")) == reason


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    for step in (1, 2, 3):
        append_metrics(tmp_path, {"step": step})
    restore_metrics(tmp_path, [{"step": 1}, {"step": 2}], pytest.fail)
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [('{"step": 1}\n{"step"; 2}\n{"step": 3}\n', True), ('{"step": 1}\n{"step": 7}\n', True), (None, False)],
)
def test_rows_that_were_saved_replace_damaged_ones_and_the_old_file_is_kept(tmp_path, damaged, kept):
    rows = [{"step": 1}, {"step": 2}, {"step": 3}]
    if damaged:
        (tmp_path / "metrics.jsonl").write_text(damaged)
    notes = []
    restore_metrics(tmp_path, rows, notes.append)
    assert read_metrics(tmp_path) == rows
    (note,) = notes
    assert f"line {2 if damaged else 1} is not what was written; the rows are restored" in note
    old = tmp_path / "metrics-damaged-1.jsonl"
    assert (old.read_text() == damaged and str(old) in note) if kept else not old.exists()


def test_a_broken_line_hides_no_other(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"; 2}\n{"step": 3}\n')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize(
    "rest",
    [b'{"ste', b"[1]\n", b"{}\n", b"\xff\x00\n", b"7", b'{"step": null}', b'{"step": true}'],
)
def test_a_line_cut_short_ends_the_metrics(tmp_path, rest):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + rest)
    assert read_metrics(tmp_path) == [{"step": 1}]
    restore_metrics(tmp_path, [{"step": 1}], pytest.fail)
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
