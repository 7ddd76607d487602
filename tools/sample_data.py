"""Draw sample people, so that the toolkit can be tried with no data: python -m tools.sample_data

Writes the competition's layout into --out, with drawings in place of photographs, and the true
classes and ages of the evaluation pictures in eval/answers.csv.  Age and gender show in shapes and
lines, each with an overlap; colours, place, light and noise say nothing about the class.
"""

import argparse
import csv
import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from runtime.cli import run_script

VERSION = 1  # raise it when the drawing changes: an older output is then not taken for this one
MARKER = "sample_data.json"
WIDTH, HEIGHT = 384, 512
SHOTS = ["incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal"]
EXTENSIONS = [".jpg"] * 22 + [".jpeg", ".png", ".JPG"]
SKINS = [(250, 222, 200), (240, 204, 176), (226, 184, 150), (206, 160, 124), (178, 132, 98)]
HAIRS = [
    (28, 24, 26),
    (44, 34, 32),
    (66, 46, 36),
    (96, 64, 44),
    (122, 66, 46),
    (158, 122, 84),
    (196, 170, 128),
    (140, 134, 130),
    (222, 198, 150),
]
MASKS = [(240, 242, 244), (150, 196, 226), (34, 34, 40), (214, 226, 232)]
INK, WHITE = (34, 26, 26), (248, 246, 242)
# The weights of four neighbouring points on a Catmull-Rom curve, at five places between the middle
# two.
CURVE = [
    (2 * t * t - t - t**3, 2 - 5 * t * t + 3 * t**3, t + 4 * t * t - 3 * t**3, t**3 - t * t)
    for t in (0.0, 0.2, 0.4, 0.6, 0.8)
]

Color = tuple[int, ...]
Points = list[tuple[float, float]]


class Person(NamedTuple):
    """A person; seed starts the numbers of face, hair and clothes, drawn anew and alike for each
    picture.
    """

    gender: str
    age: int
    seed: str


class Pen:
    """Draws smooth shapes in face units: eyes on y = 0, cheeks at x = -1 and 1, chin at y = 1.3."""

    def __init__(
        self,
        picture: Image.Image,
        place: tuple[float, float, float],
        roll: float,
        turn: tuple[float, float],
    ):
        self.draw = ImageDraw.Draw(picture, "RGBA")
        (self.x, self.y, self.unit), self.turn = place, turn
        self.cos, self.sin = self.unit * math.cos(roll), self.unit * math.sin(roll)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Turn face units to pixels; the face is a ball, so that its middle moves most as the head
        turns.
        """
        depth = math.sqrt(max(0.0, 1 - x * x / 1.1 - y * y / 2.6))
        x, y = x + self.turn[0] * depth, y + self.turn[1] * depth
        return self.x + x * self.cos - y * self.sin, self.y + x * self.sin + y * self.cos

    def curve(self, points: Points, closed: bool) -> Points:
        """Lay a smooth (Catmull-Rom) curve through the points."""
        p, out = [self.at(x, y) for x, y in points], []
        p = [p[-1], *p, p[0], p[1]] if closed else [p[0], *p, p[-1]]
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
            for i, j, k, m in CURVE:
                x, y = (
                    i * a[0] + j * b[0] + k * c[0] + m * d[0],
                    i * a[1] + j * b[1] + k * c[1] + m * d[1],
                )
                out.append((x / 2, y / 2))
        return out if closed else [*out, p[-1]]

    def area(self, points: Points, color: Color, alpha: float = 1) -> None:
        """Fill a closed shape."""
        self.draw.polygon(self.curve(points, True), fill=(*color, round(255 * alpha)))

    def line(self, points: Points, color: Color, width: float, alpha: float = 1) -> None:
        """Draw a line, unless it is too faint to be seen."""
        if alpha > 0.02:
            self.draw.line(
                self.curve(points, False),
                (*color, round(255 * alpha)),
                max(1, round(width * self.unit)),
            )

    def dot(self, x: float, y: float, size: float, color: Color, alpha: float = 1) -> None:
        """Draw a disc."""
        (x, y), r = self.at(x, y), size * self.unit
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=(*color, round(255 * alpha)))


def blend(first: Color, second: Color, part: float) -> Color:
    """Mix two colours; part 0 is the first, 1 the second."""
    return tuple(round(x + (y - x) * part) for x, y in zip(first, second, strict=True))


def any_color(rng: random.Random) -> Color:
    """Draw a colour for clothes, masks and backgrounds."""
    gray = rng.randrange(20, 245)
    return blend(
        (gray, gray, gray), tuple(rng.randrange(256) for _ in range(3)), rng.random() * 0.5
    )


def ramp(value: float, start: float, end: float) -> float:
    """Go from 0 at start to 1 at end."""
    return min(1.0, max(0.0, (value - start) / (end - start)))


def flip(points: Points, side: int = -1) -> Points:
    """Move a shape to the other side of the face."""
    return [(side * x, y) for x, y in points]


def mirrored(points: Points) -> Points:
    """Close a shape whose right half is given from top to bottom."""
    return points + flip([point for point in reversed(points) if point[0] > 0])


def draw_place(rng: random.Random) -> Image.Image:
    """Draw a blurred background of blobs and boxes."""
    small = Image.new("RGB", (WIDTH // 4, HEIGHT // 4), any_color(rng))
    draw = ImageDraw.Draw(small)
    for _ in range(rng.randrange(9)):
        x, y = rng.randrange(-30, 96), rng.randrange(-30, 128)
        shape = draw.ellipse if rng.random() < 0.4 else draw.rectangle
        shape((x, y, x + rng.randrange(4, 70), y + rng.randrange(4, 130)), fill=any_color(rng))
    small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 4)))
    return small.resize((WIDTH * 2, HEIGHT * 2), Image.Resampling.BILINEAR)


def draw_mask(pen: Pen, rng: random.Random, shot: str) -> None:
    """Draw a mask: over nose, mouth and chin, or (incorrect_mask) under the nose or the chin."""
    cloth, kind = any_color(rng) if rng.random() < 0.1 else rng.choice(MASKS), rng.randrange(3)
    top, bottom, wide = rng.uniform(0.12, 0.24), rng.uniform(1.34, 1.48), rng.uniform(0.84, 0.95)
    if shot == "incorrect_mask":
        top, bottom, wide = (0.76, 1.55, wide) if rng.random() < 0.5 else (1.02, 1.66, wide * 0.86)
        top, bottom = top + rng.uniform(-0.04, 0.04), bottom + rng.uniform(-0.06, 0.06)
    middle, dark = (top + bottom) / 2, blend(cloth, (0, 0, 0), 0.3)
    for side in (-1, 1):
        pen.line(
            [(side * wide, top + 0.16), (side, min(top, 0.1))], blend(cloth, WHITE, 0.5), 0.035
        )
        pen.line(
            [(side * wide * 0.9, bottom - 0.3), (side, max(0.4, top - 0.2))],
            blend(cloth, WHITE, 0.5),
            0.035,
        )
    shape = mirrored(
        [
            (0, top - (0.02, 0.1, 0.06)[kind]),
            (wide * 0.5, top + 0.03),
            (wide, top + 0.09),
            (wide * 0.97, middle),
            (wide * (0.72, 0.5, 0.62)[kind], bottom - 0.12),
            (0, bottom),
        ]
    )
    pen.area(shape, cloth)
    pen.line(shape + shape[:1], dark, 0.02, 0.5)
    second = any_color(rng)
    for part in (-1, 0, 1):  # pleats, a seam, or dots
        y = middle + part * (bottom - top) * 0.2
        if kind == 0:
            pen.line([(-wide * 0.9, y), (0, y + 0.04), (wide * 0.9, y)], dark, 0.025, 0.7)
        elif kind == 1:
            pen.line([(0, top - 0.05), (0.05, middle), (0, bottom)], dark, 0.025, 0.7)
        for column in range(6 if kind == 2 else 0):
            pen.dot((column - 2.5) * wide * 0.28, y, 0.05, second)


def draw_person(person: Person, shot: str) -> Image.Image:
    """Draw one picture: look holds the person's own numbers, rng those of the picture."""
    look, rng = random.Random(f"{person.seed}/look"), random.Random(f"{person.seed}/{shot}")
    female, picture = person.gender == "female", draw_place(rng)
    place = WIDTH + rng.gauss(0, 32), HEIGHT - 60 + rng.gauss(0, 20), rng.uniform(154, 200)
    roll, smile = rng.gauss(0, 0.08), rng.uniform(-0.01, 0.1)
    flat, pen = (
        Pen(picture, place, roll, (0, 0)),
        Pen(picture, place, roll, (rng.gauss(0, 0.09), rng.gauss(0, 0.06))),
    )
    # Each sign has its own noise around one noisy value per person, so that the groups overlap.
    # Each use of gendered() or aged() draws anew: the order of the calls below is part of a
    # person's looks.
    lean, years = (1 if female else -1) * look.uniform(0.85, 1.2), person.age + look.gauss(0, 2)

    def gendered() -> float:
        return ramp(lean + look.gauss(0, 0.4), -1.2, 1.2)

    def aged(start: float, end: float) -> float:
        return ramp(years + look.gauss(0, 3), start, end)

    skin = blend(look.choice(SKINS), look.choice(SKINS), look.random())
    hair = blend(look.choice(HAIRS), look.choice(HAIRS), 0.5 * look.random())
    shade, red, silver = (
        blend(skin, (80, 36, 26), 0.68),
        blend(skin, (190, 40, 50), 0.6),
        (198, 196, 196),
    )
    style = look.choices(
        ("long", "bob", "tied", "short"), (68, 25, 4, 3) if female else (1, 3, 3, 93)
    )[0]
    gray = look.uniform(0.6, 1) * aged(50, 62) * (look.random() > 0.12)  # some dye their hair
    length = {"long": look.uniform(1.6, 2.6), "bob": look.uniform(0.9, 1.35)}.get(style, 0)
    volume = look.uniform(0.05, 0.2)
    jaw, neck, wide = 0.9 - 0.22 * gendered(), 0.6 - 0.18 * gendered(), look.uniform(1.7, 2.3)
    chin = look.uniform(0.3, 0.4) + 0.35 * (jaw - 0.75)

    def strands(upper: Points, lower: Points, count: int) -> None:
        """Hair from one curve to another, the grey ones among the rest."""
        for i in range(count):
            k, t = divmod((i + look.random()) / count * (len(upper) - 1), 1)
            pairs = [(c[int(k)], c[int(k) + 1]) for c in (upper, lower)]
            ends = [((1 - t) * a[0] + t * b[0], (1 - t) * a[1] + t * b[1]) for a, b in pairs]
            color = silver if look.random() < gray else blend(hair, look.choice([INK, WHITE]), 0.1)
            flat.line(ends, color, 0.034, 0.9)

    # Hair behind the head, neck, clothes, head.
    if length:
        back = [
            (0, -1.35),
            (1.08 + volume, -0.4),
            (1.1 + volume, length * 0.6),
            (1 + volume, length),
        ]
        flat.area(mirrored([*back, (0, length - 0.1)]), blend(hair, INK, 0.3))
    elif style == "tied":
        flat.dot(look.uniform(-0.4, 0.4), -1.5, 0.36, hair)
    flat.area(
        mirrored([(0, 0.6), (neck, 0.7), (neck, 1.5), (neck + 0.3, 1.9), (0, 2.3)]),
        blend(skin, INK, 0.25),
    )
    cloth, collar = any_color(look), look.choice((1.5, 1.8, 2.2))
    flat.area(
        mirrored(
            [
                (0, collar),
                (neck, min(1.72, collar - 0.08)),
                (wide * 0.6, 1.85),
                (wide, 2.3),
                (wide + 0.3, 4),
                (wide, 7),
                (0, 7),
            ]
        ),
        cloth,
    )
    stripe, stripes = any_color(look), look.choice((0, 0, 4))
    for y in range(stripes):
        flat.line(
            [(-wide + 0.05, 2.6 + y * 0.4), (0, 2.7 + y * 0.4), (wide - 0.05, 2.6 + y * 0.4)],
            stripe,
            0.12,
        )
    light = rng.choice((-1, 1))
    for side in (-1, 1):
        ear = [(0.93, -0.1), (1.08, -0.12), (1.1, 0.15), (1.0, 0.42), (0.9, 0.3)]
        flat.area(flip(ear, side), blend(skin, shade, 0.3))
    cheek = [(0.94, -0.6), (0.97, 0), (0.93, 0.45), (jaw, 0.88), (chin, 1.22)]
    flat.area(mirrored([(0, -1.2), (0.6, -1.08), *cheek, (0, 1.3)]), skin)
    for inner in (0.63, 0.72, 0.81, 0.9):  # a soft shadow on one cheek
        flat.area(flip([*cheek, (inner * jaw * 0.85, 0.8), (inner, 0)], light), shade, 0.08)

    # Eyes and brows, then lines of age, nose and mouth.
    high, arch, thick = 0.08 + 0.04 * gendered(), 0.02 + 0.1 * gendered(), 0.15 - 0.11 * gendered()
    lash, wing = 0.025 + 0.05 * gendered(), 0.12 * gendered()
    droop, bags, feet, frown, fold = (
        aged(45, 66),
        aged(26, 38),
        aged(28, 60),
        aged(48, 62),
        aged(26, 40),
    )
    brow, gaze = (
        blend(blend(hair, INK, 0.5), silver, 0.8 * aged(52, 62) * (gray > 0)),
        rng.gauss(0, 0.03),
    )
    high *= (1 - 0.3 * droop) * rng.uniform(0.9, 1.1)
    for side in (-1, 1):
        lid = [(0.2, 0.03), (0.33, -high), (0.51, -high), (0.67, 0.07 * droop - 0.03)]
        pen.area(flip([*lid, (0.51, high * 0.8), (0.33, high * 0.8)], side), WHITE)
        pen.dot(side * 0.43 + gaze, 0, min(0.1, high * 1.1), (58, 38, 28))
        pen.dot(side * 0.43 + gaze + 0.03, -0.03, 0.022, WHITE)
        pen.area(
            flip(
                [
                    (0.18, -0.31 - thick / 2),
                    (0.45, -0.32 - arch - thick / 2),
                    (0.73, -0.26),
                    (0.45, -0.32 - arch + thick / 2),
                    (0.18, -0.31 + thick / 2),
                ],
                side,
            ),
            brow,
            0.9,
        )
        pen.area(
            flip([(0.21, 0.15), (0.45, 0.2), (0.67, 0.13), (0.48, 0.3), (0.33, 0.29)], side),
            shade,
            0.5 * bags,
        )
        for points, color, width, alpha in (
            (lid, INK, lash, 1),
            ([(0.61, -0.05), (0.67 + wing, -0.04 - wing)], INK, lash, ramp(wing, 0.03, 0.05)),
            (
                [(0.23, -0.07), (0.43, -high - 0.09), (0.67, 0.1 * droop - 0.08)],
                shade,
                0.025,
                0.5 + 0.4 * droop,
            ),
            ([(0.19, 0.16), (0.38, 0.3), (0.63, 0.22)], shade, 0.055, bags),
            ([(0.08, -0.38), (0.07, -0.2)], shade, 0.05, frown),
            ([(0.2, 0.45), (0.36, 0.65), (0.4, 0.85)], shade, 0.05, fold),
            ([(0.73, 0.02), (0.93, -0.12)], shade, 0.045, ramp(feet, 0, 0.4)),
            ([(0.73, 0.05), (0.93, 0.01)], shade, 0.045, ramp(feet, 0.3, 0.7)),
            ([(0.73, 0.08), (0.93, 0.14)], shade, 0.045, ramp(feet, 0.6, 1)),
        ):
            pen.line(flip(points, side), color, width, alpha)
    lines = 2 * aged(26, 40) + 2 * aged(48, 62)
    for i in range(4):
        half, up = look.uniform(0.35, 0.55), -0.54 - 0.1 * i
        pen.line([(-half, up), (0, up - 0.03), (half, up)], shade, 0.05, ramp(lines - i, 0, 1))
    nose, full = look.uniform(0.13, 0.19), 0.05 + 0.05 * gendered()
    pen.area([(-0.05, 0), (0.07, 0), (nose, 0.48), (0, 0.56), (-0.03, 0.3)], shade, 0.3)
    nostrils = [(-nose, 0.46), (-nose * 0.6, 0.55), (0, 0.52), (nose * 0.6, 0.55), (nose, 0.46)]
    pen.line(nostrils, blend(shade, INK, 0.5), 0.055)
    for _ in range(150 if not female and look.random() < 0.55 else 0):  # stubble
        angle, ring = look.uniform(-1.75, 1.75), look.uniform(0.69, 0.89)
        flat.dot(math.sin(angle) * ring, 0.35 + math.cos(angle) * ring, 0.013, INK, 0.5)
    corner, mouth = (
        (0.3, 0.86 - smile),
        [(0.08, 0.86 - full), (0.3, 0.86 - smile), (0, 0.88 + full * 1.5)],
    )
    pen.area([(0, 0.88 - full), *mouth, *flip(mouth[1::-1])], red)
    pen.line([corner, (0, 0.88), *flip([corner])], INK, 0.025, 0.5)

    # Hair in front, from the outer line of the head to the hairline, which climbs with age.
    recede = aged(40, 66) * (0.36 if style == "short" else 0.16) * look.uniform(0.5, 1.2)
    # some have a fringe
    base = -0.45 if look.random() < 0.12 and recede < 0.16 else -0.8 + look.gauss(0, 0.04)
    part, low = (
        look.uniform(-0.5, 0.5),
        {"long": 1.2, "bob": 0.8}.get(style, look.uniform(-0.15, 0.15)),
    )
    top: Points = []
    hairline: Points = []
    for k in range(-8, 9):
        x, u = math.sin(k * math.pi / 16), k / 8
        bare = recede * (0.25 + math.exp(-(((abs(u) - 0.55) / 0.2) ** 2)))
        # a parting
        bare += 0.25 * math.exp(-(((u - part) / 0.25) ** 2)) * (length > 0 and base < -0.5)
        top.append((x * (1.03 + volume * 0.7), -0.2 - math.cos(k * math.pi / 16) * (1.15 + volume)))
        hairline.append((x * 0.93, max(-1.2, base + 0.45 * u**4 - bare)))
    side_hair = [(1.04 + volume * 0.7, low * 0.5), (1.02, low), (0.9, low * 0.6 - 0.1)]
    flat.area([*top, *side_hair, *hairline[::-1], *flip(side_hair[::-1])], hair)
    strands(top, hairline, 46)
    for side in (-1, 1) if length else ():
        lock = [(0.95, -0.4), (1.05 + volume, -0.4), (1.08 + volume, length), (0.98, length)]
        flat.area(flip(lock, side), hair)
        strands(flip(lock[:2], side), flip(lock[:1:-1], side), 9)
    jewel, rings, glasses = (
        any_color(look),
        look.random() < (0.5 if female else 0.04),
        look.random() < 0.12,
    )
    for side in (-1, 1) if rings else ():
        flat.dot(side * 1.03, 0.5, 0.07, jewel)
    if shot != "normal":
        draw_mask(pen, rng, shot)
    for side in (-1, 1) if glasses else ():
        rim = [
            (0.43 + 0.31 * math.cos(a), 0.02 + 0.23 * math.sin(a))
            for a in (i * math.pi / 4 for i in range(9))
        ]
        for points in (rim, [(0.74, -0.02), (1, -0.08)], [(0.13, 0), (0, -0.03)]):
            pen.line(flip(points, side), INK, 0.035)
    return photograph(picture, rng)


def photograph(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Add what a camera adds: uneven, coloured light, blur and noise."""
    picture = picture.reduce(2)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    level = rng.uniform(0.7, 1.2)
    grid = np.array(
        [[level * rng.uniform(0.7, 1.25) for _ in range(3)] for _ in range(3)], dtype=np.float32
    )
    light = np.asarray(Image.fromarray(grid).resize(picture.size, Image.Resampling.BILINEAR))
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(
        (HEIGHT, WIDTH), dtype=np.float32
    )
    noise *= 1.5 * 7 ** rng.random()
    bands = [
        np.asarray(band) * light * np.float32(rng.uniform(0.88, 1.12)) + noise
        for band in picture.split()
    ]
    return Image.merge(
        "RGB", [Image.fromarray(band.clip(0, 255).astype(np.uint8)) for band in bands]
    )


def make_person(number: int, kind: str, balance: str, seed: int) -> Person:
    """Deal gender and age: the six cells in turn (even), or the shares of the competition's archive
    (real).
    """
    own = f"{seed}/{kind}/{number}"
    rng = random.Random(f"{own}/age")
    if balance == "even":
        low, high = ((18, 29), (30, 59), (60, 70))[number // 2 % 3]
        age = (
            rng.randint(low, high) + rng.randint(low, high)
        ) // 2  # few lie at the ends of a group
        return Person(("male", "female")[number % 2], age, own)
    young = 18 + min(11, int(rng.expovariate(0.7)))  # most are 18 to 20
    middle = rng.choices(
        (rng.randint(30, 49), rng.randint(50, 56), rng.randint(57, 59)), (25, 35, 40)
    )[0]
    age = rng.choices((young, middle, 60), (47, 45, 7))[0]
    return Person("female" if rng.random() < 0.61 else "male", age, own)


def draw_one(
    out: Path, kind: str, number: int, balance: str, seed: int
) -> tuple[list[str], list[list[str]]]:
    """Draw all pictures of a person; returns (row of train.csv, answers of the evaluation
    pictures).
    """
    person = make_person(number, kind, balance, seed)
    group = 3 * (person.gender == "female") + (person.age >= 30) + (person.age >= 60)
    row = [f"{number + 1:06d}", person.gender, "Asian", str(person.age)]
    folder = out / "train" / "images" / "_".join(row)
    files = random.Random(f"{person.seed}/files")
    suffix = files.choice(EXTENSIONS)
    answers: list[list[str]] = []
    if kind == "train":
        folder.mkdir(parents=True)
    for shot in SHOTS:
        path = folder / (shot + suffix)
        if kind == "eval":
            path = (
                out
                / "eval"
                / "images"
                / (hashlib.sha1(f"{person.seed}/{shot}".encode()).hexdigest() + ".jpg")
            )
            mask = {"incorrect_mask": 1, "normal": 2}.get(shot, 0)
            answers.append([path.name, str(6 * mask + group), str(person.age)])
        # Quality is drawn by chance, so that a file's size says nothing about what it shows.
        draw_person(person, shot).save(path, quality=files.randint(70, 95), compress_level=1)
    return [*row, folder.name], answers


def draw_all(out: Path, people: int, eval_people: int, seed: int, balance: str) -> None:
    """Draw every picture, on all processors, and write the tables."""
    (out / "eval" / "images").mkdir(parents=True)
    kinds = ["train"] * people + ["eval"] * eval_people
    numbers = [*range(people), *range(eval_people)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        draw = functools.partial(draw_one, out, balance=balance, seed=seed)
        drawn = list(
            tqdm(
                pool.map(draw, kinds, numbers),
                total=len(kinds),
                unit="person",
                disable=not sys.stderr.isatty(),
            )
        )
    # by hash: the order gives nothing away
    answers = sorted(answer for _, own in drawn for answer in own)
    tables = {
        "train/train.csv": [
            ["id", "gender", "race", "age", "path"],
            *(row for row, _ in drawn[:people]),
        ],
        "eval/info.csv": [["ImageID", "ans"], *([name, "0"] for name, *_ in answers)],
        "eval/answers.csv": [["ImageID", "ans", "age"], *answers],
    }
    for name, rows in tables.items():
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def digest_of(folder: Path) -> str:
    """A digest of the names of all files below a folder: another file more or less changes it."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def is_same_output(out: Path, arguments: dict[str, object]) -> bool:
    """Tell whether a folder holds a complete earlier output of the same arguments, and nothing
    more.
    """
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(marker == {**arguments, "files": digest_of(out)})


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser() -> Parser:
    """Describe the command line."""
    parser = Parser(
        prog="sample_data.py",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=(
            "Draw sample people in the competition's layout, to try the toolkit with no data."
        ),
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("./input/data"),
        help="folder to write, new or empty",
    )
    parser.add_argument(
        "--people", metavar="N", type=int, default=60, help="training people, 7 pictures each"
    )
    parser.add_argument(
        "--eval-people",
        metavar="N",
        type=int,
        default=30,
        help="evaluation people, 7 pictures each",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=42, help="the same seed draws the same people"
    )
    parser.add_argument(
        "--balance",
        choices=("even", "real"),
        default="even",
        help="even: every gender and age group alike; real: the competition archive's shares",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Draw into a folder beside --out and move it there when all is drawn."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.people < 1:
        parser.error(f"--people is {args.people}: give 1 or more")
    if args.eval_people < 0:
        parser.error(f"--eval-people is {args.eval_people}: give 0 or more")
    out, counts = (
        args.out.resolve(),
        f"{args.people} people to train on and {args.eval_people} to evaluate",
    )
    arguments: dict[str, object] = {
        "version": VERSION,
        "people": args.people,
        "eval_people": args.eval_people,
        "seed": args.seed,
        "balance": args.balance,
    }
    try:
        if out.exists() and not out.is_dir():
            parser.error(f"{args.out} is a file: give another --out, a folder that is new or empty")
        if out.exists() and any(out.iterdir()):
            if is_same_output(out, arguments):
                print(f"{args.out} holds these {counts} already: nothing to do")
                return 0
            parser.error(
                f"{args.out} is not empty and holds something else: give another --out, or empty "
                "it first"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            drawn = Path(folder) / "data"
            draw_all(drawn, args.people, args.eval_people, args.seed, args.balance)
            (drawn / MARKER).write_text("{}", encoding="utf-8")  # it is in its own list of files
            arguments["files"] = digest_of(drawn)
            (drawn / MARKER).write_text(json.dumps(arguments) + "\n", encoding="utf-8")
            if not out.exists():
                drawn.rename(out)
            else:  # an empty folder stays, it may be the current one; the marker comes last
                for name in ("eval", "train", MARKER):
                    os.replace(drawn / name, out / name)
    except OSError as error:
        parser.error(
            f"cannot write {args.out} ({error.strerror}): give an --out that can be written"
        )
    except KeyboardInterrupt:
        print("sample_data.py: stopped, nothing was written", file=sys.stderr)
        return 130
    print(
        f"wrote {counts}, 7 pictures each, to {args.out} (answers: "
        f"{args.out / 'eval' / 'answers.csv'}); "
        "the people are drawn, not real"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "sample_data.py"))
