"""A run's directory, on a file system or in an object store: atomic commits, reading and listings.

A file under its final name is complete. Locally it is written under a temporary name and renamed (see ``files``); in an
object store it is one whole put.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from attrib_batch.errors import OutputError
from attrib_batch.storage.conditional import Version, check_conditions, read_object, write_object
from attrib_batch.storage.local import create_file, replace_file, write_file
from attrib_batch.storage.objects import (
    ObjectUrl,
    file_system,
    is_object_url,
    put,
    retrying_short_reads,
    translating_errors,
)
from attrib_batch.storage.parquet import encode_parquet, read_between
from attrib_batch.tables import Table, parse_part_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

WHOLE_BYTES = 1 << 20
"""Up to this size an object is read whole, whatever is wanted of it."""


@dataclass(frozen=True)
class Store:
    """A run's directory that every worker sees under the same name.

    It holds that name alone, and can be pickled: file systems are opened where they are used.
    """

    root: Path | ObjectUrl

    @classmethod
    def parse(cls, out: str | Path | Store) -> Store:
        """Return the store that a user names: a folder, ``s3://bucket/folder`` or ``gs://bucket/folder``.

        Raises:
            RequestError: it is no such URL.
        """
        if isinstance(out, Store):
            return out
        return cls(ObjectUrl.parse(str(out)) if is_object_url(out) else Path(out).expanduser())

    def resolved(self) -> Store:
        """Return the store under a name that does not depend on the current folder."""
        return self if isinstance(self.root, ObjectUrl) else Store(self.root.resolve())

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return isinstance(self.root, ObjectUrl)

    def path(self, relative: str) -> Path | str:
        """Return where a person finds a file of the run: its full path, or the URL of an object."""
        return str(self.root.below(relative)) if isinstance(self.root, ObjectUrl) else self.root / relative

    def below(self, relative: str) -> Store:
        """Return the store in a folder of this one."""
        return Store(self.root.below(relative) if isinstance(self.root, ObjectUrl) else self.root / relative)

    def file(self, relative: str) -> StoredFile:
        """Return a file of the run, whether or not it exists."""
        return StoredFile(self, relative)

    def exists(self, relative: str) -> bool:
        """Return whether a file is committed, or a folder holds something."""
        if not isinstance(self.root, ObjectUrl):
            return (self.root / relative).exists()
        url = self.root.below(relative)
        with translating_errors("read", url):
            return bool(file_system(url).get_file_info(url.path).type != fs.FileType.NotFound)

    def read_bytes(self, relative: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: it is not there.
            OutputError: it cannot be read.
        """
        return self._read(relative, lambda file: bytes(file.read()))

    def read_table(
        self, relative: str, columns: list[str] | None = None, between: tuple[str, int, int] | None = None
    ) -> pa.Table:
        """Read a Parquet file of the run; raises what :meth:`read_bytes` raises.

        Args:
            relative: the file.
            columns: which of its columns; all where None.
            between: a column of whole numbers, and the least and the greatest that a row may have there. Row groups
                without such rows are not read.
        """

        def read(file: Any) -> pa.Table:
            if self.is_remote and file.size() <= WHOLE_BYTES:
                # One request; footer and columns would be one each.
                file = pa.BufferReader(file.read_buffer())
            # Not by a path: pyarrow would take partitions from the names of folders.
            parquet = pq.ParquetFile(file, pre_buffer=True)
            return parquet.read(columns=columns) if between is None else read_between(parquet, columns, *between)

        return self._read(relative, read)

    def count_rows(self, relative: str) -> int:
        """Count the rows of a Parquet file from its footer; raises what :meth:`read_bytes` raises."""
        return self._read(relative, lambda file: int(pq.read_metadata(file).num_rows))

    def write_bytes(self, relative: str, data: bytes | pa.Buffer) -> int:
        """Commit ``data`` under its final name in one step, and return its size in bytes.

        Raises:
            OutputError: the folder cannot be written.
        """
        if isinstance(self.root, ObjectUrl):
            put(self.root.below(relative), data)
        else:
            write_file(self.root / relative, data)
        return len(data)

    def read_version(self, relative: str) -> Version | None:
        """Read a file as it is now, for `write_unless_changed`; return None where there is none.

        Raises:
            OutputError: it cannot be read.
        """
        if isinstance(self.root, ObjectUrl):
            return read_object(self.root.below(relative))
        try:
            return Version(self.read_bytes(relative))
        except FileNotFoundError:
            return None

    def write_unless_changed(self, relative: str, data: bytes, before: Version | None) -> Version | None:
        """Commit ``data`` only if the file is still as it was; of several who try at once, one succeeds.

        Args:
            relative: the file.
            data: its new content, which nobody else writes: by it a writer knows its own file again.
            before: the version it is to replace; None where there must be no file.

        Returns:
            The new version, or None where the file is not as it was. In an object store it may then be this very
            content: an answer was lost, and the write was sent again.

        Raises:
            OutputError: the folder cannot be written, or the object store knows no conditional writes.
        """
        if isinstance(self.root, ObjectUrl):
            return write_object(self.root.below(relative), data, before)
        path = self.root / relative
        written = create_file(path, data) if before is None else replace_file(path, data, before.data)
        return Version(data) if written else None

    def check_conditions(self, relative: str, version: Version) -> None:
        """Check that `write_unless_changed` can be relied on, on a file that it has just written.

        Raises:
            OutputError: an object store takes no notice of conditions.
        """
        if isinstance(self.root, ObjectUrl):
            check_conditions(self.root.below(relative), version)

    def write_table(self, relative: str, table: pa.Table) -> int:
        """Commit an Arrow table as Parquet, and return its size in bytes."""
        return self.write_bytes(relative, encode_parquet(table))

    def remove(self, relative: str) -> None:
        """Remove a file that an unfinished attempt may have left."""
        if not isinstance(self.root, ObjectUrl):
            (self.root / relative).unlink(missing_ok=True)
            return
        url = self.root.below(relative)
        with contextlib.suppress(FileNotFoundError), translating_errors("remove", url):
            file_system(url).delete_file(url.path)

    def list(self, folder: str, *, recursive: bool = False) -> list[StoredFile]:
        """List the files of a folder by name, none where there is no such folder; temporary files are left out."""
        if isinstance(self.root, ObjectUrl):
            url = self.root.below(folder)
            selector = fs.FileSelector(url.path, allow_not_found=True, recursive=recursive)
            with translating_errors("list", url):
                found = file_system(url).get_file_info(selector)
            files = [(info.path, info.mtime_ns) for info in found if info.type == fs.FileType.File]
            prefix = self.root.path
        else:
            files = []
            for entry in _walk(self.root / folder, recursive=recursive):
                with contextlib.suppress(FileNotFoundError):  # a file of an attempt that has ended meanwhile
                    files.append((entry.path, entry.stat().st_mtime_ns))
            prefix = os.fspath(self.root)
        names = [(path[len(prefix) :].lstrip("/"), modified) for path, modified in files]
        kept = [(name, modified) for name, modified in names if not name.rpartition("/")[2].startswith((".", "_"))]
        return [StoredFile(self, name, modified) for name, modified in sorted(kept)]

    def parts(self, table: Table, partition: str) -> set[tuple[int, int]]:
        """Return the pair ranges [start, stop) committed in one partition of a table."""
        folder = f"{table}/{partition}"
        if isinstance(self.root, ObjectUrl):
            names = [file.name for file in self.list(folder)]
        else:
            names = [entry.name for entry in _walk(self.root / folder, recursive=False)]
        found = (parse_part_name(name) for name in names)
        return {part for part in found if part is not None}

    def _read(self, relative: str, use: Callable[[Any], T]) -> T:
        def read() -> T:
            with self._open(relative) as file:
                return use(file)

        return retrying_short_reads(read) if self.is_remote else read()

    @contextlib.contextmanager
    def _open(self, relative: str) -> Iterator[Any]:
        if isinstance(self.root, ObjectUrl):
            url = self.root.below(relative)
            with translating_errors("read", url), file_system(url).open_input_file(url.path) as file:
                yield file
            return
        path = self.root / relative
        try:
            with path.open("rb") as file:
                yield file
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class StoredFile:
    """A file of a run's directory."""

    store: Store
    relative: str
    modified_ns: int = 0
    """When it was last written, in nanoseconds since the epoch, where it comes from a listing."""

    @property
    def name(self) -> str:
        """Its name within its folder."""
        return self.relative.rpartition("/")[2]

    def read(self, between: tuple[str, int, int] | None = None) -> pa.Table:
        """Read it as a Parquet table; takes ``between`` and raises what `Store.read_table` takes and raises."""
        return self.store.read_table(self.relative, between=between)

    def __str__(self) -> str:
        return str(self.store.path(self.relative))


def _walk(folder: Path, *, recursive: bool) -> Iterable[os.DirEntry[str]]:
    """Yield the files of a folder; one that is removed meanwhile may be missing."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            if recursive:
                yield from _walk(Path(entry.path), recursive=True)
        else:
            yield entry
