# SPDX-License-Identifier: Apache-2.0
"""One look for every figure, and files that are byte-identical when built twice.

Figures are matplotlib ``Figure`` objects without pyplot, so that no window system and no global list of
figures is involved.  SVG identifiers come from a fixed salt and no date is stored.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from conform_app.reports.rendering import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2933"
SOFT = "#7b8794"
LINE = "#cbd2d9"
WARM = "#c2410c"
#: Types A to D, then PSN, from light to dark: the same colour for a type in every figure.
TYPE_COLOURS = {"A": "#a3adb8", "B": "#5aa9c9", "C": "#2f7ebc", "D": "#174a7c", "PSN": "#c2410c"}

MAX_SVG_BYTES = 900_000

_RC = {
    "svg.hashsalt": "conform",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.composite_image": False,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the look of the reports; whatever matplotlib was set to before is put back."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of `width` x `height` inches that lays its axes out by itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, stem: Path) -> Path:
    """Write `figure` as ``<stem>.svg``, or as ``<stem>.png`` when the SVG would be large.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Finished figure.
    stem : Path
        Path without the extension; its folder is made when needed.

    Returns
    -------
    Path
        The file written. It appears complete or not at all.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    target, content = stem.with_name(stem.name + ".svg"), io.BytesIO()
    figure.savefig(content, format="svg", dpi=96, metadata={"Date": None, "Creator": None})
    if content.tell() > MAX_SVG_BYTES:
        target, content = stem.with_name(stem.name + ".png"), io.BytesIO()
        figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    replace_text(target, content.getvalue())
    return target
