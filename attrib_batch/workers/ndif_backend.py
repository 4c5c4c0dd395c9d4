"""nnsight's client, polled: it remembers what the server last said of a job, and how large the result was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnsight.intervention.backends.remote import RemoteBackend

from attrib_batch.workers.ndif_server import JobStatus

if TYPE_CHECKING:
    from nnsight.schema.response import ResponseModel


class ListeningBackend(RemoteBackend):  # type: ignore[misc]  # nnsight's classes have no types here
    """Sends one job without waiting for it, or asks after one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.display.enabled = False
        self.last: JobStatus | None = None
        self.result_bytes = 0

    def note(self, response: ResponseModel) -> bool:
        """Keep a status; nnsight raises where it is an error."""
        self.last = JobStatus(str(response.status.value), response.description or "")
        final: bool = super().note(response)
        return final

    def finalize(self, content: bytes) -> Any:
        """Keep the size of a result as it came."""
        self.result_bytes = len(content)
        return super().finalize(content)
