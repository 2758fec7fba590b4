"""A report as files: where it is written, all or nothing, and what is refused."""

import json
from pathlib import Path

import pytest
from fabricated import vary, write_run
from PIL import Image

import resnet_jax.report.make
import resnet_jax.report.page
from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.report import make_report
from resnet_jax.report.environment import commands
from resnet_jax.report.runs import read_runs

PICTURES = {"loss.png", "error.png", "rate.png", "speed.png", "waiting.png"}


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures by their names, for tests of files: to draw them takes seconds."""
    monkeypatch.setattr(resnet_jax.report.make, "as_png", lambda picture: picture.name.encode())
    for module in (resnet_jax.report.page, resnet_jax.report.tables):
        monkeypatch.setattr(module, "as_svg", lambda picture: picture.name)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run")


def test_one_run_is_reported_in_its_directory_and_twice_the_same_bytes(run, tmp_path, capsys):
    assert main(["report", "run", "--curves-only"]) == 0
    assert names(run / "report") == {"index.html", *PICTURES}
    assert capsys.readouterr().out == "run/report/index.html: 1 run of 1 recipe\n"
    for name in PICTURES:
        with Image.open(run / "report" / name) as picture:
            assert picture.width > 500
    again = make_report([run], tmp_path / "again", answers=False).page.parent
    assert all((run / "report" / name).read_bytes() == (again / name).read_bytes() for name in names(again))


def test_several_runs_are_reported_in_report_and_leftovers_go(run, undrawn, tmp_path, capsys):
    write_run(tmp_path / "other", vary(batch_size=32), last=20)
    assert main(["report", "run", "other", "--curves-only"]) == 0
    out = capsys.readouterr().out
    assert out == "other is not finished: step 20 of 30.\nreport/index.html: 2 runs of 2 recipes\n"
    assert names(tmp_path / "report") == {"index.html", "final.png", *PICTURES}
    (tmp_path / "report" / "mine.txt").touch()
    assert main(["report", "run", "--curves-only", "--out", "report"]) == 0
    assert names(tmp_path / "report") == {"index.html", "mine.txt", *PICTURES}


def test_pictures_of_any_metric_go_with_it(run, undrawn, tmp_path):
    """An earlier report says which pictures are its own; those of others stay."""
    new = {"test/macro_f1": 0.5, "test/our/own score": -1.0}
    make_report([write_run(tmp_path / "new", vary(seed=1), **new)], Path("report"), answers=False)
    assert names(tmp_path / "report") == {"index.html", "macro_f1.png", "our-own-score.png", *PICTURES}
    (tmp_path / "report" / "mine.png").touch()
    make_report([run], Path("report"), answers=False)
    assert names(tmp_path / "report") == {"index.html", "mine.png", *PICTURES}


def test_a_run_without_data_and_checkpoints_is_still_reported(run, undrawn):
    made = make_report([run])
    (note,) = made.notes
    assert note.startswith("run: left out of the confusion matrix and mistakes: ")
    assert note in made.page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing: not a run directory (no recipe.json)"),
        (["run", "nothing"], "nothing: not a run directory (no recipe.json)"),
        ([], "report: name at least one run directory"),
        (["run", "--out", "full"], "full: exists and is not a report; choose another --out"),
        (["run", "--out", "full/a.txt"], "full/a.txt: is a file; choose another --out"),
        (["run", "--curve"], "unknown field '--curve'; nearest: --curves-only"),
    ],
)
def test_what_cannot_be_reported_is_one_line(run, tmp_path, capsys, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    before = names(tmp_path)
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert names(tmp_path) == before


def test_runs_that_have_measured_nothing_yet_are_no_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "begun", accuracies=())
    assert main(["report", "begun"]) == 2
    assert capsys.readouterr().err == "resnet-jax: begun: no metrics yet; a report needs at least one epoch\n"
    assert not (tmp_path / "begun" / "report").exists()


def test_commands_can_be_pasted(tmp_path):
    run = write_run(tmp_path / "run")
    (start,) = json.loads((run / "environment.json").read_text())
    started = [
        {"command": ["/home/a/.venv/bin/resnet-jax", "train", "a b.py"]},
        {"command": ["/home/a/resnet_jax/__main__.py", "train", "run"]},
        {"command": ["experiments/tasks/a b.py", "--out", "x"]},
        {"command": ["/home/a/pytest/__main__.py"]},
    ]
    (run / "environment.json").write_text(json.dumps([start | each for each in started]))
    assert commands(read_runs([run])) == [
        "run: resnet-jax train 'a b.py'",
        "run: python -m resnet_jax train run",
        "run: python 'experiments/tasks/a b.py' --out x",
        "run: python /home/a/pytest/__main__.py",
    ]


def test_what_fails_leaves_the_report_before_it(run, undrawn, monkeypatch):
    out = make_report([run], answers=False).page.parent
    before = {name: (out / name).read_bytes() for name in names(out)}

    def fail(contents):
        raise InputError("no page")

    monkeypatch.setattr(resnet_jax.report.make, "make_page", fail)
    with pytest.raises(InputError, match="no page"):
        make_report([run], answers=False)
    assert {name: (out / name).read_bytes() for name in names(out)} == before


@pytest.mark.parametrize(("shape", "image"), [((100, 1), "100 x 1"), ((16, 112, 112, 3), "16 x 112 x 112 x 3")])
def test_runs_of_sequences_and_of_video(run, undrawn, tmp_path, shape, image):
    other = write_run(tmp_path / "other", shape=shape)
    made = make_report([run, other], answers=False)
    page = made.page.read_text()
    assert [variant.label for variant in made.variants] == ["image 8 x 8 x 1", f"image {image}"]
    assert f">{image}<" in page
