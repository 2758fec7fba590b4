"""Read boxes of Pascal VOC: an XML file for each image (Everingham et al. 2010)."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from resnet_jax.data.formats.files import (
    Files,
    digest_of,
    has_file,
    image_content,
    in_only_folder,
    open_files,
    read_file,
    where_is,
)
from resnet_jax.data.formats.folder import CHOOSE, TEST_NAMES, resolve_root
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.objects import StoredObjects
from resnet_jax.data.source import MissingSplitError, RawExample, Source, from_raw, require_one_size
from resnet_jax.errors import InputError, first_line
from resnet_jax.models.detection.objects import make_objects

# Bytes of an XML file or list; VOC's have some thousand
_MOST = 2**22
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LISTS = "ImageSets/Main"


def voc_boxes(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Boxes of Pascal VOC: PATH/JPEGImages, Annotations and ImageSets/Main; PATH may be a zip archive.

    The lists train.txt and that of `test_split`, by default the first of test.txt and val.txt, are the training and
    the test split. Classes are the lines of PATH/classes.txt, or the sorted names in the training split. Difficult
    objects count as crowds: they are neither learned nor missed.

    Raises:
        InputError: A list is missing, or there are no objects. A damaged XML file, a box outside the image and a name
            that is no class are found when the example is read.
    """
    files = in_only_folder(open_files((resolve_root(path, folder) / Path(path).expanduser()).resolve()))
    known = [name for name in TEST_NAMES if has_file(files, f"{_LISTS}/{name}.txt")]
    chosen = "train" if split == "train" else test_split or next(iter(known), "test")
    names = _listed(files, "train")
    classes = tuple(_class_names(files, names))
    listed = names if split == "train" else _listed(files, chosen)
    digest = partial(digest_of, files, [name for stem in listed for name in (_image(stem), _annotation(stem))])
    source = from_raw(len(listed), classes, partial(_read, files, tuple(listed), classes), preprocessing, digest=digest)
    require_one_size(source, files.root, preprocessing)
    if split == "test" and not test_split and len(known) > 1:
        note = f"the test split is {where_is(files, f'{_LISTS}/{chosen}.txt')}: not {' or '.join(known[1:])}; {CHOOSE}"
        return source._replace(notes=(note,))
    return source


def _image(stem: str) -> str:
    return f"JPEGImages/{stem}.jpg"


def _annotation(stem: str) -> str:
    return f"Annotations/{stem}.xml"


def _listed(files: Files, name: str) -> list[str]:
    list_file = f"{_LISTS}/{name}.txt"
    if not has_file(files, list_file):
        kind = InputError if name == "train" else MissingSplitError
        raise kind(f"{where_is(files, list_file)}: no such list; expected VOC's JPEGImages, Annotations and {_LISTS}")
    lines = read_file(files, list_file, _MOST).decode(errors="replace").splitlines()
    found = [line.split()[0] for line in lines if line.strip()]
    if not found:
        raise InputError(f"{where_is(files, list_file)}: no images in this list")
    for stem in found:
        if "/" in stem or "\\" in stem or stem.startswith("."):
            raise InputError(f"{where_is(files, list_file)}: {stem[:80]!r} is not the name of an image")
    return found


def _class_names(files: Files, stems: list[str]) -> list[str]:
    if has_file(files, "classes.txt"):
        names = read_file(files, "classes.txt", _MOST).decode(errors="replace").split("\n")
        return [name.strip() for name in names if name.strip()]
    found = set[str]()
    for stem in stems:
        # What cannot be read is replaced later
        with suppress(InputError):
            found |= {name for name, _, _ in _objects(files, stem)}
    if not found:
        raise InputError(f"{where_is(files, _LISTS)}/train.txt: no image of this list has an object")
    return sorted(found)


def _objects(files: Files, stem: str) -> Iterator[tuple[str, list[float], bool]]:
    """Yield name, box and difficulty of each object in an XML file; raise InputError if it is damaged."""
    where, content = where_is(files, _annotation(stem)), read_file(files, _annotation(stem), _MOST)
    try:
        root = parse_xml(content)
        for item in root.iterfind("object"):
            corners = [float(item.findtext(f"bndbox/{name}", "")) for name in _CORNERS]
            # Pixels are counted from 1, and the last one belongs to the box
            box = [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]
            yield item.findtext("name", "").strip(), box, item.findtext("difficult", "0").strip() == "1"
    except ValueError as error:
        raise InputError(f"{where}: not an annotation that can be read ({first_line(error)})") from error


def _read(files: Files, stems: tuple[str, ...], classes: tuple[str, ...], index: int) -> RawExample:
    stem = stems[index]
    where, found = where_is(files, _annotation(stem)), list(_objects(files, stem))
    for place, (name, _, _) in enumerate(found, 1):
        if name not in classes:
            raise InputError(
                f"{where}: object {place} is {name[:80]!r}, which is not a class: {', '.join(classes[:20])}"
            )
    labels = [classes.index(name) for name, _, _ in found]
    objects = make_objects([box for _, box, _ in found], labels, [difficult for _, _, difficult in found])
    content, image = image_content(files, _image(stem)), _image(stem)
    return RawExample(content, StoredObjects(objects, where), image, where_is(files, image))


def parse_xml(content: bytes) -> Element:
    """Return the root of an XML document without a document type, so that no entity is expanded or fetched.

    Raises:
        ValueError: It is no such document.

    Example:
        >>> parse_xml(b"<a><b>1</b></a>").findtext("b")
        '1'
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError("it has a document type declaration, which is not allowed")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"not XML: {error}") from error
