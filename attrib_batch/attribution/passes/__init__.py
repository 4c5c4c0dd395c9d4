"""Forward passes over the suffixes of prompts: prefixes without a graph, once, and suffixes from their keys and values.

Causal attention makes every activation before the first difference equal in both prompts of a pair, so those positions
are computed once, without a graph, and the suffixes of both prompts start from their keys and values. This is exact.

Two ways give the same numbers. `packed` puts the tokens of all rows one behind the other, so rows of any shapes meet
without padding, and a prefix that rows share is held once; it brings its own attention function, and `choice` says for
which models. `padded` has a row for every prompt, padded on the right, and a copy of its prefix's keys and values; it
needs nothing of a model but its cache, so it also serves on a server.
"""

from attrib_batch.attribution.batches import Row
from attrib_batch.attribution.passes.base import Capture, Edit, Layout, Passes
from attrib_batch.attribution.passes.choice import passes_for

__all__ = ["Capture", "Edit", "Layout", "Passes", "Row", "passes_for"]
