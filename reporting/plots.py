"""The reports' charts: numbers -> inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from labels import GROUP_STARTS
from runtime.devices import without_variable

# these charts need no backend, and one that is not installed would stop the import
with without_variable("MPLBACKEND"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

INK, SOFT = "#1f2933", "#52606d"
DASHED = (0, (3, 2))
STYLE: dict[Any, dict[str, Any]] = {
    "font": {"family": "DejaVu Sans", "size": 9},
    "text": {"parse_math": False},
    "axes": {"edgecolor": SOFT, "grid": True, "axisbelow": True, "titlesize": 9},
    "axes.spines": {"top": False, "right": False},
    "grid": {"color": "#e4e7eb"},
    "legend": {"frameon": False, "fontsize": 8, "handlelength": 1.2, "columnspacing": 1},
    "svg": {"fonttype": "none", "hashsalt": "report"},
}
WIDTH_INCHES = 4.7  # a phone shows such a chart nearly as large as it is
Rows = Sequence[Mapping[str, Any]]


def render_svg(draw: Any, description: str, *values: Any, height: float = 2.9) -> str:
    """What draw(ax, *values) draws, `height` inches high, as an <svg> with a description."""
    buffer = io.StringIO()
    with mpl.rc_context(mpl.rcParamsDefault):
        for group, settings in STYLE.items():
            mpl.rc(group, **settings)
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        draw(figure.add_subplot(), *values)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue().partition("<svg")[2]
    # nothing refers to these ids, and several charts would share them
    svg = re.sub(r'(<g) id="[a-z]\w*(?:\.\w+)?"', r"\1", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'?DejaVu Sans'?(, [\w-]+)*", "system-ui, sans-serif", svg)
    return f'<svg role="img" aria-label="{escape(description)}"{svg}'


def columns(rows: Rows, *keys: str) -> list[np.ndarray]:
    return [np.array([row[key] for row in rows], float) for key in keys]


def percent(share: float, _: object) -> str:
    """An axis tick of a share, without decimals that it does not need."""
    return f"{100 * share:g}%"


def bars_by_name(ax: Axes, names: Sequence[str]) -> None:
    """Horizontal bars from top to bottom, one a name."""
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def learning(ax: Axes, folds: Rows, solid: str, dashed: str, label: str) -> None:
    """A column of each fold's history by epoch, another one dashed, and the mean of the first."""
    width = 1 if len(folds) > 1 else 2
    lengths = {len(fold["history"]["epoch"]) for fold in folds}
    marker = "o" if max(lengths) == 1 else ""
    for number, fold in enumerate(folds):
        curves = fold["history"]
        style: Any = {"color": f"C{number}", "linewidth": width, "marker": marker}
        ax.plot(curves["epoch"], curves[solid], label=f"fold {fold['fold']}", **style)
        if dashed in curves:
            ax.plot(curves["epoch"], curves[dashed], linestyle=DASHED, alpha=0.6, **style)
    if len(folds) > 1 and len(lengths) == 1:
        mean = np.mean([fold["history"][solid] for fold in folds], axis=0)
        ax.plot(curves["epoch"], mean, color=INK, linewidth=2.4, marker=marker, label="mean")
    ax.set(xlabel="epoch", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(ncols=3 if len(folds) < 9 else 4)


def class_scores(ax: Axes, classes: Rows) -> None:
    """F1 of each class with its interval, coloured by the first word of its name."""
    words = [row["name"].partition(",")[0] for row in classes]
    kinds = list(dict.fromkeys(words))
    for place, row in enumerate(classes):
        if row["f1"] is None:
            ax.text(0.01, place, "no photograph", va="center", color=SOFT, fontsize=8)
            continue
        kind = kinds.index(words[place]) if len(kinds) < len(classes) else 0
        ax.barh(place, row["f1"], height=0.7, color=f"C{kind}", alpha=0.85)
        ax.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.4)
    bars_by_name(ax, [row["name"] for row in classes])
    ax.set(xlim=(0, 1), title="F1")


def age_errors(ax: Axes, ages: Rows) -> None:
    """By true age the shares of the photographs put into too young and too old a group."""
    years, counts, young, old = columns(ages, "age", "photographs", "too_young", "too_old")
    young, old = young / counts, old / counts
    ax.bar(years, old, width=0.85, color="C1", label="called too old")
    ax.bar(years, young, width=0.85, bottom=old, color="C0", label="called too young")
    for start in GROUP_STARTS:
        if years.min() < start <= years.max():
            ax.axvline(start - 0.5, color=INK, linewidth=1, linestyle=DASHED)
    ax.set(xlabel="true age in years", ylabel="in the wrong age group")
    ax.set_ylim(0, max(1.15 * float((young + old).max()), 0.1))
    ax.yaxis.set_major_formatter(percent)
    ax.grid(visible=False, axis="x")
    ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def mean_predictions(ax: Axes, ages: Rows) -> None:
    """The mean prediction in years by true age."""
    years, predicted = columns(ages, "age", "mean_answer")
    ax.plot(years, years, color=SOFT, linewidth=1, linestyle=DASHED, label="truth")
    ax.plot(years, predicted, "o-", color="C0", ms=3, label="mean prediction")
    ax.set(xlabel="true age in years", ylabel="years")
    ax.legend(loc="upper left")


def reliability(ax: Axes, bins: Rows) -> None:
    """The accuracy by confidence; a dot's area shows how many photographs it stands for."""
    confidence, accuracy, counts = columns(bins, "confidence", "accuracy", "photographs")
    ax.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=DASHED)
    ax.plot(confidence, accuracy, color="C0", linewidth=1.6)
    sizes = 12 + 160 * counts / counts.max()
    ax.scatter(confidence, accuracy, s=sizes, color="C0", alpha=0.75, linewidths=0)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")


def shares(ax: Axes, names: Sequence[str], shares_by_label: Mapping[str, Sequence[float]]) -> None:
    """{label: the share of each class}: the first ones as bars, the others as marks."""
    places = range(len(names))
    (label, predicted), *others = shares_by_label.items()
    ax.barh(places, predicted, height=0.7, color="C0", alpha=0.85, label=label)
    for marker, colour, (label, values) in zip("|x", (INK, "C3"), others, strict=False):
        ax.plot(values, places, marker, color=colour, ms=9, mew=2, label=label)
    bars_by_name(ax, names)
    ax.set_xlim(0, None)
    ax.xaxis.set_major_formatter(percent)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
