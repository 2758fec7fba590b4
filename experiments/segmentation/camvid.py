"""CamVid: a class for each pixel of a street scene, by a small U-Net from scratch, on a CPU.

    python experiments/segmentation/camvid.py --data-dir FOLDER

FOLDER holds camvid/, with train/ and trainannot/ and so on, as SegNet used it: 367 training and 233 test images, 11
classes. The command trains, evaluates on the test split, measures two baselines there that see no neighbourhood of a
pixel, draws predictions and writes a report: the most frequent class at each place, and gradient boosting on a pixel's
colour and place (scikit-learn's HistGradientBoostingClassifier on 100,000 training pixels). Images are resized to
240x180. Interrupted, it resumes; `--epochs 2` tries it in minutes. The file is a recipe as well:

    resnet-jax train experiments/segmentation/camvid.py --data-dir FOLDER

Measured (n = 1, seed 0, the last epoch, all 9,677,223 labelled pixels of the test split at 240x180):

                                          mIoU     pixel accuracy
    most frequent class at each place     17.0 %   61.6 %
    gradient boosting, colour and place   26.9 %   69.3 %
    unet_resnet18 of half width           36.2 %   76.9 %

Training took 36 min on two CPU cores that did other work most of the time.

The network is `unet_resnet18` at half its width (3.6 million parameters). Class weights are the inverse roots of the
classes' frequencies in the training split, scaled to a mean of 1 over its pixels. Nothing was tuned on the test split.

The full size is the same recipe with other fields, and was not run:

    resnet-jax train experiments/segmentation/camvid.py --data-dir FOLDER --model.name deeplabv3_resnet50
        --model.fields '{}' --model.pretrained hf:timm/resnet50.a1_in1k --data.image-size None
        --augment.scale-jitter 0.5 2 --augment.train-crop-size 352 --optimizer.lr 0.0003 --epochs 200
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from experiments import script
from resnet_jax import make_report, train
from resnet_jax import predict as predict_files
from resnet_jax.data.datasets import open_split
from resnet_jax.data.image import preprocessing_of
from resnet_jax.data.masks import IGNORE, overlay, palette
from resnet_jax.data.source import to_arrays
from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule
from resnet_jax.report.sheet import draw_sheet
from resnet_jax.tasks.metrics import class_iou, mean_iou
from resnet_jax.training.options import RunOptions, default_data_dir

recipe = Recipe(
    model=Model(name="unet_resnet18", fields={"width": 32}),
    data=Data(name="masks:camvid", image_size=(180, 240), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    augment=Augment(
        crop_padding=0,
        hflip=True,
        scale_jitter=(0.6, 1.4),
        train_crop_size=128,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
    ),
    loss=Loss(
        name="pixel_cross_entropy",
        class_weights=(0.88, 0.75, 3.63, 0.64, 1.7, 1.16, 3.33, 3.39, 1.49, 4.5, 6.67),
    ),
    optimizer=Optimizer(name="adamw", lr=2e-3, weight_decay=0.05, weight_decay_mask="kernels"),
    schedule=Schedule(name="cosine", warmup=2),
    batch_size=8,
    epochs=40,
)

# Training pixels of the second baseline
_PIXELS = 100_000
# Places of the images on the picture, evenly over the test split
_SHOWN = 6

# Images (n, h, w, 3) -> classes (n, h, w)
Predict = Callable[[np.ndarray], np.ndarray]


def class_at_place(masks: np.ndarray, classes: int) -> Predict:
    """Return the prediction of the most frequent class of the training masks (n, h, w) at each place."""
    counts = np.stack([(masks == place).sum(0) for place in range(classes)])
    likeliest = counts.argmax(0)
    return lambda images: np.broadcast_to(likeliest, images.shape[:-1])


def class_of_pixel(images: np.ndarray, masks: np.ndarray, seed: int = 0) -> Predict:
    """Return the prediction of gradient boosting on the colour and the place of a pixel alone."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    labelled = np.flatnonzero(masks != IGNORE)
    chosen = np.random.default_rng(seed).choice(labelled, min(_PIXELS, len(labelled)), replace=False)
    model = HistGradientBoostingClassifier(max_iter=50, random_state=seed)
    # Its threads wait for each other without sleeping: on a busy machine that takes minutes instead of seconds
    with threadpool_limits(1, "openmp"):
        model.fit(features(images).reshape(-1, 5)[chosen], masks.ravel()[chosen])

    def predict(some: np.ndarray) -> np.ndarray:
        with threadpool_limits(1, "openmp"):
            return model.predict(features(some).reshape(-1, 5)).reshape(some.shape[:-1])

    return predict


def features(images: np.ndarray) -> np.ndarray:
    """Return colour, row and column of each pixel, int16 (n, h, w, 5)."""
    places = np.moveaxis(np.indices(images.shape[1:3], dtype=np.int16), 0, -1)
    places = np.broadcast_to(places, (*images.shape[:3], 2))
    return np.concatenate([images, places], -1)


def confusion(predict: Predict, images: np.ndarray, masks: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix (k, k) int64 of the labelled pixels, rows true."""
    matrix = np.zeros((classes, classes), np.int64)
    for image, mask in zip(images, masks, strict=True):
        guess, labelled = predict(image[None])[0], mask != IGNORE
        pairs = mask[labelled].astype(int) * classes + guess[labelled]
        matrix += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return matrix


def baselines(recipe: Recipe, data_dir: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the confusion matrices of both baselines on the test split, and the names of the classes."""
    data = recipe.data
    train_split, test_split = (
        open_split(data.name, split, data_dir, preprocessing=preprocessing_of(data)) for split in ("train", "test")
    )
    (images, masks), (seen, truth), classes = to_arrays(train_split), to_arrays(test_split), len(train_split.classes)
    place = class_at_place(masks, classes)
    by_place = confusion(place, seen, truth, classes)
    by_pixel = confusion(class_of_pixel(images, masks), seen, truth, classes)
    return {"most frequent class at each place": by_place, "gradient boosting on colour and place": by_pixel}, (
        train_split.classes
    )


def draw(run: Path, recipe: Recipe, data_dir: Path, path: Path) -> None:
    """Draw test images, evenly chosen, with true and predicted classes."""
    source = open_split(recipe.data.name, "test", data_dir, preprocessing=preprocessing_of(recipe.data))
    assert source.raw is not None
    places = np.linspace(0, source.size - 1, _SHOWN).astype(int).tolist()
    colors, images, captions = palette(len(source.classes)), [], []
    for place, found in zip(
        places, predict_files(run, [Path(str(source.raw(p).content)) for p in places]), strict=True
    ):
        image, mask = source.read(place)
        assert found.mask is not None
        shrunk = Image.fromarray(found.mask).resize((mask.shape[1], mask.shape[0]), Image.Resampling.NEAREST)
        drawn = (overlay(image, answer, colors, 0.8) for answer in (mask, np.asarray(shrunk)))
        images += [image, *drawn]
        captions += [f"test image {place}", "true", "predicted"]
    draw_sheet(images, captions, columns=6, side=240).save(path)


def compare(recipe: Recipe, run: Path, data_dir: Path, options: RunOptions) -> dict[str, float]:
    """Train, measure both baselines, and print and return the mean intersections over unions."""
    row = train(recipe, run, options=options).rows[-1]
    found, classes = baselines(recipe, data_dir)
    scores = {name: mean_iou(matrix)["miou"] for name, matrix in found.items()}
    scores[f"{recipe.model.name}, {recipe.epochs:g} epochs"] = row["test/miou"]
    print("| on the test split, n = 1 | mIoU |\n|---|--:|")
    for name, score in scores.items():
        print(f"| {name} | {score:.1%} |")
    for name, matrix in found.items():
        each = zip(classes, class_iou(matrix), strict=True)
        print(f"{name}: {', '.join(f'{one} {iou:.1%}' for one, iou in each)}")
    print(
        f"pixel accuracy of the network {row['test/pixel_accuracy']:.1%}, {row['train_seconds'] / 60:.0f} min training"
    )
    return scores


def parse() -> Namespace:
    parser = script.parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="folder that holds camvid/")
    parser.add_argument("--epochs", type=script.positive, default=recipe.epochs)
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation/camvid"))
    return parser.parse_args()


def main() -> None:
    words = parse()
    run, data_dir, shortened = words.out, words.data_dir, replace(recipe, epochs=words.epochs)
    compare(shortened, run, data_dir, RunOptions(data_dir=data_dir, eval_every=460))
    draw(run, recipe, data_dir, run / "predictions.png")
    print(f"{run / 'predictions.png'}\n{make_report([run]).page}")


if __name__ == "__main__":
    script.run(main)
