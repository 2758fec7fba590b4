"""Pictures as SVG inside the page: in the reader's fonts and colour scheme, with the values that its script shows."""

import json
import re
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, fromstring

import numpy as np

from resnet_jax.report.figures import DARK, Picture, saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Maximum number of points of a curve whose values are shown: more than a screen tells apart
_POINTS = 400


def palette_css() -> str:
    """Return the style that names the colours of pictures, `--c0` and so on, in light and in dark."""
    light, dark = (" ".join(f"--c{n}: {c};" for n, c in enumerate(colors)) for colors in (DARK, DARK.values()))
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def as_svg(picture: Picture) -> Element:
    """Return a picture without a legend, for the page: transparent, no id that another picture has."""
    figure, nothing = picture.draw(False), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    text = saved(figure, salt=picture.name, format="svg", transparent=True, metadata=nothing).decode()
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    for number, light in enumerate(DARK):
        text = text.replace(light, f"var(--c{number})")
    drawn = fromstring(text)
    for parent in drawn.iter():
        parent.tag = parent.tag.rpartition("}")[2]
        parent.attrib = {name.rpartition("}")[2]: value for name, value in parent.attrib.items()}
        if parent.tag == "g":
            parent.attrib.pop("id", None)
        # A style would hold for the whole page
        for child in [child for child in parent if child.tag.endswith(("}style", "}metadata"))]:
            parent.remove(child)
    drawn.attrib = {"class": "plot", "viewBox": drawn.attrib["viewBox"], "role": "img", "aria-label": picture.alt}
    if picture.curves:
        drawn.attrib |= {"tabindex": "0", "data-plot": json.dumps(_values(picture, figure), separators=(",", ":"))}
    return drawn


def _values(picture: Picture, figure: "Figure") -> dict[str, object]:
    """Return the label, colour, dashes and points of each curve; a point is where it is drawn, and two texts."""
    axes, (_, height), curves = figure.axes[0], 72 * figure.get_size_inches(), []
    for c in picture.curves:
        kept = np.unique(np.linspace(0, len(c.x) - 1, min(len(c.x), _POINTS)).round().astype(int))
        # SVG counts from the top, in 1/72 inch
        drawn = axes.transData.transform(np.column_stack([c.x, c.mean])[kept]) * (72 / figure.dpi)
        drawn = np.clip(np.nan_to_num(np.abs([0, height] - drawn)), 0, 9999).round(1)
        points = [
            [*map(float, place), f"{c.x[n]:,.2f}".rstrip("0").rstrip("."), _value(c.mean[n], c.low[n], c.high[n])]
            for n, place in zip(kept, drawn, strict=True)
        ]
        curves.append([c.label, f"var(--c{list(DARK).index(c.color)})", c.dashed, points])
    return {"x": picture.x, "curves": curves}


def _value(mean: float, low: float, high: float) -> str:
    return f"{mean:.4g}" + (f" ({low:.4g} to {high:.4g})" if high > low else "")
