"""Run directories that nobody trained, with numbers that a test knows."""

import dataclasses
import json

from resnet_jax.recipe import Recipe, to_json

STEPS = 30
RECIPE = Recipe(epochs=None, steps=STEPS)
ENVIRONMENT = {
    "command": ["resnet-jax", "train"],
    "python": "3.11.9",
    "system": "Linux",
    "packages": {"resnet_jax": "0.2.0", "jax": "0.10.2"},
    "devices": ["TPU v5 lite"] * 4,
    "processes": 1,
    "git_commit": "c0ffee",
    "git_changed": True,
}


def vary(recipe=RECIPE, **fields):
    """Return a recipe with fields such as optimizer_lr or seed changed."""
    for name, value in fields.items():
        part, _, field = name.partition("_")
        if field and hasattr(getattr(recipe, part, None), field):
            value = dataclasses.replace(getattr(recipe, part), **{field: value})
            name = part
        recipe = dataclasses.replace(recipe, **{name: value})
    return recipe


def metrics(step, accuracy, split="test", **more):
    """Return a row of metrics.jsonl."""
    correct = {} if accuracy is None else {"train/accuracy": accuracy, f"{split}/accuracy": accuracy}
    errors = {} if accuracy is None else {f"{split}/errors": round(100 * (1 - accuracy))}
    times = {"lr": 0.1, "images_per_second": 100.0 + step, "data_wait_fraction": 0.25, "train_seconds": 2.0 * step}
    losses = {"train/loss": 3.0 / step, f"{split}/loss": 2.0 / step, f"{split}/count": 100}
    return {"step": step, "epoch": step / 10, **losses, **correct, **errors, **times, **more}


def write_run(
    path, recipe=RECIPE, accuracies=(0.5, 0.9, 0.99), *, classes=("cat", "dog"), shape=(8, 8, 1), last=STEPS, **more
):
    """Write a run with a row for each accuracy, the last one at step `last`, and return its path.

    `more` has further keys of each row: `**{"test/top5": 0.9}`.
    """
    path.mkdir(parents=True)
    dataset = {"classes": list(classes), "image_shape": list(shape), "train_size": 100, "data_dir": "data"}
    split, count = "validation" if recipe.data.num_validation else "test", len(accuracies)
    lines = [metrics(last * i // count, accuracy, split, **more) for i, accuracy in enumerate(accuracies, 1)]
    (path / "recipe.json").write_text(to_json(recipe))
    (path / "dataset.json").write_text(json.dumps(dataset))
    (path / "environment.json").write_text(json.dumps([ENVIRONMENT]))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
