"""CSV files, patterns of names, and zip archives that are read as folders."""

import csv
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import open_split
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import source_digest, to_arrays
from resnet_jax.errors import InputError

RANDOM = np.random.default_rng(0)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))


@pytest.fixture
def table(tmp_path):
    """Six images in a list, two of the test split, by three patients."""
    pixels = [write_image(tmp_path / "photos" / f"{n}.png") for n in range(6)]
    rows = [
        {
            "path": f"photos/{n}.png",
            "label": ["10", "9"][n % 2],
            "split": "train" if n < 4 else "val",
            "patient": f"p{n // 2}",
        }
        for n in range(6)
    ]
    write_csv(tmp_path / "all.csv", rows)
    return tmp_path, rows, pixels


def test_a_list_of_classes(table):
    folder, _, pixels = table
    train, test = (open_split("csv:all.csv", split, folder) for split in ("train", "test"))
    assert train.classes == test.classes == ("9", "10")
    images, labels = to_arrays(pickle.loads(pickle.dumps(train)))
    np.testing.assert_array_equal(images, pixels[:4])
    assert labels.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(to_arrays(test)[0], pixels[4:])
    held = open_split("csv:all.csv", "validation", folder, Selection(0.5, group_by="patient"))
    assert len(set(held.groups("patient"))) == 1
    with pytest.raises(InputError, match="data.group_by is ward; .* has folder, path, label, split, patient"):
        open_split("csv:all.csv", "train", folder, Selection(1, group_by="ward"))
    before = source_digest(train)
    (folder / "photos" / "0.png").write_bytes(b"shorter")
    assert source_digest(open_split("csv:all.csv", "train", folder)) != before


@pytest.mark.parametrize(
    ("cells", "names", "targets"),
    [
        (["a|b c", "", "b c", "a"], ("a", "b c"), [[1, 1], [0, 0], [0, 1], [1, 0]]),
        (["a b", "b", "", "a"], ("a", "b"), [[1, 1], [0, 1], [0, 0], [1, 0]]),
    ],
)
def test_a_list_of_several_labels(table, cells, names, targets):
    folder, rows, _ = table
    write_csv(folder / "l.csv", [{"path": r["path"], "labels": cell} for r, cell in zip(rows, cells, strict=False)])
    source = open_split("csv:l.csv", "train", folder)
    assert source.classes == names
    np.testing.assert_array_equal(to_arrays(source)[1], np.array(targets, np.float32))
    with pytest.raises(InputError, match=r"no test or val images; hold training images out"):
        open_split("csv:l.csv", "test", folder)


def test_a_list_of_numbers(table):
    folder, rows, _ = table
    write_csv(folder / "r.csv", [{"path": r["path"], "target_x": n / 4, "target_y": -n} for n, r in enumerate(rows)])
    source = open_split("csv:r.csv", "train", folder)
    assert source.classes == ("x", "y")
    np.testing.assert_array_equal(source.labels, [[n / 4, -n] for n in range(6)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "no rows"),
        ("file,label\na.png,x\n", "has the columns file, label; expected a column path"),
        ("path,label,target\na.png,x,1\n", "expected a column path, and one of label, labels, target"),
        ("path,label\na.png,\n", "line 2 has no label; add it, or remove the line"),
        ("path,target\na.png,tall\n", "line 2: target is 'tall'; give a finite number"),
        ("path,target\na.png,inf\n", "line 2: target is 'inf'; give a finite number"),
        ("path,label,label\na.png,x,y\n", "two columns have the same name"),
        ("path,label,split\na.png,x,test\n", "no training images, only test"),
        ("path,label,split\na.png,x,train\nb.png,y,test\n", "b.png is of the class 'y', which no training image"),
        (b"path,label\n\xff\xfe,x\n", "not a CSV file in UTF-8"),
        ('path,label\n"a.png,x\n', "not a CSV file in UTF-8"),
    ],
)
def test_a_list_that_is_none_is_one_line(tmp_path, text, message):
    (tmp_path / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        open_split("csv:x.csv", "test", tmp_path)
    with pytest.raises(InputError, match="no such CSV file"):
        open_split("csv:gone.csv", "train", tmp_path)


@pytest.fixture
def flat(tmp_path):
    """Kaggle's layout of cats and dogs, with a file that is no image and one that is cut short."""
    for name in ("cat.0", "cat.1", "cat.10", "dog.0", "dog.1"):
        write_image(tmp_path / "kaggle" / "train" / f"{name}.png")
    file = tmp_path / "kaggle" / "train" / "cat.10.png"
    file.write_bytes(file.read_bytes()[:60])
    (tmp_path / "kaggle" / "train" / "Thumbs.db").write_bytes(b"x")
    write_image(tmp_path / "kaggle" / "test1" / "1.png")
    return tmp_path


@pytest.mark.parametrize("zipped", [False, True])
def test_a_flat_folder_by_a_pattern(flat, zipped):
    name = "files:kaggle/train/{class}.*.png"
    if zipped:
        zip_of(flat / "kaggle", flat / "kaggle.zip")
        name = "files:kaggle.zip/train/{class}.*.png"
    source = open_split(name, "train", flat)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    with Image.open(flat / "kaggle" / "train" / "dog.1.png") as image:
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(4).image, np.asarray(image))
    with pytest.raises(InputError, match=r"cat.10.png: the image is damaged"):
        source.read(2)
    assert source.raw(4).name.endswith("dog.1.png")


def test_other_names_are_groups(tmp_path):
    for number, speaker in ((3, "ann"), (3, "bob"), (7, "ann")):
        write_image(tmp_path / f"{number}_{speaker}_0.png")
    source = open_split("files:{class}_{speaker}_*.png", "train", tmp_path)
    assert source.labels.tolist() == [0, 0, 1]
    assert source.groups("speaker").tolist() == ["ann", "bob", "ann"]


@pytest.mark.parametrize("inside", ["", "photos/"])
def test_a_zip_is_read_as_a_folder(tmp_path, inside):
    home = tmp_path / "all"
    for split, of_class in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        for number in range(2):
            write_image(home / inside / split / of_class / "deep" / f"{number}.png")
    write_image(home / "__MACOSX" / "train" / "a" / "0.png")
    zip_of(home, tmp_path / "all.zip")
    for split in ("train", "test"):
        zipped = open_split("folder:all.zip", split, tmp_path)
        plain = open_split(f"folder:all/{inside}", split, tmp_path)
        for one, other in zip(to_arrays(zipped), to_arrays(plain), strict=True):
            np.testing.assert_array_equal(one, other)
        assert zipped.classes == plain.classes
        np.testing.assert_array_equal(zipped.labels, plain.labels)
    assert set(plain.groups("folder")) == {"a/deep", "b/deep"}
    with pytest.raises(InputError, match="data.group_by is patient; the only groups here are"):
        plain.groups("patient")
    assert len(source_digest(zipped)) == 64


def test_an_archive_that_is_damaged_or_huge_is_one_line(flat, monkeypatch):
    zip_of(flat / "kaggle", flat / "kaggle.zip")
    content = bytearray((flat / "kaggle.zip").read_bytes())
    (flat / "cut.zip").write_bytes(content[:100])
    with pytest.raises(InputError, match="not a zip archive that can be read"):
        open_split("files:cut.zip/{class}.*.png", "train", flat)
    with zipfile.ZipFile(flat / "kaggle.zip") as archive:
        at = archive.getinfo("train/dog.0.png").header_offset + 60
    content[at] ^= 1
    (flat / "bad.zip").write_bytes(content)
    bad = open_split("files:bad.zip/train/{class}.*.png", "train", flat, preprocessing=Preprocessing(image_size=4))
    assert bad.read(0).image.shape == (4, 4, 3)
    with pytest.raises(InputError, match=r"train/dog.0.png: cannot be read \(Bad CRC-32"):
        bad.read(3)
    monkeypatch.setattr("resnet_jax.data.formats.files.MAX_FILE", 50)
    with pytest.raises(InputError, match="bytes, over 50"):
        open_split("files:kaggle.zip/train/{class}.*.png", "train", flat).raw(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("files:kaggle/train/*.png", "needs {class} once"),
        ("files:kaggle/train/{class}/{class}.png", "needs {class} once"),
        ("files:kagle/{class}.png", "no such folder"),
        ("files:gone.zip/{class}.png", "no such archive"),
        ("files:kaggle/train/{class}-*.png", "none of 6 files matches .*such as cat.0.png"),
        ("files:", "needs a pattern"),
    ],
)
def test_wrong_patterns_are_one_line(flat, name, message):
    with pytest.raises(InputError, match=message):
        open_split(name, "train", flat)
