"""The description of a distribution: the README, whose relative links are made absolute or dropped.

README_BASE is the address of the files of a release, such as https://github.com/OWNER/NAME/blob/v0.2.0. Without it,
links become plain text and pictures are left out, because they would lead nowhere on a package index.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def absolute_links(text: str, base: str) -> str:
    """Return Markdown whose relative links start at `base`, or are dropped if it is empty."""

    def replaced(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if not base:
            return "" if picture else words
        return f"{picture}[{words}]({base}/{target}{'?raw=true' if picture else ''})"

    return _RELATIVE.sub(replaced, text)


class ReadmeHook(MetadataHookInterface):
    """Sets the readme, and the address of the source if README_BASE names it."""

    def update(self, metadata: dict) -> None:
        """Fill the fields that pyproject.toml declares as dynamic."""
        base = os.environ.get("README_BASE", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute_links(text, base)}
        metadata["urls"] = {"Source": base.split("/blob/")[0]} if base else {}
