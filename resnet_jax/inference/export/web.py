"""Export a network as a page that classifies pictures in a browser, without a server of its own or a network."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.export.description import read_description
from resnet_jax.inference.export.export import Exported, export

# Of `npm pack onnxruntime-web@1.30.0` (MIT): the files that one thread needs, with their SHA-256
VERSION = "1.30.0"
RUNTIME: Mapping[str, str] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def export_web(
    where: Path | str, folder: Path | str, runtime: Path | str, *, force: bool = False, **options: Any
) -> Exported:
    """Write a folder with a page, a network as ONNX, and the runtime that the page uses.

    Any web server shows it, such as `python -m http.server`. Nothing is fetched from elsewhere.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        folder: the folder to write.
        runtime: the tarball of onnxruntime-web from npm, or a folder with its `dist` files.
        force: replace an existing folder that `export_web` wrote.
        options: of `export`, such as `weights` and `int8`.

    Raises:
        InputError: The folder exists, the runtime is another version, or as in `export`.
    """
    folder = Path(folder)
    ours = (folder / "network.onnx.json").is_file()
    if folder.exists() and not (force and ours):
        raise InputError(f"{folder}: exists; choose another name" + (", or replace it with --force" if ours else ""))
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder.parent}: no such folder")
    files = _runtime_files(Path(runtime))
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}-") as work:
        made = Path(work) / "web"
        made.mkdir()
        done = export(where, made / "network.onnx", preprocess=True, outputs="probabilities", **options)
        if read_description(done.file)["preprocessing"].get("crop_mode") == "border":
            raise InputError(f"{where}: its images are padded (crop_mode border), which the page does not support")
        for name, content in files.items():
            (made / name).write_bytes(content)
        page = resources.files("resnet_jax.inference.export").joinpath("page.html")
        (made / "index.html").write_bytes(page.read_bytes())
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(made, folder)
    return done._replace(file=folder)


def _runtime_files(runtime: Path) -> dict[str, bytes]:
    """Return the files of the runtime; raise InputError if they are missing or not those of the version."""
    hint = f"give --runtime what `npm pack onnxruntime-web@{VERSION}` writes, or its folder dist"
    try:
        if runtime.is_dir():
            found = {name: (runtime / name).read_bytes() for name in RUNTIME}
        else:
            with tarfile.open(runtime) as archive:
                found = {name: _member(archive, f"package/dist/{name}") for name in RUNTIME}
    except (OSError, tarfile.TarError, KeyError) as error:
        raise InputError(f"{runtime}: no onnxruntime-web ({first_line(error)}); {hint}") from error
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != RUNTIME[name]:
            raise InputError(f"{runtime}: {name} is not that of onnxruntime-web {VERSION}; {hint}")
    return found


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()
