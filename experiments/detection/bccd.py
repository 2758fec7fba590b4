"""BCCD: red cells, white cells and platelets under a microscope, by a small RetinaNet from scratch, on a CPU.

    python experiments/detection/bccd.py --data-dir FOLDER

FOLDER holds bccd.zip (Shenggan/BCCD_Dataset, MIT), which is read as it is: 205 training and 72 test photos of 640x480
pixels with boxes. The command trains, evaluates on the test split, measures a baseline there that sees no image, draws
predictions and writes a report. The baseline is, for each class, boxes of its mean size on a grid, scored by the
fraction of training images that have such a box there. Interrupted, it resumes; `--epochs 2` tries it in minutes. The
file is a recipe as well:

    resnet-jax train experiments/detection/bccd.py --data-dir FOLDER

Measured (seeds 0, 1 and 2, the last epoch, all 945 boxes of the 72 test photos; mean and standard deviation):

                                             AP              AP50
    likely boxes of the training images      1.1 %           4.5 %
    retinanet_resnet18_fpn, 40 epochs       53.9 % ± 0.2    84.2 % ± 0.8

Training took 50 and 52 min for seeds 1 and 2, on one CPU core each, beside other work (`--seed`).

The network is `retinanet_resnet18_fpn` with a pyramid of 64 channels (levels P3 to P5, two convolutions a head; 11.5
million parameters), on images of 320x240. Nothing was tuned on the test split.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments import script
from resnet_jax import make_report, train
from resnet_jax.data.datasets import open_split
from resnet_jax.data.image import preprocessing_of
from resnet_jax.data.source import Source
from resnet_jax.inference.load_run import load_run
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.models.detection.boxes import pairwise_iou
from resnet_jax.models.detection.objects import pad_objects
from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule
from resnet_jax.report.boxes import box_predictions, pictures_of
from resnet_jax.report.sheet import draw_sheet
from resnet_jax.tasks.coco import Found, rank
from resnet_jax.training.options import RunOptions, default_data_dir

recipe = Recipe(
    model=Model(name="retinanet_resnet18_fpn", fields={"pyramid_width": 64}, norm_group_size=4),
    data=Data(name="voc_boxes:bccd.zip", image_size=(240, 320), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    augment=Augment(crop_padding=0, hflip=True, scale_jitter=(0.8, 1.25), brightness=0.2, contrast=0.2),
    loss=Loss(name="detection", max_objects=40),
    optimizer=Optimizer(name="adamw", lr=1e-3, weight_decay=0.05, weight_decay_mask="kernels", clip_grad_norm=1.0),
    schedule=Schedule(name="cosine", warmup=2),
    batch_size=4,
    epochs=40,
)

# Detections of an image, as the network has
_MOST = 100
# Images on the picture, evenly over the test split
_SHOWN = 6


def prior_boxes(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (d, 4), scores (d,) and labels (d,) that are likely in any image, the likeliest first.

    For each class they have the mean size of its boxes and lie half of it apart; the score is the fraction of images
    with a box of the class that overlaps by half or more.
    """
    targets = [source.read(index).target for index in range(source.size)]
    height, width = source.read(0).image.shape[:2]
    boxes, scores, labels = [], [], []
    for label in range(len(source.classes)):
        of_class = [target.boxes[target.labels == label] for target in targets]
        sides = np.concatenate(of_class)[:, 2:] - np.concatenate(of_class)[:, :2]
        w, h = sides.mean(0)
        corners = np.mgrid[0 : height - h : h / 2, 0 : width - w : w / 2].reshape(2, -1)[::-1].T
        grid = np.concatenate([corners, corners + np.array([w, h])], 1).astype(np.float32)
        overlapped = [np.asarray(pairwise_iou(jnp.asarray(grid), found) >= 0.5).any(1) for found in of_class]
        boxes.append(grid)
        scores.append(np.mean(overlapped, 0))
        labels.append(np.full(len(grid), label))
    order = np.argsort(-np.concatenate(scores), kind="stable")[:_MOST]
    return np.concatenate(boxes)[order], np.concatenate(scores)[order], np.concatenate(labels)[order]


def baseline(recipe: Recipe, data_dir: Path) -> dict[str, float | None]:
    """Return COCO's numbers of the same likely boxes in every test image."""
    data = recipe.data
    train_split, test_split = (
        open_split(data.name, split, data_dir, preprocessing=preprocessing_of(data)) for split in ("train", "test")
    )
    boxes, scores, labels = (np.repeat(part[None], test_split.size, 0) for part in prior_boxes(train_split))
    most = recipe.loss.max_objects
    objects = [pad_objects(test_split.read(index).target, most) for index in range(test_split.size)]
    true = [np.stack(leaves) for leaves in zip(*objects, strict=True)]
    ones, classes = np.ones(test_split.size), np.full(test_split.size, len(test_split.classes))
    return rank(Found(boxes, scores, labels, true[0], true[1], true[2], true[3], ones, classes)).numbers


def compare(recipe: Recipe, run: Path, data_dir: Path, options: RunOptions) -> dict[str, tuple[float, float]]:
    """Train, measure the baseline, and print and return AP and AP50 of both."""
    row, likely = train(recipe, run, options=options).rows[-1], baseline(recipe, data_dir)
    scores = {
        "likely boxes of the training images": (likely["ap"] or 0.0, likely["ap50"] or 0.0),
        f"{recipe.model.name}, {recipe.epochs:g} epochs": (row["test/ap"], row["test/ap50"]),
    }
    print("| on the test split, n = 1 | AP | AP50 |\n|---|--:|--:|")
    for name, (ap, ap50) in scores.items():
        print(f"| {name} | {ap:.1%} | {ap50:.1%} |")
    print(f"{row['train_seconds'] / 60:.0f} min training")
    return scores


def draw(run: Path, recipe: Recipe, data_dir: Path, path: Path) -> None:
    """Draw test images, evenly chosen, with true and detected boxes."""
    setup, state = load_run(run, 1)
    source = open_split(recipe.data.name, "test", data_dir, preprocessing=preprocessing_of(recipe.data))
    found = box_predictions(state, source, setup, DataLoading())
    places = tuple(np.linspace(0, source.size - 1, _SHOWN).astype(int).tolist())
    images, captions = zip(*pictures_of(found._replace(worst=places)), strict=True)
    draw_sheet(list(images), list(captions), columns=4, side=320).save(path)


def parse() -> Namespace:
    parser = script.parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="folder that holds bccd.zip")
    parser.add_argument("--epochs", type=script.positive, default=recipe.epochs)
    parser.add_argument("--out", type=Path, default=Path("runs/detection/bccd"))
    return parser.parse_args()


def main() -> None:
    words = parse()
    run, data_dir, shortened = words.out, words.data_dir, replace(recipe, epochs=words.epochs)
    compare(shortened, run, data_dir, RunOptions(data_dir=data_dir, eval_every=512))
    draw(run, recipe, data_dir, run / "predictions.png")
    print(f"{run / 'predictions.png'}\n{make_report([run]).page}")


if __name__ == "__main__":
    script.run(main)
