"""Small files of every layout, and what an import makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrib_batch.pairs.importing.importer import Imported, import_pairs
from attrib_batch.pairs.importing.options import ImportOptions
from attrib_batch.pairs.reading.reader import Pair, PairTable

FILES = Path(__file__).parent / "files"


def pairs_of(source: Path, folder: Path, options: ImportOptions | None = None) -> tuple[list[Pair], Imported]:
    target = folder / "imported.parquet"
    imported = import_pairs(source, target, options or ImportOptions())
    return PairTable.open(target).rows(0, imported.n_pairs), imported


def lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def cells(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
