"""Attribution patching over large tables of prompt pairs."""

from attrib_batch._version import __version__

__all__ = ["__version__"]
