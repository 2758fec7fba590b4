"""The downloader against a server on loopback, and archives that would write elsewhere."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import open_split
from resnet_jax.data.formats import published
from resnet_jax.data.formats.published import Remote, fetch, unpack
from resnet_jax.errors import InputError
from resnet_jax.runtime.download import download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `files`; a path may be cut short once, or be served without ranges."""

    files: dict = {}
    cut: dict = {}
    ranges = True
    asked: list = []

    def do_GET(self):
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start, asked = 0, self.headers.get("Range")
        self.asked.append(asked)
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.cut.pop(self.path, len(content))])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name, value in (("files", {"/x.bin": CONTENT}), ("cut", {}), ("ranges", True), ("asked", [])):
        monkeypatch.setattr(Handler, name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_is_resumed(server, tmp_path, ranges):
    Handler.cut, Handler.ranges, path, said = {"/x.bin": 1_000_000}, ranges, tmp_path / "new" / "x.bin", []
    with pytest.raises(InputError, match=r"cannot be downloaded .*; the same command resumes"):
        download(f"{server}/x.bin", path, MD5, said.append)
    assert not path.exists()
    assert path.with_name("x.bin.part").stat().st_size == 1_000_000
    download(f"{server}/x.bin", path, MD5, said.append)
    assert path.read_bytes() == CONTENT
    assert Handler.asked == [None, "bytes=1000000-"]
    download(f"{server}/x.bin", path, MD5, said.append)
    assert len(Handler.asked) == len(said) == 2


def test_a_whole_file_that_was_not_renamed_is_not_fetched_again(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    download(f"{server}/x.bin", tmp_path / "x.bin", MD5, lambda line: None)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(InputError, match=f"has the MD5 {MD5}, expected {'0' * 32}"):
        download(f"{server}/x.bin", tmp_path / "x.bin", "0" * 32, lambda line: None)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="HTTP Error 404"):
        download(f"{server}/gone", tmp_path / "x.bin", MD5, lambda line: None)
    with pytest.raises(InputError, match="only http and https"):
        download("file:///etc/passwd", tmp_path / "x.bin", MD5, lambda line: None)


def tar_of(members, mode="w:gz"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_nothing_is_unpacked_elsewhere(tmp_path):
    members = {
        "jpg/a.jpg": b"a",
        "jpg/../../out.txt": b"b",
        "/etc/out.txt": b"c",
        "jpg/link": "/etc",
        "jpg/link/out.txt": b"d",
        "other/e.jpg": b"e",
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "x.tgz").write_bytes(tar_of(members))
    unpack(tmp_path / "x.tgz", tmp_path / "in", "jpg")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"x.tgz", "in/jpg/a.jpg", "in/jpg/link/out.txt"}
    (tmp_path / "cut.tgz").write_bytes(tar_of({"jpg/a.jpg": CONTENT})[:1_000_000])
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tmp_path / "cut.tgz", tmp_path / "cut", "jpg")
    assert not (tmp_path / "cut" / "jpg").exists()


def test_pets_from_their_archives(server, tmp_path, monkeypatch):
    names = {"train": ["Abyssinian_1", "great_pyrenees_3"], "test": ["great_pyrenees_10", "Abyssinian_2"]}
    images = {f"images/{name}.jpg": png(n) for n, name in enumerate([*names["train"], *names["test"]])}
    lists = {
        f"annotations/{file}": "".join(f"{name} 1 1 1\n" for name in names[split]).encode()
        for split, file in (("train", "trainval.txt"), ("test", "test.txt"))
    }
    remote = []
    for file, members, folder in (("i.tar.gz", images, "images"), ("a.tar.gz", lists, "annotations")):
        Handler.files[f"/{file}"] = content = tar_of(members)
        digest = hashlib.md5(content).hexdigest()
        remote.append(Remote(f"{server}/{file}", digest, "oxford-iiit-pet", folder))
    monkeypatch.setitem(published.REMOTE, "oxford_iiit_pet", tuple(remote))
    with pytest.raises(InputError, match="--download fetches oxford_iiit_pet"):
        open_split("oxford_iiit_pet", "train", tmp_path)
    for _ in range(2):
        fetch("oxford_iiit_pet", tmp_path, lambda line: None)
    assert len(Handler.asked) == 2
    train, test = (open_split("oxford_iiit_pet", split, tmp_path) for split in ("train", "test"))
    assert train.classes == ("Abyssinian", "great_pyrenees")
    assert [train.read(n).image[0, 0, 0] for n in range(2)] == [0, 1]
    assert test.labels.tolist() == [1, 0]


def test_what_is_not_downloaded_is_one_line(tmp_path):
    with pytest.raises(InputError, match="--download: digits is not downloaded, only cifar10, cifar100, imagenette"):
        fetch("digits", tmp_path)
