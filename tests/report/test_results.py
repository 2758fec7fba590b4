"""What a report reads of runs, and the numbers that it makes of them."""

import dataclasses
import os

import numpy as np
import pytest
from fabricated import RECIPE, metrics, vary, write_run

from resnet_jax.errors import InputError
from resnet_jax.report.results import aggregate, final_value, headline, median_of, series_of
from resnet_jax.report.runs import differing_fields, group_runs, notes_on, read_runs, short_names


def read(*paths):
    return group_runs(read_runs(paths))


def test_the_last_line_counts_and_not_the_best(tmp_path):
    paths = [write_run(tmp_path / str(s), vary(seed=s), (0.5, 0.99, 0.9 + s / 100)) for s in range(3)]
    (variant,) = read(*paths)
    assert aggregate(variant, final_value("SPLIT/accuracy")).values == (0.9, 0.91, 0.92)
    assert aggregate(variant, median_of("images_per_second")).mean == 120  # of steps 10, 20 and 30


def test_runs_that_differ_in_their_seeds_are_one_variant(tmp_path):
    recipes = [vary(seed=1), vary(optimizer_lr=0.2), vary(seed=0), vary(optimizer_lr=0.2, seed=5)]
    variants = read(*(write_run(tmp_path / f"run{i}", recipe) for i, recipe in enumerate(recipes)))
    assert [[run.recipe.seed for run in variant.runs] for variant in variants] == [[0, 1], [0, 5]]
    assert [variant.label for variant in variants] == ["lr 0.1", "lr 0.2"]
    assert differing_fields(variants) == ["optimizer.lr"]


def test_other_data_is_another_variant(tmp_path):
    one, two = write_run(tmp_path / "1"), write_run(tmp_path / "2", classes=("cat", "dog", "mouse"))
    three = write_run(tmp_path / "3", classes=("ant", "bee"))
    assert [variant.label for variant in read(one, two)] == ["classes 2", "classes 3"]
    assert [variant.label for variant in read(one, three)] == ["resnet20 (1)", "resnet20 (2)"]


def test_labels_say_what_is_unusual(tmp_path):
    recipes = [
        RECIPE,
        vary(model_name="resnet32"),
        vary(optimizer_name="adamw", optimizer_lr=0.001, ema_decay=0.9, augment_hflip=True),
        vary(batch_size=32),
    ]
    labels = [v.label for v in read(*(write_run(tmp_path / str(i), recipe) for i, recipe in enumerate(recipes)))]
    assert labels == ["resnet20", "resnet32", "resnet20, hflip yes, adamw, ...", "resnet20, batch size 32"]


def test_only_finished_runs_count_where_there_are_some(tmp_path):
    done, begun = write_run(tmp_path / "done"), write_run(tmp_path / "begun", vary(seed=1), last=15)
    (variant,) = read(done, begun)
    assert [run.name for run in variant.counted] == ["done"]
    assert notes_on([done, begun], [variant]) == [
        "begun is not finished: step 15 of 30.",
        "resnet20: 1 of 2 runs are finished; only these are counted.",
    ]
    (alone,) = read(begun)
    assert [run.name for run in alone.counted] == ["begun"]


def test_a_run_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    path = write_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    given = [path, tmp_path / "link", path.relative_to(tmp_path)]
    variants = read(*given)
    assert [len(variant.runs) for variant in variants] == [1]
    assert notes_on(given, variants) == ["A run named twice is counted once."]


def test_copies_of_a_seed_are_told(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    assert "2 runs have seed 0" in notes_on(paths, read(*paths))[0]


def test_short_names_are_as_long_as_need_be(tmp_path):
    assert short_names([tmp_path / "a" / "0", tmp_path / "b" / "0"]) == ["a/0", "b/0"]
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_curves_are_of_the_steps_that_all_runs_have(tmp_path):
    one = write_run(tmp_path / "1", accuracies=(0.5, 0.7, 0.9))  # at 10, 20 and 30
    two = write_run(tmp_path / "2", vary(seed=1), accuracies=(0.1, 0.3, 0.4, 0.6, 0.8, 1.0))  # at 5, 10, ...
    (variant,) = read(one, two)
    course = series_of(variant.counted, "SPLIT/accuracy")
    assert course.step.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(course.values, [[0.5, 0.7, 0.9], [0.3, 0.6, 1.0]])
    assert series_of(variant.counted, "ema/SPLIT/accuracy") is None


def test_the_headline_is_the_accuracy_of_the_averages_if_there_are_any(tmp_path):
    plain = write_run(tmp_path / "plain")
    averaged = write_run(tmp_path / "ema", vary(ema_decay=0.9), **{"ema/test/accuracy": 0.7, "ema/test/loss": 0.3})
    regression = write_run(tmp_path / "mse", vary(loss_name="mse"), (None, None))
    validated = write_run(tmp_path / "val", vary(data_num_validation=10))
    names = ["SPLIT/accuracy", "ema/SPLIT/accuracy", "SPLIT/loss", "SPLIT/accuracy"]
    assert [headline(read(path)[0]) for path in (plain, averaged, regression, validated)] == names
    assert aggregate(read(validated)[0], final_value("SPLIT/accuracy")).mean == 0.99


@pytest.mark.parametrize("field", ["epoch", "test/loss", "train_seconds"])
def test_a_line_without_its_numbers_is_an_error_with_its_place(tmp_path, field):
    path = write_run(tmp_path / "run")
    line = {**metrics(40, 0.9), field: "many"}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(str(line).replace("'", '"') + os.linesep)
    with pytest.raises(InputError, match=f"metrics.jsonl: line 4 has no number {field}; remove that line"):
        read_runs([path])


def test_different_splits_are_told(tmp_path):
    recipes = RECIPE, dataclasses.replace(vary(data_num_validation=10), seed=1)
    paths = [write_run(tmp_path / str(i), recipe) for i, recipe in enumerate(recipes)]
    assert any("cannot be compared" in note for note in notes_on(paths, read(*paths)))
