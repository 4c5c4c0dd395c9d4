"""Gemma 2: attention and MLP pass norms before and after."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, post_normed, separate


def _architecture(_config: Any) -> Architecture:
    return post_normed(separate())


FAMILY = Family("Gemma 2", ("gemma2",), _architecture)
