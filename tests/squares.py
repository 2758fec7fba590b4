"""Images of bright rectangles and their masks or boxes, as files."""

import json

import numpy as np
from PIL import Image


def draw(index, size=(12, 16)):
    """A noisy image with a bright rectangle, and its mask: 1 in the rectangle, 0 around, 2 is void in one corner."""
    random = np.random.default_rng(index)
    mask = np.zeros(size, np.uint8)
    top, left = random.integers(0, 6), random.integers(0, 8)
    mask[top : top + 6, left : left + 8] = 1
    image = random.integers(0, 90, (*size, 3), np.uint8) + 150 * mask[..., None]
    mask[-2:, -2:] = 2
    return image, mask


def write(root, folders, count=4, first=0, size=(12, 16)):
    """Write images and masks into two folders, and the names of the classes into the root."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        image, mask = draw(index, size)
        Image.fromarray(image).save(folders[0] / f"{index:02}.png")
        Image.fromarray(mask).save(folders[1] / f"{index:02}.png")
    (root / "classes.txt").write_text("around\nrectangle\nvoid\n")


def write_splits(root, train=8, test=4, size=(12, 16)):
    """Write both splits, in folders of images and masks."""
    for split, count, first in (("train", train, 0), ("val", test, train)):
        write(root, (root / "images" / split, root / "masks" / split), count, first, size)
    return root


def write_boxes(root, train=16, test=8, size=(32, 32)):
    """Write both splits as COCO has them; every fourth image has no object that is known."""
    (root / "annotations").mkdir(parents=True)
    for split, count, first in (("train", train, 0), ("val", test, train)):
        (root / split).mkdir()
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "rectangle"}]}
        for index in range(first, first + count):
            image, mask = draw(index, size)
            name = f"{index:02}.png"
            Image.fromarray(image).save(root / split / name)
            content["images"].append({"id": index, "file_name": name, "height": size[0], "width": size[1]})
            rows, columns = np.nonzero(mask == 1)
            box = [int(x) for x in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)]
            object_ = {"id": index + 1, "image_id": index, "category_id": 1, "bbox": box, "area": 48, "iscrowd": 0}
            content["annotations"] += [object_] if index % 4 else []
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
