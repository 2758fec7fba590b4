"""TensorFlow Datasets prepared as ArrayRecord, without TensorFlow: by path, by name, and what is refused."""

import io
import json
import logging
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data.datasets import found_in, open_split, takes_preprocessing
from resnet_jax.data.formats.folder import CHOOSE
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import MissingSplitError, source_digest, to_arrays
from resnet_jax.errors import InputError

FEATURES = {
    "id": tfds.features.Text(),
    "image": tfds.features.Image(shape=(8, 8, 3)),
    "label": tfds.features.ClassLabel(names=["ant", "bee"]),
}


def png(level, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, "PNG")
    return file.getvalue()


def rows(count):
    return [{"id": str(i), "image": png(i), "label": i % 2} for i in range(count)]


def build(folder, *, features=FEATURES, supervised=None, splits=None, name="pets", shuffled=False):
    """Prepares a data set below `folder`; the folder of its version."""
    splits = {"train": rows(20), "test": rows(6)} if splits is None else splits

    class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            info = {"features": tfds.features.FeaturesDict(features), "supervised_keys": supervised}
            return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, **info)

        def _split_generators(self, manager):
            return {split: self._generate_examples(values) for split, values in splits.items()}

        def _generate_examples(self, values):
            yield from enumerate(values)

    Pets.name = name
    builder = Pets(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(str(builder.data_path))


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    tfds.disable_progress_bar()
    return build(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", ["pets", "pets:1.0.0", "pets:1.*.*", "./pets/1.0.0"])
def test_by_name_and_by_path(pets, name):
    folder = pets.parent.parent
    assert takes_preprocessing(f"tfds:{name}")
    assert found_in(f"tfds:{name}", folder) == folder
    for split, size in (("train", 20), ("test", 6)):
        source = open_split(f"tfds:{name}", split, folder)
        assert (source.size, source.classes) == (size, ("ant", "bee"))
        images, labels = to_arrays(source)
        assert images[:, 0, 0, 0].tolist() == list(range(size))
        assert labels.tolist() == [0, 1] * (size // 2)


def test_by_absolute_path_and_of_another_size(pets):
    source = open_split(
        f"tfds:{pets}", "train", Path("elsewhere"), selection=Selection(5), preprocessing=Preprocessing(image_size=4)
    )
    assert to_arrays(source)[0].shape == (15, 4, 4, 3)


def test_threads_and_other_processes(pets):
    source = open_split(f"tfds:{pets}", "train", Path())
    with ThreadPoolExecutor(8) as pool:
        levels = list(pool.map(lambda index: source.read(index % 20).image[0, 0, 0], range(400)))
    assert levels == list(range(20)) * 20
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read(7).image[0, 0])\n"
    code += "print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    assert done.stdout.decode().split("\n")[:2] == ["[7 7 7]", "False"]
    assert done.stderr == b""


def test_the_keys_are_those_of_supervised_learning(tmp_path):
    features = FEATURES | {
        "mask": tfds.features.Image(shape=(8, 8, 1)),
        "kind": tfds.features.ClassLabel(num_classes=3),
    }
    splits = {"train": [row | {"mask": png(0), "kind": 2} for row in rows(4)]}
    home = build(tmp_path, features=features, supervised=("image", "kind"), splits=splits)
    source = open_split(f"tfds:{home}", "train", tmp_path)
    assert source.classes == ("0", "1", "2")
    assert [source.read(index).target for index in range(4)] == [2] * 4
    info = json.loads((home / "dataset_info.json").read_text())
    del info["supervisedKeys"]
    (home / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(
        InputError, match=r"needs one Image feature, has id \(Text\), image \(Image\), .*, mask \(Image\);"
    ):
        open_split(f"tfds:{home}", "train", tmp_path)


def test_the_validation_split_is_the_test_split_where_there_is_none(tmp_path):
    home = build(tmp_path / "a", splits={"train": rows(4), "validation": rows(2)})
    assert open_split(f"tfds:{home}", "test", tmp_path).size == 2
    home = build(tmp_path / "b", splits={"train": rows(4)})
    with pytest.raises(MissingSplitError, match="no test or validation split, only train"):
        open_split(f"tfds:{home}", "test", tmp_path)


def test_a_test_split_without_labels_leaves_the_validation_split(tmp_path):
    unlabelled = [row | {"label": -1} for row in rows(3)]
    home = build(tmp_path / "a", splits={"train": rows(4), "validation": rows(2), "test": unlabelled})
    source = open_split(f"tfds:{home}", "test", tmp_path)
    assert source.size == 2
    assert source.notes == (f"the test split is validation of {home}: test has no labels",)
    home = build(tmp_path / "b", splits={"train": rows(4), "validation": rows(2), "test": rows(3)})
    source = open_split(f"tfds:{home}", "test", tmp_path)
    assert source.size == 3
    assert source.notes == (f"the test split is test of {home}: not validation; {CHOOSE}",)
    assert open_split(f"tfds:{home}", "test", tmp_path, test_split="validation").size == 2
    with pytest.raises(MissingSplitError, match="no dev split, only"):
        open_split(f"tfds:{home}", "test", tmp_path, test_split="dev")


def test_grey_images_and_images_of_several_sizes(tmp_path):
    features = FEATURES | {"image": tfds.features.Image(shape=(None, None, 1))}
    splits = {"train": [row | {"image": png(5, (8 + i, 9))} for i, row in enumerate(rows(4))]}
    home = build(tmp_path, features=features, splits=splits)
    source = open_split(f"tfds:{home}", "train", tmp_path, preprocessing=Preprocessing(image_size=6))
    np.testing.assert_array_equal(source.read(3).image, np.full((6, 6, 1), 5))
    with pytest.raises(InputError, match=r"1\.0\.0: images of 9 x 8 and 9 x 9 pixels; set data.image_size"):
        open_split(f"tfds:{home}", "train", tmp_path)


def test_a_label_of_no_class_is_refused_at_once(tmp_path):
    splits = {"train": [row | {"label": -1} for row in rows(2)]}
    home = build(tmp_path, splits=splits)
    with pytest.raises(InputError, match=r"train example 0: label -1, expected 0 to 1"):
        open_split(f"tfds:{home}", "train", tmp_path, preprocessing=Preprocessing(image_size=4))


def test_an_image_that_is_none(tmp_path):
    home = build(tmp_path, splits={"train": [row | {"image": b"text"} for row in rows(2)]})
    source = open_split(f"tfds:{home}", "train", tmp_path, preprocessing=Preprocessing(image_size=4))
    with pytest.raises(InputError, match=r"1\.0\.0: train example 1: not an image that can be read"):
        source.read(1)


def test_what_is_not_prepared_names_the_command(tmp_path):
    command = f"tfds build mnist --file_format=array_record --data_dir={tmp_path}"
    with pytest.raises(InputError, match=rf"no data set 'mnist' prepared here; prepare it with `{command}`"):
        open_split("tfds:mnist", "train", tmp_path)
    with pytest.raises(InputError, match=r"no data set 'mnits' prepared here; nearest: .*mnist.*; prepare it"):
        open_split("tfds:mnits", "train", tmp_path)
    with pytest.raises(InputError, match=r"no data set 'cifar10:3.0.2' prepared here; prepare"):
        open_split("tfds:cifar10:3.0.2", "train", tmp_path)
    for name in ("a b", "-"):
        with pytest.raises(InputError, match=rf"tfds:{name}: not the name of a data set"):
            open_split(f"tfds:{name}", "train", tmp_path)
    with pytest.raises(InputError, match=r"gone: no such folder; name the folder of a version"):
        open_split(f"tfds:{tmp_path}/gone", "train", tmp_path)
    with pytest.raises(InputError, match=r"no dataset_info.json in this folder; name the folder of a version"):
        open_split(f"tfds:{tmp_path}", "train", tmp_path)
    with pytest.raises(InputError, match=r"data set 'tfds:' needs a name; give tfds:NAME"):
        open_split("tfds:", "train", tmp_path)


def test_other_labels_of_the_same_size_are_other_data(pets, tmp_path):
    swapped = [row | {"label": 1 - row["label"]} for row in rows(20)]
    other = build(tmp_path, splits={"train": swapped, "test": rows(6)})
    digests = {
        (home, split): source_digest(open_split(f"tfds:{home}", split, tmp_path))
        for home in (pets, other)
        for split in ("train", "test")
    }
    (one,), (two,) = (list(home.glob("*train*")) for home in (pets, other))
    assert one.stat().st_size == two.stat().st_size
    assert digests[pets, "train"] != digests[other, "train"]
    assert digests[pets, "test"] == digests[other, "test"]


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("features.json", '"numClasses": "2"', '"numClasses": "2147483648"', "2,147,483,648 classes, over 1,000,000"),
        ("dataset_info.json", '"name": "train"', f'"name": "{"x" * 300}"', "no train split"),
        ("dataset_info.json", '"name": "pets"', f'"name": "{"x" * 300}"', "File name too long"),
    ],
)
def test_hostile_numbers_and_names(pets, tmp_path, name, before, after, message):
    home = Path(shutil.copytree(pets, tmp_path / "pets"))
    text = (home / name).read_text()
    assert before in text
    (home / name).write_text(text.replace(before, after))
    with pytest.raises(InputError, match=message):
        open_split(f"tfds:{home}", "train", tmp_path)


def test_damaged_and_foreign_folders(pets, tmp_path):
    home = Path(shutil.copytree(pets, tmp_path / "pets"))
    name = f"tfds:{home}"
    (shard,) = home.glob("*train*")
    content = shard.read_bytes()
    middle = content.index(png(11)[20:40]) if png(11)[20:40] in content else len(content) // 2
    shard.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(InputError, match=r"train example \d+ is damaged"):
        to_arrays(open_split(name, "train", tmp_path))
    shard.unlink()
    with pytest.raises(InputError, match=r"train.*: no such shard; prepare the data set again"):
        open_split(name, "train", tmp_path)
    info = (home / "dataset_info.json").read_text()
    (home / "dataset_info.json").write_text(info.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(
        InputError, match=r"prepared as tfrecord, but only array_record can be read; prepare it with `tfds build"
    ):
        open_split(name, "train", tmp_path)
    (home / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"pets: cannot be read \("):
        open_split(name, "train", tmp_path)


TYPES = "tensorflow_datasets.core.features"
PLANTED = {
    "the class of a feature": {"pythonClassName": "planted.Image"},
    "as the protocol buffer spells it": {"python_class_name": "planted.Image"},
    "in a feature": {
        "pythonClassName": f"{TYPES}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": {"pythonClassName": "planted.Image"}}},
    },
    "as older versions write it": {"type": "planted.Image", "content": {}},
    "in a string": {
        "pythonClassName": f"{TYPES}.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"image": {"type": "planted.Image", "content": {}}})},
    },
    "a module of TFDS that has no features": {"pythonClassName": "tensorflow_datasets.scripts.cli.main.Image"},
}


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("kind", PLANTED)
def test_no_module_is_imported_because_a_file_names_it(pets, tmp_path, monkeypatch, kind, by_name):
    home = Path(shutil.copytree(pets, tmp_path / "pets" / "1.0.0"))
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (home / "features.json").write_text(json.dumps(PLANTED[kind]))
    with pytest.raises(InputError, match=r"features\.json: names the feature class .*Image, which is not TFDS's own"):
        open_split("tfds:pets" if by_name else f"tfds:{home}", "train", tmp_path)
    shutil.copy(pets / "features.json", home)
    info = json.loads((home / "dataset_info.json").read_text()) | {"features": PLANTED[kind]}
    (home / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"dataset_info\.json: names the feature class .*Image"):
        open_split("tfds:pets" if by_name else f"tfds:{home}", "train", tmp_path)
    assert not (tmp_path / "imported").exists()


def test_quiet(pets, caplog, capfd):
    with caplog.at_level(logging.INFO, "root"):
        open_split(f"tfds:{pets}", "train", Path())
    assert capfd.readouterr() == ("", "")


def mask_rows(count):
    file = io.BytesIO()
    Image.fromarray(np.array([[1, 2], [3, 3]], np.uint8)).save(file, "PNG")
    return [{"image": png(i, (2, 2)), "label": i % 2, "segmentation_mask": file.getvalue()} for i in range(count)]


def test_boxes(tmp_path):
    each = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["ant", "bee"])}
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "objects": tfds.features.Sequence({**each, "is_difficult": np.bool_}),
    }
    box = tfds.features.BBox(ymin=0.25, xmin=0.5, ymax=1.0, xmax=0.75)
    rows = [
        {"image": png(9), "objects": [{"bbox": box, "label": 1, "is_difficult": True}]},
        {"image": png(5), "objects": []},
    ]
    build(tmp_path, features=features, splits={"train": rows, "test": rows})
    source = open_split("tfds_boxes:pets", "train", tmp_path)
    assert source.classes == ("ant", "bee")
    objects = source.read(0).target
    assert objects.boxes.tolist() == [[4, 2, 6, 8]]
    assert (objects.labels.tolist(), objects.crowd.tolist(), objects.area.tolist()) == ([1], [True], [12])
    assert source.read(1).target.boxes.shape == (0, 4)


def test_masks(tmp_path):
    """As Oxford-IIIT Pet has them: an image, a label, and a mask whose values have no names."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": FEATURES["label"],
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
    }
    splits = {"train": mask_rows(3), "test": mask_rows(2)}
    home = build(tmp_path, features=features, splits=splits, supervised=("image", "label"))
    with pytest.raises(InputError, match=r"no classes\.txt; name the classes in it"):
        open_split("tfds_masks:pets", "train", tmp_path)
    (home / "classes.txt").write_text("void\npet\nbackground\nignore\n")
    source = pickle.loads(pickle.dumps(open_split("tfds_masks:pets", "train", tmp_path)))
    assert (source.size, source.classes) == (3, ("pet", "background"))
    images, masks = to_arrays(source)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert masks.tolist() == [[[0, 1], [255, 255]]] * 3
    assert to_arrays(open_split("tfds:pets", "test", tmp_path))[1].tolist() == [0, 1]
    (home / "classes.txt").write_text("pet\nbackground\n")
    with pytest.raises(InputError, match="pets/1.0.0: train example 0: class 2 in the mask, expected 0 to 1 or 255"):
        open_split("tfds_masks:pets", "train", tmp_path).read(0)


def test_masks_that_have_names_and_data_without_masks(tmp_path, pets):
    features = {
        "image": tfds.features.Image(shape=(2, 2, 3)),
        "label": FEATURES["label"],
        "segmentation_mask": tfds.features.LabeledImage(shape=(2, 2, 1), labels=["a", "void", "b", "c"]),
    }
    build(tmp_path, features=features, splits={"train": mask_rows(1)})
    source = open_split("tfds_masks:pets", "train", tmp_path)
    assert (source.classes, source.read(0).target.tolist()) == (("a", "b", "c"), [[255, 1], [2, 2]])
    with pytest.raises(InputError, match=r"needs one image of 3 channels and one mask of 1, has image \(8, 8, 3\)"):
        open_split(f"tfds_masks:{pets}", "train", tmp_path)
