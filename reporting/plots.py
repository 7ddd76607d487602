"""The reports' charts: numbers -> inline SVG that scales with the page. Import it late: matplotlib
takes half a second.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from labels import GROUP_STARTS
from runtime.devices import without_variable

with without_variable(
    "MPLBACKEND"
):  # these charts need no backend, and one that is not installed would stop the import
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, SOFT, REST = "#1f2933", "#52606d", "#e4e7eb"
COLOURS = (
    "#2f6db5",
    "#e8912d",
    "#2a9d78",
    "#c8453b",
    "#8a63b5",
    "#5aa9d6",
    "#b8860b",
    "#7a8b3c",
    "#d477a5",
    "#6b4f3f",
)
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": REST,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "path.simplify": True,
}
WIDTH = 4.7  # inches; a phone shows such a chart nearly as large as it is


def drawn(draw: Any, description: str, *values: Any, height: float = 2.9) -> str:
    """What draw(ax, *values) draws, as an <svg> element with a description for those who do not see
    it.
    """
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot(), *values)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
            transparent=True,
        )
    svg = buffer.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</defs>\s*|<!--.*?-->\s*",
        "",
        svg[svg.index("<svg") :],
        flags=re.DOTALL,
    )
    # nobody refers to these, and several charts would share them
    svg = re.sub(r'(<g) id="[a-z]\w*(?:\.\w+)?"', r"\1", svg)
    svg = re.sub(r"'?DejaVu Sans'?(, [\w-]+)*", "system-ui, sans-serif", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    head = re.search(r'viewBox="[^"]*"', svg)
    box = head.group() if head else ""
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return (
        f'<svg {links} {box} role="img" '
        f'aria-label="{escape(description)}">{svg[svg.index(">") + 1 :]}'
    )


def learning(
    ax: Axes, folds: Sequence[Mapping[str, Any]], solid: str, dashed: str, label: str
) -> None:
    """A history's column of each fold by epoch, with another one dashed, and the mean of the first
    where folds are alike.
    """
    for number, fold in enumerate(folds):
        colour, curves = COLOURS[number % len(COLOURS)], fold["history"]
        thin = 1 if len(folds) > 1 else 2
        ax.plot(
            curves["epoch"],
            curves[solid],
            color=colour,
            linewidth=thin,
            label=f"fold {fold['fold']}",
        )
        if dashed in curves:
            ax.plot(
                curves["epoch"],
                curves[dashed],
                color=colour,
                linewidth=thin,
                linestyle=(0, (3, 2)),
                alpha=0.6,
            )
    if len(folds) > 1 and len({len(fold["history"]["epoch"]) for fold in folds}) == 1:
        mean = np.mean([fold["history"][solid] for fold in folds], axis=0)
        ax.plot(folds[0]["history"]["epoch"], mean, color=INK, linewidth=2.4, label="mean")
    if max(len(fold["history"]["epoch"]) for fold in folds) == 1:
        for line in ax.lines:
            line.set_marker("o")
    ax.set(xlabel="epoch", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(ncols=3 if len(folds) < 9 else 4, loc="best", handlelength=1.2, columnspacing=1)


def class_scores(ax: Axes, classes: Sequence[Mapping[str, Any]]) -> None:
    """F1 of each class from above to below, with its interval; coloured by the first word of its
    name.
    """
    kinds = list(dict.fromkeys(row["name"].partition(",")[0] for row in classes))
    for place, row in enumerate(classes):
        if row["f1"] is None:
            ax.text(0.01, place, "no photograph", va="center", color=SOFT, fontsize=8)
            continue
        several = len(kinds) < len(classes)
        colour = (
            COLOURS[kinds.index(row["name"].partition(",")[0]) % len(COLOURS)]
            if several
            else COLOURS[0]
        )
        ax.barh(place, row["f1"], height=0.7, color=colour, alpha=0.85)
        ax.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.4)
    ax.set_yticks(range(len(classes)), [row["name"].replace("_", " ") for row in classes])
    ax.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6))
    ax.set_title("F1", fontsize=9)
    ax.grid(visible=False, axis="y")


def age_errors(ax: Axes, ages: Sequence[Mapping[str, Any]]) -> None:
    """By true age the shares of the photographs put into too young and too old a group."""
    years, counts = (
        np.array([row["age"] for row in ages]),
        np.array([row["photographs"] for row in ages]),
    )
    young, old = (np.array([row[key] for row in ages]) / counts for key in ("too_young", "too_old"))
    ax.bar(years, old, width=0.85, color=COLOURS[1], label="called too old")
    ax.bar(years, young, width=0.85, bottom=old, color=COLOURS[0], label="called too young")
    for start in GROUP_STARTS:
        if years.min() < start <= years.max():
            ax.axvline(start - 0.5, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    ax.set(
        xlabel="true age in years",
        ylabel="in the wrong age group",
        ylim=(0, max(1.15 * float((young + old).max()), 0.1)),
    )
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(visible=False, axis="x")
    ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def mean_answers(ax: Axes, ages: Sequence[Mapping[str, Any]]) -> None:
    """The mean prediction in years by true age."""
    years = [row["age"] for row in ages]
    ax.plot(years, years, color=SOFT, linewidth=1, linestyle=(0, (3, 2)), label="truth")
    means = [row["mean_answer"] for row in ages]
    ax.plot(
        years, means, "o-", color=COLOURS[0], linewidth=1.4, markersize=3, label="mean prediction"
    )
    ax.set(xlabel="true age in years", ylabel="years")
    ax.legend(loc="upper left")


def reliability(ax: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    """The accuracy by confidence; a dot's area shows how many photographs it stands for."""
    sure, right, counts = (
        np.array([row[key] for row in bins], float)
        for key in ("confidence", "accuracy", "photographs")
    )
    ax.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (3, 2)))
    ax.plot(sure, right, color=COLOURS[0], linewidth=1.6)
    ax.scatter(
        sure, right, s=12 + 160 * counts / counts.max(), color=COLOURS[0], alpha=0.75, linewidths=0
    )
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")


def shares(
    ax: Axes, names: Sequence[str], answered: Sequence[float], others: Mapping[str, Sequence[float]]
) -> None:
    """The share of each class among the predictions as bars, elsewhere as marks."""
    places = np.arange(len(names))
    ax.barh(places, answered, height=0.7, color=COLOURS[0], alpha=0.85, label="predicted")
    for marker, colour, (label, values) in zip(
        "|x", (INK, COLOURS[3]), others.items(), strict=False
    ):
        ax.plot(values, places, marker, color=colour, markersize=9, markeredgewidth=2, label=label)
    ax.set_yticks(places, [name.replace("_", " ") for name in names])
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, None))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(visible=False, axis="y")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, handlelength=1.2, columnspacing=1)
