"""Figures as image files, where kaleido and a Chrome are there to draw them."""

from __future__ import annotations

import importlib.util
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import plotly.graph_objects as go

WIDTH, SCALE = 760, 2
"""Pixels of an image, and how many dots stand for each in a PNG."""


class ImageError(RuntimeError):
    """Figures cannot be drawn on this machine; the message says what is missing."""


@contextmanager
def drawing() -> Iterator[Callable[[go.Figure, str], bytes]]:
    """Give a function that turns a figure into a PNG or an SVG; one browser draws all of them.

    Raises:
        ImageError: kaleido is not installed, finds no Chrome, or Chrome does not start.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise ImageError(
            "images need kaleido, which is not installed: pip install 'attrib_batch[images]'. It draws with Chrome or "
            "Chromium"
        )
    import kaleido

    def draw(figure: go.Figure, kind: str) -> bytes:
        try:
            with warnings.catch_warnings():
                # Plotly passes options for a browser of its own, which the one that runs already ignores.
                warnings.filterwarnings("ignore", message="The kopts argument")
                image: bytes = figure.to_image(format=kind, width=WIDTH, scale=SCALE)
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(
                "kaleido could not draw: it needs Chrome or Chromium on the PATH, or in BROWSER_PATH, or from "
                f"plotly_get_chrome. It says: {said[:300]}"
            ) from error
        return image

    kaleido.start_sync_server(n=1, silence_warnings=True)
    try:
        yield draw
    finally:
        kaleido.stop_sync_server(silence_warnings=True)
