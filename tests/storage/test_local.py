"""Local files: whole or not at all, and of several writers at once one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from attrib_batch.errors import OutputError
from attrib_batch.storage import local
from attrib_batch.storage.local import create_file, replace_file, write_file


def names(folder: Path) -> list[str]:
    """The files that are neither temporary nor locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def nothing_temporary(folder: Path) -> bool:
    return not list(folder.glob(f"{local.TEMPORARY_PREFIX}*"))


def test_a_file_is_written_with_its_folders_and_over_one_that_is_there(tmp_path: Path) -> None:
    target = tmp_path / "a/b/file"
    write_file(target, b"first")
    write_file(target, b"second")
    assert target.read_bytes() == b"second"
    assert names(target.parent) == ["file"]
    assert nothing_temporary(target.parent)


def test_a_file_is_created_once(tmp_path: Path) -> None:
    target = tmp_path / "a/file"
    assert create_file(target, b"first")
    assert not create_file(target, b"second")
    assert target.read_bytes() == b"first"
    assert nothing_temporary(target.parent)


def test_a_file_is_replaced_only_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "file"
    assert not replace_file(target, b"new", b"")
    assert not target.exists(), "there was none to replace"
    write_file(target, b"old")
    assert not replace_file(target, b"new", b"other")
    assert target.read_bytes() == b"old"
    assert replace_file(target, b"new", b"old")
    assert target.read_bytes() == b"new"


def at_once(n: int, act: Callable[[int], bool]) -> list[int]:
    """Have threads do the same at once; return those for which it succeeded."""
    ready = threading.Barrier(n)
    succeeded: list[int] = []

    def one(number: int) -> None:
        ready.wait()
        if act(number):
            succeeded.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return succeeded


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_several_at_once_one_creates_and_one_replaces(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for round_ in range(5):
        target = tmp_path / str(round_)
        [first] = at_once(4, lambda number, target=target: create_file(target, b"%d" % number))  # type: ignore[misc]
        before = target.read_bytes()
        assert before == b"%d" % first
        [second] = at_once(
            4, lambda number, target=target, before=before: replace_file(target, b"%d!" % number, before)  # type: ignore[misc]
        )  # fmt: skip
        assert target.read_bytes() == b"%d!" % second
    assert nothing_temporary(tmp_path)


def test_a_lock_that_is_held_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOCK_SECONDS", 0.05)
    target = tmp_path / "file"
    write_file(target, b"old")
    from filelock import FileLock

    with FileLock(tmp_path / ".file.lock"), pytest.raises(OutputError, match=r"\.file\.lock was locked for 0 s; end"):
        replace_file(target, b"new", b"old")
    assert target.read_bytes() == b"old"


def test_what_stops_a_write_is_told_and_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_file(target, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (write_file, create_file):
        with pytest.raises(OutputError, match=r"cannot write .*file: No space left on device\. Free the disk"):
            write(target, b"new")
    assert target.read_bytes() == b"old"
    assert nothing_temporary(tmp_path)


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*folder/file"):
        write_file(tmp_path / "folder/file", b"data")
