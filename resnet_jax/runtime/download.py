"""Download a file: resumed where it was cut, checked by its MD5, and renamed only when it is whole."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from resnet_jax.errors import InputError, first_line

_CHUNK = 1 << 20
# Seconds without a byte
_TIMEOUT = 60
# Bytes of a file
_MOST = 64 << 30


def download(url: str, path: Path, md5: str, log: Callable[[str], None] = print) -> None:
    """Download a file unless it is there; an interrupted download is resumed.

    Args:
        url: of http or https.
        path: of the file; what is not yet whole is PATH.part.
        md5: hexadecimal.
        log: called with a line at the start.

    Raises:
        InputError: There is no network or no such file, or it has another MD5.
    """
    if path.is_file():
        return
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{url}: only http and https URLs can be downloaded")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    log(f"downloading {url} to {path}")
    try:
        _fetch(url, part)
    # Network errors have many types
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: cannot be downloaded ({first_line(error)}); the same command resumes") from error
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        part.unlink()
        raise InputError(f"{url}: has the MD5 {found}, expected {md5}, and is not kept; download it again")
    os.replace(part, path)


def _fetch(url: str, part: Path) -> None:
    """Append what is missing to a file, or start again if the server has no ranges."""
    start = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"User-Agent": "resnet-jax", **({"Range": f"bytes={start}-"} if start else {})})
    try:
        response = urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        # Nothing is missing
        if error.code == 416 and start:
            return
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        length = response.headers.get("Content-Length")
        size = (start if resumed else 0) + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                if file.tell() + len(chunk) > _MOST:
                    raise ValueError(f"over {_MOST >> 30} GiB")
                file.write(chunk)
            if size is not None and file.tell() < size:
                raise ValueError(f"cut short at {file.tell():,} of {size:,} bytes")
