"""The report's templates, compiled once for each test process: a page takes a third of a second less."""

from __future__ import annotations

from functools import partialmethod
from typing import TYPE_CHECKING

import jinja2
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2.bccache import Bucket


class Compiled(jinja2.BytecodeCache):
    """What templates were compiled to, by what they are."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Look whether this very text was compiled before."""
        if code := self._known.get((bucket.key, bucket.checksum)):
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep what it was compiled to."""
        self._known[bucket.key, bucket.checksum] = bucket.bytecode_to_string()


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Environments of jinja2 share what they compile; the package has one kind of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            jinja2.Environment, "__init__", partialmethod(jinja2.Environment.__init__, bytecode_cache=Compiled())
        )
        yield
