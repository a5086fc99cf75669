"""A finished figure as a notebook shows it: a PNG to keep, an SVG to look at, and its text."""

from __future__ import annotations

import base64
import io
import threading

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

_one_at_a_time = threading.Lock()


class Picture:
    """A finished figure with the numbers it shows: the picture for people, the text for
    screen readers, tests, and places that show no pictures."""

    def __init__(self, figure: Figure, text: str, dpi: int = 110):
        self.figure, self.text, self.dpi = figure, text, dpi

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/plain": self.text,
                "image/png": base64.b64encode(to_png(self.figure, self.dpi)).decode()}


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """A PNG of 128 colours, a third as large as one of all of them."""
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=dpi, metadata={"Software": None})
    picture = Image.open(whole).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(small, "png", optimize=True)
    return small.getvalue()


def to_svg(figure: Figure, text: str) -> str:
    """An <svg> element to stand in HTML; ``text`` is what a screen reader says.

    Written for speed, since sliders wait for it: ``savefig`` would draw everything twice,
    and letters as shapes take longer than letters as text.
    """
    data, dpi = io.StringIO(), figure.dpi
    with _one_at_a_time:
        fonttype = matplotlib.rcParams["svg.fonttype"]
        matplotlib.rcParams["svg.fonttype"] = "none"
        try:
            FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None})
        finally:
            matplotlib.rcParams["svg.fonttype"] = fonttype
            figure.dpi = dpi
    svg = data.getvalue()
    label = text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg[svg.index("<svg"):].replace(
        "<svg ", f'<svg role="img" aria-label="{label}" style="max-width:100%;height:auto" ', 1)


def keep_layout(old: Figure, new: Figure) -> None:
    """Put the axes of ``new`` where those of ``old`` came to stand, if they correspond: a
    figure that follows a slider then stands still, and takes half the time."""
    where = [axis.get_position() for axis in old.axes]
    if where and len(where) == len(new.axes) and (
            old.get_size_inches() == new.get_size_inches()).all():
        new.set_layout_engine("none")
        for axis, position in zip(new.axes, where):
            axis.set_position(position)
