"""Files that a prediction writes: pictures named after their images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet_jax.errors import InputError
from resnet_jax.runtime.safe_files import write_atomic


def output_files(images: Sequence[Path], out: Path, endings: Sequence[str]) -> list[tuple[Path, ...]]:
    """Return the files of each image, its stem with each of the endings; raise InputError if two of them would be one.

    Example:
        >>> output_files([Path("street.jpg")], Path("out"), ("_boxes.png",))
        [(PosixPath('out/street_boxes.png'),)]
    """
    names = [tuple(out / f"{image.stem}{ending}" for ending in endings) for image in images]
    flat = [file for some in names for file in some]
    for file in flat:
        if flat.count(file) > 1:
            raise InputError(f"{file}: two of the images would be written there; predict them separately")
        if any(file.exists() and file.samefile(image) for image in images):
            raise InputError(f"{file}: would overwrite an image; choose another --out")
    return names


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write each file atomically, and make its folder; raise InputError if that is not possible."""
    for file, content in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, content)
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error.strerror}); choose another place") from error
