"""HTML as a tree, so that text is escaped wherever it comes from.

A page is a function of values; `render` is the only place where it becomes text.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

from resnet_jax.report.figures import Picture, as_svg

Child: TypeAlias = "Element | str | Iterable[Child] | None"


def node(tag: str, *children: Child, **attributes: str | None) -> Element:
    """An element; `class_` is its class, and what is None is left out."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    element = Element(tag, named)
    _append(element, children)
    return element


def _append(element: Element, child: Child) -> None:
    if isinstance(child, Element):
        element.append(child)
    elif isinstance(child, str):
        if len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    elif child is not None:
        for one in child:
            _append(element, one)


def table(
    head: Sequence[Child], rows: Iterable[Sequence[Child]], *, caption: str | None = None, class_: str = ""
) -> Element:
    """A table, whose rows begin with their headings, below its caption."""
    body = [node("tr", node("th", row[0], scope="row"), [node("td", cell) for cell in row[1:]]) for row in rows]
    titles = node("thead", node("tr", [node("th", cell, scope="col") for cell in head]))
    return scrolled(node("table", titles, node("tbody", body)), caption=caption, class_=class_)


def scrolled(whole: Element, *, caption: str | None = None, class_: str = "") -> Element:
    """A table below its caption, which scrolls by itself where the page is too narrow for it."""
    name = caption or "table"
    wide = node("div", whole, class_=f"wide {class_}".strip(), role="region", tabindex="0", aria_label=name)
    return node("div", node("p", caption, class_="muted") if caption else None, wide)


def data_uri(content: bytes, kind: str) -> str:
    """A resource within the page, so that it needs no other."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def shown(picture: Picture) -> Element:
    """A figure as SVG within the page."""
    return node("img", src=data_uri(as_svg(picture).encode(), "image/svg+xml"), alt=picture.alt)


def render(page: Element) -> bytes:
    """A whole page in UTF-8; what has no place in it, as bytes of a file name that are no text, is a question mark."""
    return ("<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n").encode("utf-8", "replace")
