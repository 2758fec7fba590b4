"""Reading photos: images per second of this library, of a torch DataLoader and of other decoders, in turns in one run.

    python experiments/benchmarks/data.py FOLDER [--repeats 5]

FOLDER holds JPEG files at any depth. Each reader decodes images and takes random-resized crops of 224 pixels. PyTorch's
reader is that of its ImageNet example: a Dataset that opens files with Pillow, crops, resizes and makes a float tensor.
torch, simplejpeg and OpenCV take part if they are installed.
"""

import importlib.util
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments import script
from resnet_jax.data.augment.host_crop import crop_reader, random_box_host, uniforms
from resnet_jax.data.datasets import open_split
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.prepare import Packing, prepare_data
from resnet_jax.data.source import Source
from resnet_jax.input_pipeline.host_input import stream

BATCH, SIZE = 32, 224


def ours(source: Source) -> Callable[..., Any]:
    """Return batches of the library's own pipeline."""
    crop = crop_reader(source, seed=0, size=SIZE)

    def batches(files: list[Path], threads: int) -> Iterator[Any]:
        order = np.arange(len(files)) % source.size
        numbers = range(len(files) // BATCH)
        return stream(crop, lambda n: order[n * BATCH : (n + 1) * BATCH], numbers, threads=threads)

    return batches


def sources(folder: Path, home: Path) -> tuple[Source, Source]:
    """Return the photos as one class, from their files and packed by `resnet-jax prepare`."""
    (home / "photos" / "train").mkdir(parents=True)
    (home / "photos" / "train" / "photo").symlink_to(folder.absolute())
    prepare_data(f"folder:{home / 'photos'}", home / "packed", Packing(), data_dir=home)
    files, packed = (
        open_split(name, "train", home, preprocessing=Preprocessing(image_size=SIZE))
        for name in (f"folder:{home / 'photos'}", f"array_record:{home / 'packed'}")
    )
    return files, packed


def torch_loader(files: list[Path], workers: int) -> Iterator[Any]:
    """Yield batches of a torch DataLoader."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Photos(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            with files[index].open("rb") as file:
                image = Image.open(file).convert("RGB")
            box = random_box_host(image.height, image.width, uniforms(0, index, 40))
            part = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            tensor = torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous()
            return tensor.to(torch.float32).div(255), 0

    torch.set_num_threads(1)
    return iter(DataLoader(Photos(), BATCH, num_workers=workers, drop_last=True))


def with_decoder(read: Callable[[bytes], np.ndarray], resize: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Any]:
    """Return batches of another decoder, in one thread."""

    def batches(files: list[Path], _: int) -> Iterator[Any]:
        for number in range(len(files) // BATCH):
            rows = []
            for index in range(number * BATCH, (number + 1) * BATCH):
                image = read(files[index].read_bytes())
                left, top, right, bottom = random_box_host(image.shape[0], image.shape[1], uniforms(0, index, 40))
                rows.append(resize(image[top:bottom, left:right]))
            yield np.stack(rows)

    return batches


def pillow_resize(part: np.ndarray) -> np.ndarray:
    """Resize a crop with Pillow."""
    return np.asarray(Image.fromarray(part).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def readers(files: Source, packed: Source) -> dict[str, tuple[Callable[..., Any], int]]:
    """Return the readers by name: a function (files, workers) -> batches, and the number of workers."""
    found: dict[str, tuple[Callable[..., Any], int]] = {f"resnet_jax, {n} threads": (ours(files), n) for n in (1, 2)}
    found |= {f"resnet_jax, packed at 256 pixels, {n} threads": (ours(packed), n) for n in (1, 2)}
    if importlib.util.find_spec("torch"):
        found |= {f"torch DataLoader, {n} workers": (torch_loader, n) for n in (1, 2)}

    def by_pillow(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    found["Pillow in a loop"] = with_decoder(by_pillow, pillow_resize), 1
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        def by_turbo(content: bytes) -> np.ndarray:
            return simplejpeg.decode_jpeg(content, "RGB")

        found["simplejpeg in a loop"] = with_decoder(by_turbo, pillow_resize), 1
        if importlib.util.find_spec("cv2"):
            import cv2

            cv2.setNumThreads(1)

            def by_area(part: np.ndarray) -> np.ndarray:
                return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

            found["simplejpeg and OpenCV (other pixels) in a loop"] = with_decoder(by_turbo, by_area), 1
    return found


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=script.positive, default=5)
    options = parser.parse_args()
    files = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = list(itertools.islice(itertools.cycle(files), 16 * BATCH))
    with tempfile.TemporaryDirectory() as home:
        compared = readers(*sources(options.folder, Path(home)))
        speeds: dict[str, list[float]] = {name: [] for name in compared}
        for _ in range(options.repeats):
            for name, (batches, workers) in compared.items():
                items = batches(files, workers)
                # Workers have started after the first batch
                next(items)
                start = time.perf_counter()
                count = sum(BATCH for _ in items)
                speeds[name].append(count / (time.perf_counter() - start))
    peer = statistics.median(speeds.get("torch DataLoader, 1 workers", speeds["Pillow in a loop"]))
    print("| reader | images/s, median | range | against one torch worker |\n|---|--:|--:|--:|")
    for name, found in speeds.items():
        median = statistics.median(found)
        print(f"| {name} | {median:,.0f} | {min(found):,.0f} to {max(found):,.0f} | {median / peer:.2f} |")


if __name__ == "__main__":
    script.run(main, large_pages=False)
