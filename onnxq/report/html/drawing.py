"""Pictures of a report: plots as SVG whose colours are those of the page, light or dark, and images as PNG."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

INK, MUTED, GRID, FLOAT, QUANT, BAD, BAND, BACK = (f"#01020{digit}" for digit in "34567890")
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--line", FLOAT: "--float", QUANT: "--quant", BAD: "--bad", BAND: "--band",
    BACK: "--back",
}  # fmt: skip
"""Colours that stand for variables of the style sheet: matplotlib knows no variables."""

WIDE, NARROW = (720, 300), (340, 260)
"""Width and height of a picture on a desktop and on a phone, in points."""

_SMALL = (340, 190)
_MANY = 150
"""Points beyond which a line is drawn without a mark for each."""

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "onnxq", "text.parse_math": False,
    "font.size": 10, "axes.edgecolor": GRID, "axes.labelcolor": MUTED,
    "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none", "grid.color": GRID,
    "axes.linewidth": 1.0, "legend.frameon": False, "axes.unicode_minus": True,
}  # fmt: skip

_numbers = itertools.count()


def restart() -> None:
    """Number the pictures of a page from 0 again, so that the same result gives the same page."""
    global _numbers
    _numbers = itertools.count()


Draw = Callable[[Any, bool], None]
"""Draws on axes; the second argument says that there is little room."""


def picture(draw: Draw, title: str, text: str, *, small: bool = False) -> str:
    """A plot as SVG; a large one in two widths, of which the style sheet shows one.

    Args:
        draw: draws on the axes.
        title: what the picture is, for those who do not see it.
        text: what it shows, likewise.
        small: one width is enough.
    """
    sizes = [("", _SMALL)] if small else [("wide", WIDE), ("narrow", NARROW)]
    return "".join(_svg(draw, name, size, title, text) for name, size in sizes)


def _svg(draw: Draw, name: str, size: tuple[int, int], title: str, text: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its own font lacks: the page has others
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        draw(axes, name != "wide")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _embedded(file.getvalue(), name, size, title, text)


def _embedded(svg: str, name: str, size: tuple[int, int], title: str, text: str) -> str:
    """The SVG as a part of a page: its own ids, colours of the page, and a text beside it."""
    number = next(_numbers)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(\bid=")([^"]+)"', rf"\1f{number}-\2" + '"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>f{number}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    head = (
        f'<svg class="plot {name}" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-labelledby="t{number} d{number}" '
        f'style="max-width:{size[0] * 1.35:.0f}px" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="t{number}">{html.escape(title)}</title>'
        f'<desc id="d{number}">{html.escape(text)}</desc>'
    )
    svg = re.sub(r"<svg\b[^>]*>", lambda match: head, svg, count=1)
    return re.sub(r">\s+<", "><", svg)


def frontier(points: Sequence[dict[str, Any]], speed: str = "times as fast as float") -> Draw:
    """Speed over quality, size as area: ``x`` in dB, ``y`` times faster, ``area`` in 0…1, ``name``, ``style``.

    Args:
        points: what is drawn; a point without a name has no label.
        speed: what ``y`` is.
    """

    def draw(axes: Any, narrow: bool) -> None:
        looks = {
            "chosen": {"facecolors": QUANT, "edgecolors": QUANT}, "frontier": {"facecolors": BAND, "edgecolors": QUANT},
            "float": {"facecolors": FLOAT, "edgecolors": FLOAT}, "other": {"facecolors": "none", "edgecolors": MUTED},
        }  # fmt: skip
        for point in points:
            area = 24 + 420 * point["area"] * (0.6 if narrow else 1.0)
            axes.scatter([point["x"]], [point["y"]], s=[area], linewidths=1.2, **looks[point["style"]])
        _labels(axes, points, narrow)
        axes.axhline(1.0, color=FLOAT, linewidth=1.0, linestyle="--")
        axes.set_xlabel("quality: SQNR in dB, better to the right")
        axes.set_ylabel(speed)
        axes.margins(0.14, 0.16)

    return draw


def _labels(axes: Any, points: Sequence[dict[str, Any]], narrow: bool) -> None:
    """The names beside the points, moved up or down where two would lie on each other."""
    span_x = max(p["x"] for p in points) - min(p["x"] for p in points) or 1.0
    span_y = max(p["y"] for p in points) - min(p["y"] for p in points) or 1.0
    taken: list[tuple[float, float]] = []
    middle = (max(p["x"] for p in points) + min(p["x"] for p in points)) / 2
    for point in sorted((point for point in points if point["name"]), key=lambda p: (-p["y"], p["x"])):
        x, y = point["x"] / span_x, point["y"] / span_y
        shift = 0.0
        while any(abs(x - a) < (0.6 if narrow else 0.3) and abs(y + shift - b) < 0.075 for a, b in taken):
            shift -= 0.025
        taken.append((x, y + shift))
        left = point["x"] > middle
        axes.annotate(
            point["name"], (point["x"], point["y"] + shift * span_y),
            xytext=(-11 if left else 11, 8 if point["style"] == "float" else 0), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=9,
            color=INK if point["style"] in ("chosen", "frontier") else MUTED,
        )  # fmt: skip


def layers(own: Sequence[float | None], arriving: Sequence[float | None], culprits: dict[int, str]) -> Draw:
    """SQNR along the network: what each layer adds, and what has arrived; ``culprits`` names places."""

    def draw(axes: Any, narrow: bool) -> None:
        places = np.arange(1, len(own) + 1)
        mark = {"marker": "o", "markersize": 3.5} if len(own) <= _MANY // (2 if narrow else 1) else {}
        axes.plot(places, _floats(arriving), color=FLOAT, linewidth=1.6, label="all layers quantized", **mark)
        axes.plot(places, _floats(own), color=QUANT, linewidth=1.0, alpha=0.9, label="this layer alone", **mark)
        for place, name in culprits.items():
            value = own[place]
            if value is None or not np.isfinite(value):
                continue
            axes.plot([place + 1], [value], color=BAD, marker="o", markersize=7, linestyle="none")
            axes.annotate(
                name, (place + 1, value), xytext=(0, -14), textcoords="offset points", ha="center", color=BAD,
                fontsize=9, fontweight="bold",
            )  # fmt: skip
        axes.set_xlabel("layers, from the input to the output")
        axes.set_ylabel("SQNR in dB")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(0.04, 0.16)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9, handlelength=1.4)

    return draw


def activation(row: dict[str, Any]) -> Draw:
    """A histogram of an activation, the range of its grid as a band."""

    def draw(axes: Any, narrow: bool) -> None:
        edges = np.linspace(row["edges"][0], row["edges"][1], len(row["counts"]) + 1)
        axes.axvspan(row["low"], row["high"], color=BAND, linewidth=0)
        for end in (row["low"], row["high"]):
            axes.axvline(end, color=QUANT, linewidth=1.2)
        _stairs(axes, row["counts"], edges, FLOAT)
        margin = 0.03 * (edges[-1] - edges[0])
        axes.set_xlim(edges[0] - margin, edges[-1] + margin)

    return draw


def weight(row: dict[str, Any]) -> Draw:
    """Histograms of a weight in float and as it is now."""

    def draw(axes: Any, narrow: bool) -> None:
        edges = np.linspace(row["edges"][0], row["edges"][1], len(row["float"]) + 1)
        _stairs(axes, row["float"], edges, FLOAT)
        axes.stairs(np.sqrt(row["quantized"]), edges, color=QUANT, linewidth=1.2)

    return draw


def _stairs(axes: Any, counts: Sequence[int], edges: Any, colour: str) -> None:
    """Counts as areas under a root scale, so that rare values can be seen; the axis has no numbers."""
    axes.stairs(np.sqrt(counts), edges, fill=True, color=colour, alpha=0.55)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.get_major_locator().set_params(nbins=5)


def curves(before: Sequence[float], after: Sequence[float]) -> Draw:
    """Two signals over each other."""

    def draw(axes: Any, narrow: bool) -> None:
        axes.plot(before, color=FLOAT, linewidth=2.2, alpha=0.7)
        axes.plot(after, color=QUANT, linewidth=1.0)

    return draw


def points(before: Sequence[float], after: Sequence[float]) -> Draw:
    """Numbers of the quantized model over those of the float model."""

    def draw(axes: Any, narrow: bool) -> None:
        ends = [min(before), max(before)]
        axes.plot(ends, ends, color=FLOAT, linewidth=1.0)
        axes.plot(before, after, color=QUANT, marker="o", markersize=2.6, linestyle="none", alpha=0.7)
        axes.set_xlabel("float")
        axes.set_ylabel("quantized")

    return draw


def curve(values: Sequence[float]) -> Draw:
    """One signal."""

    def draw(axes: Any, narrow: bool) -> None:
        axes.plot(values, color=FLOAT, linewidth=1.6)
        axes.set_axis_off()

    return draw


def _floats(values: Sequence[float | None]) -> Any:
    """Numbers to plot; gaps where one is unknown or infinite."""
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def image(packed: dict[str, Any], *, classes: bool = False) -> str:
    """A ``data:`` address of an image as the evidence has it (`onnxq.verify.kinds.side_by_side.picture_of`).

    Args:
        packed: its shape and bytes.
        classes: the bytes are numbers of classes, each with a colour of its own.
    """
    from matplotlib import colormaps
    from matplotlib.image import imsave

    pixels = np.frombuffer(base64.b64decode(packed["pixels"]), np.uint8).reshape(packed["shape"])
    if classes:
        colours = (np.array(colormaps["tab20"].colors) * 255).astype(np.uint8)
        pixels = colours[pixels[..., 0] % len(colours)]
    elif pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(pixels), format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
