"""Read folders of image, sound or video files, one folder per class: the layout of torchvision's ImageFolder."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from resnet_jax.data import audio, video
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import MissingSplitError, RawExample, Source, from_raw, require_one_size
from resnet_jax.errors import InputError
from resnet_jax.runtime.checksum import sha256_of

_KINDS = "jpg jpeg jpe jfif png webp avif gif bmp tif tiff jp2 j2k ppm pgm pbm pnm"
SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split(" "))
# The first that has the classes of train/ is the test split
TEST_NAMES = ("test", "val", "valid", "validation")
CHOOSE = "data.test_split (prepare: --test-split) chooses"
_OTHER_KINDS = (
    (audio.SUFFIXES, "sounds", "data.seconds and data.sample_rate"),
    (video.SUFFIXES, "videos", "data.frames, data.frame_rate and data.image_size"),
)
_LAYOUT = "expected train/CLASS/*.jpg and val/CLASS/*.jpg (or valid/, validation/, test/), one folder per class"


def image_folder(
    split: str,
    folder: Path,
    path: str,
    preprocessing: Preprocessing = Preprocessing(),
    test_split: str | None = None,
) -> Source:
    """Image files as PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, RGB, brought to data.image_size.

    With data.seconds they are sound files, such as *.wav, brought to that length at data.sample_rate; with data.frames
    they are video files, such as *.mp4, of which clips are read at data.frame_rate.
    `path` is below `folder` if it exists there, otherwise in the working directory. Classes are the sorted names of the
    folders, and images are sorted by path within them, so the order is the same on every machine. The test split is the
    folder `test_split`, by default the first of test/, val/, valid/ and validation/ that has the classes of train/.
    Raises InputError if a folder is missing, a class is empty or not in both splits, or images without resizing differ
    in size.
    """
    root = resolve_root(path, folder) / Path(path).expanduser()
    train = root / "train"
    if not train.is_dir():
        what = "no train/ in this folder" if root.is_dir() else f"no such folder, here or below {folder}"
        raise InputError(f"{root}: {what}; {_LAYOUT}")
    classes = _classes(train)
    kinds = SUFFIXES if preprocessing.seconds is None else audio.SUFFIXES
    kinds = kinds if preprocessing.frames is None else video.SUFFIXES
    test, notes = _test_folder(root, train, classes, test_split, kinds)
    if test is None and split == "test":
        raise MissingSplitError(
            f"{root}: no val/ in this folder; {_LAYOUT}, or hold training images out with data.num_validation"
        )
    # Read later, perhaps from another working directory
    home = (test if split == "test" and test is not None else train).resolve()
    listed = [list_files(home, name, kinds) for name in classes]
    names, others = [images for images, _ in listed], chain.from_iterable(other for _, other in listed)
    notes = (*_passed_over(home, others), *(notes if split == "test" else ()))
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in names])
    files = tuple(name for of_class in names for name in of_class)
    digest = partial(files_digest, home, files, labels)
    source = from_raw(len(files), classes, partial(_file, home, files, labels), preprocessing, labels, digest)
    require_one_size(source, home, preprocessing)
    return source._replace(notes=notes, groups=partial(folder_groups, files))


def folder_groups(files: Sequence[str], rule: str) -> np.ndarray:
    """Return the folder of each file, the only rule by which files without a list have groups."""
    if rule != "folder":
        raise InputError(f"data.group_by is {rule}; the only groups here are `folder`, the folder of each image")
    return np.array([os.path.dirname(name) for name in files])


def _test_folder(
    root: Path, train: Path, classes: tuple[str, ...], asked: str | None, kinds: frozenset[str]
) -> tuple[Path | None, tuple[str, ...]]:
    """Return the folder of the test split, None if there is none, and notes on the choice between several."""
    names = [asked] if asked else [name for name in TEST_NAMES if (root / name).is_dir()]
    refused: list[InputError] = []
    for place, name in enumerate(names):
        try:
            _require_same(train, classes, root / name)
            # Folders that were prepared and not filled
            for of_class in classes if len(names) > 1 else ():
                list_files(root / name, of_class, kinds)
        except InputError as error:
            refused.append(error)
            continue
        others = " or ".join(f"{other}/" for other in names[place + 1 :])
        why = [*map(str, refused), *([f"not {others}; {CHOOSE}"] if others else [])]
        return root / name, tuple(f"the test split is {root / name}: {reason}" for reason in why)
    if refused:
        raise refused[0]
    return None, ()


def _passed_over(home: Path, others: Iterable[str]) -> tuple[str, ...]:
    """Return a note on files that are not read, if there are any: those, and all outside the folders of classes."""
    loose = (item.name for item in home.iterdir() if item.is_file() and not item.name.startswith("."))
    kinds = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in chain(others, loose))
    if not kinds:
        return ()
    most = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    return (f"{home}: skipped {kinds.total():,} files that are not examples of a class: {most}",)


def resolve_root(path: str, folder: Path) -> Path:
    """Return the base of a path: the working directory if it exists only there, otherwise `folder`."""
    here = Path(path).expanduser()
    return Path() if here.is_dir() and not (folder / here).is_dir() else folder


def files_digest(home: Path, files: Sequence[str], labels: np.ndarray) -> str:
    """Return the SHA-256 of names, sizes and labels; on threads, since each size of a network's file takes a trip."""

    def sizes(start: int) -> list[int]:
        return [_size(home / name) for name in files[start : start + 1000]]

    with ThreadPoolExecutor(16) as pool:
        found = list(chain.from_iterable(pool.map(sizes, range(0, len(files), 1000))))
    return sha256_of([list(files), found, labels.tolist()])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        # As of a link to nothing, which training replaces
        return -1


def _file(home: Path, files: tuple[str, ...], labels: np.ndarray, index: int) -> RawExample:
    path = home / files[index]
    return RawExample(path, int(labels[index]), files[index], str(path))


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {_LAYOUT}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: no folders of classes here; {_LAYOUT}")
    return tuple(names)


def _require_same(train: Path, classes: tuple[str, ...], test: Path) -> None:
    """Raise InputError with the name of a class that only one of the two splits has."""
    others = _classes(test)
    for here, names, there, known in ((test, classes, train, others), (train, others, test, classes)):
        missing = [name for name in names if name not in known]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(
                f"{here}: no class {missing[0]!r}{more}, which {there} has; give both the same class folders"
            )


def list_files(home: Path, name: str, kinds: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return files of a class with these suffixes, at any depth, and names of other files; follow each link once.

    The former are sorted POSIX paths below `home`. Hidden files are neither.
    """
    found, others, seen = [], [], set()
    for folder, below, files in os.walk(home / name, followlinks=True, onerror=_fail):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(item for item in below if not item.startswith("."))
        files = [] if real in seen else [item for item in files if not item.startswith(".")]
        wanted = [item for item in files if _suffix(item) in kinds]
        others += [item for item in files if _suffix(item) not in kinds]
        seen.add(real)
        found += [(Path(folder) / item).relative_to(home).as_posix() for item in wanted]
    for suffixes, what, fields in _OTHER_KINDS:
        if not found and kinds is SUFFIXES and any(_suffix(item) in suffixes for item in others):
            raise InputError(f"{home / name}: holds {what}; set {fields} (prepare packs only images)")
    if not found:
        what = next((what for suffixes, what, _ in _OTHER_KINDS if kinds is suffixes), "images")
        raise InputError(f"{home / name}: no {what} here ({', '.join(sorted(kinds))}); add some, or remove this folder")
    return sorted(found), others


def is_image(name: str) -> bool:
    """Return whether a file has the name of an image that is read."""
    return _suffix(name) in SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _fail(error: OSError) -> None:
    # `os.walk` would skip a folder without read permission
    raise error
