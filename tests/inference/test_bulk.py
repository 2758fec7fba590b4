"""Tables of predictions and features of many images: equal to those of one, whatever happens in between."""

import csv
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from untrained import write_run

from resnet_jax.cli.main import main
from resnet_jax.data.datasets import digits
from resnet_jax.errors import InputError
from resnet_jax.inference import bulk
from resnet_jax.inference.bulk import embed_to, predict_to
from resnet_jax.inference.images import Item, as_items, iterate_images, skip_known
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.predict import predict
from resnet_jax.inference.rows import append_rows, open_rows
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.inference.stream import embed_each, map_images, predict_each
from resnet_jax.recipe import Augment, Data, Model, Recipe
from resnet_jax.weights.load import create_model
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.tensors import write_tensors

CLASSES = ("ant", "bee", "cat")
RECIPE = Recipe(
    model=Model(name="resnet8", fields={"width": 4}),
    data=Data(name="folder:pets", image_size=12, crop_pct=1.0, interpolation="bilinear", mean=(0.5,), std=(0.25,)),
    augment=Augment(crop_padding=0),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 16, 14, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", RECIPE, (12, 12, 3), CLASSES)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Eleven images in three folders, of which the sixth cannot be read."""
    home = tmp_path_factory.mktemp("data") / "pets"
    for number, image in enumerate(PIXELS):
        (home / "val" / CLASSES[number // 4]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / "val" / CLASSES[number // 4] / f"{number:02d}.png")
    (home / "val" / "bee" / "05.png").write_bytes(b"no image")
    (home / "train").symlink_to("val")
    return home


def table(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def names(home):
    return [f"{CLASSES[n // 4]}/{n:02d}.png" for n in range(11)] if home else []


def test_a_table_has_what_predict_says_of_each(run, pets, tmp_path):
    done = predict_to(run, [pets / "val"], tmp_path / "x.csv", 2, batch_size=3)
    assert (done.images, done.resumed, done.unreadable) == (11, 0, 1)
    rows = table(tmp_path / "x.csv")
    assert [row["image"] for row in rows] == names(pets)
    readable = [n for n in range(11) if n != 5]
    alone = predict(run, [pets / "val" / names(pets)[n] for n in readable], 2)
    for n, expected in zip(readable, alone, strict=True):
        assert (rows[n]["class_1"], rows[n]["class_2"]) == expected.classes
        found = [float(rows[n][f"probability_{place}"]) for place in (1, 2)]
        np.testing.assert_allclose(found, expected.probabilities, rtol=1e-5)
        assert rows[n]["error"] == ""
    assert rows[5]["error"].endswith(
        "05.png: not an image that can be read (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, JPEG2000, PPM)"
    )
    assert rows[5]["class_1"] == rows[5]["probability_1"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv"]


def test_formats_agree(run, pets, tmp_path):
    for ending in ("csv", "jsonl", "parquet"):
        predict_to(run, [pets / "val"], tmp_path / f"x.{ending}", 1)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "x.parquet").to_pylist() == lines
    assert [row["class_1"] for row in table(tmp_path / "x.csv")] == [line["class_1"] or "" for line in lines]


@pytest.mark.parametrize(("ending", "lost"), [("csv", 0), ("csv", 3), ("npy", 17)])
def test_a_killed_process_is_continued(run, pets, tmp_path, monkeypatch, ending, lost):
    """Killed after eight rows, with the last of them written in part."""
    write = {"csv": predict_to, "npy": embed_to}[ending]
    write(run, [pets / "val"], tmp_path / f"whole.{ending}", batch_size=4)
    calls = itertools.count()

    def until_killed(rows, new, values=()):
        if next(calls) == 2:
            raise KeyboardInterrupt
        append_rows(rows, new, values)

    monkeypatch.setattr(bulk, "_WRITTEN", 4)
    monkeypatch.setattr(bulk, "append_rows", until_killed)
    with pytest.raises(KeyboardInterrupt):
        write(run, [pets / "val"], tmp_path / f"x.{ending}", batch_size=4)
    monkeypatch.setattr(bulk, "append_rows", append_rows)
    assert not (tmp_path / f"x.{ending}").exists()
    for kind in ("part", "values"):
        file = tmp_path / f"x.{ending}.{kind}"
        file.write_bytes(file.read_bytes()[: -lost or None])
    done = write(run, [pets / "val"], tmp_path / f"x.{ending}", batch_size=4)
    assert done.images == 11
    assert done.resumed == (8 if lost == 0 else 7)
    for name in {f"x.{ending}", "x.jsonl"} & {path.name for path in tmp_path.iterdir()}:
        whole = (tmp_path / name.replace("x", "whole")).read_bytes()
        assert (tmp_path / name).read_bytes() == whole


def test_rows_of_something_else_are_not_continued(run, pets, tmp_path):
    out = tmp_path / "x.csv"
    part = tmp_path / "x.csv.part"
    header = {"what": "other"}
    with open_rows(out, header) as rows:
        append_rows(rows, [{"image": "a"}])
    with pytest.raises(InputError, match=r"x\.csv\.part: holds rows of other images, weights or options; remove it"):
        predict_to(run, [pets / "val"], out)
    part.unlink()
    predict_to(run, [str(pets / "val")], tmp_path / "y.jsonl", 1)
    known = json.loads((tmp_path / "y.jsonl").read_text().splitlines()[0])
    assert known["image"] == "ant/00.png"
    with pytest.raises(InputError, match=r"y\.jsonl: exists; remove it, or name another file"):
        predict_to(run, [pets / "val"], tmp_path / "y.jsonl")


def test_images_that_have_changed_are_noticed(run, tmp_path):
    images = [PIXELS[0], PIXELS[1]]
    with pytest.raises(InputError, match=r"x\.csv\.part: image 3 was '2' and is missing now"):
        skip_known(as_items(images), 3, "2", tmp_path / "x.csv")
    with pytest.raises(InputError, match="image 2 was 'a' and is '1' now"):
        skip_known(as_items(images), 2, "a", tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "x.csv"], "nowhere: no such image, folder, table (.csv) or data set; check the path"),
        (["{pets}/val", "--out", "x.txt"], "is a folder; name the images in it"),
        (["{pets}/val", "--out", "no/x.csv"], "no: no such folder; make it, or name another file"),
        (["{pets}/val", "--out", "x.csv", "--topk", "0"], "--topk is 0; it must be positive"),
        (["{pets}", "--out", "x.csv", "--best"], "no checkpoint"),
        (["empty", "--out", "x.csv"], "empty: no images in this folder"),
        (["odd.csv", "--out", "x.csv"], "odd.csv: its header has no column path or image or file or filename"),
    ],
)
def test_wrong_use_is_one_line(run, pets, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    assert main(["predict", str(run), *(word.format(pets=pets) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.csv").exists()


def test_a_table_names_images_and_labels(run, pets, tmp_path):
    (pets / "list.csv").write_text("label,path\nbee,val/ant/00.png\n,val/ant/01.png\n")
    predict_to(run, [pets / "list.csv"], tmp_path / "x.jsonl", 1)
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [(row["image"], row["label"]) for row in rows] == [("val/ant/00.png", "bee"), ("val/ant/01.png", "")]


def test_a_data_set_has_labels(tmp_path):
    items = list(itertools.islice(iterate_images(["digits"], split="test", data_dir=tmp_path), 2))
    source = digits("test", tmp_path)
    assert [item.label for item in items] == [str(source.read(i).target) for i in (0, 1)]
    assert items[1].name == "test/1"


def test_only_a_few_batches_are_read_ahead(run):
    """Which is why memory does not grow with the number of images."""
    setup, state = load_run(run, 1)
    taken = itertools.count()

    def images():
        for number in range(1000):
            next(taken)
            yield Item(str(number), PIXELS[number % 11])

    answers = map_images(setup, lambda _, x: x.reshape(len(x), -1).sum(1), state, images(), batch_size=4, num_threads=2)
    first = next(answers)
    assert first.item.name == "0"
    assert next(taken) < 40
    assert [answer.item.name for answer in itertools.islice(answers, 20)] == list(map(str, range(1, 21)))


def test_from_an_iterable(run, pets):
    paths = [pets / "val" / "ant" / f"{n:02d}.png" for n in range(4)]
    kinds = [paths[0], str(paths[1]), paths[2].read_bytes(), Image.open(paths[3])]
    found = list(predict_each(run, (image for image in kinds), 3))
    for ours, theirs in zip(found, predict(run, paths, 3), strict=True):
        assert ours.classes == theirs.classes
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-5)
    with pytest.raises(InputError, match=r"0: pixels of float64 \(2, 2, 3\); the network takes uint8 \(h, w, 3\)"):
        list(predict_each(run, [np.zeros((2, 2, 3))]))


@pytest.mark.parametrize(("stage", "pool"), [(None, True), (2, True), (1, False)])
def test_features_are_the_maps_of_the_network(run, pets, tmp_path, stage, pool):
    paths = [pets / "val" / "ant" / f"{n:02d}.png" for n in range(4)]
    embed_to(run, [pets / "val" / "ant"], tmp_path / "x.npy", stage, pool=pool)
    setup, state = load_run(run, 1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    pixels = np.stack([np.asarray(Image.open(p).resize((12, 13), Image.Resampling.BILINEAR)) for p in paths])
    # 16 x 14 to a shorter side of 12: 13 rows, of which the centre is rows 0 to 11
    x = (pixels[:, :12] / 255 - 0.5) / 0.25
    maps = jax.jit(lambda x: setup.model.apply(variables, x.astype(np.float32), method="features"))(x)
    expected = np.asarray(maps[(stage or 3) - 1])
    expected = expected.mean((1, 2)) if pool else expected
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(list(embed_each(run, paths, stage, pool=pool)), expected, rtol=1e-4, atol=1e-4)


def test_weights_without_a_head_have_features(pets, tmp_path):
    model = create_model("resnet8", input_shape=(12, 12, 3))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))
    tensors = to_state_dict(model, variables)
    write_tensors(tmp_path / "whole.safetensors", tensors)
    bare = {f"module.encoder_q.{name}": tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    write_tensors(tmp_path / "moco.safetensors", bare | {"module.encoder_q.fc.weight": np.ones((128, 64), np.float32)})
    weights = WeightsInfo(model="resnet8", image_size=12, mean=(0.5,), std=(0.25,))
    whole, headless = (
        list(embed_each(tmp_path / f"{name}.safetensors", PIXELS[:2], weights=weights)) for name in ("whole", "moco")
    )
    np.testing.assert_array_equal(whole, headless)
    assert headless[0].shape == (64,)
    with pytest.raises(InputError, match="has no head, and so no classes"):
        list(predict_each(tmp_path / "moco.safetensors", PIXELS[:1], weights=weights))
