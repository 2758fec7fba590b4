"""The command line as a user meets it: results, one-line errors, kill -9 in the middle of an epoch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from resnet_jax.cli.main import COMMANDS, main
from resnet_jax.data.datasets import DATASETS, digits
from resnet_jax.errors import InputError, MachineError
from resnet_jax.inference.load_run import load_run
from resnet_jax.models import summary
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.models.summary import model_cost
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Data, Model, Optimizer, Recipe, Schedule, to_json
from resnet_jax.run_dir.files import read_metrics, read_options, read_recipe

CLOCKS = {"train_seconds", "images_per_second", "data_wait_fraction"}


def command(*words):
    return [sys.executable, "-m", "resnet_jax", *map(str, words)]


def run(*words, cwd):
    return subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True)


def curve(folder):
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_metrics(folder)]


def test_train_prints_lines_and_a_table(tiny_run):
    folder, out = tiny_run
    assert "columns: step, epoch, train and test loss and accuracy, images per second\n" in out
    assert "30/30  epoch  12.00  train 0." in out
    assert "test accuracy" in out
    assert "(0 of 10 wrong)" in out
    assert not any(len(line) > 100 for line in out.splitlines())
    assert "\x1b" not in out  # no colours where there is no terminal
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000


def test_evaluate(tiny_run, capsys):
    folder, _ = tiny_run
    assert main(["evaluate", "run"]) == 0
    assert capsys.readouterr().out.startswith("run at step 30, test, 10 examples: loss 0.")
    assert main(["evaluate", "run", "--metrics", "top5", "macro_f1"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("accuracy 100.00% (0 of 10 wrong), top5 100.00%, macro f1 1.0000\n")
    assert main(["evaluate", "run", "--split", "train", "--json", "--devices", "3"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["split"], values["step"], values["count"]) == ("train", 30, 40)
    last = read_metrics(folder)[-1]
    assert main(["evaluate", "run", "--json", "--devices", "1"]) == 0
    again = json.loads(capsys.readouterr().out)
    names = ("loss", "accuracy", "errors", "count")
    assert {name: again[name] for name in names} == {name: last[f"test/{name}"] for name in names}


def test_predict(tiny_run, capsys):
    rng = np.random.default_rng(0)
    for name, level in (("dark", 0), ("mid", 50), ("light", 100)):
        Image.fromarray(rng.integers(level, level + 100, (8, 8), np.uint8)).save(f"{name}.png")
    images = ["dark.png", "mid.png", "light.png"]
    assert main(["predict", "run", *images, "--json", "--topk", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == images
    assert [row["predictions"][0]["class"] for row in rows] == ["a", "b", "c"]
    assert all(len(row["predictions"]) == 2 for row in rows)
    assert main(["predict", "run", *images]) == 0
    out = capsys.readouterr().out
    assert out.count("%") == 9  # three classes are all there are
    assert "dark.png" in out


def test_resuming_a_run_with_the_same_and_with_another_recipe(tiny_run, capsys):
    folder, _ = tiny_run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "environment.json"}
    assert main(["train", "run", "--seed", "3", "--devices", "1"]) == 2
    assert capsys.readouterr().err == (
        "resnet-jax: run: holds a run of another recipe (seed 0 -> 3); choose another --out\n"
    )
    assert {p: p.read_bytes() for p in before} == before
    assert main(["train", "run", "--devices", "1"]) == 0  # finished: shows the table again
    assert "step 30 of 30" in capsys.readouterr().out


def test_runs_are_numbered_and_never_overwritten(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(to_json(tiny))
    train = ["train", "r.json", "--devices", "1"]
    assert main([*train, "--stop-at", "3"]) == 0
    assert "stopped at step 3 of 12, checkpoint saved; resume with: resnet-jax train runs/r" in capsys.readouterr().out
    assert main([*train, "--seed", "1", "--stop-at", "3"]) == 0
    assert "runs/r is taken; writing runs/r-2\n" in capsys.readouterr().out
    assert main(train) == 0
    assert "resuming at step 3" in capsys.readouterr().out
    assert sorted(p.name for p in Path("runs").iterdir()) == ["r", "r-2"]
    assert (read_recipe(Path("runs/r")).seed, read_recipe(Path("runs/r-2")).seed) == (0, 1)
    assert read_metrics(Path("runs/r"))[-1]["step"] == 12


def test_epochs_replace_steps_and_steps_replace_epochs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(to_json(tiny))
    trained = []

    def train(recipe, out, *, options, log):
        trained.append(recipe)
        raise InputError("this is enough")

    monkeypatch.setattr("resnet_jax.training.run.train", train)
    assert main(["train", "r.json", "--epochs", "2"]) == 2
    Path("r2.json").write_text(to_json(trained[0]))
    assert main(["train", "r2.json", "--steps", "7"]) == 2
    assert [(recipe.epochs, recipe.steps) for recipe in trained] == [(2.0, None), (None, 7)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; nearest: train"),
        (["train", "--model.name", "resnet21"], "unknown model 'resnet21'; nearest: "),
        (["train", "--data.name", "cifar"], "unknown data set 'cifar'; nearest: cifar10"),
        (["train", "--data.name", "."], "unknown data set '.'; for a folder of images, give folder:."),
        (["train", "--lr", "1"], "unknown field '--lr'; use --optimizer.lr; see"),
        (["train", "--optimizer.learning-rate", "1"], "field '--optimizer.learning-rate'; use --optimizer.lr;"),
        (["train", "--resume", "x"], "unknown field '--resume'; use --out RUN (an existing run is resumed)"),
        (["bench", "data", "--num_workers=3"], "unknown field '--num_workers=3'; use --num-threads; see"),
        (["explain", "x", "y", "--batch", "2"], "unknown field '--batch'; see"),
        (["summary", "resnet22"], "unknown model 'resnet22'; nearest: resnet20, resnet18, resnet26"),
        (["train", "--optimizer.weight_decy", "1"], "unknown field '--optimizer.weight_decy'; nearest: --optimizer.we"),
        (["train", "--optimizer.lr", "big"], "optimizer.lr: could not convert string to float: 'big'"),
        (["train", "--seed"], "Missing value for argument '--seed'"),
        (
            ["train", "--model.shortcut", "E"],
            "'--model.shortcut'. Expected one of A, B, C, D, None, none; see",
        ),
        (["train", "--seed", "1", "extra"], "unknown word 'extra'"),
        (["train", "--schedule.name", "cosin"], "invalid choice 'cosin'"),
        (["train", "nowhere.py"], "nowhere.py: no such recipe"),
        (
            ["train", "resnet50"],
            "a Python file or a run directory; to choose a network, give --model.name resnet50",
        ),
        (
            ["train", "."],
            "not a run directory (no recipe.json); to train on a folder of images, give --data.name folder:.",
        ),
        (["export"], "arguments are missing; usage: resnet-jax export RUN|WEIGHTS OUT.onnx|.tflite|.stablehlo; see"),
        (["average", "run"], "arguments are missing; usage: resnet-jax average RUN RUN... --out FILE.safetensors"),
        (["train", "--epoch", "3"], "unknown field '--epoch'; nearest: --epochs; see"),
        (["train", "--data.name", "cifar10"], "data: no CIFAR-10 here; expected cifar-10-batches-bin/"),
        (["train", "--data.name", "cifar10", "--data-dir", "elsewhere"], "elsewhere: no CIFAR-10 here"),
        (["train", "--batch-size", "0"], "batch_size is 0"),
        (["train", "--epochs", "0"], "epochs is 0"),
        (["evaluate", "nowhere"], "nowhere: no such run or weights"),
        (["evaluate"], "name a run or weights to evaluate"),
        (["predict", "nowhere", "x.png"], "x.png: no such image file"),
        (["summary", "resnet51"], "unknown model 'resnet51'; nearest: "),
        (["summary", "resnet50", "--size", "0"], "--size is 0; it must be 1 to 65,536"),
        (["summary", "resnet50", "--classes", "-1"], "--classes is -1; it must be 0 to 1,073,741,824"),
        (["train", "--steps", "9" * 400], "Error parsing --steps: "),
        (["train", "--batch-size", "9" * 5000], "--batch-size: a number of 5,000 digits is too large; see resnet-jax"),
        (["train", "--steps", "9" * 400], "--steps: a number of 400 digits is too large; see resnet-jax train --help"),
        (["train", "--steps", "many"], "--steps: invalid literal for int() with base 10: 'many'; see resnet-jax"),
        (["train", "--seeds", "0:999999999999"], "--seeds is '0:999999999999'; give START:STOP"),
        (["summary", "resnet20", "--size", "9" * 19], "--size is 9999999999999999999; it must be 1 to 65,536"),
        (["list", "--foo", "3"], "unknown field '--foo'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_exit_code_two(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("resnet-jax: ")
    assert message in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gone.png", "text.png", "run"])
def test_an_image_that_is_none_is_one_line(tiny_run, capsys, name):
    Path("text.png").write_text("no image")
    assert main(["predict", "run", name]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"resnet-jax: {name}: ")
    assert printed.err.count("\n") == 1


def test_more_wrong_use_of_a_run(tiny_run, capsys):
    for words, message in (
        (["evaluate", "run", "--split", "validation"], "no validation images are held out; use --split test"),
        (["evaluate", "run", "--split", "dev"], "invalid choice 'dev'"),
        (["predict", "run", "run/curves.png", "--topk", "0"], "--topk is 0; it must be positive"),
        (["predict", "run"], "no images given"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


class OurShortcut(NoShortcut):
    """A shortcut that has no letter."""


def test_lines_of_data_sets_fit():
    lines = [(source.__doc__ or "").splitlines()[0] for source in DATASETS.values()]
    assert all(0 < len(line) < 100 for line in lines)


def test_list(monkeypatch, capsys):
    """One network has parts of its own, which SHORTCUTS and BLOCKS do not name."""
    own = MODELS["resnet8"].clone(shortcut=OurShortcut)
    few = {name: MODELS[name] for name in ("resnet50", "plain110", "resnet1202")} | {"ours": own}
    monkeypatch.setattr("resnet_jax.models.zoo.MODELS", few)
    counted = []
    monkeypatch.setattr(summary, "model_cost", lambda model: counted.append(model) or model_cost(model))
    assert main(["list"]) == 0
    assert counted == [own]  # all others are known
    out = capsys.readouterr().out
    for text in ("resnet50", "25,557,032", "plain110", "19,421,274", "digits", "cifar10", "synthetic"):
        assert text in out
    assert re.search(r"^ *ours +BasicBlock +1 1 1 +OurShortcut +10 +75,290", out, re.M)
    assert re.search(r"^ *resnet1202 +BasicBlock +200 200 200 +A ", out, re.M)
    assert main(["list", "ours", "--markdown"]) == 0
    assert "| ours | 75,290 |" in capsys.readouterr().out


def test_summary(capsys):
    assert main(["summary", "resnet50"]) == 0
    out = capsys.readouterr().out
    assert "stage4_block3/conv3" in out
    assert out.endswith("resnet50 at 224 x 224 x 3: 25,557,032 parameters, 4.089 G multiply-adds per image\n")
    assert main(["summary", "resnet20", "--size", "8", "--channels", "1", "--classes", "3"]) == 0
    assert "resnet20 at 8 x 8 x 1" in capsys.readouterr().out


def test_help_and_no_words(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main([]) == 2
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"resnet-jax {name}" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error(tmp_path):
    shell = f"{sys.executable} -m resnet_jax list --weights | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


OPTIONS = ("--devices", "1", "--eval-every", "10")
OFTEN = ("--checkpoint-every", "4")
# The digits, in 63 steps, with a small network: to compile is what takes time
SMALL = Recipe(
    model=Model(name="resnet8", fields={"depths": (1,), "width": 16}, norm_momentum=0.5),
    data=Data(name="digits", num_validation=100),
    optimizer=Optimizer(lr=0.3),
    schedule=Schedule(warmup=1),
    epochs=3,
)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Until a checkpoint of that step or a later one is complete."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        done = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
        if done and max(done) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step}; exit code {process.poll()}")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.json"
    path.write_text(to_json(SMALL))
    return path


@pytest.fixture(scope="module")
def whole_run(recipe_file, tmp_path_factory):
    """The digits, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done = run("train", recipe_file, *OPTIONS, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "run"


def assert_same_run(one: Path, other: Path) -> None:
    chex.assert_trees_all_equal(load_run(one, 1)[1], load_run(other, 1)[1])
    assert curve(one) == curve(other)


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 37])
def test_killed_in_the_middle_of_an_epoch_a_run_ends_bitwise_the_same(
    whole_run, recipe_file, tmp_path, monkeypatch, capsys, step
):
    monkeypatch.chdir(tmp_path)
    # A process that is killed may leave half an entry
    cache = shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], tmp_path / "cache")
    own_cache = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    words = command("train", recipe_file, *OPTIONS, *OFTEN, "--out", "run")
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, env=own_cache)
    wait_for_step(tmp_path / "run", step, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main(["train", "run", *OPTIONS]) == 0
    assert "resuming at step" in capsys.readouterr().out
    assert_same_run(whole_run, Path("run"))


def test_interrupted_a_run_says_how_to_resume_and_does(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A checkpoint after each step, or the run could end before the signal comes
    shorter = (recipe_file, *OPTIONS, "--epochs", "1", "--schedule.warmup", "0")
    words = command("train", *shorter, "--checkpoint-every", "1", "--out", "run")
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(tmp_path / "run", 4, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert err == ""
    last = out.strip().splitlines()[-1]
    assert "interrupted at step" in last
    assert last.endswith("checkpoint saved; resume with: resnet-jax train run")
    words = last.split("resnet-jax ")[1].split()
    assert main([*words, *OPTIONS, *OFTEN]) == 0
    assert main(["train", *map(str, shorter), "--out", "whole"]) == 0
    assert_same_run(Path("whole"), Path("run"))


def test_a_run_that_nobody_reads_stops_with_a_checkpoint(recipe_file, tmp_path):
    """As `resnet-jax train | head -2` does."""
    words = command("train", recipe_file, *OPTIONS, *OFTEN, "--out", "run")
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("training: resnet8 on digits")
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 143
    assert 0 < int(load_run(tmp_path / "run", 1)[1].step) < 60


def assert_reads_digits(folder, capsys):
    """Assert that the run in a folder is far from chance, and reads written digits from files."""
    assert read_metrics(folder / "run")[-1]["validation/accuracy"] > 0.5
    images = [digits("test", folder).read(index) for index in range(20)]
    for index, example in enumerate(images):
        Image.fromarray(example.image[..., 0]).resize((64, 64)).save(folder / f"{index}.png")
    files = [str(folder / f"{i}.png") for i in range(20)]
    assert main(["predict", str(folder / "run"), *files, "--json", "--topk", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    read = [row["predictions"][0]["class"] for row in json.loads(printed.out)]
    assert sum(r == str(e.target) for r, e in zip(read, images, strict=True)) >= 8


@pytest.mark.slow
def test_a_small_network_learns_the_digits(whole_run, capsys):
    assert_reads_digits(whole_run.parent, capsys)


@pytest.mark.slow
def test_the_default_recipe_learns_the_digits(tmp_path, capsys):
    """Three epochs of the thirty, so far from 98 %, but far from chance."""
    recipe = ROOT / "experiments" / "digits.py"
    shorter = ("--epochs", "3", "--schedule.warmup", "1", "--data.num_validation", "100", *OFTEN)
    assert run("train", recipe, *shorter, *OPTIONS, "--out", "run", cwd=tmp_path).returncode == 0
    assert_reads_digits(tmp_path, capsys)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "runs/x"), 1, "No space left on device: 'runs/x'"),
        (MachineError("runs/x: a checkpoint cannot be written"), 1, "runs/x: a checkpoint cannot be written"),
        (MemoryError(), 1, "out of memory (MemoryError); lower --batch-size"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nlong story"), 1, "out of memory (RESOURCE_EXHAUSTED: Out"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_of_the_machine_are_one_line(error, code, message, monkeypatch, capsys):
    def command(words):
        raise error

    monkeypatch.setitem(COMMANDS, "list", (command, ""))
    assert main(["list"]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    def command(words):
        raise RuntimeError("a bug")

    monkeypatch.setitem(COMMANDS, "list", (command, ""))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["list"])


def test_a_run_is_resumed_with_its_options_and_finds_its_data(tiny, tmp_path, monkeypatch):
    opened, source = [], DATASETS["tiny"]
    monkeypatch.setitem(DATASETS, "tiny", lambda split, folder: opened.append(folder) or source(split, folder))
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tiny.json").write_text(to_json(tiny))
    monkeypatch.chdir(tmp_path)
    words = ["train", "tiny.json", "--data-dir", "data", "--eval-every", "5", "--metrics", "top5", "--devices", "1"]
    assert main([*words, "--stop-at", "6", "--out", "run"]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened.clear()
    assert main(["train", "../run", "--devices", "1"]) == 0
    assert {Path(folder).resolve() for folder in opened} == {tmp_path / "data"}
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert all("test/top5" in row for row in rows)
    (tmp_path / "run" / "options.json").write_text('{"eval_every": "often"}')
    with pytest.raises(InputError, match=r"options\.json: damaged; delete it"):
        read_options(tmp_path / "run")
