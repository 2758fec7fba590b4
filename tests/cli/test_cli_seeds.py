"""Several seeds on the command line: their names, the table at the end, and exit codes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.cli.main import main
from resnet_jax.cli.seeds import parse_seeds, show_seeds
from resnet_jax.recipe import to_json
from resnet_jax.run_dir.files import read_metrics
from resnet_jax.training.run_state import TrainResult

TRAIN = ["train", "r.json", "--devices", "1"]


@pytest.fixture(autouse=True)
def recipe(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(to_json(tiny))


@pytest.mark.parametrize(
    ("words", "seeds"),
    [(["0:5"], [0, 1, 2, 3, 4]), (["3:4"], [3]), (["0", "3", "7"], [0, 3, 7]), (["0:2", "9"], [0, 1, 9])],
)
def test_names_of_seeds(words, seeds):
    assert parse_seeds(words) == seeds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0-5"], "--seeds is '0-5'; give START:STOP, such as 0:5, or seeds such as 0 3 7"),
        (["--seeds", "0:5:2"], "--seeds is '0:5:2'; give START:STOP"),
        (["--seeds", "1", "x"], "--seeds is '1 x'; give START:STOP"),
        (["--seeds", ":5"], "--seeds is ':5'; give START:STOP"),
        (["--seeds", "5:5"], "--seeds 5:5 is not a range of seeds; give START:STOP, such as 0:5"),
        (["--seeds"], "--seeds is empty; give START:STOP, such as 0:5"),
        (["--seeds", "0:2", "1"], "--seeds has 1 twice; give each seed once"),
        (["--seeds", "4294967296"], "seed is 4294967296"),
        (["--seeds", "0:2", "--seed", "1"], "--seed and --seeds cannot be combined"),
        (["--seed=1", "--seeds", "0:2"], "--seed and --seeds cannot be combined"),
        (["--seeds", "0:2", "--seed-layout", "devices"], "--seed-layout is devices; there is one device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_exit_code_two(words, message, capsys):
    assert main([*TRAIN, *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"resnet-jax: {message}")
    assert captured.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_table_of_the_last_lines_and_their_mean(capsys):
    assert main([*TRAIN, "--seeds", "0:3", "--out", "x"]) == 0
    printed = capsys.readouterr().out
    last = [read_metrics(Path(f"x/seed{seed}"))[-1] for seed in range(3)]
    losses = [line["test/loss"] for line in last]
    for seed, line in enumerate(last):
        assert re.search(
            rf"^ *{seed} +12 of 12 +{100 * line['test/accuracy']:.2f} +{line['test/loss']:.4f} ", printed, re.M
        )
    mean, std = np.mean(losses), np.std(losses, ddof=1)
    assert re.search(rf"^ *n = 3 +mean ± std .* {mean:.4f} ± {std:.4f} ", printed, re.M)
    assert not any(len(line) > 110 for line in printed.splitlines())
    assert all(Path(f"x/seed{seed}/curves.png").is_file() for seed in range(3))


def test_the_table_has_a_column_for_any_metric(capsys):
    """Known to the library or not, of runs that a metric was added to, and of one that was evaluated without it."""

    def row(seed, **more):
        known = {"train/loss": 1.0, "test/loss": 0.5, "test/top5": 0.9 + seed / 100, "test/count": 100}
        return {"step": 12, "epoch": 1.0, **known, **more, "lr": 0.1, "train_seconds": 2.0}

    def more(seed):
        values = {"macro_f1": 0.25, "calibration_error": 0.0125, "mae": 3.0, "own/score": -1.0 - seed}
        return {f"test/{name}": value for name, value in values.items()} | {"ema/test/own/score": -3.0}

    results = {
        seed: TrainResult(None, 12, 12, "test", [row(seed, **(more(seed) if seed < 2 else {}))]) for seed in range(3)
    }
    show_seeds({seed: results[seed] for seed in range(2)}, Path("x"))
    printed = capsys.readouterr().out
    names = ["test top5 %", "test macro f1", "test calibration error", "test mae", "test own score"]
    assert re.search(" +".join(["seed", "step", *names, "ema test own score", "test loss", "training time s"]), printed)
    first = "0 12 of 12 90.00 0.2500 0.0125 3.0000 -1.0000 -3.0000 0.5000 2.0"
    assert re.search(" +".join(map(re.escape, first.split(" "))), printed)
    assert re.search(r"90\.50 ± 0\.71 +0\.2500 ± 0\.0000 .* -1\.5000 ± 0\.7071 ", printed)
    show_seeds(results, Path("x"))
    assert re.search(r"^ *2 +12 of 12 +92\.00( +-){5} +0\.5000 ", capsys.readouterr().out, re.M)


@pytest.mark.slow
def test_each_is_an_ordinary_run(capsys):
    assert main([*TRAIN, "--seeds", "5", "8", "--stop-at", "5"]) == 0
    printed = capsys.readouterr().out
    assert "not finished: seed 5, seed 8; resume with the same command and --out runs/r-seeds" in printed
    assert re.search(r"^ *n = 2 +mean ± std", printed, re.M)
    assert main(["evaluate", "runs/r-seeds/seed8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 5
    assert main(["train", "runs/r-seeds/seed8", "--devices", "1"]) == 0
    assert "step 12 of 12" in capsys.readouterr().out
    assert main([*TRAIN, "--seeds", "5", "8"]) == 0  # the same folder
    printed = capsys.readouterr().out
    assert "seed 5: resuming at step 5" in printed
    assert "seed 8:" not in printed
    assert main(["train", "runs/r-seeds/seed8", "--devices", "1", "--seeds", "0:2"]) == 2
    assert "runs/r-seeds/seed8: is a single run; name a directory" in capsys.readouterr().err
    assert main([*TRAIN, "--batch-size", "8", "--stop-at", "1", "--seeds", "5"]) == 0
    assert Path("runs/r-seeds-2/seed5").is_dir()


def test_an_error_of_one_is_in_the_exit_code_and_not_in_the_mean(monkeypatch, capsys):
    assert main([*TRAIN, "--seeds", "0:2", "--out", "x", "--stop-at", "3"]) == 0
    capsys.readouterr()
    for manifest in Path("x/seed1/checkpoints").rglob("manifest.json"):
        manifest.unlink()
    assert main([*TRAIN, "--seeds", "0:3", "--out", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("resnet-jax: seed 1: x/seed1/checkpoints: no intact checkpoint")
    assert re.search(r"^ *n = 2 +mean ± std", captured.out, re.M)
    assert "not finished: seed 1;" in captured.out
