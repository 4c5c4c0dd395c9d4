"""nnsight's client, polled: it remembers what the server last said of a job, and how large the result was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from nnsight.intervention.backends.remote import RemoteBackend

from attrib_batch.ndif.errors import JobGoneError, transient_reason
from attrib_batch.ndif.server import JobStatus

if TYPE_CHECKING:
    from nnsight.schema.response import ResponseModel


class ListeningBackend(RemoteBackend):  # type: ignore[misc]  # nnsight's classes have no types here
    """Sends one job without waiting for it, or asks after one."""

    def __init__(self, *args: Any, api_key: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.api_key = api_key  # and no other: nnsight would look for one in its own configuration
        self.display.enabled = False
        self.last: JobStatus | None = None
        self.result_bytes = 0

    def note(self, response: ResponseModel) -> bool:
        """Keep a status; nnsight raises where it is an error."""
        self.last = JobStatus(str(response.status.value), response.description or "")
        final: bool = super().note(response)
        return final

    def download_result(self, url: str | None) -> Any:
        """Tell a result that is there no more from a refusal, and keep its address, which needs no key, to ourselves.

        Raises:
            JobGoneError: the result is held no more.
        """
        try:
            return super().download_result(url)
        except httpx.HTTPStatusError as error:
            if transient_reason(error) is not None:
                raise
            status = error.response.status_code
        raise JobGoneError(f"{self.host} holds the result of job {self.job_id} no more (status {status})")

    def finalize(self, content: bytes) -> Any:
        """Keep the size of a result as it came."""
        self.result_bytes = len(content)
        return super().finalize(content)
