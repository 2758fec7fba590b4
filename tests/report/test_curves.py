"""The picture of a run."""

import pytest
from matplotlib.axes import Axes
from PIL import Image

from resnet_jax.errors import InputError
from resnet_jax.report.curves import draw_curves


def rows(count, names=("loss", "accuracy")):
    keys = [f"{split}/{name}" for split in ("train", "test") for name in names]
    return [{"step": i, "epoch": float(i), "lr": 0.1, **dict.fromkeys(keys, 1 / (i + 1))} for i in range(count)]


def colors(path):
    """Return the number of different colours in a picture."""
    with Image.open(path) as picture:
        return len(picture.convert("RGB").getcolors(2**24))


@pytest.fixture
def titles(monkeypatch):
    """The titles of the panels that are drawn, with the units of their axes."""
    seen = []

    def note(axes, title, **how):
        seen.append(title)
        return draw(axes, title, **how)

    draw = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", note)
    return seen


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_picture_of_any_number_of_rows(tmp_path, count):
    draw_curves(rows(count), "resnet20 on digits", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size == (1500, 660)
    assert colors(tmp_path / "c.png") > 50


def test_runs_without_accuracy_have_a_picture_of_their_loss(tmp_path, titles):
    draw_curves(rows(5, ("loss",)), "two $ in $ a name", tmp_path / "c.png")
    assert colors(tmp_path / "c.png") > 50
    assert titles == ["Loss"]


def test_a_quantity_may_be_zero_everywhere(tmp_path):
    zeros = [{**row, "train/loss": 0.0, "test/loss": 0.0, "test/accuracy": 1.0} for row in rows(3)]
    draw_curves(zeros, "title", tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_every_metric_has_a_panel_and_none_is_known_by_name(tmp_path, titles):
    """Metrics of the library, one that nobody knows, and counts, which have none."""
    names = ("top5", "macro_f1", "calibration_error", "mae", "r2", "our/own_score")
    more = {f"test/{name}": -0.5 for name in names} | {"test/errors": 3, "test/count": 10}
    draw_curves([row | more for row in rows(3)], "title", tmp_path / "c.png")
    assert titles == [
        "Loss",
        "Error",
        "Top-5 error",
        "Macro f1",
        "Calibration error",
        "Mae",
        "R2",
        "Our/own score",
    ]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="no metrics to draw yet"):
        draw_curves([], "title", tmp_path / "c.png")
