"""How the page writes numbers."""

from __future__ import annotations

MISSING = "\N{EN DASH}"


def signed(value: float | None, digits: int = 3) -> str:
    """Write a number with its sign, such as ``+0.321``; a dash for None."""
    return MISSING if value is None else _rounded(value, digits, "+")


def plain(value: float | None, digits: int = 3) -> str:
    """Write a number without a plus sign, such as ``0.321``; a dash for None."""
    return MISSING if value is None else _rounded(value, digits, "")


def _rounded(value: float, digits: int, sign: str) -> str:
    """Round a number; what would be no more than a signed zero keeps its first digit, such as ``+0.0004``."""
    text = f"{value:{sign}.{digits}f}"
    if value and not float(text):
        text = f"{value:{sign}.1g}"
    return text.replace("-", "\N{MINUS SIGN}")


def count(value: int) -> str:
    """Write a count with thousands separated, such as ``12,800``."""
    return f"{value:,}"


def percent(value: float | None) -> str:
    """Write a share as a percentage that is 0% or 100% only where it is, such as ``99.9%``; a dash for None."""
    if value is None:
        return MISSING
    return f"{value:.0%}" if value in (0, 1) else f"{min(max(100 * value, 0.1), 99.9):.1f}%"
