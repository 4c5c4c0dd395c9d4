"""The command line: ``attrib-batch``."""

from attrib_batch.cli.app import main

__all__ = ["main"]
