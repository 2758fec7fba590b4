"""Features for detection: the pyramid that a detector stands on (Lin et al. 2017), of a photo, as a picture.

    python experiments/tasks/detection_features.py --weights resnet20-12fca82f.th --model resnet20
    python experiments/tasks/detection_features.py photo.jpg --weights hf:timm/resnet50.a1_in1k

A real photo, on board, unless one is named; nothing is trained. The backbone has the weights that are named, and the
pyramid's own layers are as they are drawn: what is shown are resolutions, and what of the photo they still hold. The
three colours are the three directions in which the channels of a map differ most.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import script
from resnet_jax import FPN, compiler_options, create
from resnet_jax.data.augment import normalize
from resnet_jax.data.decode import decode, shrink

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo_on_board() -> np.ndarray:
    """A photo that comes with scikit-learn: uint8 (427, 640, 3)."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")


def pyramid(photo: np.ndarray, weights: str, name: str) -> list[np.ndarray]:
    """The maps (h / stride, w / stride, 64) of a photo, from fine to coarse."""
    model, variables = create(name, pretrained=weights, num_classes=0)
    top = FPN(width=64)

    def look(photo: jax.Array) -> Any:
        maps: Any = model.apply(variables, normalize(photo[None], MEAN, STD), method="features")
        return top.apply(top.init(jax.random.key(0), maps), maps)

    levels = jax.jit(look, compiler_options=compiler_options())(jnp.asarray(photo))
    return [np.asarray(level[0]) for level in levels]


def colors(level: np.ndarray) -> np.ndarray:
    """The three principal components of a map (h, w, c), as red, green and blue in 0 to 1."""
    pixels = level.reshape(-1, level.shape[-1])
    pixels = pixels - pixels.mean(0)
    _, vectors = np.linalg.eigh(pixels.T @ pixels)
    parts = pixels @ vectors[:, :-4:-1]
    low, high = np.percentile(parts, (2, 98), axis=0)
    return np.clip((parts - low) / (high - low), 0, 1).reshape(*level.shape[:2], 3)


def draw(photo: np.ndarray, levels: list[np.ndarray], path: Path) -> None:
    """Writes the photo and its maps side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = photo.shape[:2]
    columns = len(levels) + 1
    figure = Figure(figsize=(2.6 * columns, 2.6 * height / width + 0.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    titles = [f"photo, {height} x {width}"]
    titles += [f"stride {-(-height // level.shape[0])}, {level.shape[0]} x {level.shape[1]}" for level in levels]
    for axes, image, title in zip(figure.subplots(1, columns), [photo, *map(colors, levels)], titles, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_axis_off()
    figure.savefig(path)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("photo", type=Path, nargs="?", help="an image file; none is a photo on board")
    parser.add_argument("--weights", required=True, help="a file, hf:OWNER/NAME or a published name")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=script.positive, default=224, help="pixels of the shorter side, at most")
    parser.add_argument("--out", type=Path, default=Path("pyramid.png"))
    options = parser.parse_args()
    photo = shrink(decode(options.photo) if options.photo else photo_on_board(), options.size)
    draw(photo, pyramid(photo, options.weights, options.model), options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    script.run(main)
