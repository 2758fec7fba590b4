"""Cross-validation on the command line: a run per fold, their table, and one group in a report."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.cli.main import main
from resnet_jax.recipe import Recipe, to_json
from resnet_jax.report.runs import Run, differing_fields, group_runs
from resnet_jax.run_dir.files import DatasetInfo, read_metrics


@pytest.fixture(autouse=True)
def recipe(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(to_json(tiny))


def test_each_fold_is_a_run_and_the_table_has_their_mean(capsys):
    assert main(["train", "r.json", "--devices", "1", "--folds", "2", "--data.stratify"]) == 0
    printed = capsys.readouterr().out
    rows = [read_metrics(Path(f"runs/r-folds/fold{part}"))[-1] for part in (1, 2)]
    assert [row["validation/count"] for row in rows] == [20, 20]
    losses = [row["validation/loss"] for row in rows]
    mean, std = np.mean(losses), np.std(losses, ddof=1)
    assert re.search(rf"^ *n = 2 +mean ± std .* {mean:.4f} ± {std:.4f} ", printed, re.M)
    assert re.search(r"^ *fold +step", printed, re.M)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "--folds is 1; give 2 or more"),
        (["--folds", "3", "--data.fold", "1/3"], "--folds is 3; give 2 or more, and leave --data.fold out"),
        (["--folds", "3", "--seeds", "0:2"], "--seeds and --folds cannot be combined"),
        (["--data.fold", "3"], "data.fold is 3; give I/K"),
        (["--data.fold", "1/2", "--data.num-validation", "3"], "data.fold and data.num_validation both hold"),
        (["--data.group-by", "patient"], "data.group_by is patient; that needs data.num_validation or data.fold"),
        (["--data.limit", "1.5"], "data.limit is 1.5; give a number of images, or a fraction below 1"),
        (["--data.mix", '{"digits": 0}'], "data.mix gives 'digits' the weight 0; give a positive number"),
        (["--data.class-map", '{"a": 3}'], "data.class_map gives 'a' the name 3"),
        (["--loss.name", "multilabel", "--loss.class-weights", "auto"], "loss.class_weights is auto, which does not"),
        (["--loss.pos-weight", "auto"], "loss.pos_weight is auto, which loss.name cross_entropy does not use"),
        (["--loss.class-weights", "autos"], "Error parsing"),
    ],
)
def test_wrong_use_is_one_line(words, message, capsys):
    assert main(["train", "r.json", *words]) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert message in captured


def test_folds_of_a_recipe_are_one_group(tmp_path):
    def run(fold, size, seed=0):
        data = replace(Recipe().data, fold=fold)
        dataset = DatasetInfo(("a", "b"), (8, 8, 1), size, "data")
        return Run(tmp_path, str(fold), Recipe(data=data, seed=seed), dataset, (), ())

    groups = group_runs([run("2/3", 27), run("1/3", 26), run("1/5", 32), run(None, 40)])
    assert [[one.name for one in group.runs] for group in groups] == [["1/3", "2/3"], ["1/5"], ["None"]]
    assert "data.fold" in differing_fields(groups)
