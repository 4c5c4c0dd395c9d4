"""Attribution patching over large tables of prompt pairs."""

from typing import TYPE_CHECKING

from attrib_batch._version import __version__

if TYPE_CHECKING:
    from attrib_batch.api import Job, LocalExecutor, Run, attribute, load_job, open_run
    from attrib_batch.execution.ray.executor import RayExecutor

__all__ = ["Job", "LocalExecutor", "RayExecutor", "Run", "__version__", "attribute", "load_job", "open_run"]


def __getattr__(name: str) -> object:
    """Import the interface once something of it is asked for: the package itself is light."""
    if name in __all__:
        from attrib_batch import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
