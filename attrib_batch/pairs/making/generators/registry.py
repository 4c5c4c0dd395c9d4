"""The registry of generators: one entry for each task beside IOI."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.pairs.making.generators.capitals import CAPITALS
from attrib_batch.pairs.making.generators.docstring import DOCSTRING
from attrib_batch.pairs.making.generators.gender_agreement import GENDER_AGREEMENT
from attrib_batch.pairs.making.generators.greater_than import GREATER_THAN
from attrib_batch.pairs.making.generators.mcqa import MCQA
from attrib_batch.pairs.making.generators.subject_verb import SUBJECT_VERB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.pairs.making.generator import Generator

_GENERATORS = (GREATER_THAN, GENDER_AGREEMENT, SUBJECT_VERB, CAPITALS, DOCSTRING, MCQA)
GENERATORS: Mapping[str, Generator] = MappingProxyType({generator.name: generator for generator in _GENERATORS})
"""By name, in the order in which they are listed."""
