"""A command restarts itself, once, so that its memory comes in large pages."""

import os
import subprocess
import sys

import pytest

from resnet_jax.runtime import huge_pages

PROGRAM = """
import os, sys
from resnet_jax.runtime import huge_pages
huge_pages.given_on_request = lambda: True
starts = int(os.environ.get("STARTS", "0")) + 1
os.environ["STARTS"] = str(starts)
huge_pages.restart_asking()
print(starts, os.getpid(), os.environ["GLIBC_TUNABLES"], *sys.argv[1:], sep="|")
"""


def started(*words: str, **environment: str) -> tuple[int, list[str]]:
    given = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], env={**given, **environment}, stdout=subprocess.PIPE, text=True
    )
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return process.pid, printed.strip().split("|")


@pytest.mark.skipif(sys.platform == "win32", reason="exec makes another process there")
def test_restarts_once_in_the_same_process_with_the_same_words():
    pid, said = started("train", "my recipe.py", "--out=a b")
    assert said == ["2", str(pid), "glibc.malloc.hugetlb=1", "train", "my recipe.py", "--out=a b"]


def test_what_the_user_says_about_pages_stands():
    _, said = started(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert said[::2] == ["1", "glibc.malloc.hugetlb=0"]


def test_other_tunables_stay():
    assert huge_pages.asking({"GLIBC_TUNABLES": "glibc.malloc.check=3", "A": "b"}) == {
        "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1",
        "A": "b",
    }
    assert huge_pages.asking({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert huge_pages.asking({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}) is None


@pytest.mark.parametrize(
    ("library", "setting", "expected"),
    [
        ("glibc 2.35", "always [madvise] never\n", True),
        ("glibc 2.41", "always [madvise] never\n", True),
        ("glibc 2.34", "always [madvise] never\n", False),
        ("glibc 2.35", "[always] madvise never\n", False),  # given unasked
        ("glibc 2.35", "always madvise [never]\n", False),
        ("glibc 2.35", None, False),
        (None, "always [madvise] never\n", False),
    ],
)
def test_asks_only_where_it_helps(tmp_path, monkeypatch, library, setting, expected):
    monkeypatch.setattr(os, "confstr", lambda name: library, raising=False)
    file = tmp_path / "enabled"
    if setting is not None:
        file.write_text(setting)
    assert huge_pages.given_on_request(file) is expected


def test_a_program_that_cannot_be_restarted_runs_as_it_did(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages, "given_on_request", lambda: True)
    monkeypatch.setattr(os, "execve", refuse)
    huge_pages.restart_asking()
