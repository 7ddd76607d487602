"""The page of a run or of a prediction: report.json's numbers -> one HTML file, by report.html.j2.

The template holds the sections and their words, and only loops and chooses; a new section goes
there. What it needs beyond the numbers is prepared here: charts, photographs, confusion matrices,
and what has to be computed.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from unicodedata import category

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data import images
from labels import GENDERS, GROUP_STARTS, MASKS, TASKS, scoring_task
from runtime.errors import CliError, plural

THUMBNAIL_WIDTH = 96  # pixels
PART_NAMES = {"mask": "mask state", "gender": "gender", "ageg": "age group"}
Numbers = dict[str, Any]
Rows = Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Picture:
    """A value of an extra row that is shown as a small photograph with a note."""

    path: str
    note: str


def training_page(numbers: Numbers, paths: Mapping[str, str], extra: Mapping[str, Rows]) -> str:
    """The page of a run.

    paths: {file: where its photograph is}; extra: {title: rows} of sections that the caller adds.
    """
    wrong = numbers["most_wrong"]
    return render(
        numbers,
        extra=[extra_section(title, rows) for title, rows in extra.items() if rows],
        verdict=learning_verdict(numbers["folds"]),
        boundaries=[boundary_sentence(row) for row in numbers["boundaries"]],
        most_wrong=[{**row, "jpeg": thumbnail(paths.get(row["file"]))} for row in wrong],
        fold_names=[f"fold {fold['fold']}" for fold in numbers["folds"]],
        settings=run_settings(numbers["run"]),
        notes=[],
    )


def prediction_page(numbers: Numbers) -> str:
    """The page of a prediction."""
    members, made = numbers["members"], numbers["made"]
    columns = ("validation_macro_f1", "equal_to_vote", "macro_f1")
    known = [name for name in columns if name in members[0]]
    return render(
        numbers,
        extra=[],
        means={name: fmean(row[name] for row in members) for name in known},
        agreement=agreement(numbers["agreement"]) if len(members) > 1 else None,
        settings=[row for row in options(made.get("settings", {})) if row[1] is not None],
        notes=made.get("notes", []),
    )


def render(numbers: Numbers, **context: object) -> str:
    """The template filled with the numbers, what both pages need, and the page's own context."""
    shares = class_shares(numbers)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=numbers,
            charts=draw_charts(numbers),
            parts=part_costs(numbers),
            weakest=weakest_classes(numbers),
            matrices=confusion_matrices(numbers),
            shares=shares,
            classes=class_rows(numbers, shares),
            rare=rare_classes(numbers["class_names"], shares),
            **context,
        )
    )


@functools.cache
def environment() -> Environment:
    """The compiler of templates: every value is made visible and escaped, none may be missing."""
    result = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (best_epoch, decimals, duration, interval, percent, short_member, signed)
    filters = (*formats, with_interval, words, plural)
    result.filters |= {function.__name__: function for function in filters}
    return result


# ---------------------------------------------------------------------------------------- filters


def visible(value: object) -> object:
    """Any value as text that is seen, without characters that steer a terminal or turn the text.

    Markup, which only the template and the charts make, stays as it is.
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = "none" if value is None else str(value)
    replacement = "\N{REPLACEMENT CHARACTER}"
    return "".join(replacement if category(c).startswith("C") else c for c in text)


def decimals(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """0.0312 -> +0.031."""
    return f"{value:+.3f}"


def percent(value: float, digits: int = 0) -> str:
    """0.314 -> 31 %."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(score: Mapping[str, float | None]) -> str:
    """A score's interval: 0.410 to 0.480."""
    return f"{decimals(score['low'])} to {decimals(score['high'])}"


def with_interval(score: Mapping[str, float | None]) -> str:
    """A score with its interval: 0.443 (0.410 to 0.480)."""
    return f"{decimals(score['value'])} ({interval(score)})"


def duration(seconds: float | None) -> str:
    """4000 -> 1 h 07 min."""
    if seconds is None:
        return "–"
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def words(name: str) -> str:
    """A class's name with blanks."""
    return name.replace("_", " ")


def best_epoch(fold: Numbers) -> str:
    """At which epoch a fold's own curve is best."""
    curve = fold["history"].get("macro_f1", [])
    return f"{curve.index(max(curve)) + 1} of {len(curve)}" if curve else "–"


def short_member(name: str) -> str:
    """A member by its fold and epoch, and by its run where several runs vote."""
    match = re.match(r"(?P<run>.*?)/?fold\d+/Fold(?P<fold>\d+)_.*?ep\((?P<epoch>\d+)\)", name)
    if match is None:
        return name.partition("bs(")[0]
    run = f"{match['run']}, " if match["run"] else ""
    return f"{run}fold {int(match['fold'])}, epoch {match['epoch']}"


# ---------------------------------------------------------------------------------------- context


def draw_charts(numbers: Numbers) -> dict[str, list[Markup]]:
    """Each section's charts as inline SVG, which names no person."""
    from reporting import plots

    drawn: dict[str, list[Markup]] = {"classes": [], "curves": [], "ages": [], "calibration": []}

    def add(section: str, draw: Any, title: str, *values: object, **size: float) -> None:
        drawn[section].append(Markup(plots.render_svg(draw, title, *values, **size)))

    names = [words(name) for name in numbers["class_names"]]
    height = 1.0 + 0.24 * len(names)  # inches
    if "classes" in numbers:
        title = "F1 of each class with its interval"
        add("classes", plots.class_scores, title, numbers["classes"], height=height)
    shares = class_shares(numbers)
    title, predicted = "Share of each class among the predictions", shares.pop("predicted")
    add("classes", plots.shares, title, names, predicted, shares, height=height)
    folds = [fold for fold in numbers.get("folds", []) if fold["history"]]
    if folds:
        label = "validation macro F1"
        add("curves", plots.learning, "Macro F1 by epoch and fold", folds, "macro_f1", "", label)
        columns = ("valid_loss", "train_loss", "loss")
        add("curves", plots.learning, "Loss by epoch and fold", folds, *columns)
    ages = numbers.get("ages")
    if ages:
        title = "Share of photographs in the wrong age group by true age"
        add("ages", plots.age_errors, title, ages)
        if "mean_answer" in ages[0]:
            add("ages", plots.mean_predictions, "Mean prediction in years by true age", ages)
    if "calibration" in numbers:
        bins = numbers["calibration"]["bins"]
        add("calibration", plots.reliability, "Accuracy by confidence", bins)
    return drawn


def part_costs(numbers: Numbers) -> list[Numbers]:
    """What each part of the 18 classes costs, and its own scores; none for other tasks."""
    rows = []
    for part, score in numbers.get("if_right", {}).items():
        gain = score - numbers["headline"]["macro_f1"]["value"]
        own = numbers["parts"][part]["headline"]
        rows.append({"name": PART_NAMES[part], "if_right": score, "gain": gain, **own})
    return rows


def weakest_classes(numbers: Numbers) -> list[Numbers]:
    """The three classes of the lowest F1, where there are more."""
    known = [row for row in numbers.get("classes", []) if row["photographs"]]
    return sorted(known, key=lambda row: row["f1"])[:3] if len(known) > 3 else []


def confusion_matrices(numbers: Numbers) -> list[Numbers]:
    """The task's confusion matrix and those of its parts; none where the truth is unknown."""
    if "confusion" not in numbers:
        return []
    task = scoring_task(numbers["task"])
    caption = "Rows: true class; columns: predicted class; shaded by share of the row."
    matrices = [confusion_matrix(task, numbers["confusion"], caption)]
    for part, own in numbers.get("parts", {}).items():
        matrices.append(confusion_matrix(part, own["confusion"], PART_NAMES[part].capitalize()))
    return matrices


def confusion_matrix(task: str, counts: Sequence[Sequence[int]], caption: str) -> Numbers:
    """The arguments of the template's matrix: each count with its share of the row."""
    first, second = GROUP_STARTS
    ages = [f"<{first}", f"{first}–{second - 1}", f"{second}+"]
    masks = [words(mask) for mask in MASKS]
    names = {"main": ages * 6, "ageg": ages, "mask": masks}.get(task, TASKS[task].classes)
    return {
        "caption": caption,
        "names": names,
        "rows": [[(count or "", count / max(sum(row), 1)) for count in row] for row in counts],
        "groups": {"masks": masks, "genders": GENDERS} if task == "main" else None,
    }


def class_shares(numbers: Numbers) -> dict[str, list[float]]:
    """Each class's share of the predictions and, where known, of the truth and in training."""
    keys = {"predicted": "class_shares", "true": "true_shares", "in training": "training_shares"}
    return {name: numbers[key] for name, key in keys.items() if numbers.get(key) is not None}


def class_rows(numbers: Numbers, shares: Mapping[str, Sequence[float]]) -> list[Numbers]:
    """Each class's name, its shares, and its F1 with the interval where the truth is known."""
    names = numbers["class_names"]
    scores = numbers.get("classes", [{}] * len(names))
    columns = zip(names, scores, zip(*shares.values(), strict=True), strict=True)
    return [{**score, "name": words(name), "shares": own} for name, score, own in columns]


def rare_classes(names: Sequence[str], shares: Mapping[str, Sequence[float]]) -> Numbers | None:
    """The classes that are predicted less than half as often as they should be, if any."""
    (_, predicted), *others = shares.items()
    for name, expected in others[:1]:
        columns = zip(names, predicted, expected, strict=True)
        rare = [words(name) for name, share, fair in columns if share < fair / 2]
        if rare:
            reference = {"true": "they occur", "in training": "in the training data"}[name]
            return {"reference": reference, "names": rare}
    return None


def extra_section(title: str, rows: Rows) -> Numbers:
    """A section that a caller adds: its plain rows, and its pictures."""
    pictures, plain = [], []
    for name, value in rows:
        if isinstance(value, Picture):
            pictures.append({"name": name, "note": value.note, "jpeg": thumbnail(value.path)})
        else:
            plain.append((name, value))
    return {"title": title, "rows": plain, "pictures": pictures}


def learning_verdict(folds: Sequence[Numbers]) -> str:
    """One sentence on the mean curve: still rising, past its best, or done."""
    curves = [fold["history"] for fold in folds if fold["history"]]
    lengths = {len(curve["macro_f1"]) for curve in curves}
    if len(lengths) != 1 or min(lengths) < 3:  # folds of unlike lengths, or too short to tell
        return ""
    epochs = lengths.pop()
    scores, losses = (
        [fmean(values) for values in zip(*(curve[name] for curve in curves), strict=True)]
        for name in ("macro_f1", "valid_loss")
    )
    best, lowest = scores.index(max(scores)) + 1, losses.index(min(losses)) + 1
    where = f"The mean curve is best at epoch {best} of {epochs} ({decimals(max(scores))})"
    if epochs - best <= max(1, epochs // 10):
        return f"{where}: nothing was lost by training this long, and more epochs may still help."
    if lowest < 0.7 * epochs:
        return (
            f"{where} and the loss on held-out people is lowest at epoch {lowest}: it overfits "
            "from there; more augmentation or fewer epochs may help."
        )
    return f"{where}: it has levelled off."


def boundary_sentence(row: Numbers) -> str:
    """How often photographs near a boundary between age groups are put on its other side."""
    start, sides = row["age"], []
    if row["below"]:
        share = percent(row["below_called_older"] / row["below"])
        below = plural(row["below"], "photograph is", "photographs are")
        years = f"at {start - 3} to {start - 1} years"
        sides.append(f"{years} {share} of {below} called {start} and over")
    if row["above"]:
        share = f"{percent(row['above_called_younger'] / row['above'])} of {row['above']}"
        sides.append(f"at {start} to {start + 2} years {share} are called younger")
    return f"Around {start}: {'; '.join(sides)}."


def agreement(shares: Sequence[Sequence[float]]) -> Numbers:
    """How often each two members agree; a cell is the darker, the more often."""
    pairs = [share for place, row in enumerate(shares) for share in row[:place]]
    lowest = min(pairs)
    scale = max(1 - lowest, 1e-9)
    return {
        "mean": sum(pairs) / len(pairs),
        "lowest": lowest,
        "names": range(1, len(shares) + 1),
        "rows": [[(f"{100 * s:.0f}", (s - lowest) / scale) for s in row] for row in shares],
    }


def run_settings(run: Numbers) -> list[tuple[str, object]]:
    """A run's command, settings, machine and versions."""
    settings = {name: v for name, v in run.get("settings", {}).items() if name != "dry_run"}
    return [
        ("command", " ".join(map(str, run.get("command", [])))),
        ("started", run.get("started", "")),
        *options(settings),
        *(row for group in ("chosen", "machine", "versions") for row in run.get(group, {}).items()),
    ]


def options(settings: Mapping[str, object]) -> list[tuple[str, object]]:
    """Settings named as their options."""
    return [(f"--{name.replace('_', '-')}", value) for name, value in settings.items()]


def thumbnail(path: str | None) -> str | None:
    """A photograph as a small JPEG in base64; None where it cannot be read any more."""
    try:
        photo = images.read_image(path or "")
    except CliError:
        return None
    photo.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    photo.save(buffer, "jpeg", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
