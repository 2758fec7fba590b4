"""Read image files by a pattern of their names, in folders or in a zip archive."""

import os
import re
from pathlib import Path

from resnet_jax.data.formats.files import archived, in_only_folder, open_files, visible
from resnet_jax.data.formats.folder import SUFFIXES, is_image
from resnet_jax.data.formats.listing import Listed, source_of
from resnet_jax.data.formats.table import resolve_file
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError

_PART = re.compile(r"\{([a-z_]+)\}|\*\*/|\*|\?")


def files_by_pattern(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Image files by a pattern, such as files:dogs/{split}/{class}.*.jpg; also inside a zip archive.

    {class} is the name of the class, and {split}, if there is one, that of the split. Any other {name}, such as
    {patient}, is a group for data.group_by. They and * are any characters but "/", as few as fit, ? is one, and **/ is
    any folders. A zip archive in the path is read as a folder, without unpacking it.

    Raises:
        InputError: The pattern has no {class}, or no image has such a name.
    """
    home, pattern = _split_home(path, folder)
    names = archived(open_files(home)) if home.is_file() else sorted(visible(_walk(home)))
    found = [(name, match) for name in names if is_image(name) and (match := pattern.fullmatch(name))]
    if not found:
        some = next(filter(is_image, names), "")
        what = f"such as {some}" if some else f"none of them an image ({', '.join(sorted(SUFFIXES))})"
        raise InputError(f"{home}: none of {len(names):,} files matches files:{path}{f', {what}' if names else ''}")
    listed = [
        Listed(name, match.groupdict().get("split", ""), match["class"], match.groupdict()) for name, match in found
    ]
    left = sum(map(is_image, names)) - len(found)
    source = source_of(home, listed, split, preprocessing, test_split, "class")
    notes = (f"{home}: skipped {left:,} images that do not match files:{path}",) if left else ()
    return source._replace(notes=(*source.notes, *notes))


def zip_folder(
    split: str, folder: Path, path: str, preprocessing: Preprocessing, test_split: str | None = None
) -> Source:
    """Return the split of a zip archive that is laid out as `folder:PATH`, perhaps inside one folder."""
    home = (resolve_file(path, folder) / Path(path).expanduser()).resolve()
    inside = in_only_folder(open_files(home)).inside
    inside = "" if inside == "train/" else inside
    return files_by_pattern(split, folder, f"{path}/{inside}{{split}}/{{class}}/**/*", preprocessing, test_split)


def base_of(path: str, folder: Path) -> Path:
    """Return the base of a pattern or file: the working directory if it exists only there, otherwise `folder`."""
    return resolve_file(_fixed(path)[0], folder)


def _fixed(path: str) -> tuple[str, str, bool]:
    """Return the folder or archive before the first wildcard, the pattern after it, and whether it is an archive."""
    parts = path.split("/")
    fixed = next((n for n, part in enumerate(parts) if _PART.search(part)), len(parts))
    archive = next((n for n, part in enumerate(parts[:fixed], 1) if part.lower().endswith(".zip")), None)
    end = archive or fixed
    return "/".join(parts[:end]) or ".", "/".join(parts[end:]), archive is not None


def _split_home(path: str, folder: Path) -> tuple[Path, re.Pattern[str]]:
    """Return the folder or archive before the first wildcard, and the pattern of the names in it."""
    before, pattern, archive = _fixed(path)
    home = (resolve_file(before, folder) / Path(before).expanduser()).resolve()
    if not (home.is_dir() or (archive and home.is_file())):
        raise InputError(f"{home}: no such {'archive' if archive else 'folder'}, here or below {folder}")
    return home, _compile(pattern, path)


def _compile(pattern: str, path: str) -> re.Pattern[str]:
    names = [match[1] for match in _PART.finditer(pattern) if match[1]]
    if names.count("class") != 1 or len(set(names)) < len(names):
        raise InputError(
            f"files:{path}: needs {{class}} once, and every other name at most once, as in {{class}}.*.jpg"
        )
    kinds = {"**/": "(?:[^/]+/)*?", "*": "[^/]*?", "?": "[^/]"}
    at, parts = 0, []
    for match in _PART.finditer(pattern):
        parts += [re.escape(pattern[at : match.start()]), kinds.get(match[0]) or f"(?P<{match[1]}>[^/]+?)"]
        at = match.end()
    return re.compile("".join([*parts, re.escape(pattern[at:])]), re.DOTALL)


def _walk(home: Path) -> list[str]:
    """Return the files below a folder; links to folders are followed once."""
    found, seen = [], set()
    for where, below, files in os.walk(home, followlinks=True):
        real = os.path.realpath(where)
        below[:] = [] if real in seen else sorted(below)
        found += [] if real in seen else [(Path(where) / file).relative_to(home).as_posix() for file in files]
        seen.add(real)
    return found
