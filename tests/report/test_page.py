"""The page: complete, self-contained, escaped, and the same colour for the same recipe everywhere."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from fabricated import vary, write_run

import resnet_jax.report.svg
from resnet_jax.data.source import Example, Source
from resnet_jax.report.figures import (
    COLORS,
    DARK,
    SPEED,
    as_png,
    confusion_picture,
    curves_of,
    pictures,
    quality_panels,
)
from resnet_jax.report.page import Contents, make_page
from resnet_jax.report.predictions import Predictions
from resnet_jax.report.runs import group_runs, read_runs
from resnet_jax.run_dir.given import given_json
from resnet_jax.tasks.metric import Display
from resnet_jax.tasks.task import TaskFacts

SCRIPT = "<script>alert('$x$')</script>"


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.text, self.content = [], "", content.decode()
        self.feed(self.content)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def svgs(self):
        return re.findall(r"<svg.*?</svg>", self.content, re.S)

    def names(self):
        """The names of the pictures, in a page that is undrawn."""
        return [re.sub("<.*?>", "", svg) for svg in self.svgs()]

    def alts(self):
        return [a.get("alt") or a.get("aria-label") for a in (*self.all("img"), *self.all("svg"))]


def page_of(*paths, answers=None, notes=()):
    variants = group_runs(read_runs(paths))
    return Page(make_page(Contents(variants, answers or [None] * len(variants), notes)))


def answers(classes, wrong=(), channels=1, networks=1):
    """Of networks that are right about three images of each class but for some (place, answer)."""
    label = np.repeat(np.arange(len(classes)), 3)
    answer = np.tile(label, (networks, 1))
    for place, other in wrong:
        answer[:, place] = other
    image = np.zeros((8, 8, channels), np.uint8)
    source = Source(len(label), tuple(classes), lambda i: Example(image, int(label[i])))
    return Predictions(source, label, answer, np.full(answer.shape, 0.75))


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures as their names, for tests of text: to draw them takes seconds."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">{}</svg>'
    monkeypatch.setattr(resnet_jax.report.svg, "saved", lambda figure, salt, **how: svg.format(salt).encode())


@pytest.fixture
def two(tmp_path):
    """Two recipes with three seeds each: 98, 99 and 100 % right, and 88, 89 and 90 %."""
    return [
        write_run(tmp_path / f"{name}{s}", vary(recipe, seed=s), (0.5, end + s / 100))
        for name, recipe, end in (("a", vary(), 0.98), ("b", vary(optimizer_lr=0.2), 0.88))
        for s in range(3)
    ]


def test_the_page_needs_nothing_else(two):
    page = page_of(*two, answers=[answers("ab", [(0, 1)]), None])
    links = [(tag, a[k]) for tag, a in page.elements for k in ("src", "href", "srcset", "data", "action") if k in a]
    assert links
    assert all(link.startswith(("data:", "#")) for _, link in links)
    assert {tag for tag, _ in page.elements} & {"iframe", "object", "base", "form"} == set()
    style = page.text + "".join(a.get("style", "") for _, a in page.elements)
    assert not re.search(r"@import|url\((?!#)", style)  # an SVG refers to its own parts by url(#...)
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page.content)
    (script,) = re.findall(r"<script>(.*?)</script>", page.content, re.S)
    assert "innerHTML" not in script
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.endswith(f"script-src 'sha256-{allowed}'")


def test_the_page_can_be_read_out(two, undrawn):
    page = page_of(*two, answers=[answers("ab", [(0, 1)]), None])
    assert page.all("html") == [{"lang": "en"}]
    assert "resnet20 on digits" in page.text
    assert all(page.alts())
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert any("Error by epoch: lr 0.1, train ends at 1; lr 0.1, test ends at 1;" in alt for alt in page.alts())


def test_results_are_means_over_seeds(two, undrawn):
    text = page_of(*two).text
    for words in (
        "99.00 % ± 1.00 (3)",
        "89.00 % ± 1.00 (3)",
        "60.0 ± 0.0 s (3)",
        "25.00 % ± 0.00 (3)",
        "4 x TPU v5 lite",
    ):
        assert words in text
    assert "optimizer.lr0.10.2" in text
    assert text.index("What differs") < text.index("99.00 % ± 1.00 (3)") < text.index("Curves")


def test_one_run_shows_its_number_alone(tmp_path, undrawn):
    page = page_of(write_run(tmp_path / "run"))
    assert "99.00 %test accuracy, 1 of 100 wrong" in page.text
    assert "±" not in page.text
    assert "Runs" not in page.text


def test_a_recipe_has_one_colour(two):
    variants = group_runs(read_runs(two))
    for panel in (*quality_panels(variants), *SPEED):
        curves = curves_of(panel, variants)
        assert {c.label.split(",")[0]: c.color for c in curves} == {"lr 0.1": COLORS[0], "lr 0.2": COLORS[1]}
    page = page_of(*two)
    swatches = [a["style"] for a in page.all("span") if a.get("class") == "swatch"]
    assert swatches[:2] == ["color:var(--c0)", "color:var(--c1)"]
    assert len(set(swatches)) == 2
    assert len(page.svgs()) == 6
    assert all(f"--c{n}: {color};" in page.text for n, pair in enumerate(DARK.items()) for color in pair)
    for svg in page.svgs():  # colours are named, for a reader in the dark
        drawn = {int(number) for number in re.findall(r"var\(--c(\d+)\)", svg)} & set(range(len(COLORS)))
        assert drawn == {0, 1}
        assert not any(color in svg for color in COLORS)
    ids = re.findall(r'\bid="(.*?)"', page.content)
    assert len(ids) == len(set(ids)) > 6


def test_the_script_has_the_values_of_the_curves(two, undrawn):
    plots = [json.loads(a["data-plot"]) for a in page_of(*two).all("svg") if "data-plot" in a]
    loss, error = plots[:2]
    assert {plot["x"] for plot in plots} == {"epoch"}
    assert [curve[:3] for curve in loss["curves"]] == [
        [f"lr {lr}, {split}", f"var(--c{n})", split == "train"]
        for n, lr in enumerate((0.1, 0.2))
        for split in ("train", "test")
    ]
    (left, low, *first), (right, high, *last) = error["curves"][1][3]
    assert (first, last) == (["1.5", "50"], ["3", "1 (0 to 2)"])
    assert left < right
    assert low < high  # a smaller error is drawn further down


def test_a_curve_is_drawn_where_the_script_says(tmp_path):
    """The line of the picture goes through the points of the script, on a log scale that has no 0 as well."""
    page = page_of(write_run(tmp_path / "run", accuracies=(0.5, 0.9, 1.0)))
    for svg, name in zip(page.svgs()[:2], ("loss", "error"), strict=True):
        points = json.loads(Page(svg.encode()).all("svg")[0]["data-plot"])["curves"][1][3]
        drawn = re.findall(r'd="M ([\d.]+ [\d.]+) L ([\d.]+ [\d.]+)', " ".join(svg.split()))
        starts = [[float(x) for x in " ".join(pair).split()] for pair in drawn]
        told = points[0][:2] + points[1][:2]
        assert any(np.allclose(told, start, atol=0.1) for start in starts), name


def test_text_of_users_is_text(tmp_path):
    recipe = vary(data_name=f"folder:{SCRIPT}")
    run = write_run(tmp_path / "<b>run", recipe, classes=(SCRIPT, "b"))
    other = write_run(tmp_path / "other", vary(data_name="folder:$y$"))
    page = page_of(run, other, answers=[answers((SCRIPT, "b"), [(0, 1)]), None], notes=[SCRIPT])
    assert len(page.all("script")) == 1
    assert not any(tag == "b" and attributes for tag, attributes in page.elements)
    assert page.text.count(SCRIPT) > 5
    assert "<b>run" in page.text
    assert any(SCRIPT in a.get("data-plot", "") for a in page.all("svg"))


def test_odd_names_leave_a_page_that_can_be_read(tmp_path):
    """Control characters, bytes that are not UTF-8, formulas."""
    odd = "$x^{$\x1b\x00\udcff"
    page = page_of(write_run(tmp_path / "run", classes=(odd, "b")), answers=[answers((odd, *"bcdefghijklmnopqrst"))])
    for svg in page.svgs():
        ElementTree.fromstring(svg)
    assert as_png(confusion_picture([(odd, answers((odd, "b")))])).startswith(b"\x89PNG")


def test_the_matrix_of_few_classes_is_a_table(tmp_path, undrawn):
    page = page_of(write_run(tmp_path / "run"), answers=[answers("abc", [(0, 2), (1, 2)])])
    cells = [a["class"] for a in page.all("td") if a.get("class") in ("right", "wrong", "none")]
    assert cells == ["right", "none", "wrong", "none", "right", "none", "none", "none", "right"]
    assert "All 9 images of the test split" in page.text
    assert page.text.count("75.0 %, #") == 2  # a picture of each mistake
    assert [i["alt"] for i in page.all("img") if i.get("class") == "small"] == ["predicted c, true a"] * 2


def test_each_class_has_its_precision_recall_and_f1(tmp_path, undrawn):
    page = page_of(write_run(tmp_path / "run"), answers=[answers("abcd", [(0, 2), (1, 2)])])
    rows = cells(page.content.encode())
    assert ["a", "100.0 %", "33.3 %", "50.0 %", "3"] in rows
    assert ["c", "60.0 %", "100.0 %", "75.0 %", "3"] in rows
    assert ["mean", "90.0 %", "83.3 %", "81.2 %", "12"] in rows
    assert ["a", "c", "2", "66.7 %"] in rows  # confused
    assert "wide numbers sortable" in {a.get("class") for a in page.all("div")}
    assert "Most confused pairs" not in page_of(write_run(tmp_path / "other"), answers=[answers("ab")]).text


def test_a_mistake_is_shown_beside_its_heat_map(tmp_path, undrawn):
    heat = {0: np.eye(8, dtype=np.float32)}
    page = page_of(write_run(tmp_path / "run"), answers=[answers("abc", [(0, 2), (1, 2)])._replace(heat=heat)])
    shown = [i["alt"] for i in page.all("img") if i.get("class") == "small"]
    assert shown == ["predicted c, true a", "where it sees c", "predicted c, true a"]
    assert "Beside it, where the network sees the predicted class (Grad-CAM)." in page.text


@pytest.mark.parametrize(("classes", "pictures"), [(21, 7), (201, 6)])
def test_many_classes_are_told_by_their_confusions(tmp_path, undrawn, classes, pictures):
    names = [f"class {i}" for i in range(classes)]
    page = page_of(write_run(tmp_path / "run"), answers=[answers(names, [(0, 5), (1, 5), (9, 1)], channels=2)])
    assert len(page.svgs()) == pictures
    assert ("confusion" in page.names()) is (classes < 200)
    assert "class 0class 5266.7 %class 3class 1133.3 %" in page.text
    assert not any(a.get("class") == "mistakes" for a in page.all("div"))  # two channels are no picture


def test_regression_has_a_loss_alone(tmp_path, undrawn):
    page = page_of(write_run(tmp_path / "run", vary(loss_name="mse"), (None, None, None)))
    assert "0.0667test loss" in page.text
    assert "accuracy" not in page.text.split("All 91 fields")[0].split("}")[-1]
    assert page.names() == ["loss", "rate", "speed", "waiting"]


MORE = {
    "test/top5": 0.95,
    "test/macro_f1": 0.5,
    "test/calibration_error": 0.0123,
    "test/mae": 2.5,
    "test/own_score": -1.5,
    "ema/test/own_score": -2.0,
}


def cells(page):
    """The text of the cells of each table row."""
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page.decode())]


def test_any_metric_has_a_column_and_a_panel(tmp_path):
    """Known to the library or not, it is shown by how it wants to be: in percent, or as a number, negative as well."""
    paths = [write_run(tmp_path / str(seed), vary(seed=seed), **MORE) for seed in range(2)]
    variants = group_runs(read_runs(paths))
    content = make_page(Contents(variants, [None], []))
    results, runs = (row for row in cells(content) if "test top5" in row)
    named = ["test accuracy", "test top5", "test macro f1", "test calibration error", "test mae", "test own score"]
    assert results == ["recipe", *named, "test loss", "EMA own score", "train accuracy"]
    assert runs[:-3] == ["run", "seed", "steps", *results[1:]]
    values = [
        ["99.00 %", "95.00 %", "0.5000", "0.0123", "2.5000", "-1.5000", "0.0667", "-2.0000", "99.00 %"],
        ["±", "±", "±", "±", "±", "±", "±", "±", "±"],
    ]
    (mean,) = (row for row in cells(content) if row[0].startswith("resnet20") and len(row) == len(results))
    for cell, number, sign in zip(mean[1:], *values, strict=True):
        assert cell.startswith(f"{number} {sign} 0.00")
        assert cell.endswith("(2)")
    (first,) = (row for row in cells(content) if row[0] == "0" and len(row) == len(runs))
    assert first[3:-3] == values[0]
    panels = quality_panels(variants)
    titles = ["Loss", "Error", "Top-5 error", "Macro f1", "Calibration error", "Mae", "Own score"]
    assert [panel.title for panel in panels] == titles
    drawn = {
        panel.name: picture.draw(False).axes[0]
        for panel, picture in zip(panels, pictures(panels, variants), strict=True)
    }
    assert drawn["own_score"].get_ylim()[0] < -2  # an axis from 0 would show nothing of it
    assert drawn["mae"].get_ylim()[0] == 0
    assert drawn["top-5-error"].get_yscale() == "log"
    assert {name: axes.lines[-1].get_ydata()[-1] for name, axes in drawn.items()} == pytest.approx(
        {
            "loss": 2 / 30,
            "error": 1,
            "top-5-error": 5,
            "macro_f1": 0.5,
            "calibration_error": 0.0123,
            "mae": 2.5,
            "own_score": -2,
        }
    )


def test_a_task_given_as_a_value_is_shown_as_it_wants_to_be(tmp_path):
    """From what the run directory records: a network, a task and an optimiser that nothing else knows."""
    display = {"iou": Display(percent=True, complement="loss of overlap"), "pixels": Display(shown=False)}
    given = {"model": "Segmenter", "task": TaskFacts("iou", "ranked", display), "optimizer": "lion"}
    run = write_run(tmp_path / "run", accuracies=(None,), **{"test/iou": 0.75, "test/pixels": 99})
    (run / "given.json").write_text(given_json(given))
    variants = group_runs(read_runs([run]))
    page = make_page(Contents(variants, [None], []))
    assert "resnet20" not in page.decode()
    assert variants[0].label == "Segmenter"
    rows = dict(row for row in cells(page) if len(row) == 2)
    assert rows["model.name"] == "Segmenter, passed as a value"
    assert rows["loss.name"] == "monitors iou, passed as a value"
    assert rows["optimizer.name"] == "lion, passed as a value"
    assert (rows["optimizer.momentum"], rows["optimizer.lr"], rows["schedule.name"]) == ("-", "0.1", "cosine")
    assert '<p class="number">75.00 %' in page.decode()
    assert [panel.title for panel in quality_panels(variants)] == ["Loss", "Loss of overlap"]
    assert "pixels" not in Page(page).text


def test_unfinished_runs_say_how_far_they_are(tmp_path, undrawn):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", vary(optimizer_lr=0.2), last=15)]
    page = page_of(*paths)
    assert "lr 0.2step 15 of 3099.00 %" in page.text
    assert "lr 0.199.00 %" in page.text


def test_nothing_measured_yet(tmp_path, undrawn):
    page = page_of(write_run(tmp_path / "run", accuracies=()))
    assert "Nothing has been measured yet." in page.text
    assert not page.svgs()


def test_no_environment_and_a_single_line(tmp_path):
    run = write_run(tmp_path / "run", accuracies=(1.0,))
    (run / "environment.json").unlink()
    page = page_of(run)
    assert "hardwareunknown" in page.text
    assert len(page.svgs()) == 5
