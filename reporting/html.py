"""report.json -> report.html: this module gives the template charts, photographs and formats."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unicodedata import category

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from data import images
from labels import GENDERS, GROUP_STARTS, MASKS, scoring_task
from reporting import plots
from runtime.cli import duration
from runtime.errors import CliError, plural

THUMBNAIL_WIDTH = 96  # pixels
FIRST, SECOND = GROUP_STARTS
AGE_NAMES = [f"<{FIRST}", f"{FIRST}–{SECOND - 1}", f"{SECOND}+"]
MASK_NAMES = [mask.replace("_", " ") for mask in MASKS]
SHORT_NAMES: dict[str, Sequence[object]] = {  # of the classes in a confusion matrix
    "main": list(itertools.product(MASK_NAMES, GENDERS, AGE_NAMES)),
    "mask": MASK_NAMES,
    "gender": GENDERS,
    "ageg": AGE_NAMES,
}
SHARES = {"predicted": "class_shares", "true": "true_shares", "in training": "training_shares"}
Numbers = dict[str, Any]
Rows = Sequence[tuple[str, object]]
Paths = Mapping[str, str]  # {file: where its photograph is}


class Gallery(NamedTuple):
    """A section of pictures."""

    text: str
    pictures: Sequence[tuple[Image.Image, str]]  # with their captions


Galleries = Mapping[str, Gallery]  # by the section's title


def render_page(numbers: Numbers, paths: Paths, galleries: Galleries | None = None) -> str:
    """The page of a run or of a prediction."""
    shares = {name: numbers[key] for name, key in SHARES.items() if numbers.get(key) is not None}
    predicted, expected = [*shares.values(), None][:2]
    columns = zip(numbers["class_names"], predicted, expected or predicted, strict=True)
    template = environment().get_template("report.html.j2")
    values = [row["value"] for rows in numbers.get("extra", {}).values() for row in rows]
    script = policy = ""
    if any(isinstance(value, dict) and value.get("fix") for value in values):
        script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        script, policy = f"<script>{script}</script>", f"; script-src 'sha256-{digest}'"
    return template.render(
        report=numbers,
        paths=paths,
        galleries=galleries or {},
        script=Markup(script),
        script_policy=Markup(policy),
        shares=shares,
        rare=[name for name, share, fair in columns if share < fair / 2],
        scored_task=scoring_task(numbers["task"]),
        short_names=SHORT_NAMES,
        mean_curves=mean_curves(numbers.get("folds", [])),
    )


@functools.cache
def environment() -> Environment:
    """Jinja's environment: every value is made visible and escaped, none may be missing."""
    loader = FileSystemLoader(Path(__file__).parent)
    result = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    result.finalize, result.trim_blocks, result.lstrip_blocks = visible, True, True
    result.globals |= {"chart": chart, "matrix": matrix}
    filters = (breakable, decimals, duration, jpeg, percent, plural, short_member, thumbnail)
    result.filters |= {function.__name__: function for function in filters}
    result.filters |= {"mean": fmean, "quote": shlex.quote}
    return result


def visible(value: object) -> object:
    """Text without characters that steer a terminal or turn the text; Markup, our own, as it is."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = "none" if value is None else str(value)
    replacement = "\N{REPLACEMENT CHARACTER}"
    return "".join(replacement if category(c).startswith("C") else c for c in text)


def breakable(name: str) -> Markup:
    """A file's name that is best broken after / and _."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(visible(name)))))


def decimals(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float, digits: int = 0) -> str:
    """0.314 -> 31 %."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def short_member(name: str) -> str:
    """A member by its fold and epoch, and by its run where several runs vote."""
    match = re.match(r"(?P<run>.*?)/?fold\d+/Fold(?P<fold>\d+)_.*?ep\((?P<epoch>\d+)\)", name)
    if match is None:
        return name.partition("bs(")[0]
    run = f"{match['run']}, " if match["run"] else ""
    return f"{run}fold {int(match['fold'])}, epoch {match['epoch']}"


def thumbnail(path: str | None) -> str | None:
    """A photograph as a small JPEG in base64; None where it cannot be read any more."""
    try:
        photo = images.read_image(path or "")
    except CliError:
        return None
    photo.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
    return jpeg(photo)


def jpeg(picture: Image.Image) -> str:
    """A picture as a JPEG in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def chart(name: str, title: str, *values: object, **size: float) -> Markup:
    """A chart that plots.py draws of these values, as inline SVG."""
    return Markup(plots.render_svg(getattr(plots, name), title, *values, **size))


def matrix(
    title: str, names: Sequence[object], rows: list[list[float]], low: float = 0, high: float = 0
) -> Markup:
    """A table of numbers [n, n], shaded from `low` to `high` or the row's sum; of shares up to a
    `high` of 1 in percent. Names that are tuples make groups.
    """
    values, index = np.array(rows, float), pd.Index(names)
    span = (high or values.sum(1, keepdims=True)) - low
    shares = pd.DataFrame((values - low) / np.maximum(span, 1e-9), index, index)
    shades = (0.7 * shares).map("background: rgb(47 109 181 / {:.2f})".format)
    style = pd.DataFrame(values * (100 if high else 1), index, index).style.set_caption(title)
    style = style.apply(lambda _: shades, axis=None).set_uuid(re.sub(r"\W", "-", title))
    style = style.format(lambda value: f"{value:.0f}" if value else "")
    style = style.format_index(escape="html").format_index(escape="html", axis=1)
    table = style.set_table_attributes('class="matrix"').to_html()
    return Markup(f'<div class="scroll">{table}</div>')


def mean_curves(folds: Sequence[Numbers]) -> list[np.ndarray] | None:
    """The folds' mean macro F1 and mean loss [epochs]; None for unlike lengths and under 3."""
    curves = [fold["history"] for fold in folds if fold["history"]]
    lengths = {len(curve["macro_f1"]) for curve in curves}
    if len(lengths) != 1 or min(lengths) < 3:
        return None
    return [np.mean([curve[name] for curve in curves], 0) for name in ("macro_f1", "valid_loss")]
