"""Files in a directory that somebody else prepared: no link is followed, no pipe waited for."""

import os
import stat
from pathlib import Path

import pytest

from resnet_jax.runtime.safe_files import append, read_regular, write_atomic


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("name", ["x.json", "x.json.tmp"])
def test_a_link_is_replaced_and_not_followed(tmp_path, name, durable):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / name).symlink_to(precious)
    write_atomic(tmp_path / "x.json", "ä", durable=durable)
    assert precious.read_text() == "precious"
    assert (tmp_path / "x.json").read_bytes() == "ä".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "x.json"]
    assert not (tmp_path / "x.json").is_symlink()


def test_permissions_are_those_of_other_files(tmp_path):
    write_atomic(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_lines_are_not_appended_to_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        append(tmp_path / "link", "x")
    assert not (tmp_path / "precious").exists()
    append(tmp_path / "file", "x\n")
    append(tmp_path / "file", "y\n")
    assert (tmp_path / "file").read_text() == "x\ny\n"


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="not a file"):
            read_regular(tmp_path / name)
    (tmp_path / "text").write_text("x")
    (tmp_path / "link").symlink_to("text")
    assert read_regular(tmp_path / "link") == b"x"


def test_a_full_disk_names_the_file(tmp_path):
    """As metrics.jsonl of a run: errors of `write` do not know it."""
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        append(Path("/dev/full"), "x")
