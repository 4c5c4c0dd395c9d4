"""Make a call to a server again while it fails for a reason that passes, later and later, until the time is up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from attrib_batch.ndif.errors import transient_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

T = TypeVar("T")

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0


def persist(call: Callable[[], T], *, seconds: float, tell: Callable[[str, float], None]) -> T:
    """Make a call until it does not fail for a reason that passes; whatever else it raises, or raises last, is raised.

    Args:
        call: the call.
        seconds: how long to go on.
        tell: told why a call is made again, and after how many seconds.
    """
    from tenacity import Retrying, retry_if_exception

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = transient_reason(error) if error else "no answer"
        tell(str(reason), state.next_action.sleep if state.next_action else 0.0)

    patience = _Patience(seconds)
    again = Retrying(
        retry=retry_if_exception(lambda error: transient_reason(error) is not None),
        wait=patience.wait,
        stop=patience.over,
        before_sleep=before_sleep,
        reraise=True,
    )
    return again(call)


class _Patience:
    """How long to wait before a call is made again, and when not to make it any more."""

    def __init__(self, seconds: float) -> None:
        from tenacity import wait_exponential, wait_random

        self._seconds = seconds
        self._growing = wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS) + wait_random(
            0, FIRST_WAIT_SECONDS
        )

    def wait(self, state: RetryCallState) -> float:
        """Return growing seconds with jitter, as far as time is left, but at least what the server asks for."""
        return max(min(self._growing(state), self._left(state)), _asked_wait(state))

    def over(self, state: RetryCallState) -> bool:
        """Return whether the time is up, or will be before the server wants to be asked again."""
        left = self._left(state)
        return left <= 0 or _asked_wait(state) > left

    def _left(self, state: RetryCallState) -> float:
        return max(0.0, self._seconds - (state.seconds_since_start or 0.0))


def _asked_wait(state: RetryCallState) -> float:
    """Return the seconds of the answer's Retry-After header, if it has one."""
    import httpx

    error = state.outcome.exception() if state.outcome else None
    for one in (error, error.__cause__ if error else None):
        if isinstance(one, httpx.HTTPStatusError):
            asked = one.response.headers.get("retry-after", "")
            return float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else 0.0
    return 0.0
