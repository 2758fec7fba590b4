"""Packing: what is kept of an image, the same bytes however it went, and what stands in the way."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.data import prepare as preparation
from resnet_jax.data.datasets import DATASETS, open_split
from resnet_jax.data.formats import shards
from resnet_jax.data.formats.folder import CHOOSE
from resnet_jax.data.formats.packing import packed
from resnet_jax.data.formats.shards import MANIFEST, UNFINISHED, read_index
from resnet_jax.data.image import Preprocessing, decode
from resnet_jax.data.prepare import Packing, prepare_data
from resnet_jax.data.resize import resize_crop
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import RawExample, from_arrays, to_arrays
from resnet_jax.errors import InputError
from resnet_jax.runtime.checksum import file_sha256
from resnet_jax.runtime.directory_lock import directory_lock

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
PHOTO = np.asarray(Image.fromarray(NOISE[:6, :8]).resize((400, 300), Image.Resampling.BICUBIC))


def raw(image, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def pack_one(content, size=256, quality=92, channels=3):
    return packed(RawExample(content, 3, "a/b.jpg", "here", channels), size, quality)


def opened(item):
    return Image.open(io.BytesIO(item.content))


def layout(root, count=6, suffix="jpg", size=(80, 70), splits=("train", "val")):
    """`count` photos of each of two classes, of different sizes."""
    for split in splits:
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                picture = Image.fromarray(PHOTO).resize((size[0] + index, size[1]))
                picture.rotate(index + 9 * (name == "bee")).save(root / split / name / f"{index:02}.{suffix}")
    return root


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_large_image_is_scaled_to_a_baseline_jpeg():
    for content in (raw(PHOTO), raw(PHOTO, "PNG"), PHOTO):
        item = pack_one(content, size=100)
        with opened(item) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (133, 100))
            assert not image.info.get("progressive")
            assert image.layer[0][1:3] == (2, 2)  # 4:2:0
            assert image.layer[1][1:3] == (1, 1)
        assert (item.target, item.name, item.channels) == (3, "a/b.jpg", 3)
    scaled = resize_crop(PHOTO, 100, 133).astype(int)
    difference = np.abs(decode(pack_one(PHOTO, size=100, quality=100).content) - scaled)
    assert difference.mean() < 4


def test_a_small_plain_jpeg_stays_as_it_is():
    for content in (raw(PHOTO, subsampling=0), raw(PHOTO[..., 0]), raw(PHOTO[:20, :20], quality=5)):
        assert pack_one(content, size=300).content == content


def test_other_small_jpegs_are_made_plain():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pack_one(raw(PHOTO, exif=exif.tobytes()), size=300)
    assert opened(turned).size == (300, 400)
    for content in (raw(PHOTO, progressive=True), raw(np.dstack([PHOTO, PHOTO[..., 0]]).view(), "PNG")):
        with opened(pack_one(content, size=300)) as image:
            assert (image.format, image.mode, image.info.get("progressive")) == ("JPEG", "RGB", None)
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).convert("CMYK").save(buffer, "JPEG")
    assert opened(pack_one(buffer.getvalue(), size=300)).mode == "RGB"


def test_tiny_images_keep_every_pixel():
    small = NOISE[:40, :50]
    np.testing.assert_array_equal(pack_one(small).content, small)
    np.testing.assert_array_equal(pack_one(raw(small, "PNG")).content, small)
    grey = pack_one(raw(small[..., 0], "PNG"), channels=1)
    np.testing.assert_array_equal(grey.content, small[..., :1])
    assert grey.channels == 1
    two = np.zeros((90, 90, 2), np.uint8)  # no channels that JPEG has
    assert pack_one(two).content is two
    assert opened(pack_one(PHOTO[..., :1])).mode == "L"


def test_no_image_and_an_image_too_long():
    with pytest.raises(InputError, match="here: not an image that can be read"):
        pack_one(b"text")
    with pytest.raises(InputError, match="here: over 65,500 pixels long, which JPEG cannot hold"):
        pack_one(np.zeros((2, 70_000, 3), np.uint8))


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_tiny_data_sets_are_packed_exactly(tmp_path, name):
    manifest = prepare_data(name, tmp_path / "out")
    assert {split: len(of) for split, of in manifest.splits.items()} == {"train": 1, "test": 1}
    for split in ("train", "test"):
        got, expected = (to_arrays(open_split(n, split, Path())) for n in (f"array_record:{tmp_path}/out", name))
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize(("num_threads", "count"), [(1, 3), (4, 3), (2, 1)])
def test_folders_keep_order_names_and_labels(tmp_path, num_threads, count):
    layout(tmp_path / "pets", suffix="png")
    prepare_data("folder:pets", tmp_path / "out", Packing(64, shards=count), data_dir=tmp_path, num_threads=num_threads)
    source, plain = (
        open_split(f"{n}", "train", tmp_path, preprocessing=Preprocessing(image_size=32))
        for n in ("array_record:out", "folder:pets")
    )
    assert source.raw
    assert [source.raw(i).name for i in range(12)] == [f"{c}/{i:02}.png" for c in ("ant", "bee") for i in range(6)]
    got, expected = to_arrays(source), to_arrays(plain)
    assert got[1].tolist() == expected[1].tolist() == [0] * 6 + [1] * 6
    assert np.abs(got[0].astype(int) - expected[0]).mean() < 12  # scaled twice, and JPEG between


def test_the_bytes_depend_on_nothing_but_images_and_settings(tmp_path):
    layout(tmp_path / "pets", suffix="png")
    for number, num_threads in enumerate((1, 2, 7)):
        out, packing = tmp_path / str(number), Packing(64, shards=2)
        prepare_data("folder:pets", out, packing, data_dir=tmp_path, num_threads=num_threads)
        assert contents(tmp_path / str(number)) == contents(tmp_path / "0")
    for shard in read_index(tmp_path / "0" / MANIFEST).splits["train"]:
        assert shard.sha256 == file_sha256(tmp_path / "0" / shard.file)


def test_shards_can_be_packed_again_without_loss(tmp_path):
    layout(tmp_path / "pets")
    prepare_data("folder:pets", tmp_path / "one", data_dir=tmp_path)
    prepare_data("array_record:one", tmp_path / "two", data_dir=tmp_path)
    for path in (tmp_path / "one").glob("*.array_record"):
        assert file_sha256(path) == file_sha256(tmp_path / "two" / path.name)


def test_the_folder_to_test_on_is_said_and_chosen(tmp_path, capsys):
    layout(tmp_path / "pets", count=1, splits=("train", "test"))
    layout(tmp_path / "pets", count=2, splits=("val",))
    words = ["prepare", "folder:pets", "--data-dir", str(tmp_path)]
    for options, count in (([], 2), (["--test-split", "val"], 4)):
        out = tmp_path / str(count)
        assert main([*words, str(out), *options]) == 0
        assert sum(shard.examples for shard in read_index(out / MANIFEST).splits["test"]) == count
        said = f"the test split is {tmp_path}/pets/test: not val/; {CHOOSE}"
        assert (said in capsys.readouterr().out) == (not options)


def test_a_folder_without_test_images(tmp_path):
    layout(tmp_path / "pets", splits=("train",))
    assert list(prepare_data("folder:pets", tmp_path / "out", data_dir=tmp_path).splits) == ["train"]
    assert open_split("array_record:out", "validation", tmp_path, Selection(4), Preprocessing(image_size=8)).size == 4


def test_kill_9_in_the_middle(tmp_path):
    pets = layout(tmp_path / "pets", count=2)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            Image.fromarray(PHOTO).resize((600, 450)).save(pets / split / name / "large.png")
            for index in range(24):
                os.link(pets / split / name / "large.png", pets / split / name / f"large{index}.png")
    words = ["prepare", "folder:pets", "--data-dir", str(tmp_path), "--shards", "12", "--size", "200"]
    command = [sys.executable, "-m", "resnet_jax", *words[:2], "out", *words[2:]]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "out").glob("*.array_record"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*.array_record")}
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert 3 <= len(kept) < 24
    packing = Packing(200, shards=12)
    prepare_data("folder:pets", tmp_path / "out", packing, data_dir=tmp_path)
    prepare_data("folder:pets", tmp_path / "whole", packing, data_dir=tmp_path)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sum(path.stat().st_ino == node for path, node in kept.items()) >= len(kept) - 1  # the last may not be noted


def test_an_interruption_at_every_shard(tmp_path, monkeypatch):
    packing = Packing(shards=3)
    prepare_data("synthetic", tmp_path / "whole", packing)
    plain = preparation.write_index
    for calls in range(1, 8):
        left = iter(range(calls))

        def stop(path, manifest, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            plain(path, manifest)

        with monkeypatch.context() as patch:
            patch.setattr(preparation, "write_index", stop)
            with pytest.raises(KeyboardInterrupt):
                prepare_data("synthetic", tmp_path / str(calls), packing)
        assert not (tmp_path / str(calls) / MANIFEST).exists()
        prepare_data("synthetic", tmp_path / str(calls), packing)
        assert contents(tmp_path / str(calls)) == contents(tmp_path / "whole")


def test_a_damaged_shard_is_made_again_and_others_are_kept(tmp_path):
    out, packing = tmp_path / "out", Packing(shards=3)
    prepare_data("digits", out, packing)
    before = contents(out)
    path = out / "train-00001-of-00003.array_record"
    nodes = {p.name: p.stat().st_ino for p in out.glob("*.array_record") if p != path}
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (out / "test-00000-of-00003.array_record.tmp").write_bytes(b"half")  # as a kill may leave it
    prepare_data("digits", out, packing)
    (out / "test-00000-of-00003.array_record.tmp").unlink()
    assert contents(out) == before
    assert nodes == {name: (out / name).stat().st_ino for name in nodes}


def test_a_full_disk(tmp_path, monkeypatch, capsys):
    class Full:
        written = 0

        def __init__(self, path, options):
            self.writer = shards_writer(path, options)

        def write(self, record):
            Full.written += len(record)
            if Full.written > 40_000:
                raise RuntimeError("Write failed: No space left on device\nand more")
            self.writer.write(record)

        def close(self):
            self.writer.close()

    shards_writer = shards.ArrayRecordWriter
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", Full)
        assert main(["prepare", "digits", str(out), "--shards", "4"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left on device); free disk space and repeat the same command" in error
    assert not list(out.glob("*.tmp"))
    prepare_data("digits", out, Packing(shards=4))
    prepare_data("digits", tmp_path / "whole", Packing(shards=4))
    assert contents(out) == contents(tmp_path / "whole")


def test_a_record_that_reads_back_otherwise_is_never_named(tmp_path, monkeypatch):
    plain = preparation.write_records

    def spoil(path, records):
        plain(path, records)
        content = bytearray(path.read_bytes())
        content[70_000] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(preparation, "write_records", spoil)
    with pytest.raises(InputError, match=r"\.tmp: record \d+ is damaged"):
        prepare_data("synthetic", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.array_record"))


def test_bad_images_are_named_or_skipped(tmp_path, capsys):
    pets = layout(tmp_path / "pets")
    (pets / "train" / "ant" / "02.jpg").write_bytes(b"no image")
    cut = pets / "val" / "bee" / "05.jpg"
    cut.write_bytes(cut.read_bytes()[:600])
    words = ["prepare", "folder:pets", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train/ant/02.jpg: not an image that can be read (JPEG, PNG," in error
    assert "; repair or remove it, or leave such images out" in error
    # A link to nothing is such an image too
    (pets / "train" / "bee" / "07.jpg").symlink_to(tmp_path / "nothing")
    assert main([*words, "--on-corrupt-image", "skip"]) == 0
    out = capsys.readouterr().out
    assert "train: 11 images, 0.1 MB in 1 file, 2 left out (see dataset.json)" in out
    splits = json.loads((tmp_path / "out" / MANIFEST).read_text())["splits"]
    (name, why), link = splits["train"]["shards"][0]["skipped"]
    assert link == ["bee/07.jpg", "cannot be read (No such file or directory)"]
    assert (name, why.split(" (")[0]) == ("ant/02.jpg", "not an image that can be read")
    assert splits["test"]["shards"][0]["skipped"][0][0] == "bee/05.jpg"
    source = open_split("array_record:out", "train", tmp_path, preprocessing=Preprocessing(image_size=8))
    assert [source.read(index).target for index in range(source.size)] == [0] * 5 + [1] * 6


def test_nothing_but_bad_images(tmp_path):
    pets = layout(tmp_path / "pets", count=1)
    for path in (pets / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="folder:pets: no image of the train split can be read"):
        prepare_data("folder:pets", tmp_path / "out", Packing(skip_corrupt=True), data_dir=tmp_path)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_other_settings_and_other_images_need_another_folder(tmp_path):
    pets, out = layout(tmp_path / "pets"), tmp_path / "out"
    prepare_data("folder:pets", out, data_dir=tmp_path)
    before = contents(out)
    with pytest.raises(
        InputError, match=r"out: holds shards with other settings \(size 256 -> 99\); remove it or choose"
    ):
        prepare_data("folder:pets", out, Packing(99), data_dir=tmp_path)
    (pets / "train" / "ant" / "00.jpg").unlink()
    with pytest.raises(InputError, match=r"out: holds shards with other settings \(other images\)"):
        prepare_data("folder:pets", out, data_dir=tmp_path)
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for taken in ("mine", "mine/thesis.tex"):
        with pytest.raises(
            InputError, match=f"{taken}: (exists and holds no shards; choose another DEST|cannot write there)"
        ):
            prepare_data("digits", tmp_path / taken)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "0"], "--size is 0; it must be 1 to 65,500"),
        (["--quality", "101"], "--quality is 101; it must be 1 to 100"),
        (["--shards", "0"], "--shards is 0; it must be 1 to 512"),
        (["--num-threads", "0"], "--num-threads is 0; it must be 1 to 1,024"),
        (["--shards", "many"], "--shards"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, words, message, capsys):
    assert main(["prepare", "digits", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_splits_of_different_classes_are_refused(tmp_path, monkeypatch):
    def odd(split, folder):
        return from_arrays(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int), [f"only in {split}"])

    monkeypatch.setitem(DATASETS, "odd", odd)
    with pytest.raises(InputError, match="odd: the splits have different classes"):
        prepare_data("odd", tmp_path / "out")


def test_more_shards_than_images(tmp_path):
    layout(tmp_path / "pets", count=1)
    manifest = prepare_data("folder:pets", tmp_path / "out", Packing(shards=9), data_dir=tmp_path)
    assert [shard.examples for shard in manifest.splits["train"]] == [1, 1]
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_real_photos(real_data, tmp_path):
    prepare_data("folder:hymenoptera", tmp_path / "out", data_dir=real_data)
    for split, count in (("train", 244), ("test", 153)):
        names = "array_record:out", "folder:hymenoptera"
        packed, plain = (
            open_split(name, split, home, preprocessing=Preprocessing(image_size=224, crop_pct=0.875))
            for name, home in zip(names, (tmp_path, real_data), strict=True)
        )
        assert (packed.size, packed.classes) == (count, plain.classes)
        for index in range(0, count, 20):
            got, expected = packed.read(index), plain.read(index)
            assert got.target == expected.target
            assert np.abs(got.image.astype(int) - expected.image).mean() < 6


def test_one_process_packs_into_a_folder(tmp_path):
    layout(tmp_path / "pets")
    with directory_lock(tmp_path / "out", "is packing there"):
        with pytest.raises(InputError, match=r"out: process \d+ on .* is packing there; wait for it"):
            prepare_data("folder:pets", tmp_path / "out", data_dir=tmp_path)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["lock"]
    assert not (tmp_path / "out").exists()
