"""Weights on a tree of 100 photos: accuracies, label sets and views counted by hand, tables, and what goes on."""

import csv
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.data.formats.imagenet import imagenet_classes
from resnet_jax.errors import InputError
from resnet_jax.inference import sums
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.inference.validate import published_accuracy, read_table
from resnet_jax.training import evaluate as evaluation
from resnet_jax.weights.entries import WEIGHTS
from resnet_jax.weights.load import create_model
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.tensors import write_tensors

SIZE, CROP, MEAN, STD = 24, 0.75, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
INFO = {"model": "resnet8", "image_size": SIZE, "crop_pct": CROP, "interpolation": "bicubic", "mean": MEAN, "std": STD}
SYNSETS = list(imagenet_classes())


@pytest.fixture(scope="module")
def tree(real_data, tmp_path_factory):
    """The first 100 photos as validation images; the numbers in their names run backwards."""
    home = tmp_path_factory.mktemp("imagenet")
    photos = [path for path in sorted((real_data / "imagenet_jpegs").rglob("*")) if path.is_file()]
    for number, photo in enumerate(photos[:100]):
        folder = home / "val" / photo.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{100 - number:08d}.JPEG").symlink_to(photo)
    return home


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network for 1,000 classes whose logits differ between images."""
    model = create_model("resnet8", num_classes=1000, input_shape=(SIZE, SIZE, 3))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape) * 2
    file = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    write_tensors(file, to_state_dict(model, variables))
    return file, lambda x: np.asarray(jax.jit(model.apply)(variables, x.astype(np.float32)), np.float64)


def files_of(tree):
    """Files in the order of the data set, with their classes."""
    files = [file for folder in sorted((tree / "val").iterdir()) for file in sorted(folder.iterdir())]
    return files, np.array([SYNSETS.index(file.parent.name) for file in files])


def crops(file):
    """Centre and corners as Pillow cuts them, normalised: (5, SIZE, SIZE, 3)."""
    with Image.open(file) as picture:
        picture = picture.convert("RGB") if picture.getexif().get(0x0112, 1) == 1 else upright(picture)
    side = int(SIZE / CROP)
    w, h = picture.size
    size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    right, down = size[0] - SIZE, size[1] - SIZE
    places = [(round(right / 2), round(down / 2)), (0, 0), (right, 0), (0, down), (right, down)]
    pixels = [np.asarray(picture.crop((x, y, x + SIZE, y + SIZE))) for x, y in places]
    return (np.stack(pixels) / 255 - MEAN) / STD


def upright(picture):
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture).convert("RGB")


@pytest.fixture(scope="module")
def probabilities(tree, network):
    """Of every view: (100, 2 mirrored, 5, 1000)."""
    files, labels = files_of(tree)
    x = np.stack([crops(file) for file in files])
    both = np.stack([x, x[..., ::-1, :]], 1)
    logits = network[1](both.reshape(1000, SIZE, SIZE, 3)).reshape(100, 2, 5, 1000)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True), labels


def measured(network, data, views=1, **options):
    metrics = ("accuracy", "top5", "calibration_error")
    return evaluate(network[0], weights=WeightsInfo(data=data, **INFO), metrics=metrics, views=views, **options).values


def by_hand(probs, labels):
    order = np.argsort(-probs, axis=1)
    return {
        "errors": int((order[:, 0] != labels).sum()),
        "top5": float((order[:, :5] == labels[:, None]).any(1).mean()),
        "loss": float(-np.log(probs[np.arange(len(labels)), labels]).mean()),
    }


@pytest.mark.parametrize(
    ("views", "taken"),
    [(1, np.s_[:, :1, :1]), (2, np.s_[:, :, :1]), (5, np.s_[:, :1]), (10, np.s_[:])],
)
def test_views_are_averaged_and_each_image_counts_once(tree, network, probabilities, tmp_path, views, taken):
    probs, labels = probabilities
    found = measured(network, f"imagenet:{tree}", views)
    expected = by_hand(probs[taken].mean((1, 2)), labels)
    assert found["count"] == 100
    assert found["errors"] == expected["errors"]
    assert found["top5"] == pytest.approx(expected["top5"])
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_any_of_the_real_labels_is_right(tree, network, probabilities, tmp_path):
    probs, labels = probabilities
    probs = probs[:, 0, 0]
    files, _ = files_of(tree)
    order = np.argsort(-probs, axis=1)
    lists = [[] for _ in range(100)]
    for place, file in enumerate(files):
        number = int(file.stem.rpartition("_")[2])
        # Of five images none, otherwise the class and, for every third, also what the network says
        lists[number - 1] = [] if place % 20 == 7 else [int(labels[place])] + [int(order[place, 0])] * (place % 3 == 0)
    (tree / "real.json").write_text(json.dumps(lists))
    kept = [place for place in range(100) if place % 20 != 7]
    found = measured(network, f"imagenet_real:{tree}")
    right = [place for place in kept if place % 3 == 0 or order[place, 0] == labels[place]]
    assert found["count"] == 95
    assert found["errors"] == 95 - len(right)
    top5 = [place for place in kept if place % 3 == 0 or labels[place] in order[place, :5]]
    assert found["top5"] == pytest.approx(len(top5) / 95)
    wrongs = ("{", "no list of labels"), ("[[1000]]", "a label that is not a class"), ("[[]]", "no number from")
    for wrong, message in wrongs:
        (tree / "real.json").write_text(wrong)
        with pytest.raises(InputError, match=message):
            measured(network, f"imagenet_real:{tree}")


def test_sets_of_few_classes_are_compared_among_them(tree, network, probabilities, tmp_path):
    probs, labels = probabilities
    present = np.unique(labels)
    among = probs[:, 0, 0][:, present]
    among = among / among.sum(1, keepdims=True)
    found = measured(network, f"imagenet_a:{tree / 'val'}")
    expected = by_hand(among, np.searchsorted(present, labels))
    assert (found["errors"], found["count"]) == (expected["errors"], 100)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert found["errors"] < by_hand(probs[:, 0, 0], labels)["errors"]


def test_folders_may_be_numbers_of_classes(tree, network, tmp_path):
    for folder in (tree / "val").iterdir():
        (tmp_path / "v2").mkdir(exist_ok=True)
        (tmp_path / "v2" / str(SYNSETS.index(folder.name))).symlink_to(folder)
    by_number = measured(network, f"imagenet_v2:{tmp_path}/v2")
    by_synset = measured(network, f"imagenet:{tree}")
    assert (by_number["errors"], by_number["count"]) == (by_synset["errors"], 100)


def words(network, tree, *more):
    flags = [f"--{name.replace('_', '-')}" for name in INFO]
    values = [value if isinstance(value, tuple) else (value,) for value in INFO.values()]
    pairs = itertools.chain.from_iterable((flag, *map(str, value)) for flag, value in zip(flags, values, strict=True))
    return ["evaluate", str(network[0]), "--data", f"imagenet:{tree}", *pairs, *more]


def test_a_table_of_several_weights(tree, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("copy.safetensors").write_bytes(network[0].read_bytes())
    command = words(network, tree, "--csv", "results.csv")
    assert main([*command[:2], "copy.safetensors", *command[2:]]) == 0
    out = capsys.readouterr().out
    assert "results.csv: 2 of 2 newly measured" in out
    assert f"copy.safetensors on imagenet:{tree}, test, 100 examples: loss " in out
    rows = list(csv.DictReader(Path("results.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == [str(network[0]), "copy.safetensors"]
    first = {name: value for name, value in rows[0].items() if name != "model"}
    assert first == {name: value for name, value in rows[1].items() if name != "model"}
    assert float(first["top1"]) == pytest.approx(100 - int(first["errors"]))
    assert list(first)[:3] == ["img_size", "top1", "top1_err"]
    assert (first["img_size"], first["crop_pct"], first["views"]) == ("24", "0.750", "1")
    # Rows that are there are not measured again, but for other views
    assert main(command) == 0
    assert "0 of 1 newly measured" in capsys.readouterr().out
    assert main([*command, "--views", "2"]) == 0
    assert len(read_table(Path("results.csv"))) == 3
    Path("other.csv").write_text("a,b\n")
    assert main(words(network, tree, "--csv", "other.csv")) == 2
    assert "other.csv: not a table that `resnet-jax evaluate --csv` wrote" in capsys.readouterr().err
    assert not Path("results.csv.part").exists()


def test_an_interrupted_evaluation_goes_on(tree, network, tmp_path, monkeypatch):
    """After three of its batches, and with the same bits."""
    monkeypatch.setattr(sums, "_SECONDS", 0.0)
    batches = evaluation.evaluation_batches
    monkeypatch.setattr(evaluation, "evaluation_batches", lambda split, size, first=0: batches(split, 8, first))
    whole = measured(network, f"imagenet:{tree}")
    taken, add = [], evaluation.add_batch

    def killed(*args):
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return add(*args)

    monkeypatch.setattr(evaluation, "add_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(network, f"imagenet:{tree}", progress=tmp_path / "x.part")
    assert json.loads((tmp_path / "x.part").read_text())["batches"] == 3
    taken.clear()
    monkeypatch.setattr(evaluation, "add_batch", lambda *args: taken.append(1) or add(*args))
    assert measured(network, f"imagenet:{tree}", progress=tmp_path / "x.part") == whole
    assert len(taken) == 13 - 3
    assert not (tmp_path / "x.part").exists()
    # Sums of something else are not taken
    (tmp_path / "x.part").write_text(json.dumps({"key": "other", "batches": 3, "totals": {"count": 24}}))
    assert measured(network, f"imagenet:{tree}", progress=tmp_path / "x.part") == whole


def test_published_numbers_are_of_the_set_and_of_one_view():
    name, entry = "resnetv2_50.a1h_in1k", WEIGHTS["resnet50v2.a1h_in1k"]
    scores = dict(entry.scores)
    for family, number in (("imagenet", entry.top1), ("imagenet_real", scores["real"]), ("imagenet_a", scores["a"])):
        assert published_accuracy(name, WeightsInfo(data=f"{family}:x"), None, 1) == number
    assert published_accuracy(name, WeightsInfo(data="imagenet:x"), None, 2) is None
    assert published_accuracy(name, WeightsInfo(data="imagenet:x", image_size=288), None, 1) is None
    assert published_accuracy(name, WeightsInfo(data="cifar10"), None, 1) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "imagenet:nowhere"], "nowhere: no such folder"),
        (["--data", "imagenet:."], "no folders of ImageNet's classes here, such as n01440764 or 0"),
        (["--csv", "no/x.csv"], "no: no such folder; make it, or name another file"),
    ],
)
def test_wrong_use_is_one_line(tree, network, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    assert main(words(network, tree, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
