"""Local files: written whole or not at all, and, where that is asked, only if nobody else has written them.

A file is written under a temporary name that no ``*.parquet`` glob matches (a leading dot alone does not do: Polars'
globs match it), flushed to the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from typing import TYPE_CHECKING

from attrib_batch.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".tmp-", ".partial"
LOCK_SECONDS = 30.0
"""How long a file's lock is waited for: it is held for a read and a write."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_file(target: Path, data: bytes | pa.Buffer) -> None:
    """Write a file whole, over one that is there.

    Raises:
        OutputError: the folder cannot be written.
    """
    _commit(target, data, _rename)


def create_file(target: Path, data: bytes) -> bool:
    """Write a file whole if there is none; return whether there was none. Of several at once, one creates it.

    Raises:
        OutputError: the folder cannot be written.
    """
    return _commit(target, data, _link)


def replace_file(target: Path, data: bytes, before: bytes) -> bool:
    """Write a file whole if its content is still ``before``; return whether it was.

    Raises:
        OutputError: the folder cannot be written, or the file not be locked.
    """
    with _locked(target):
        try:
            unchanged = target.read_bytes() == before
        except FileNotFoundError:
            return False
        if unchanged:
            write_file(target, data)
        return unchanged


def _commit(target: Path, data: bytes | pa.Buffer, publish: Callable[[Path, Path], bool]) -> bool:
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{target.name}{TEMPORARY_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        published = publish(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # what stopped the write may stop this too; nothing reads the file
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}. Free the disk or choose another --out; "
            "what is committed stays, and the same command resumes."
        ) from error
    return published


def _rename(temporary: Path, target: Path) -> bool:
    temporary.replace(target)
    return True


def _link(temporary: Path, target: Path) -> bool:
    """Give a complete file its final name, unless a file has it; return whether it has it now."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links. The lock keeps others out between the look and the renaming.
        with _locked(target):
            return not target.exists() and _rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout  # reading a run's tables needs no lock, nor the package

    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{lock.lock_file} was locked for {LOCK_SECONDS:.0f} s; end the process that holds it") from (
            error
        )
    except OSError as error:
        raise OutputError(
            f"cannot lock {lock.lock_file}: {error.strerror or error}. If no driver is at work there, remove {target}."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: the directory entry itself must reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
