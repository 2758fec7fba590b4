"""Parquet files of the Hugging Face hub are read at random, with the classes that they name."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import open_split
from resnet_jax.data.source import ChangedDataError, MissingSplitError
from resnet_jax.errors import InputError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
RANDOM = np.random.default_rng(0)
NAMES = {"label": {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def pixels(number):
    return RANDOM.integers(0, 256, (number, 4, 5, 3), np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(path, images, labels, *, column="label", features=None, plain=False, kind=None):
    """A file of two groups of rows, as `datasets` writes it, or with the bytes alone."""
    content = [png(image) for image in images]
    encoded = pa.array(content if plain else [{"bytes": item, "path": None} for item in content])
    table = pa.table({"image": encoded, column: pa.array(labels, kind), "more": ["x"] * len(labels)})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)


@pytest.fixture
def files(tmp_path):
    """Two training files and one of validation, and what is in them."""
    expected = {}
    for name, split, labels in (("train-0", "train", [2, 0, 1]), ("train-1", "train", [1, 1]), ("test-0", "test", [0])):
        images = pixels(len(labels))
        write(tmp_path / f"{name}.parquet", images, labels, features=NAMES)
        expected.setdefault(split, []).extend(zip(images, labels, strict=True))
    return tmp_path, expected


def test_images_and_classes(files):
    folder, expected = files
    for split in ("train", "test", "train"):
        source = pickle.loads(pickle.dumps(open_split("parquet:{split}-*.parquet", split, folder)))
        assert source.classes == ("cat", "dog", "cow")
        assert source.size == len(expected[split])
        for index in reversed(range(source.size)):
            image, label = source.read(index)
            np.testing.assert_array_equal(image, expected[split][index][0])
            assert label == source.labels[index] == expected[split][index][1]
    assert len(list(folder.glob("*.images"))) == 3
    assert not list(folder.glob("*.tmp"))
    with pytest.raises(MissingSplitError, match="no {split} in it"):
        open_split("parquet:train-*.parquet", "test", folder)


def test_labels_are_numbers_or_names(tmp_path):
    write(tmp_path / "train.parquet", pixels(3), [3, 0, 1], plain=True, kind=pa.uint8())
    source = open_split("parquet:train.parquet", "train", tmp_path)
    assert (source.classes, source.labels.tolist()) == (("0", "1", "2", "3"), [3, 0, 1])
    write(tmp_path / "n-train.parquet", pixels(3), ["dog", "cat", "dog"], column="labels")
    write(tmp_path / "n-test.parquet", pixels(1), ["dog"], column="labels")
    for split, labels in (("train", [1, 0, 1]), ("test", [1])):
        source = open_split("parquet:n-{split}.parquet", split, tmp_path)
        assert (source.classes, source.labels.tolist()) == (("cat", "dog"), labels)
    write(tmp_path / "n-test.parquet", pixels(1), ["cow"], column="labels")
    with pytest.raises(InputError, match="no training image has the label 'cow'"):
        open_split("parquet:n-{split}.parquet", "test", tmp_path)


def test_a_copy_is_believed_only_for_its_file(files):
    folder, expected = files
    opened = open_split("parquet:train-*.parquet", "train", folder)
    for name in ("train-0.parquet.images", "train-0.parquet.images.index.npy"):
        good = (folder / name).read_bytes()
        for bad in (b"", b"x" * 300, good[:-40], good + b"x"):
            (folder / name).write_bytes(bad)
            again = open_split("parquet:train-*.parquet", "train", folder)
            np.testing.assert_array_equal(again.read(2).image, expected["train"][2][0])
    with pytest.raises(ChangedDataError, match=r"train-0.parquet.images has changed since it was opened; start again"):
        opened.read(0)
    write(folder / "train-0.parquet", pixels(3), [0, 0, 0], features=NAMES)
    assert open_split("parquet:train-*.parquet", "train", folder).labels.tolist() == [0, 0, 0, 1, 1]


def test_other_files_are_one_line(tmp_path):
    file = tmp_path / "x.parquet"

    def message():
        with pytest.raises(InputError) as error:
            open_split("parquet:x.parquet", "train", tmp_path)
        assert not [path for path in tmp_path.iterdir() if path != file]
        return str(error.value)

    file.write_bytes(b"PAR1 and no more")
    assert "x.parquet: cannot be read or copied" in message()
    write(file, pixels(2), [0, 1], column="kind")
    assert "has the columns image (struct" in message()
    assert message().endswith("expected one of images and one called label")
    write(file, pixels(2), [0.5, 1.5])
    assert "label (double)" in message()
    write(file, pixels(2), [0, None])
    assert "a row has no label; remove such rows" in message()
    table = pa.table({"image": pa.array([b"x", None]), "label": [0, 1]})
    parquet.write_table(table, file)
    assert "image 1 has no bytes; remove such rows" in message()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, which has the files under tmp_path; what was asked of it, of the cache first."""
    module, asked = pytest.importorskip("huggingface_hub"), []

    def download(name, *, repo_type, revision, allow_patterns, local_files_only):
        asked.append((name, repo_type, revision, allow_patterns, local_files_only))
        home = tmp_path / ("cache" if local_files_only else "hub")
        if not home.is_dir():
            raise FileNotFoundError("not there\nand more")
        return str(home)

    monkeypatch.setattr(module, "snapshot_download", download)
    return asked


def test_data_sets_of_the_hub(tmp_path, hub):
    images = pixels(3)
    with pytest.raises(InputError, match=r"^hf:owner/name: cannot be downloaded from the hub \(not there\)$"):
        open_split("hf:owner/name", "train", tmp_path)
    write(tmp_path / "hub" / "plain" / "train-00000-of-00001.parquet", images[:2], [1, 0], features=NAMES)
    write(tmp_path / "hub" / "plain" / "validation-00000-of-00001.parquet", images[2:], [2], features=NAMES)
    hub.clear()
    source = open_split("hf:owner/name@v1", "test", tmp_path)
    np.testing.assert_array_equal(source.read(0).image, images[2])
    assert (source.classes, source.labels.tolist()) == (("cat", "dog", "cow"), [2])
    assert hub == [("owner/name", "dataset", "v1", "*.parquet", local) for local in (True, False)]
    write(tmp_path / "hub" / "other" / "train-0.parquet", images, [0, 1, 2])
    with pytest.raises(InputError, match="Parquet files in other, plain; name one of them, hf:owner/name/FOLDER"):
        open_split("hf:owner/name", "train", tmp_path)
    assert open_split("hf:owner/name/other", "train", tmp_path).classes == ("0", "1", "2")
    assert hub[-1][2:4] == (None, "other/*.parquet")
    with pytest.raises(MissingSplitError, match="no test or val or valid or validation files of this name"):
        open_split("hf:owner/name/other", "test", tmp_path)
    with pytest.raises(InputError, match="not a data set of the hub; write hf:OWNER/NAME"):
        open_split("hf:name", "train", tmp_path)


def test_half_a_download_is_not_a_data_set(tmp_path, hub):
    name = "train-{:05}-of-00002.parquet"
    for where, numbers in (("cache", [0]), ("hub", [0, 1])):
        for number in numbers:
            write(tmp_path / where / name.format(number), pixels(2), [0, 1])
    assert open_split("hf:owner/name", "train", tmp_path).size == 4
    (tmp_path / "hub" / name.format(0)).unlink()
    with pytest.raises(InputError, match="has no Parquet files, or not all that their names count"):
        open_split("hf:owner/name", "train", tmp_path)


def test_a_split_without_training_images_is_evaluated_on(tmp_path):
    write(tmp_path / "test.parquet", pixels(2), [1, 0], features=NAMES)
    assert open_split("parquet:{split}.parquet", "test", tmp_path).classes == ("cat", "dog", "cow")
