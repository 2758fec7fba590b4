"""Features for detection: the feature pyramid of a detector (Lin et al. 2017), drawn for one photo.

    python experiments/tasks/detection_features.py --weights resnet20-12fca82f.th --model resnet20
    python experiments/tasks/detection_features.py photo.jpg --weights hf:timm/resnet50.a1_in1k

The photo is a bundled one unless you name another; nothing is trained. The backbone has the given weights, and the
pyramid's own layers keep their initial parameters: the picture shows the resolutions, and what each still holds of the
photo. The three colours are the first three principal components of the channels of a map.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import script
from resnet_jax import FPN, compiler_options, create_model
from resnet_jax.data.augment import normalize
from resnet_jax.data.image import decode
from resnet_jax.data.resize import shrink

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bundled_photo() -> np.ndarray:
    """Return a photo that comes with scikit-learn, (427, 640, 3) uint8."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")


def pyramid(photo: np.ndarray, weights: str, name: str) -> list[np.ndarray]:
    """Return the maps (h / stride, w / stride, 64) of a photo, from fine to coarse."""
    model, variables = create_model(name, pretrained=weights, num_classes=0)
    fpn = FPN(width=64)

    def forward(photo: jax.Array) -> Any:
        maps: Any = model.apply(variables, normalize(photo[None], MEAN, STD), method="features")
        return fpn.apply(fpn.init(jax.random.key(0), maps), maps)

    levels = jax.jit(forward, compiler_options=compiler_options())(jnp.asarray(photo))
    return [np.asarray(level[0]) for level in levels]


def colors(level: np.ndarray) -> np.ndarray:
    """Return the first three principal components of a map (h, w, c) as colours (h, w, 3) in 0 to 1."""
    pixels = level.reshape(-1, level.shape[-1])
    pixels = pixels - pixels.mean(0)
    _, vectors = np.linalg.eigh(pixels.T @ pixels)
    parts = pixels @ vectors[:, :-4:-1]
    low, high = np.percentile(parts, (2, 98), axis=0)
    return np.clip((parts - low) / (high - low), 0, 1).reshape(*level.shape[:2], 3)


def draw(photo: np.ndarray, levels: list[np.ndarray], path: Path) -> None:
    """Draw the photo and its maps side by side."""
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
    parser.add_argument("photo", type=Path, nargs="?", help="an image file (default: a bundled photo)")
    parser.add_argument("--weights", required=True, help="a file, hf:OWNER/NAME or the name of published weights")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=script.positive, default=224, help="maximum pixels of the shorter side")
    parser.add_argument("--out", type=Path, default=Path("pyramid.png"))
    options = parser.parse_args()
    photo = shrink(decode(options.photo) if options.photo else bundled_photo(), options.size)
    draw(photo, pyramid(photo, options.weights, options.model), options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    script.run(main)
