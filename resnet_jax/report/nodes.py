"""HTML as a tree of elements, which `render` turns into text with everything escaped."""

import base64
from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

Child: TypeAlias = "Element | str | Iterable[Child] | None"


def node(tag: str, *children: Child, **attributes: str | None) -> Element:
    """Return an element; `class_` is its class, and children or attributes that are None are left out."""
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
    head: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    *,
    foot: Sequence[Child] | None = None,
    caption: str | None = None,
    class_: str = "",
) -> Element:
    """Return a table below its caption; the first cell of each row is its heading, and `foot` is its last row."""
    titles = node("thead", node("tr", [node("th", cell, scope="col") for cell in head]))
    total = node("tfoot", _row(foot)) if foot else None
    return scrolled(node("table", titles, node("tbody", map(_row, rows)), total), caption=caption, class_=class_)


def _row(cells: Sequence[Child]) -> Element:
    return node("tr", node("th", cells[0], scope="row"), [node("td", cell) for cell in cells[1:]])


def scrolled(whole: Element, *, caption: str | None = None, class_: str = "") -> Element:
    """Return a table below its caption that scrolls by itself if the page is too narrow."""
    name = caption or "table"
    wide = node("div", whole, class_=f"wide {class_}".strip(), role="region", tabindex="0", aria_label=name)
    return node("div", node("p", caption, class_="muted") if caption else None, wide)


def data_uri(content: bytes, kind: str) -> str:
    """Return a data URI, which embeds a resource in the page; `kind` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(page: Element) -> bytes:
    """Return a page in UTF-8; characters that it cannot encode, as in odd file names, become "?"."""
    return ("<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n").encode("utf-8", "replace")
