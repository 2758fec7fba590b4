"""The readers of what anybody may have written, each with valid files to begin from."""

import hashlib
import io
import json
import logging
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import formats
import numpy as np
import tensorflow_datasets as tfds
from formats import png, read_all
from mutate import change_bytes, change_json, change_lines
from PIL import Image
from torch_parts import VALUES, legacy_file, name, row, state, storage, tensor, text, zip_file

from resnet_jax.checkpoint.manifest import DamageError, verify, write_manifest
from resnet_jax.checkpoint.store import latest_intact
from resnet_jax.cli.parse import Unnamed, parse
from resnet_jax.cli.seeds import parse_seeds
from resnet_jax.cli.train import TrainOptions
from resnet_jax.data.formats import tfds as tfds_format
from resnet_jax.data.formats.array_record import array_record
from resnet_jax.data.formats.shards import Shard, ShardIndex, close_readers, pack, write_index, write_records
from resnet_jax.data.formats.tfds import tensorflow_datasets
from resnet_jax.data.image import Preprocessing, decode
from resnet_jax.data.resize import resize_crop
from resnet_jax.data.source import RawExample
from resnet_jax.data.video import decode_clips
from resnet_jax.errors import InputError
from resnet_jax.models.zoo import MODELS
from resnet_jax.parallel.hosts import HostOptions, require_hosts
from resnet_jax.recipe import Augment, Model, Recipe, Schedule, check, load_recipe, to_json
from resnet_jax.recipe.overrides import rescale_times
from resnet_jax.report.runs import group_runs, read_runs
from resnet_jax.run_dir.environment import read_environments
from resnet_jax.run_dir.files import (
    DatasetInfo,
    foreign_reason,
    identity,
    init_run_dir,
    is_finished,
    read_dataset_info,
    read_metrics,
    read_options,
)
from resnet_jax.run_dir.given import read_given
from resnet_jax.runtime.checksum import add_checksum, file_sha256
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.tasks.classification import classification
from resnet_jax.training.options import RunFlags, RunOptions, validate_options
from resnet_jax.weights.entries import class_names
from resnet_jax.weights.load import load
from resnet_jax.weights.locate import locate
from resnet_jax.weights.tensors import read_tensors, write_tensors


class Target(NamedTuple):
    """A reader, and how its input is made and changed."""

    make: Callable[[Path], None]
    """Writes valid files into an empty folder; each case changes one of them."""
    read: Callable[[Path], Any]
    """Takes the changed file."""
    change: Callable[[Random, bytes], bytes] = change_bytes
    quick: int = 100
    """Cases in `make test`."""
    refusals: type[Exception] = InputError


def _writer(files: dict[str, bytes | str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for file, content in files.items():
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


# Images


def _make_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), np.uint8)
    rgb, grey, rgba = (Image.fromarray(pixels[..., part]) for part in (slice(3), 0, slice(4)))
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "progressive.jpg", progressive=True)
    grey.save(folder / "grey.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgba.save(folder / "rgba.png")
    rgb.quantize(16).save(folder / "palette.png", transparency=3)
    deep.save(folder / "deep.png")
    deep.save(folder / "deep.tiff", compression="tiff_lzw")
    rgb.save(folder / "rgb.tiff")
    rgb.save(folder / "frames.gif", save_all=True, append_images=[rgb.rotate(90)])
    for kind in ("webp", "avif", "bmp", "jp2", "ppm"):
        rgb.save(folder / f"rgb.{kind}")


def _change_image(draw: Random, content: bytes) -> bytes:
    return _with_crcs(change_bytes(draw, content))


def _with_crcs(content: bytes) -> bytes:
    """Return a PNG with the checksums of its chunks, without which nothing behind the first change is read."""
    if not content.startswith(b"\x89PNG"):
        return content
    at, parts = 8, [content[:8]]
    while at + 12 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunk = content[at + 4 : at + 8 + length]
        parts.append(content[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk)))
        at += 12 + length
    return b"".join(parts)


def _read_image(path: Path) -> None:
    resize_crop(decode(path, 1 if path.stem == "grey" else 3), 8, 8)


# Videos


def _make_videos(folder: Path) -> None:
    import av

    for file, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx")):
        with av.open(folder / file, "w") as container:
            stream = container.add_stream(codec, rate=12, options={"g": "4"})
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for level in range(0, 120, 10):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def _read_video(path: Path) -> None:
    clips = decode_clips(path, Preprocessing(frames=4, frame_rate=12, image_size=8), (0.0, 0.8))
    assert clips.shape == (2, 4, 8, 8, 3)


# Weights


def _make_safetensors(folder: Path) -> None:
    write_tensors(folder / "a.safetensors", {"a": VALUES, "b.c": np.int64(7), "e": np.zeros((0, 3))}, {"model": "x"})
    write_tensors(folder / "b.safetensors", {"params/x/kernel": VALUES.reshape(2, 3).astype(np.float16)})


def _change_safetensors(draw: Random, content: bytes) -> bytes:
    """Return the file with another header, of which the length is right, or other bytes."""
    if draw.random() < 0.3:
        return change_bytes(draw, content)
    length = int.from_bytes(content[:8], "little")
    header = change_json(draw, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


PICKLES = {
    "plain": state(**{"conv1.weight": tensor(), "bn1.bias": tensor(1, (3,), (2,))}),
    "nested": state(epoch=b"K\x05", state_dict=state(**{"module.x": tensor()}), args=row(text("a")) + b"\x85"),
    "ordered": name("collections.OrderedDict") + b")Rq\x00(" + text("a") + tensor() + text("b") + b"h\x00u",
}


def _make_legacy(folder: Path) -> None:
    for kind, value in PICKLES.items():
        # A reference to a storage has one thing more there
        legacy_file(folder / f"{kind}.pth", value.replace(storage(), storage(more=b"N")))


def _change_zip(draw: Random, content: bytes) -> bytes:
    """Return an archive with another pickle, or with other bytes."""
    if draw.random() < 0.3:
        return change_bytes(draw, content)
    path = io.BytesIO()
    zip_file(path, change_bytes(draw, draw.choice(list(PICKLES.values()))))
    return path.getvalue()


def _make_zips(folder: Path) -> None:
    for kind, value in PICKLES.items():
        zip_file(folder / f"{kind}.pth", value)


TINY = MODELS["resnet18"].clone(depths=(1,), width=2, num_classes=3)
TIMM = {
    "architecture": "resnet18",
    "num_classes": 3,
    "num_features": 512,
    "global_pool": "avg",
    "label_names": ["a", "b", "c"],
    "model_args": {"act_layer": "silu", "global_pool": "max"},
    "pretrained_cfg": {
        "tag": "x",
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "license": "mit",
    },
}
TRANSFORMERS = {
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "embedding_size": 64,
    "hidden_act": "relu",
    "id2label": {"0": "a", "1": "b", "2": "c"},
}
PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.2, 0.2, 0.2],
}


def _make_hub(folder: Path) -> None:
    shards = {layer: f"{place}.safetensors" for place, layer in enumerate(("conv1.weight", "bn1.bias"))}
    index = {"metadata": {"total_size": 32}, "weight_map": shards}
    for kind, config in (("timm", TIMM), ("transformers", TRANSFORMERS)):
        (folder / kind).mkdir()
        for layer, shard in shards.items():
            write_tensors(folder / kind / shard, {layer: np.zeros((2, 2), np.float32)})
        files = {"model.safetensors.index.json": index, "config.json": config, "preprocessor_config.json": PROCESSOR}
        _writer({name: json.dumps(value) for name, value in files.items()})(folder / kind)


def _change_hub_file(draw: Random, content: bytes) -> bytes:
    return (change_json if content[:1] == b"{" else _change_safetensors)(draw, content)


def _read_hub(path: Path) -> None:
    with suppress(InputError):
        load(TINY, str(path.parent))
    found = locate(path.parent)
    class_names(3, found.entry)
    read_tensors(found.file)


# Runs

DATASET = DatasetInfo(("a", "b", "c"), (8, 8, 1), 40, "data", "0" * 64)
RECIPES = {
    "plain": Recipe(model=Model(name="resnet8", fields={"depths": (1,), "width": 4})),
    "steps": Recipe(
        epochs=None,
        steps=40,
        schedule=Schedule(warmup=2),
        augment=Augment(progressive_sizes=(6, 8), progressive_starts=(0, 5)),
    ),
}
ROW = {
    **{"step": 10, "epoch": 2.5, "train/loss": 1.2, "test/loss": 1.0, "test/accuracy": 0.5, "test/errors": 5},
    **{"test/count": 10, "lr": 0.1, "images_per_second": 10.0, "data_wait_fraction": 0.1, "train_seconds": 4.0},
}


def _make_run(folder: Path) -> None:
    init_run_dir(
        folder,
        RECIPES["plain"],
        DATASET,
        {"model": "ResNet", "task": classification().facts},
        options=vars(RunOptions(metrics=("top5",))),
    )
    (folder / "recipe.json").unlink()


def _signed(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, bytes], bytes]:
    """Return a change after which the checksum is right again, as if a person had written the values."""

    def changed(draw: Random, content: bytes) -> bytes:
        content = change(draw, content)
        with suppress(ValueError, RecursionError):
            values = json.loads(content)
            if isinstance(values, dict) and "sha256" in values and draw.random() < 0.9:
                del values["sha256"]
                return json.dumps(add_checksum(values)).encode()
        return content

    return changed


def _read_run(path: Path) -> None:
    run = path.parent
    read_environments(run), read_options(run), read_given(run), read_dataset_info(run)


def _make_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps({**ROW, "step": s}) + "\n" for s in (10, 20, 30)))


def _read_metrics(path: Path) -> None:
    """Read them as a report does, with the other files of a run beside them."""
    run = path.parent
    _writer({"recipe.json": to_json(RECIPES["plain"])})(run)
    _writer({"dataset.json": json.dumps(vars(DATASET))})(run)
    read_metrics(run), is_finished(run)
    group_runs(read_runs([run]))


def _make_manifest(folder: Path) -> None:
    for step in (5, 10):
        (folder / str(step)).mkdir()
        (folder / str(step) / "array").write_bytes(bytes(step))
        progress = {"totals": {"loss": 1.5, "count": 3}, "timer": {}, "unevaluated": False, "rows": [ROW]}
        progress |= identity(RECIPES["plain"], DATASET)
        leaves = {"state/step": "int32[]", "state/params/x": "float32[3, 3]"}
        write_manifest(folder / str(step), step, metric=step / 100, progress=progress, leaves=leaves)


def _change_manifest(draw: Random, content: bytes) -> bytes:
    if content[:1] != b"{":
        return change_bytes(draw, content)
    content = change_json(draw, content)
    with suppress(ValueError, RecursionError, AttributeError):
        values = {name: value for name, value in json.loads(content).items() if name != "sha256"}
        body = json.dumps(values, indent=1)
        return json.dumps({**values, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode()
    return content


def _read_checkpoints(path: Path) -> None:
    folder = path.parent.parent
    for best in (False, True):
        latest_intact(folder, best, partial(foreign_reason, recipe=RECIPES["plain"], dataset=DATASET))
    verify(path.parent)


# Data


def _make_shards(folder: Path) -> None:
    contents = png(0), np.zeros((4, 4, 1), np.uint8)
    records = [pack(RawExample(content, label, "a", "", 1)) for label, content in enumerate(contents)]
    files = [folder / f"train-0000{n}-of-00002.array_record" for n in (0, 1)]
    for file in files:
        write_records(file, records)
    shards = [Shard(file.name, 2, file.stat().st_size, file_sha256(file), 1, (("c", "cut"),)) for file in files]
    write_index(folder / "dataset.json", ShardIndex({"size": 256}, ("x", "y"), {"train": tuple(shards)}))


def _change_shards(draw: Random, content: bytes) -> bytes:
    return (change_json if content[:1] == b"{" else change_bytes)(draw, content)


def _read_shards(path: Path) -> None:
    close_readers()
    read_all(array_record("train", path.parent, str(path.parent), Preprocessing(image_size=4)))


def _make_tfds(folder: Path) -> None:
    image = png(0)

    class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "pets"

        def _info(self):
            features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": ((i, {"image": image, "label": i % 2}) for i in range(4))}

        def _generate_examples(self, values):
            yield from values

    logging.getLogger("absl").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    builder = Pets(data_dir=str(folder.parent / "built"), file_format="array_record")
    builder.download_and_prepare()
    for file in Path(str(builder.data_path)).iterdir():
        file.rename(folder / file.name)


def _read_tfds(path: Path) -> None:
    tfds_format._opened.cache_clear()
    read_all(tensorflow_datasets("train", path.parent, str(path.parent)))


# The command line

FLAGS = (
    "--optimizer.lr 0.2 --seed 3 --steps 40 --schedule.warmup 2 --data.mean 0.5 0.5 0.5",
    '--model.fields {"width":32,"depths":[1,1]} --model.name resnet20 --out runs/x --seeds 0:3 5',
    "--metrics top5 loss --eval-every 3 --devices 1 --augment.rrc-scale 0.1 1 --batch-size=16 --optimizer.nesterov",
    "--num-processes 2 --process-id 0 --coordinator-address a:1 --data.image-size None --optimizer.no-nesterov",
)


def _read_flags(path: Path) -> None:
    words = path.read_bytes().decode(errors="surrogateescape").split("\n")
    kind = tuple[Unnamed[Recipe], Unnamed[TrainOptions], Unnamed[RunFlags], Unnamed[HostOptions]]
    default = Recipe(), TrainOptions(), RunFlags(), HostOptions()
    recipe, options, flags, hosts = parse(kind, words, prog="resnet-jax", description="", default=default)
    check(rescale_times(recipe, Recipe(), words))
    parse_seeds(options.seeds)
    validate_options(RunOptions(**vars(flags)))
    require_hosts(hosts)


TARGETS = {
    "images": Target(_make_images, _read_image, _change_image, 300),
    "videos": Target(_make_videos, _read_video),
    "safetensors": Target(_make_safetensors, read_tensors, _change_safetensors, 300),
    "torch zip": Target(_make_zips, read_tensors, _change_zip, 300),
    "torch pickles": Target(_make_legacy, read_tensors, change_bytes, 300),
    "hub folder": Target(_make_hub, _read_hub, _change_hub_file),
    "JSON": Target(
        _writer({"x": json.dumps(TIMM)}), lambda path: parse_json(path.read_bytes()), change_json, 300, ValueError
    ),
    "recipe": Target(
        _writer({f"{name}.json": to_json(recipe) for name, recipe in RECIPES.items()}),
        lambda path: to_json(check(load_recipe(path))),
        _signed(change_json),
    ),
    "run": Target(_make_run, _read_run, _signed(change_json), 300),
    "metrics": Target(_make_metrics, _read_metrics, change_lines),
    "checkpoints": Target(_make_manifest, _read_checkpoints, _change_manifest, 50, DamageError),
    "shards": Target(_make_shards, _read_shards, _change_shards),
    "VOC boxes": Target(formats.make_voc, formats.read_voc, formats.change_voc),
    "COCO boxes": Target(formats.make_coco, formats.read_coco, formats.change_coco),
    "zip folder": Target(formats.make_zip, formats.read_zip, formats.change_zip),
    "tar shards": Target(formats.make_tar, formats.read_tar, formats.change_tar),
    "tables": Target(formats.make_tables, formats.read_table, formats.change_table),
    "sounds": Target(formats.make_sounds, formats.read_sound),
    "tfds": Target(_make_tfds, _read_tfds, _change_shards, 50),
    "flags": Target(
        _writer({f"{n}": "\n".join(words.split()) for n, words in enumerate(FLAGS)}), _read_flags, change_lines, 25
    ),
}
