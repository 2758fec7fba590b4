"""WebDataset shards are read at random, as tarfile reads them one after the other."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import open_split
from resnet_jax.data.source import ChangedDataError
from resnet_jax.errors import InputError

RANDOM = np.random.default_rng(0)


def png():
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (4, 5, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Two training shards and one of validation; a key without class and other members are left out."""
    expected = {"train": [], "val": []}
    for name, keys in (("train-0", range(3)), ("train-1", range(3, 5)), ("val-0", range(5, 7))):
        members = []
        for key in keys:
            image, label = png(), key % 3
            members += [
                (f"a/{key:03}.png", image),
                (f"a/{key:03}.cls", f"{label}\n".encode()),
                (f"a/{key:03}.json", b"{}"),
            ]
            expected[name[:-2]].append((np.asarray(Image.open(io.BytesIO(image))), label))
        write(tmp_path / f"{name}.tar", [*members, ("a/lonely.png", png())])
    return tmp_path, expected


def test_images_and_classes(shards):
    folder, expected = shards
    for split, name in (("train", "train"), ("test", "val")):
        for _ in (False, True):
            source = pickle.loads(pickle.dumps(open_split("tar:{split}-*.tar", split, folder)))
            assert source.size == len(expected[name])
            for index in reversed(range(source.size)):
                image, label = source.read(index)
                np.testing.assert_array_equal(image, expected[name][index][0])
                assert label == source.labels[index] == expected[name][index][1]
    assert source.classes == ("0", "1", "2")
    (folder / "classes.txt").write_text("cat\ndog\nbird\n")
    assert open_split("tar:train-*.tar", "train", folder).classes == ("cat", "dog", "bird")
    assert {path.name for path in folder.glob("*.npy")} == {
        f"{name}.tar.index.npy" for name in ("train-0", "train-1", "val-0")
    }


def test_an_index_is_believed_only_for_its_archive(shards):
    folder, _ = shards
    open_split("tar:train-*.tar", "train", folder)
    index = folder / "train-0.tar.index.npy"
    good = np.load(index)
    outside = io.BytesIO()
    np.save(outside, good + np.array([[0, 0, 0]] + [[10**9, 0, 0]] * 3))
    for bad in (b"", b"x" * 200, pickle.dumps(good), outside.getvalue()):
        index.write_bytes(bad)
        assert open_split("tar:train-*.tar", "train", folder).read(2).image.shape == (4, 5, 3)
        np.testing.assert_array_equal(np.load(index), good)
    write(folder / "train-0.tar", [("b.png", png()), ("b.cls", b"1")])
    assert open_split("tar:train-*.tar", "train", folder).size == 3


def test_an_archive_that_is_replaced_is_not_the_one_that_was_opened(shards):
    folder, _ = shards
    opened = open_split("tar:train-*.tar", "train", folder)
    other = folder / "other"
    members = [(f"a/{key:03}.png", png()) for key in range(3)] + [(f"a/{key:03}.cls", b"0") for key in range(3)]
    write(other, members)
    size = (folder / "train-0.tar").stat().st_size
    # Of the same size, as archives are padded
    other.write_bytes(other.read_bytes().ljust(size, b"\0")[:size])
    other.replace(folder / "train-0.tar")
    with pytest.raises(ChangedDataError, match=r"train-0.tar has changed since it was opened"):
        opened.read(0)
    again = open_split("tar:train-*.tar", "train", folder)
    assert again.labels.tolist() == [0, 0, 0, 0, 1]
    assert again.read(0).image.shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("members", "mode", "message"),
    [
        ([("b.png", b"x"), ("b.cls", b"cat")], "w", "b.cls is 'cat'; give the number of a class"),
        ([("b.png", b"x")], "w", "no images with a class"),
        ([("b.png", b"x"), ("b.cls", b"1")], "w:gz", "not a tar archive without compression"),
    ],
)
def test_other_archives_are_one_line(tmp_path, members, mode, message):
    write(tmp_path / "x.tar", members, mode)
    with pytest.raises(InputError, match=message):
        open_split("tar:x.tar", "train", tmp_path)
    with pytest.raises(InputError, match="no {split} in it, so no test images"):
        open_split("tar:x.tar", "test", tmp_path)
    with pytest.raises(InputError, match="no train files of this name"):
        open_split("tar:{split}.tar", "train", tmp_path)
