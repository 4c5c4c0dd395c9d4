"""The caller's key to an NDIF server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_VARIABLE = "NDIF_API_KEY"


def ndif_key(environment: Mapping[str, str]) -> SecretStr:
    """Return the key that an environment holds; empty where it holds none."""
    return SecretStr(environment.get(KEY_VARIABLE, "").strip())
