#!/usr/bin/env python3
"""Draw the README's pictures: the split by person, the models, the transforms, how an ensemble
votes, a run's result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, FancyBboxPatch, Polygon, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import augmentation
import config
import ensemble
import metrics
import model
import out_of_fold
import registries
import run_directory
from data import csv_tables, images, splits, tables
from data.faces import Box, find_face
from labels import (
    AGE_GROUPS,
    GENDERS,
    GROUP_STARTS,
    INNER_HEADS,
    MASKS,
    PHOTO_SIZE,
    TASKS,
    head_spec,
)
from runtime.cli import run_script
from runtime.errors import UserError
from runtime.files import atomic_write
from training import fold_state
from utils import seeded

PICTURES = ("split", "models", "transforms", "ensemble", "result")
DPI = 110
FOLDS = 5  # of the drawn split and the drawn ensemble
MEMBERS, VIEWS = 2, 2  # of each fold, of each photograph, in the drawn ensemble
INK, SOFT, LINE, REST, CARD = "#1f2933", "#52606d", "#9aa5b1", "#e4e7eb", "#f5f7fa"
NOTES = {  # on models and transforms
    "VanillaEfficientNet": "EfficientNet and a linear head",
    "VanillaResNet": "ResNet and a linear head",
    "MultiClassTHANet_MK1": (
        "self-attention over three states, their outputs joined into the 18 classes"
    ),
    "MultiLabelTHANet": "self-attention over three states, three label sets",
    "THANet_MK1": "four linear heads on one backbone",
    "Factorised": "mask, gender and a distribution over the years of age; main is their product",
    "base": "resized and cropped",
    "random": "random crops and RandAugment",
    "tta": "random; each view is another crop",
    "facecrop": "crop to the face",
    "facerandom": "facecrop, scaled, mirrored and RandAugment",
}
VIEW = "#d1006c"  # the part of a photograph that is looked at
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
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


# --- small helpers


def colour(fold: int) -> str:
    """The colour of a fold in every picture."""
    return COLOURS[fold % len(COLOURS)]


def pale(name: str, share: float = 0.75) -> tuple[float, ...]:
    """A colour mixed with white."""
    return tuple(part + (1 - part) * share for part in to_rgb(name))


def new_figure(width: int, height: int) -> Figure:
    """A figure of so many pixels."""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")


def sheet(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure and an axis over all of it, measured in pixels from the upper left corner."""
    figure = new_figure(width, height)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    return figure, ax


def write(ax: Axes, x: float, y: float, text: str, size: float = 12, **options: Any) -> None:
    """Text, centred on a point unless told otherwise."""
    ax.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center", **options})


def card(
    ax: Axes, x: float, y: float, width: float, height: float, face: Any = CARD, edge: Any = LINE
) -> None:
    """A rounded box from its upper left corner."""
    style = "round,pad=0,rounding_size=6"
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.3
        )
    )


def tiles(ax: Axes, corners: Sequence[tuple[float, float, float, float]], faces: Any) -> None:
    """Many rectangles (x, y, width, height) at once."""
    shapes = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in corners]
    ax.add_collection(PolyCollection(shapes, facecolors=faces, linewidths=0))


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A plain grey arrow."""
    style = {
        "arrowstyle": "-|>,head_length=0.5,head_width=0.28",
        "color": SOFT,
        "linewidth": 1.8,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", end, start, arrowprops=style)


def bars(
    ax: Axes, x: float, y: float, width: float, height: float, values: np.ndarray, faces: Any
) -> None:
    """A small bar chart within a box, the largest value as high as the box."""
    step, tall = (
        width / len(values),
        height * np.asarray(values, float) / max(float(np.max(values)), 1e-12),
    )
    tiles(ax, [(x + i * step, y + height - t, step * 0.78, t) for i, t in enumerate(tall)], faces)


# --- the split by person


def draw_split(table: pd.DataFrame) -> Figure:
    """People as columns, grouped by gender and age group; above, the fold of each; below, what each
    fold holds out.
    """
    folds = splits.assign_folds(table, FOLDS, config.TrainSettings().split_seed)
    photos = table.groupby("person").size()
    people = table.drop_duplicates("person").assign(fold=lambda t: t["person"].map(folds))
    people = people.sort_values(["gender", "ageg", "fold", "person"])
    groups = [
        ((int(g), int(a)), part) for (g, a), part in people.groupby(["gender", "ageg"], sort=True)
    ]
    most = int(photos.max())
    shots = f"all {most}" if int(photos.min()) == most else "all"

    left, right, gap = 96, 782, 14
    panel = (right - left - gap * (len(groups) - 1)) / len(groups)
    tile, row, pitch = 112 / most, 34, 46
    top, below = 150, 324
    figure, ax = sheet(900, below + FOLDS * pitch + 44)
    write(
        ax,
        20,
        28,
        f"{shots.capitalize()} photographs of a person fall into one fold",
        15,
        ha="left",
        weight="bold",
    )
    write(
        ax,
        20,
        56,
        f"{len(people)} people, {len(table)} photographs: a column is a person, a tile is a "
        "photograph",
        11.5,
        ha="left",
        color=SOFT,
    )
    write(
        ax,
        20,
        298,
        f"Each fold holds out other people, evenly from all {len(groups)} groups",
        15,
        ha="left",
        weight="bold",
    )
    starts = {key: left + number * (panel + gap) for number, (key, _) in enumerate(groups)}
    for gender in sorted({key[0] for key in starts}):
        edges = [x for key, x in starts.items() if key[0] == gender]
        write(ax, (edges[0] + edges[-1] + panel) / 2, 87, GENDERS[gender], 13, weight="bold")
        ax.plot([edges[0], edges[-1] + panel], [100, 100], color=LINE, linewidth=1.5)
    write(
        ax,
        left - 10,
        top + most * tile / 2,
        "the fold\nof each\nperson",
        11,
        ha="right",
        linespacing=1.3,
    )
    for (gender, age), part in groups:
        start, wide = starts[gender, age], panel / len(part)
        full = wide * (0.8 if wide > 4 else 1)
        write(ax, start + panel / 2, 115, AGE_GROUPS[age], 11)
        write(ax, start + panel / 2, 135, f"{len(part)} people", 10, color=SOFT)
        upper, upper_faces, lower, lower_faces = [], [], [], []
        for number, (person, fold) in enumerate(zip(part["person"], part["fold"], strict=True)):
            x = start + number * wide
            upper += [(x, top + shot * tile, full, tile * 0.93) for shot in range(photos[person])]
            upper_faces += [colour(fold)] * int(photos[person])
            lower += [(x, below + other * pitch, full, row) for other in range(FOLDS)]
            lower_faces += [colour(fold) if other == fold else REST for other in range(FOLDS)]
        tiles(ax, upper, upper_faces)
        tiles(ax, lower, lower_faces)
    for fold in range(FOLDS):
        y = below + fold * pitch + row / 2
        held = people.loc[people["fold"] == fold, "person"]
        write(ax, left - 10, y, f"fold {fold}", 13, ha="right", color=colour(fold), weight="bold")
        write(
            ax,
            right + 10,
            y,
            f"{len(held)} people,\n{photos[held].sum()} photos",
            10.5,
            ha="left",
            linespacing=1.25,
        )
    legend = below + FOLDS * pitch + 12
    tiles(
        ax,
        [(left + 16 * f, legend - 7, 13, 14) for f in range(FOLDS)] + [(500, legend - 7, 13, 14)],
        [*map(colour, range(FOLDS)), REST],
    )
    write(ax, left + 16 * FOLDS + 6, legend, "held out: the fold is scored on them", 11, ha="left")
    write(ax, 520, legend, "the fold's model learns from them", 11, ha="left")
    return figure


# --- the models

# the colours of the answers
HEADS = {"main": COLOURS[0], "mask": COLOURS[2], "ageg": COLOURS[1], "gender": COLOURS[4]}
HEAD, APART = 30, 36  # height of an answer's box, from one to the next


def draw_models() -> Figure:
    """A row for each of MODELS that is known here: what lies between backbone and answers, read off
    the model itself.
    """
    kinds: dict[type[nn.Module], tuple[Callable[[Axes, float, Any], None], int]] = {
        model.VanillaEfficientNet: (draw_vanilla, 112),
        model.VanillaResNet: (draw_vanilla, 112),
        model.MultiClassTHANet: (draw_states, 196),
        model.MultiLabelTHANet: (draw_states, 196),
        model.THANet: (draw_heads, 218),
        model.Factorised: (draw_factors, 196),
    }
    resolved = {
        name: registries.import_target(entry.target) for name, entry in registries.MODELS.items()
    }
    targets = {name: target for name, target in resolved.items() if target in kinds}
    top = 78
    figure, ax = sheet(900, top + sum(kinds[target][1] for target in targets.values()) - 4)
    write(ax, 20, 28, "The models of --model-type", 15, ha="left", weight="bold")
    write(
        ax,
        20,
        56,
        "a photograph goes in on the left; filled with colour: what is answered → by how many "
        "outputs",
        11,
        ha="left",
        color=SOFT,
    )
    for name, target in targets.items():
        draw, high = kinds[target]
        entry = registries.MODELS[name]
        heads = {head: head_spec(head).outputs for head in registries.trained_heads(name, "main")}
        ax.plot([20, 880], [top, top], color=REST, linewidth=1.5)
        write(ax, 20, top + 21, name, 13, ha="left", weight="bold")
        write(ax, 880, top + 21, NOTES.get(name, ""), 10, ha="right", color=SOFT)
        middle = top + high / 2 + 18
        box(ax, 20, middle, 132, entry.backbone, "1000 outputs", face="white", edge=INK)
        draw(ax, middle, target(nn.Identity(), heads))
        top += high
    return figure


def described(layer: Any) -> str:
    """A layer with its sizes, as in the code."""
    if isinstance(layer, nn.Linear):
        return f"Linear({layer.in_features}, {layer.out_features})"
    if isinstance(layer, nn.BatchNorm1d):
        return f"BatchNorm1d({layer.num_features})"
    return f"Dropout({layer.p:g})" if isinstance(layer, nn.Dropout) else type(layer).__name__


def box(
    ax: Axes, x: float, middle: float, wide: float, *lines: str, face: Any = CARD, edge: Any = LINE
) -> None:
    """A rounded box about a height, its first line dark, the others grey."""
    high = 14 + 20 * len(lines)
    card(ax, x, middle - high / 2, wide, high, face, edge)
    for number, line in enumerate(lines):
        write(
            ax,
            x + wide / 2,
            middle + 20 * (number - (len(lines) - 1) / 2),
            line,
            10.5,
            color=SOFT if number and face == "white" else INK,
        )


def heights(middle: float, count: int) -> list[float]:
    """The middles of so many answers' boxes about a height."""
    return [middle + APART * (number - (count - 1) / 2) for number in range(count)]


def answer(ax: Axes, x: float, middle: float, wide: float, text: str, task: str) -> None:
    """A box in the colour of the answer."""
    card(ax, x, middle - HEAD / 2, wide, HEAD, pale(HEADS[task]), HEADS[task])
    write(ax, x + wide / 2, middle, text, 10.5)


def draw_vanilla(ax: Axes, middle: float, made: Any) -> None:
    """Layers in a row and one head."""
    x = 152
    for layer, wide in ((made.batchnorm, 172), (made.dropout, 112), (made.relu, 58)):
        arrow(ax, (x + 2, middle), (x + 20, middle))
        box(ax, x + 22, middle, wide, described(layer))
        x += 22 + wide
    arrow(ax, (x + 2, middle), (x + 20, middle))
    answer(ax, x + 22, middle, 100, "--task → n", "main")
    write(ax, x + 72, middle - 27, f"Linear({made.linear.in_features}, n)", 10, color=SOFT)
    counts = [f"{name} {task.outputs}" for name, task in TASKS.items()]
    lines = f"n: {', '.join(counts[:2])},\n{', '.join(counts[2:])}"
    write(ax, x + 136, middle, lines, 10, ha="left", color=SOFT, linespacing=1.35)


def draw_states(ax: Axes, middle: float, made: Any) -> None:
    """A state for each label set, attention among them, their outputs; and the 18 classes where the
    model goes on.
    """
    ys = heights(middle, len(made.parts))
    above, below = ys[0] - 27, ys[-1] + HEAD / 2 + 14
    arrow(ax, (153, middle), (171, middle))
    box(ax, 172, middle, 172, described(made.batchnorm), described(made.dropout))
    write(ax, 405, above, f"{len(ys)} × {described(made.states[made.parts[0]])}", 10, color=SOFT)
    card(ax, 472, ys[0] - HEAD / 2, 92, ys[-1] - ys[0] + HEAD)
    write(
        ax, 518, middle, f"self-\nattention,\n{made.attention.parts} heads", 10.5, linespacing=1.35
    )
    ax.plot([459, 459, 582, 582], [ys[0], below, below, middle + 18], color=SOFT, linewidth=1.8)
    arrow(ax, (582, middle + 26), (582, middle + 11))
    write(ax, 591, below + 1, "residual", 10, ha="left", color=SOFT)
    arrow(ax, (564, middle), (573, middle))
    ax.add_patch(
        Circle((582, middle), 10, facecolor="white", edgecolor=SOFT, linewidth=1.5, zorder=3)
    )
    ax.plot(
        [577, 587, 582, 582, 582],
        [middle, middle, middle, middle - 5, middle + 5],
        color=INK,
        linewidth=1.5,
        zorder=4,
    )
    write(ax, 667, above, f"Linear({made.outputs[made.parts[0]].in_features}, n)", 10, color=SOFT)
    for part, y in zip(made.parts, ys, strict=True):
        arrow(ax, (346, middle), (362, y))
        card(ax, 364, y - HEAD / 2, 82, HEAD, "white", HEADS[part])
        write(ax, 405, y, part, 10.5)
        arrow(ax, (448, y), (471, y))
        arrow(ax, (593, middle), (614, y))
        answer(ax, 616, y, 102, f"{part} → {made.outputs[part].out_features}", part)
    if isinstance(made, model.MultiClassTHANet):
        for y in ys:
            arrow(ax, (720, y), (750, middle + (y - middle) * 0.6))
        card(ax, 752, middle - 56, 128, 112)
        for number, line in enumerate(
            (f"{made.linear.in_features} joined", described(made.relu), described(made.linear))
        ):
            write(ax, 816, middle - 40 + 22 * number, line, 10.5)
        answer(ax, 760, middle + 33, 112, f"main → {made.linear.out_features}", "main")
    else:
        write(
            ax,
            730,
            middle,
            "main: the product\nof the three",
            10,
            ha="left",
            color=SOFT,
            linespacing=1.35,
        )


def draw_heads(ax: Axes, middle: float, made: Any) -> None:
    """A head for each task, all on the same features."""
    ys = heights(middle, len(made.heads))
    layers = {head: made.get_submodule(f"linear_{head}") for head in made.heads}
    arrow(ax, (153, middle), (171, middle))
    box(ax, 172, middle, 172, "Dropout(0.5)")
    write(ax, 420, ys[0] - 27, f"Linear({layers[made.heads[0]].in_features}, n)", 10, color=SOFT)
    for (head, layer), y in zip(layers.items(), ys, strict=True):
        arrow(ax, (346, middle), (367, y))
        answer(ax, 369, y, 102, f"{head} → {layer.out_features}", head)


def draw_factors(ax: Axes, middle: float, made: Any) -> None:
    """A head for each part of `main`, that of the age by way of the years, and their product."""
    ys = heights(middle, len(made.heads))
    arrow(ax, (153, middle), (171, middle))
    box(
        ax,
        172,
        middle,
        172,
        described(made.batchnorm),
        described(made.dropout),
        described(made.relu),
    )
    write(
        ax,
        420,
        ys[0] - 27,
        f"Linear({next(iter(made.heads.values())).in_features}, n)",
        10,
        color=SOFT,
    )
    for (head, layer), y in zip(made.heads.items(), ys, strict=True):
        arrow(ax, (346, middle), (367, y))
        if head not in INNER_HEADS:
            answer(ax, 369, y, 102, f"{head} → {layer.out_features}", head)
            continue
        card(ax, 369, y - HEAD / 2, 102, HEAD, "white", LINE)
        write(ax, 420, y, f"{head}: {layer.out_features}", 10.5)
        for task in INNER_HEADS[head].tasks:
            if TASKS[task].regression:  # the mean year, named beside
                continue
            arrow(ax, (473, y), (523, y))
            write(ax, 498, y - 10, "sums", 10, color=SOFT)
            answer(ax, 525, y, 102, f"{task} → {TASKS[task].outputs}", task)
    write(
        ax,
        650,
        middle,
        "main: the product\nof the three;\nage: the mean year",
        10,
        ha="left",
        color=SOFT,
        linespacing=1.35,
    )


# --- the transforms

Square = tuple[float, float, float, float]  # left, top, right, bottom in the photograph's pixels


def portrait(table: pd.DataFrame) -> Image.Image:
    """The first person without a mask, or the first photograph, in the frame. Raises UserError."""
    bare = table[table["shot"] == "normal"]
    row = (table if bare.empty else bare).iloc[0]
    return ImageOps.fit(images.read_image(row["path"]), PHOTO_SIZE)


def centred(side: float, about: Square) -> Square:
    """The square of a side in the middle of another part."""
    x, y = (about[0] + about[2] - side) / 2, (about[1] + about[3] - side) / 2
    return x, y, x + side, y + side


def looked_at(name: str, photo: Image.Image, found: Box | None) -> tuple[Square, Square] | None:
    """The square that a transform draws training crops from, and the one that inference sees."""
    whole = (0.0, 0.0, float(photo.width), float(photo.height))
    wide, narrow = (
        centred(augmentation.WIDE_CROP_PIXELS, whole),
        centred(augmentation.NARROW_CROP_PIXELS, whole),
    )
    face = augmentation.face_square(photo, found)
    inner = centred((face[2] - face[0]) / augmentation.FACE_CROP_SCALE, face)
    return {
        "base": (wide, narrow),
        "random": (wide, narrow),
        "tta": (wide, wide),
        "facecrop": (face, inner),
        "facerandom": (face, face),
    }.get(name)


def paste(ax: Axes, picture: Image.Image, x: int, y: int, wide: int, high: int) -> None:
    """A picture, pixel for pixel."""
    small = picture.resize((wide, high), Image.Resampling.LANCZOS)
    ax.imshow(
        np.asarray(small),
        extent=(x, x + wide, y + high, y),
        aspect="auto",
        interpolation="nearest",
        zorder=1,
    )


def draw_transforms(photo: Image.Image) -> Figure:
    """A row for each of TRANSFORMS: the photograph and what is looked at, draws in training, what
    inference sees.
    """
    pitch, top, tile, gap = 188, 112, 115, 6
    wide, high = 108, 144
    train, test = 146, 523
    figure, ax = sheet(900, top + pitch * len(registries.TRANSFORMS) - 6)
    write(
        ax,
        20,
        28,
        "What the network sees of a photograph, by --transform-type",
        15,
        ha="left",
        weight="bold",
    )
    ends = {
        20: ("photo", wide, SOFT),
        train: ("training: another draw every time", 3 * tile + 2 * gap, COLOURS[0]),
        test: ("validation and test", 3 * tile + 2 * gap, VIEW),
    }
    for x, (text, span, ink) in ends.items():
        write(ax, x + span / 2, 66, text, 12, color=ink, weight="bold")
        ax.plot([x, x + span], [82, 82], color=ink, linewidth=2)
    found = find_face(photo)
    for row, (name, entry) in enumerate(registries.TRANSFORMS.items()):
        y = top + row * pitch
        write(ax, 20, y - 2, name, 12, ha="left", weight="bold")
        write(ax, train, y - 2, NOTES.get(name, ""), 11, ha="left", color=SOFT)
        y += 16
        paste(ax, photo, 20, y, wide, high)
        squares = looked_at(name, photo, found)
        scale = wide / photo.width
        if entry.of_face and found is not None:
            frame(ax, 20, y, scale, found, "white", 0, linestyle=(0, (2.5, 1.5)))
        if squares is not None:
            frame(ax, 20, y, scale, squares[0], COLOURS[0], 1)
            frame(ax, 20, y, scale, squares[1], VIEW, 3.5 if squares[0] == squares[1] else 1)
        forms = augmentation.forms(name, augmentation.NARROW_CROP_PIXELS)
        draws = (9, 17, 12) if entry.random_view else (0, 4, 13)  # ones that differ
        shots = [(forms.train, train + k * (tile + gap), draw, "") for k, draw in enumerate(draws)]
        if entry.random_view:
            shots += [
                (forms.view, test + k * (tile + gap), draw, f"test view {k + 1}")
                for k, draw in enumerate((2, 3))
            ]
            shots += [(forms.valid, test + 2 * (tile + gap), 0, "validation")]
        else:
            shots += [(forms.view, test, 0, "")]
            note = f"{entry.sees},\nthe same every time"
            if entry.of_face:
                note += "\n\ndashed: the face's box" if found else "\n\nno face was found"
            write(
                ax,
                test + tile + 14,
                y + tile / 2,
                note,
                11,
                ha="left",
                color=SOFT,
                linespacing=1.35,
            )
        for form, x, number, text in shots:
            with seeded("picture", number):
                paste(ax, form(photo, None), x, y, tile, tile)
            write(ax, x + tile / 2, y + tile + 14, text, 10.5, color=SOFT)
    return figure


def frame(
    ax: Axes, x: float, y: float, scale: float, part: Square, ink: str, inset: float, **options: Any
) -> None:
    """The outline of a part of a photograph that is drawn at x, y in some scale."""
    left, upper, right, lower = (value * scale for value in part)
    ax.add_patch(
        Rectangle(
            (x + left + inset, y + upper + inset),
            right - left - 2 * inset,
            lower - upper - 2 * inset,
            fill=False,
            edgecolor=ink,
            **{"linewidth": 2.2, "zorder": 2, **options},
        )
    )


# --- how an ensemble votes


def made_up(members: int, views: int, classes: int) -> np.ndarray:
    """Probabilities [members, views, 1 image, classes] of members that waver between neighbouring
    classes.
    """
    draw = np.random.RandomState(11)  # numpy promises that this stream never changes
    common = np.full(classes, -1.0)
    common[[3, 4, 5, 1, 10]] = (1.3, 2.0, 1.4, 0.7, 0.8)
    raw = np.exp(
        common
        + draw.normal(0, 0.75, (members, 1, 1, classes))
        + draw.normal(0, 0.25, (members, views, 1, classes))
    )
    answers: np.ndarray = raw / raw.sum(-1, keepdims=True)
    return answers


def face(
    ax: Axes, x: float, y: float, wide: float, high: float, crop: tuple[float, float, float]
) -> None:
    """A photograph of a masked face with the part that a view looks at: (left, top, side) as shares
    of the width.
    """
    ax.add_patch(Rectangle((x, y), wide, high, facecolor="#dfe9f3", edgecolor=LINE, linewidth=1.2))
    cx, cy = x + wide / 2, y + high * 0.46
    shoulders = [
        (x + wide * 0.12, y + high),
        (x + wide * 0.3, y + high * 0.84),
        (x + wide * 0.7, y + high * 0.84),
        (x + wide * 0.88, y + high),
    ]
    ax.add_patch(Polygon(shoulders, closed=True, facecolor="#7b8794", edgecolor="none"))
    ax.add_patch(Ellipse((cx, cy - high * 0.06), wide * 0.6, high * 0.66, facecolor="#3e4c59"))
    ax.add_patch(Ellipse((cx, cy + high * 0.03), wide * 0.5, high * 0.62, facecolor="#f3cfb3"))
    for hand in (-1, 1):
        ax.add_patch(
            Circle((cx + hand * wide * 0.11, cy - high * 0.02), wide * 0.03, facecolor=INK)
        )
    mask = [
        (cx - wide * 0.23, cy + high * 0.07),
        (cx, cy + high * 0.04),
        (cx + wide * 0.23, cy + high * 0.07),
        (cx + wide * 0.17, cy + high * 0.24),
        (cx, cy + high * 0.32),
        (cx - wide * 0.17, cy + high * 0.24),
    ]
    ax.add_patch(Polygon(mask, closed=True, facecolor="white", edgecolor=SOFT, linewidth=1))
    left, upper, side = (part * wide for part in crop)
    ax.add_patch(
        Rectangle((x + left, y + upper), side, side, fill=False, edgecolor=VIEW, linewidth=2.2)
    )


def draw_ensemble() -> Figure:
    """Folds x checkpoints x views -> probabilities -> votes -> CSVs."""
    classes = TASKS["main"].outputs
    count = FOLDS * MEMBERS
    probs = made_up(count, VIEWS, classes)
    figure, ax = sheet(900, 780)
    draw_passes(ax, probs)
    y = 366
    arrow(ax, (732, 332), (732, y - 3))
    card(ax, 40, y, 820, 62, "white", SOFT)
    write(
        ax,
        450,
        y + 20,
        f"probabilities  [{count} members, {VIEWS} views, images, {classes} classes]",
        13.5,
        weight="bold",
    )
    write(
        ax,
        450,
        y + 44,
        "kept in probs.npz: vote again in seconds, without a forward pass",
        11,
        color=SOFT,
    )
    draw_votes(ax, probs, y + 62)
    return figure


def draw_passes(ax: Axes, probs: np.ndarray) -> None:
    """The upper half: checkpoints times views are predictions."""
    count, views = probs.shape[:2]
    top, pitch = 66, 52
    write(ax, 180, 30, f"{FOLDS} folds × {MEMBERS} checkpoints", 15, weight="bold")
    write(ax, 466, 30, f"{views} views", 15, weight="bold")
    write(ax, 732, 30, f"{count * views} predictions", 15, weight="bold")
    for sign, x in (("×", 358), ("=", 575)):
        write(ax, x, top + 2.5 * pitch - 6, sign, 30, color=SOFT)
    for fold in range(FOLDS):
        y = top + fold * pitch
        write(ax, 84, y + 20, f"fold {fold}", 13, ha="right", color=colour(fold), weight="bold")
        for k, name in enumerate(("best", "2nd best")):
            card(ax, 96 + k * 118, y, 108, 40, pale(colour(fold)), colour(fold))
            write(ax, 150 + k * 118, y + 20, name, 12)
    for view, crop in enumerate(((0.02, 0.1, 0.86), (0.12, 0.38, 0.86))):
        face(ax, 414, top + view * 130, 88, 117, crop)
        write(ax, 510, top + view * 130 + 58, f"{view + 1}", 13, ha="left", color=SOFT)
    for member in range(count):
        fold, k = divmod(member, MEMBERS)
        for view in range(views):
            x, y = 612 + view * 124, top + fold * pitch + k * 22
            tiles(ax, [(x - 3, y, 118, 19)], [pale(colour(fold), 0.86)])
            bars(ax, x, y + 2, 113, 17, probs[member, view, 0], colour(fold))


def draw_votes(ax: Axes, probs: np.ndarray, start: float) -> None:
    """The lower half: four votes on the same probabilities, each with its CSV."""
    count, views, _, classes = probs.shape
    weights = np.linspace(0.6, 0.8, count).tolist()
    voted = {
        name: answer
        for method in config.METHODS
        for name, answer in ensemble.vote(method, "main", probs, weights).items()
    }
    ballots = np.bincount(probs.argmax(-1).ravel(), minlength=classes)
    charts = {
        "arithmetic": (
            "arithmetic mean",
            "every prediction\ncounts the same",
            ensemble.arithmetic(probs)[0],
        ),
        "geometric": (
            "geometric mean",
            "a class that one\nrules out sinks",
            ensemble.geometric(probs)[0],
        ),
        "weighted_mean": (
            "weighted mean",
            "each by its score\nin validation",
            ensemble.weighted_mean(probs, weights)[0],
        ),
        "hardvoting": ("majority", f"the class that most\nof the {count * views} answer", ballots),
    }
    wide, gap, top = 199, 8, start + 66
    for method, first, last in (("softvoting: average", 0, 2), ("hardvoting: count", 3, 3)):
        left, right = 40 + first * (wide + gap), 40 + last * (wide + gap) + wide
        write(ax, (left + right) / 2, start + 38, method, 12.5, weight="bold")
        ax.plot(
            [left + 4, left + 4, right - 4, right - 4],
            [top - 6, top - 13, top - 13, top - 6],
            color=SOFT,
            linewidth=1.5,
        )
    for number, (name, answer) in enumerate(voted.items()):
        title, how, values = charts[name]
        x = 40 + number * (wide + gap)
        card(ax, x, top, wide, 168)
        write(ax, x + wide / 2, top + 20, title, 12.5, weight="bold")
        faces = [COLOURS[0] if c == int(answer[0]) else LINE for c in range(classes)]
        bars(ax, x + 16, top + 42, wide - 30, 66, values, faces)
        ax.plot([x + 14, x + wide - 14], [top + 109, top + 109], color=SOFT, linewidth=1)
        write(ax, x + wide / 2, top + 138, how, 11, linespacing=1.25, color=SOFT)
        arrow(ax, (x + wide / 2, top + 171), (x + wide / 2, top + 194))
        page(
            ax,
            x + 2,
            top + 196,
            wide - 4,
            f"{name}.csv",
            f"ImageID,ans\n000a4f.jpg,{int(answer[0])}",
        )


def page(ax: Axes, x: float, y: float, wide: float, name: str, text: str) -> None:
    """A file with a folded corner, its name and its first lines."""
    high, fold = 76, 14
    outline = [
        (x, y),
        (x + wide - fold, y),
        (x + wide, y + fold),
        (x + wide, y + high),
        (x, y + high),
    ]
    ax.add_patch(Polygon(outline, closed=True, facecolor="white", edgecolor=SOFT, linewidth=1.3))
    corner = [(x + wide - fold, y), (x + wide - fold, y + fold), (x + wide, y + fold)]
    ax.add_patch(Polygon(corner, closed=True, facecolor=REST, edgecolor=SOFT, linewidth=1.3))
    write(ax, x + wide / 2 - 6, y + 18, name, 10.5)
    write(
        ax,
        x + wide / 2,
        y + 50,
        text,
        10.5,
        color=SOFT,
        linespacing=1.3,
        family=("DejaVu Sans Mono"),
    )


# --- the result of a run


@dataclass(frozen=True)
class Result:
    """What a finished tree tells: curves [folds, epochs], each fold's epoch from 0, the scores of
    all held-out people.
    """

    names: list[str]
    curves: np.ndarray
    chosen: list[int]
    scores: metrics.Scores


def read_result(tree: Path, table: pd.DataFrame) -> Result:
    """The out-of-fold result of a tree, each fold's epoch chosen by the other folds. Raises
    UserError.
    """
    settings = run_directory.read_run_json(tree).get("settings")
    task = settings.get("task") if isinstance(settings, dict) else None
    if task not in (None, "main"):
        raise UserError(f"{tree}: was trained for {task}; the picture shows a run of --task main")
    folders = run_directory.fold_dirs(tree)
    if len(folders) < 2:
        raise UserError(
            f"{tree}: holds {len(folders)} fold; the picture shows a run of --cv 2 or more"
        )
    curves, answers, truths = [], [], []
    truth = dict(zip(table["file"], table["main"], strict=True))
    for folder in folders:
        stored = fold_state.load_validation(folder, "main")
        if stored is None:
            raise UserError(f"{folder}: holds no {fold_state.VALIDATION_FILE}; finish its training")
        files, probs = stored
        strange = [name for name in files if name not in truth]
        if strange:
            raise UserError(
                f"{folder}: was validated on {strange[0]}, which --data lacks; name the data of "
                "this run"
            )
        curves.append(read_curve(folder / "history.csv"))
        answers.append(probs)
        truths.append(np.array([truth[name] for name in files]))
    if len({len(c) for c in curves} | {len(a) for a in answers}) != 1:
        raise UserError(f"{tree}: its folds have unlike numbers of epochs; finish its training")
    stacked = np.stack(curves)
    chosen = out_of_fold.epochs_chosen_by_others(stacked)
    pooled = np.concatenate([probs[epoch] for probs, epoch in zip(answers, chosen, strict=True)])
    scores = metrics.score("main", ensemble.decide("main", pooled), np.concatenate(truths))
    return Result([folder.name for folder in folders], stacked, chosen, scores)


def read_curve(path: Path) -> np.ndarray:
    """Macro F1 of each epoch from a history.csv. Raises UserError."""
    try:
        return csv_tables.read_csv(path, ("epoch", "macro_f1"))["macro_f1"].to_numpy(float)
    except ValueError:
        raise UserError(
            f"{path}: its macro_f1 holds something else than numbers; train the fold again"
        ) from None


def draw_result(result: Result) -> Figure:
    """Left the curves of the folds, right the confusion matrix of all held-out people."""
    width, height, top, side = 900, 580, 82, 412
    figure = new_figure(width, height)
    low, high = (height - top - side) / height, side / height
    draw_curves(figure.add_axes((68 / width, low, 280 / width, high)), result)
    draw_confusion(figure.add_axes((476 / width, low, side / width, high)), result.scores.matrix)
    figure.text(0.015, 0.95, "Validation macro F1", fontsize=14, weight="bold", va="center")
    figure.text(
        0.985,
        0.95,
        f"Out of fold: macro F1 {result.scores.macro_f1:.3f}, accuracy "
        f"{result.scores.accuracy:.3f}",
        fontsize=14,
        weight="bold",
        ha="right",
        va="center",
    )
    return figure


def draw_curves(ax: Axes, result: Result) -> None:
    """Each fold's macro F1 by epoch with the epoch that the other folds chose, and the mean of all
    folds.
    """
    epochs = np.arange(1, result.curves.shape[1] + 1)
    for fold, (name, curve, best) in enumerate(
        zip(result.names, result.curves, result.chosen, strict=True)
    ):
        ax.plot(
            epochs,
            curve,
            color=colour(fold),
            linewidth=1.8,
            alpha=0.85,
            label=f"fold {int(name.removeprefix('fold'))}",
        )
        ax.plot(
            epochs[best],
            curve[best],
            "o",
            color=colour(fold),
            markersize=8,
            markeredgecolor="white",
            clip_on=False,
            zorder=4,
        )
    ax.plot(epochs, result.curves.mean(0), color=INK, linewidth=3.2, label="mean", zorder=3)
    ax.plot([], [], "o", color=SOFT, markersize=8, label="scored\nepoch")
    ax.set_xlabel("epoch", fontsize=12)
    ax.tick_params(labelsize=11)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(0, float(min(1.0, 1.08 * result.curves.max() + 0.02)))
    ax.grid(color=REST, linewidth=1)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        fontsize=10.5,
        ncols=2,
        loc="lower right",
        handlelength=1.3,
        columnspacing=1.1,
        framealpha=0.92,
        edgecolor="none",
    )


def draw_confusion(ax: Axes, matrix: np.ndarray) -> None:
    """Counts, coloured by the share of their row, with the classes bracketed by mask, gender and
    age.
    """
    size = len(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    ax.imshow(share, cmap=mpl.colormaps["Blues"], vmin=0, vmax=1.1, interpolation="nearest")
    for row, column in zip(*np.nonzero(matrix), strict=True):
        text = str(matrix[row, column])
        ink = "white" if share[row, column] > 0.55 else INK
        write(
            ax,
            column,
            row,
            text,
            {1: 8.5, 2: 8.5, 3: 7}.get(len(text), 5.5),
            color=ink,
            va="center_baseline",
        )
    ages = len(AGE_GROUPS)
    block = ages * len(GENDERS)
    for edge in range(ages, size, ages):
        ink, thick = (INK, 1.6) if edge % block == 0 else (LINE, 0.9)
        ax.axhline(edge - 0.5, color=ink, linewidth=thick)
        ax.axvline(edge - 0.5, color=ink, linewidth=thick)
    first, second = GROUP_STARTS
    names = (f"<{first}", f"{first}–{second - 1}", f"{second}+")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color=INK, linewidth=1.6)
    for number in range(size):
        write(ax, -0.75, number, names[number % ages], 9.5, ha="right", color=SOFT)
        write(ax, number, size - 0.25, names[number % ages], 9.5, va="top", rotation=90, color=SOFT)
    for number in range(size // ages):
        middle = ages * number + (ages - 1) / 2
        write(ax, -3.35, middle, GENDERS[number % len(GENDERS)], 9.5, rotation=90, color=SOFT)
    for number, name in enumerate(MASKS):
        middle, words = block * number + (block - 1) / 2, f"mask: {name.replace('_', ' ')}"
        write(ax, -4.35, middle, words, 10.5, rotation=90)
        write(ax, middle, -1.0, words, 10.5)
    note = "rows: true class, columns: predicted"
    write(ax, (size - 1) / 2, size + 2.75, note, 11)


# --- command line


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser(
        prog="pictures.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("demo/data"),
        help="folder of labelled photographs, or what holds train/",
    )
    parser.add_argument(
        "--tree",
        default="demo/saved_models",
        help="finished run of --task main on them, or what holds its tree",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder that the pictures go to"
    )
    parser.add_argument(
        "--only",
        type=chosen,
        default=",".join(PICTURES),
        metavar="NAME,NAME",
        help="pictures to draw",
    )
    return parser


def chosen(text: str) -> list[str]:
    """Names of pictures from the command line."""
    names = [name.strip() for name in text.split(",")]
    strange = [name for name in names if name not in PICTURES]
    if strange:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is not one of {', '.join(PICTURES)}")
    return names


def find_tree(asked: str) -> Path:
    """The tree that the option names. Raises UserError in this script's words."""
    try:
        return run_directory.find_run_dir(asked)
    except UserError as error:
        raise UserError(str(error).replace("--root", "--tree")) from None


def save(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all; the same bytes for the same input."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with atomic_write(path) as file:  # 256 colours take a third of the bytes
        drawn.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            file, "png", optimize=True
        )
    print(path)


def main(argv: list[str] | None = None) -> int:
    """Read everything, then draw everything."""
    args = build_parser().parse_args(argv)
    if not args.out.is_dir():
        raise UserError(f"--out {args.out}: no such folder; make it first, or name another")
    draw: dict[str, Callable[[], Figure]] = {"models": draw_models, "ensemble": draw_ensemble}
    if not draw.keys() >= set(args.only):
        if not args.data.is_dir():
            raise UserError(
                f"--data {args.data}: no such folder; run make demo first, or name a training "
                "folder"
            )
        table = tables.read_train(
            args.data / "train" if (args.data / "train").is_dir() else args.data
        )
        draw["split"] = partial(draw_split, table)
        if "transforms" in args.only:
            draw["transforms"] = partial(draw_transforms, portrait(table))
        if "result" in args.only:
            draw["result"] = partial(draw_result, read_result(find_tree(args.tree), table))
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        for name in PICTURES:
            if name in args.only:
                save(draw[name](), args.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "pictures.py"))
