"""Numbers in, small PNG pictures out: histograms and curves for the web page and the report."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = ("#2b5d8a", "#d1662f", "#4d8c57", "#8a5a9c")


def histogram(values: np.ndarray, *, title: str, unit: str) -> bytes:
    """Return the picture of how often which value occurs, with the median marked."""
    figure, axes = _canvas(title)
    axes.hist(values, bins=40, color=INK[0])
    if len(values):
        axes.axvline(float(np.median(values)), color=INK[1], linewidth=1, label=f"median {np.median(values):,.0f}")
        axes.legend(frameon=False)
    axes.set_xlabel(unit)
    axes.set_ylabel("samples")
    return _png(figure)


def histograms(panels: Mapping[str, np.ndarray], *, title: str) -> bytes:
    """Return the picture of how often which value occurs, a panel a name, each with its median marked."""
    from matplotlib.figure import Figure  # loads slowly, and only a finished asset draws

    columns = min(2, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 0.4 + 2.0 * rows), dpi=90, layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for place, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.hist(values, bins=32, color=INK[place % len(INK)])
        if len(values):
            axes.axvline(float(np.median(values)), color="#222222", linewidth=1, linestyle=":")
            axes.set_title(f"{name}, median {np.median(values):,.4g}", fontsize=8.5, loc="left")
        axes.tick_params(labelsize=7.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return _png(figure)


def curves(
    lines: Mapping[str, Sequence[float] | np.ndarray], *, title: str, unit: str, level: float | None = None
) -> bytes:
    """Return the picture of one curve a name over the steps; `level` is drawn as a dashed line."""
    figure, axes = _canvas(title)
    for (name, values), ink in zip(lines.items(), INK * len(lines), strict=False):
        axes.plot(range(len(values)), values, color=ink, linewidth=1.2, label=name)
    if level is not None:
        axes.axhline(level, color="#888888", linewidth=1, linestyle="--", label=f"recipe {level:.3g}")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    if len(lines) > 1 or level is not None:
        axes.legend(frameon=False)
    return _png(figure)


def bars(values: Mapping[str, float], *, title: str, unit: str) -> bytes:
    """Return the picture of one horizontal bar a name."""
    figure, axes = _canvas(title)
    axes.barh(
        list(values), list(values.values()), color=[ink for _, ink in zip(values, INK * len(values), strict=False)]
    )
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    return _png(figure)


def _canvas(title: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # loads slowly, and only a finished asset draws

    figure = Figure(figsize=(6.4, 2.8), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
