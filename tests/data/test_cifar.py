"""CIFAR-10 and CIFAR-100 in their official layouts and archives, whole, broken and hostile."""

import io
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from resnet_jax.data.formats import cifar
from resnet_jax.data.formats.cifar import CIFAR10_CLASSES, CIFAR10_FILES, cifar10, cifar100
from resnet_jax.data.source import to_arrays
from resnet_jax.errors import InputError

NAMES = [name for split in CIFAR10_FILES.values() for name in split]
SIZE = 10_000 * 3073


def binary_layout(folder, size=SIZE, leave_out=()):
    """Files of zeros, which take no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if name not in leave_out:
            with (folder / f"{name}.bin").open("wb") as file:
                file.truncate(size)
    return folder


@pytest.mark.parametrize("where", [".", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_cifar10_is_found(tmp_path, where):
    binary_layout(tmp_path / where)
    source = cifar10("test", tmp_path)
    assert source.size == 10_000
    assert source.classes == CIFAR10_CLASSES
    assert source.read(9_999).image.shape == (32, 32, 3)


def test_binary_records_are_label_then_red_green_blue_planes(tmp_path):
    binary_layout(tmp_path)
    planes = np.arange(3072).astype(np.uint8)
    record = np.concatenate([np.array([7], np.uint8), planes])
    with (tmp_path / "data_batch_2.bin").open("r+b") as file:
        file.seek(3 * 3073)
        file.write(record.tobytes())
    example = cifar10("train", tmp_path).read(10_003)
    assert example.target == 7
    np.testing.assert_array_equal(example.image, planes.reshape(3, 32, 32).transpose(1, 2, 0))


def test_missing_cifar10(tmp_path):
    with pytest.raises(InputError, match=r"no CIFAR-10 here; expected cifar-10-batches-bin/ or .*--data-dir"):
        cifar10("train", tmp_path / "nowhere")


def test_incomplete_cifar10(tmp_path):
    binary_layout(tmp_path / "cifar-10-batches-bin", leave_out=("data_batch_3", "test_batch"))
    with pytest.raises(InputError, match=r"batches-bin: .*missing: data_batch_3.bin, test_batch.bin"):
        cifar10("train", tmp_path)


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_truncated_cifar10(tmp_path, size):
    binary_layout(tmp_path, size)
    with pytest.raises(InputError, match=r"test_batch.bin: [\d,]+ bytes, expected 30,730,000"):
        cifar10("test", tmp_path)


def test_a_label_over_nine_is_another_format(tmp_path):
    binary_layout(tmp_path)
    with (tmp_path / "test_batch.bin").open("r+b") as file:
        file.write(b"\x63")
    with pytest.raises(InputError, match=r"test_batch.bin: a label over 9"):
        cifar10("test", tmp_path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_is_not_the_official_one_is_never_opened(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(pickle.dumps(Hostile(tmp_path / "pwned")))
    with pytest.raises(InputError, match=r"test_batch: not the official file \(its md5 differs\), not opened"):
        cifar10("test", tmp_path)
    assert not (tmp_path / "pwned").exists()
    pickle.loads((tmp_path / "test_batch").read_bytes())  # and it would have acted
    assert (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_real_cifar10_is_the_same_in_both_layouts(real_data, tmp_path):
    subprocess.run([sys.executable, real_data / "make_cifar10.py", tmp_path], check=True, capture_output=True)
    for split, size in (("train", 50_000), ("test", 10_000)):
        binary = to_arrays(cifar10(split, tmp_path / "cifar-10-batches-bin"))
        python = to_arrays(cifar10(split, tmp_path / "cifar-10-batches-py"))
        np.testing.assert_array_equal(binary[0], python[0])
        np.testing.assert_array_equal(binary[1], python[1])
        np.testing.assert_array_equal(np.bincount(binary[1]), [size // 10] * 10)
    assert [CIFAR10_CLASSES[label] for label in binary[1][:4]] == ["cat", "ship", "ship", "airplane"]


@pytest.fixture
def few(monkeypatch):
    """Sets of four images a file, which count as official whatever their md5 is."""
    for name in cifar.RECORDS:
        monkeypatch.setitem(cifar.RECORDS, name, 4)
    for name in cifar.MD5:
        monkeypatch.setitem(cifar.MD5, name, "by content")

    class Lenient:
        """Tells only whether the word "foreign" is in what it is given."""

        def __init__(self, content=b""):
            self.known = b"foreign" not in content

        def update(self, content):
            pass

        def hexdigest(self):
            return "by content" if self.known else "another"

    monkeypatch.setattr(cifar, "_md5", Lenient)
    return monkeypatch


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 3072), np.uint8)
FINE = [f"class {index}" for index in range(100)]


def binary100(labels=(1, 99, 0, 2)):
    records = np.concatenate([np.array([[7, label] for label in labels], np.uint8), PIXELS], axis=1).tobytes()
    return {"train.bin": records, "test.bin": records, "fine_label_names.txt": "\n".join(FINE).encode() + b"\n"}


def python100():
    batch = pickle.dumps({b"data": PIXELS, b"fine_labels": [1, 99, 0, 2], b"coarse_labels": [7] * 4})
    return {"train": batch, "test": batch, "meta": pickle.dumps({b"fine_label_names": [n.encode() for n in FINE]})}


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def archive(path, files, extra=()):
    """A tar.gz of files, and of members of any kind beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for member, content in extra:
            tar.addfile(member, io.BytesIO(content))
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def in_folder(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.mark.parametrize("where", [".", "cifar100", "folder"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("layout", "make"), [("binary", binary100), ("python", python100)])
def test_cifar100_in_every_layout(tmp_path, few, where, packed, layout, make):
    folder = f"cifar-100-{layout}"
    if packed:
        path = archive(tmp_path / where / f"{folder}.tar.gz", in_folder(folder, make()))
        home = path if where == "folder" else tmp_path
    else:
        home = tmp_path / where / ("" if where == "folder" else folder)
        put(home, make())
        home = home if where == "folder" else tmp_path
    for split in ("train", "test"):
        source = cifar100(split, home)
        assert (source.size, source.classes) == (4, tuple(FINE))
        images, labels = to_arrays(source)
        assert labels.tolist() == [1, 99, 0, 2]
        np.testing.assert_array_equal(images, PIXELS.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("layout", "suffix"), [("bin", ".bin"), ("py", "")])
def test_cifar10_straight_from_its_archive(tmp_path, few, layout, suffix):
    label = np.array([[9], [0], [3], [5]], np.uint8)
    binary = np.concatenate([label, PIXELS], axis=1).tobytes()
    python = pickle.dumps({b"data": PIXELS, b"labels": [9, 0, 3, 5]})
    files = {name + suffix: binary if suffix else python for name in NAMES}
    name = "cifar-10-binary.tar.gz" if suffix else "cifar-10-python.tar.gz"
    archive(tmp_path / name, in_folder(f"cifar-10-batches-{layout}", files))
    train = to_arrays(cifar10("train", tmp_path))
    assert train[1].tolist() == [9, 0, 3, 5] * 5
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing is unpacked


def test_an_archive_that_is_not_the_official_one_is_never_opened(tmp_path):
    archive(tmp_path / "cifar-100-python.tar.gz", in_folder("cifar-100-python", python100()))
    with pytest.raises(
        InputError, match=r"python\.tar\.gz: not the official archive, or cut short \(its md5 differs\)"
    ):
        cifar100("train", tmp_path)


def test_only_the_members_that_are_known_are_looked_at(tmp_path, few):
    files = in_folder("cifar-100-python", python100())
    evil, link = tarfile.TarInfo("../evil"), tarfile.TarInfo("cifar-100-python/train")
    evil.size, link.type, link.linkname = 4, tarfile.SYMTYPE, "/etc/passwd"
    path = archive(tmp_path / "down" / "cifar-100-python.tar.gz", files, [(evil, b"evil"), (link, b"")])
    assert cifar100("train", tmp_path / "down").size == 4
    assert list(tmp_path.rglob("*")) == [tmp_path / "down", path]
    for name in ("/cifar-100-python/train", "cifar-100-python/../cifar-100-python/train", "./cifar-100-python/train"):
        others = {key: value for key, value in files.items() if key != "cifar-100-python/train"}
        archive(path, {**others, name: python100()["train"]})
        with pytest.raises(InputError, match=r"this archive lacks cifar-100-python/train"):
            cifar100("train", path)


def test_a_member_of_another_md5_is_refused(tmp_path, few):
    files = python100() | {"train": pickle.dumps(["foreign", Hostile(tmp_path / "pwned")])}
    archive(tmp_path / "cifar-100-python.tar.gz", in_folder("cifar-100-python", files))
    with pytest.raises(InputError, match=r"tar\.gz/cifar-100-python/train: not the official file .* not opened"):
        cifar100("train", tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_archive(tmp_path, few, keep):
    path = archive(tmp_path / "cifar-100-binary.tar.gz", in_folder("cifar-100-binary", binary100()))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 or keep == 0 else keep * len(content))])
    with pytest.raises(InputError, match=r"binary\.tar\.gz: .*; download it again"):
        cifar100("train", tmp_path)


def test_an_archive_that_swells_is_given_up(tmp_path, few):
    few.setattr(cifar, "MAX_UNPACKED", 1 << 20)
    archive(
        tmp_path / "cifar-100-binary.tar.gz", {"zeros": bytes(2 << 20), **in_folder("cifar-100-binary", binary100())}
    )
    with pytest.raises(InputError, match=r"over 1 MiB unpacked"):
        cifar100("train", tmp_path)


def test_what_is_wrong_in_cifar100s_files(tmp_path, few):
    put(tmp_path, binary100(labels=(1, 2, 3, 100)))
    with pytest.raises(InputError, match=r"train\.bin: a label over 99, so this is not CIFAR-100's binary layout"):
        cifar100("train", tmp_path)
    put(tmp_path, binary100() | {"fine_label_names.txt": b"one\ntwo\n"})
    with pytest.raises(InputError, match=r"fine_label_names\.txt: not the names of 100 classes"):
        cifar100("train", tmp_path)
    put(tmp_path, binary100() | {"test.bin": b"short"})
    with pytest.raises(InputError, match=r"test\.bin: 5 bytes, expected 12,296; download it again"):
        cifar100("test", tmp_path)
    (tmp_path / "train.bin").unlink()
    with pytest.raises(InputError, match=r"CIFAR-100 is incomplete; missing: train\.bin"):
        cifar100("test", tmp_path)
    with pytest.raises(InputError, match=r"no CIFAR-100 here; expected cifar-100-binary/ or cifar-100-python/, or the"):
        cifar100("test", tmp_path / "nowhere")
