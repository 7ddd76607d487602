"""Draw sample people, so that the toolkit can be tried with no data: python sample_data.py

Writes the competition's layout into --out, with drawings in place of photographs, and the true classes of the
evaluation pictures in eval/answers.csv.  Age and gender show in shapes and lines, each with an overlap; colours,
place, light and noise say nothing about the class.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

VERSION = 1  # raise it when the drawing changes, so that an older output is not taken for this one
MARKER = "sample_data.json"
WIDTH, HEIGHT = 384, 512
SHOTS = ["incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal"]
EXTENSIONS = [".jpg"] * 22 + [".jpeg", ".png", ".JPG"]
SKINS = [(250, 222, 200), (240, 204, 176), (226, 184, 150), (206, 160, 124), (178, 132, 98)]
HAIRS = [(28, 24, 26), (44, 34, 32), (66, 46, 36), (96, 64, 44), (122, 66, 46), (158, 122, 84), (150, 146, 144),
         (70, 66, 84), (196, 170, 128)]

Color = tuple[int, int, int]
Points = list[tuple[float, float]]


def blend(first: Color, second: Color, part: float) -> Color:
    """Mix two colours; part 0 is the first, 1 the second."""
    r, g, b = (round(x + (y - x) * part) for x, y in zip(first, second))
    return r, g, b


def any_color(rng: random.Random) -> Color:
    """Draw a colour for clothes, masks and backgrounds, pale and dark ones included."""
    gray = rng.randrange(20, 245)
    return blend((gray, gray, gray), (rng.randrange(256), rng.randrange(256), rng.randrange(256)), rng.random() * 0.7)


def ramp(value: float, start: float, end: float) -> float:
    """Go from 0 at start to 1 at end."""
    return min(1.0, max(0.0, (value - start) / (end - start)))


@dataclass
class Person:
    """What stays the same over a person's pictures."""

    number: int
    gender: str
    age: int
    seed: str  # of the random numbers of face, hair and clothes: each picture draws them anew and gets the same


class Pen:
    """Draws smooth shapes in face units: eyes on y = 0, cheeks at x = -1 and 1, chin at y = 1.3."""

    def __init__(self, picture: Image.Image, x: float, y: float, unit: float, roll: float, yaw: float, pitch: float):
        scale = picture.width / WIDTH
        self.draw = ImageDraw.Draw(picture, "RGBA" if picture.mode == "RGB" else None)
        self.x, self.y, self.unit, self.yaw, self.pitch = x * scale, y * scale, unit * scale, yaw, pitch
        self.cos, self.sin = math.cos(roll), math.sin(roll)

    def at(self, x: float, y: float, flat: bool = False) -> tuple[float, float]:
        """Turn face units to pixels; what is not flat lies on a ball and moves as the head turns."""
        if not flat:
            depth = math.sqrt(max(0.0, 1 - x * x / 1.1 - y * y / 2.6))
            x, y = x + self.yaw * depth, y + self.pitch * depth
        return (self.x + self.unit * (x * self.cos - y * self.sin), self.y + self.unit * (x * self.sin + y * self.cos))

    def curve(self, points: Points, flat: bool, closed: bool) -> Points:
        """Lay a smooth (Catmull-Rom) curve through the points."""
        p = [self.at(x, y, flat) for x, y in points]
        p = [p[-1], *p, p[0], p[1]] if closed else [p[0], *p, p[-1]]
        out = []
        for (ax, ay), (bx, by), (cx, cy), (dx, dy) in zip(p, p[1:], p[2:], p[3:]):
            for t in (0.0, 0.2, 0.4, 0.6, 0.8):
                k, m, n, o = -t + 2 * t * t - t**3, 2 - 5 * t * t + 3 * t**3, t + 4 * t * t - 3 * t**3, t**3 - t * t
                out.append(((k * ax + m * bx + n * cx + o * dx) / 2, (k * ay + m * by + n * cy + o * dy) / 2))
        return out if closed else [*out, p[-1]]

    def area(self, points: Points, color: Color, alpha: float = 1, flat: bool = False) -> None:
        """Fill a smooth closed shape."""
        self.draw.polygon(self.curve(points, flat, True), fill=(*color, round(255 * alpha)))

    def line(self, points: Points, color: Color, width: float, alpha: float = 1, flat: bool = False) -> None:
        """Draw a smooth line."""
        if alpha > 0.02:
            pixels = max(1, round(width * self.unit))
            self.draw.line(self.curve(points, flat, False), fill=(*color, round(255 * alpha)), width=pixels)

    def dot(self, x: float, y: float, size: float, color: Color, alpha: float = 1, flat: bool = False) -> None:
        """Draw a filled circle."""
        (cx, cy), r = self.at(x, y, flat), size * self.unit
        self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(*color, round(255 * alpha)))


def mirrored(points: Points) -> Points:
    """Close a shape whose right half is given from top to bottom."""
    return points + [(-x, y) for x, y in reversed(points) if x > 0]


def draw_place(rng: random.Random) -> Image.Image:
    """Draw a blurred room or street."""
    small = Image.new("RGB", (WIDTH // 4, HEIGHT // 4), any_color(rng))
    draw = ImageDraw.Draw(small)
    kind, second = rng.randrange(4), any_color(rng)
    if kind == 1:  # curtain, shelf
        step = rng.randrange(6, 30)
        for x in range(0, 130, step):
            draw.rectangle((x, 0, x + step * rng.uniform(0.2, 0.8), 128), fill=second)
    elif kind == 2:  # horizon
        draw.rectangle((0, rng.randrange(20, 110), 96, 128), fill=second)
    for _ in range(rng.randrange(0, 14) if kind else 0):
        x, y, w, h = rng.randrange(-20, 96), rng.randrange(-20, 128), rng.randrange(4, 50), rng.randrange(4, 60)
        (draw.ellipse if rng.random() < 0.4 else draw.rectangle)((x, y, x + w, y + h), fill=any_color(rng))
    return small.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 4))).resize((WIDTH * 2, HEIGHT * 2), Image.BILINEAR)


def draw_body(pen: Pen, rng: random.Random, skin: Color, neck: float) -> None:
    """Draw neck, shoulders and clothes."""
    cloth, second, kind, wide = any_color(rng), any_color(rng), rng.randrange(4), rng.uniform(1.7, 2.3)
    pen.area(mirrored([(0, 0.6), (neck, 0.7), (neck, 1.5), (neck + 0.3, 1.9), (0, 2.3)]), blend(skin, (90, 50, 40), 0.25),
             flat=True)
    pen.area(mirrored([(0, 2.15 if kind < 2 else 1.8), (neck * 0.9, 1.72), (wide * 0.6, 1.85), (wide, 2.3), (wide + 0.3, 4),
                       (wide, 7), (0, 7)]), cloth, flat=True)
    if kind == 1:  # shirt collar
        for side in (-1, 1):
            pen.area([(side * neck, 1.6), (side * 0.02, 2.12), (side * 0.3, 2.45), (side * (neck + 0.25), 1.85)], second, flat=True)
    elif kind == 2:  # roll neck
        pen.area(mirrored([(0, 1.5), (neck + 0.06, 1.42), (neck + 0.1, 1.9), (0, 2.05)]), blend(cloth, (0, 0, 0), 0.12), flat=True)
    if rng.random() < 0.3:
        for y in range(5):
            pen.line([(-wide + 0.05, 2.6 + y * 0.4), (0, 2.7 + y * 0.4), (wide - 0.05, 2.6 + y * 0.4)], second, 0.12, flat=True)


def draw_mask(pen: Pen, rng: random.Random, shot: str) -> None:
    """Draw a mask: over nose, mouth and chin, or (incorrect_mask) under the nose or under the chin."""
    cloth, second, kind = any_color(rng), any_color(rng), rng.randrange(3)
    if rng.random() < 0.4:  # the usual ones are white, pale blue or black
        cloth = rng.choice([(236, 238, 240), (164, 200, 222), (40, 40, 44)])
    top, bottom, wide = rng.uniform(0.14, 0.34), rng.uniform(1.34, 1.48), rng.uniform(0.84, 0.95)
    if shot == "incorrect_mask" and rng.random() < 0.7:
        top, bottom = rng.uniform(0.62, 0.7), rng.uniform(1.42, 1.6)
    elif shot == "incorrect_mask":
        top, bottom, wide = rng.uniform(1.06, 1.14), rng.uniform(1.62, 1.74), wide * 0.86
    middle, drop = (top + bottom) / 2, 0.06 if kind else 0.12
    strap, dark = blend(cloth, (255, 255, 255), 0.5), blend(cloth, (0, 0, 0), 0.3)
    for side in (-1, 1):
        pen.line([(side * wide, top + 0.16), (side * 1.0, min(top, 0.1))], strap, 0.035)
        pen.line([(side * wide * 0.9, bottom - 0.3), (side * 1.02, max(0.4, top - 0.2))], strap, 0.035)
    low = [(wide, top + drop), (wide * 0.97, middle), (wide * (0.72, 0.5, 0.62)[kind], bottom - 0.12), (0, bottom)]
    shape = mirrored([(0, top - (0.02, 0.1, 0.06)[kind]), (wide * 0.5, top + 0.03), *low])
    pen.area(shape, cloth)
    if kind == 0:  # pleats
        for part in (0.3, 0.5, 0.7):
            y = top + (bottom - top) * part
            pen.line([(-wide * 0.9, y), (0, y + 0.04), (wide * 0.9, y)], dark, 0.025, 0.7)
    elif kind == 1:  # seam
        pen.line([(0, top - 0.05), (0.05, middle), (0, bottom)], dark, 0.025, 0.7)
    elif rng.random() < 0.7:  # pattern
        for i in range(24):
            x, y = (i % 6 - 2.5) * wide * 0.28, top + 0.2 + (i // 6) * (bottom - top) * 0.2
            pen.dot(x, y, 0.05, second)
    pen.line(shape + shape[:1], dark, 0.02, 0.5)


def draw_person(person: Person, shot: str, seed: str) -> Image.Image:
    """Draw one picture: look holds the person's own numbers, rng those of the picture."""
    look, rng = random.Random(f"{person.seed}/look"), random.Random(seed)
    picture = draw_place(rng)
    x, y, unit = WIDTH / 2 + rng.gauss(0, 14), HEIGHT / 2 - 12 + rng.gauss(0, 14), rng.uniform(72, 98)
    yaw, pitch, roll, smile = rng.gauss(0, 0.09), rng.gauss(0, 0.06), rng.gauss(0, 0.07), rng.uniform(-0.01, 0.1)
    body = Pen(picture, x, y, unit, roll * 0.3, 0, 0)
    pen = Pen(picture, x, y, unit, roll, yaw, pitch)

    # Each sign of gender and age has its own noise around a common, noisy value: the groups overlap.
    female = person.gender == "female"
    lean = (1 if female else -1) * look.uniform(0.55, 1.2)
    looks_like = person.age + look.gauss(0, 2.5)

    def gender_sign() -> float:
        return ramp(lean + look.gauss(0, 0.45), -1.2, 1.2)

    def age_sign(start: float, end: float) -> float:
        return ramp(looks_like + look.gauss(0, 4), start, end)

    skin = blend(*look.sample(SKINS, 2), look.random())
    shade, red = blend(skin, (96, 48, 36), 0.55), blend(skin, (170, 60, 60), 0.45)
    hair = blend(look.choice(HAIRS[:6]), look.choice(HAIRS), 0.4 * look.random())
    styles = ["long", "bob", "tied", "short"]
    style = look.choices(styles, (52, 25, 13, 10) if female else (4, 8, 8, 80))[0]
    gray = 0.0 if look.random() < 0.3 else age_sign(38, 68) * look.uniform(0.4, 1)
    brow_gray = 0.6 * age_sign(48, 72) * (gray > 0)
    silver = blend((205, 205, 208), (170, 168, 168), look.random())
    jaw, neck = 0.88 - 0.2 * gender_sign() + 0.06 * age_sign(40, 70), 0.6 - 0.18 * gender_sign()

    def strands(upper: Points, lower: Points, count: int) -> None:
        """Hair lines between two curves; the grey ones are drawn among them."""
        for i in range(count):
            place = (i + look.random()) / count * (len(upper) - 1)
            k, t = int(place), place - int(place)
            ends = [((1 - t) * c[k][0] + t * c[k + 1][0], (1 - t) * c[k][1] + t * c[k + 1][1]) for c in (upper, lower)]
            (ax, ay), (bx, by) = ends
            color = silver if look.random() < gray else blend(hair, look.choice([(0, 0, 0), (255, 255, 255)]), 0.16)
            bend = look.gauss(0, 0.03)
            pen.line([(ax, ay), ((ax + bx) / 2 + bend, (ay + by) / 2 - 0.03), (bx, by)], color, 0.028, 0.85, flat=True)

    # Hair behind the head.
    volume = look.uniform(0.05, 0.2)
    length = {"long": look.uniform(1.6, 2.6), "bob": look.uniform(0.9, 1.35)}.get(style, 0.0)
    if length:
        wide = 1.08 + volume * 0.8
        pen.area(mirrored([(0, -1.35), (wide, -0.4), (wide + 0.04, length * 0.6), (wide - 0.08, length), (0, length - 0.1)]),
                 blend(hair, (0, 0, 0), 0.2), flat=True)
    if style == "tied" and look.random() < 0.6:
        pen.dot(look.uniform(-0.4, 0.4), -1.5, 0.36, hair, flat=True)

    draw_body(body, look, skin, neck)

    # Head, with a soft shadow on one side.
    for side in (-1, 1):
        pen.area([(side * 0.93, -0.1), (side * 1.08, -0.12), (side * 1.1, 0.15), (side * 1.0, 0.42), (side * 0.9, 0.3)],
                 blend(skin, shade, 0.3), flat=True)
    chin = look.uniform(0.3, 0.4) + 0.35 * (jaw - 0.75)
    face = mirrored([(0, -1.2), (0.6, -1.08), (0.94, -0.6), (0.97, 0), (0.93, 0.45), (jaw, 0.88), (chin, 1.22), (0, 1.3)])
    pen.area(face, skin, flat=True)
    light_side = rng.choice((-1, 1))
    for step in range(4):
        inner = 0.9 - step * 0.09
        pen.area([(light_side * 0.9, -0.65), (light_side * 0.97, 0), (light_side * jaw, 0.88), (light_side * chin, 1.22),
                  (light_side * inner * jaw * 0.85, 0.8), (light_side * inner, 0)], shade, 0.1, flat=True)

    # Eyes and brows.
    eye_high = 0.07 + 0.05 * gender_sign() + look.gauss(0, 0.008)
    thick, lash, wing = 0.13 - 0.085 * gender_sign(), 0.03 + 0.035 * gender_sign(), 0.09 * gender_sign()
    droop, bags, feet = age_sign(30, 70), age_sign(28, 66), age_sign(32, 64)
    brow_color = blend(blend(hair, (40, 30, 28), 0.5), silver, brow_gray)
    arch, raised = 0.02 + 0.1 * gender_sign(), rng.uniform(-0.03, 0.04)
    iris, gaze = blend((40, 26, 20), (96, 60, 36), look.random()), rng.gauss(0, 0.03)
    for side in (-1, 1):
        def eye(points: Points, side: int = side) -> Points:
            return [(side * (0.43 + px), py) for px, py in points]

        high = eye_high * (1 - 0.3 * droop) * rng.uniform(0.85, 1.1)
        lid = eye([(-0.23, 0.03), (-0.1, -high), (0.08, -high), (0.24, 0.07 * droop - 0.03)])
        pen.area(lid + eye([(0.08, high * 0.8), (-0.1, high * 0.8)]), (246, 244, 240))
        pen.dot(side * 0.43 + gaze, 0, min(0.1, high * 1.1), iris)
        pen.dot(side * 0.43 + gaze + 0.03, -0.03, 0.022, (255, 255, 255), 0.8)
        pen.line(lid, (30, 22, 22), lash)
        pen.line(eye([(0.18, -0.05), (0.24 + wing, -0.04 - wing)]), (30, 22, 22), lash, 0.9 if wing > 0.035 else 0)
        pen.line(eye([(-0.2, -0.07), (0, -high - 0.09), (0.24, -0.08 + 0.1 * droop)]), shade, 0.025, 0.5 + 0.4 * droop)
        pen.area(eye([(-0.25, -0.31 - thick / 2), (0.02, -0.32 - arch - thick / 2), (0.3, -0.26), (0.02, -0.32 - arch + thick / 2),
                      (-0.25, -0.31 + thick / 2)]), brow_color, 0.9)
        # Ageing around the eyes: bags below, crow's feet beside.
        pen.area(eye([(-0.22, 0.15), (0.02, 0.2), (0.24, 0.13), (0.05, 0.3), (-0.1, 0.29)]), shade, 0.4 * bags)
        pen.line(eye([(-0.24, 0.16), (-0.05, 0.3), (0.2, 0.22)]), shade, 0.04, bags)
        for i in range(3):
            pen.line(eye([(0.3, 0.02 + 0.03 * i), (0.5, -0.12 + 0.13 * i)]), shade, 0.035, ramp(feet * 3 - i, 0, 1.2))
    # Ageing on the forehead and beside the mouth.
    lines = age_sign(28, 66) * 4
    for i in range(4):
        wave, half = look.gauss(0, 0.02), look.uniform(0.35, 0.55)
        pen.line([(-half, -0.54 - 0.1 * i), (0, -0.57 - 0.1 * i + wave), (half, -0.54 - 0.1 * i)], shade, 0.04,
                 ramp(lines - i, 0, 1))
    frown = age_sign(40, 65)
    for side in (-1, 1):
        pen.line([(side * 0.08, -0.38), (side * 0.07, -0.2)], shade, 0.035, frown)
        pen.line([(side * 0.2, 0.45), (side * 0.36, 0.65), (side * 0.4, 0.85)], shade, 0.04, age_sign(30, 60))
    for _ in range(8):
        spot = look.uniform(-0.85, 0.85), look.uniform(-0.6, 0.6)
        pen.dot(*spot, look.uniform(0.02, 0.04), shade, 0.6 * (age_sign(52, 70) if look.random() < 0.7 else 0))

    # Nose, mouth, stubble.
    nose, lips = look.uniform(0.13, 0.19), gender_sign()
    pen.area([(-0.05, 0), (0.07, 0), (nose, 0.48), (0, 0.56), (-0.03, 0.3)], shade, 0.22)
    pen.line([(-nose, 0.46), (-nose * 0.6, 0.55), (0, 0.52), (nose * 0.6, 0.55), (nose, 0.46)], shade, 0.035)
    if not female and look.random() < 0.55:
        for _ in range(150):
            angle, ring = look.uniform(-1.75, 1.75), look.uniform(0.75, 0.97)
            pen.dot(math.sin(angle) * ring * 0.92, 0.35 + math.cos(angle) * ring * 0.92, 0.013, (50, 40, 38), 0.5, flat=True)
    full = 0.05 + 0.05 * lips
    pen.area([(-0.3, 0.86 - smile), (-0.08, 0.86 - full), (0, 0.88 - full), (0.08, 0.86 - full), (0.3, 0.86 - smile),
              (0, 0.88 + full * 1.5)], blend(red, (180, 50, 60), 0.3 * lips))
    pen.line([(-0.3, 0.86 - smile), (0, 0.88), (0.3, 0.86 - smile)], blend(red, (60, 20, 20), 0.5), 0.025)

    # Hair in front: the outer line of the head down to the hairline, which climbs with age.
    recede = age_sign(30, 75) * (0.32 if style == "short" else 0.12) * look.uniform(0.3, 1.2)
    fringe = look.random() < 0.2 and recede < 0.16
    side_low = {"long": 1.2, "bob": 0.8, "tied": -0.15, "short": look.uniform(-0.15, 0.15)}[style]
    part, base = look.uniform(-0.5, 0.5), -0.45 if fringe else -0.8 + look.gauss(0, 0.04)
    outer: Points = []
    inner_line: Points = []
    for k in range(17):
        u = (k - 8) / 8
        angle = u * math.pi / 2
        outer.append((math.sin(angle) * (1.03 + volume * 0.7), -0.2 - math.cos(angle) * (1.15 + volume)))
        line_y = base + 0.45 * abs(u) ** 4 - recede * (0.25 + math.exp(-((abs(u) - 0.55) / 0.2) ** 2))
        if style in ("long", "bob") and not fringe:
            line_y = max(-1.2, line_y - 0.3 * math.exp(-(((u - part) / 0.25) ** 2)) + 0.15)
        inner_line.append((math.sin(angle) * 0.93, line_y))
    ends: list[Points] = []
    for side in (-1, 1):
        low = [(side * (1.04 + volume * 0.7), side_low * 0.5), (side * 1.02, side_low), (side * 0.9, side_low * 0.6 - 0.1)]
        ends.append(low)
    pen.area(outer + ends[1] + inner_line[::-1] + ends[0][::-1], hair, flat=True)
    strands(outer, inner_line, 46)
    if length:
        for side in (-1, 1):
            pen.area([(side * 0.95, -0.5), (side * (1.03 + volume), -0.3), (side * (1.1 + volume * 0.7), length - 0.1),
                      (side * 0.94, length - 0.05), (side * 0.95, 0.3)], hair, flat=True)
            strands([(side * 0.95, -0.4), (side * (1.05 + volume), -0.4)],
                    [(side * 0.98, length - 0.15), (side * (1.08 + volume * 0.7), length - 0.15)], 9)
    rings, has_rings = any_color(look), look.random() < (0.5 if female else 0.04)
    if has_rings:
        for side in (-1, 1):
            pen.dot(side * 1.03, 0.5, 0.07, rings, flat=True)
            pen.dot(side * 1.03, 0.5, 0.03, (255, 255, 255), flat=True)
    if shot != "normal":
        draw_mask(pen, rng, shot)
    if look.random() < 0.2:  # glasses
        for side in (-1, 1):
            rim = [(side * (0.43 + 0.31 * math.cos(a)), 0.02 + 0.23 * math.sin(a)) for a in (i * 0.785 for i in range(9))]
            pen.line(rim, (50, 46, 50), 0.035)
            pen.line([(side * 0.74, -0.02), (side * 1.0, -0.08)], (50, 46, 50), 0.035)
        pen.line([(-0.13, 0), (0, -0.03), (0.13, 0)], (50, 46, 50), 0.035)
    return photograph(picture, rng)


def photograph(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Add what a camera adds: uneven, coloured light, blur and noise."""
    picture = picture.reduce(2)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    level = rng.uniform(0.65, 1.25)
    grid = np.array([[level * rng.uniform(0.75, 1.2) for _ in range(3)] for _ in range(3)], dtype=np.float32)
    light = np.asarray(Image.fromarray(grid).resize(picture.size, Image.BILINEAR))
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal((HEIGHT, WIDTH), dtype=np.float32)
    noise *= 1.5 * 8 ** rng.random()
    bands = [np.asarray(band) * light * np.float32(rng.uniform(0.92, 1.08)) + noise for band in picture.split()]
    return Image.merge("RGB", [Image.fromarray(band.clip(0, 255).astype(np.uint8)) for band in bands])


def draw_age(rng: random.Random, group: int) -> int:
    """Draw an age evenly within a group."""
    return rng.randint(*((18, 29), (30, 59), (60, 70))[group])


def make_person(number: int, kind: str, balance: str, seed: int) -> Person:
    """Deal gender and age: the six cells in turn (even), or the competition archive's shares (real)."""
    own = f"{seed}/{kind}/{number}"
    rng = random.Random(f"{own}/age")
    if balance == "even":
        return Person(number, ("male", "female")[number % 2], draw_age(rng, number // 2 % 3), own)
    gender = "female" if rng.random() < 0.61 else "male"
    group = rng.choices((0, 1, 2), (47, 45, 7))[0]
    young = 18 + min(11, int(rng.expovariate(0.7)))
    middle = rng.choices((rng.randint(30, 49), rng.randint(50, 56), rng.randint(57, 59)), (25, 35, 40))[0]
    return Person(number, gender, (young, middle, 60)[group], own)


def write_rows(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def true_class(person: Person, shot: str) -> int:
    """The class, 6 * mask + 3 * gender + age group."""
    mask = {"incorrect_mask": 1, "normal": 2}.get(shot, 0)
    return 6 * mask + 3 * (person.gender == "female") + (person.age >= 30) + (person.age >= 60)


def save(picture: Image.Image, path: Path, rng: random.Random) -> None:
    """Save at a quality drawn by chance, so that a file's size says nothing about what it shows."""
    if path.suffix == ".png":
        picture.save(path, compress_level=1)
    else:
        picture.save(path, "JPEG", quality=rng.randint(70, 95))


def draw_all(out: Path, people: int, eval_people: int, seed: int, balance: str) -> None:
    """Draw every picture and write the tables."""
    images = out / "train" / "images"
    train: list[list[str]] = []
    answers: list[list[str]] = []
    bar = tqdm(total=len(SHOTS) * (people + eval_people), unit="picture", disable=not sys.stderr.isatty())
    for number in range(people):
        person = make_person(number, "train", balance, seed)
        name = f"{number + 1:06d}_{person.gender}_Asian_{person.age}"
        train.append([f"{number + 1:06d}", person.gender, "Asian", str(person.age), name])
        (images / name).mkdir(parents=True)
        suffix = random.Random(f"{person.seed}/file").choice(EXTENSIONS)
        for shot in SHOTS:
            own = f"{person.seed}/{shot}"
            save(draw_person(person, shot, own), images / name / (shot + suffix), random.Random(f"{own}/quality"))
            bar.update()
    (out / "eval" / "images").mkdir(parents=True)
    for number in range(eval_people):
        person = make_person(number, "eval", balance, seed)
        for shot in SHOTS:
            own = f"{person.seed}/{shot}"
            name = hashlib.sha1(own.encode()).hexdigest() + ".jpg"
            save(draw_person(person, shot, own), out / "eval" / "images" / name, random.Random(f"{own}/quality"))
            answers.append([name, str(true_class(person, shot))])
            bar.update()
    bar.close()
    answers.sort()  # by hash: the order gives nothing away
    rows = [[name, "0"] for name, _ in answers]
    write_rows(out / "train" / "train.csv", ["id", "gender", "race", "age", "path"], train)
    write_rows(out / "eval" / "info.csv", ["ImageID", "ans"], rows)
    write_rows(out / "eval" / "answers.csv", ["ImageID", "ans"], answers)


def digest_of(folder: Path) -> str:
    """A digest of the names of all files below a folder: another file more or less changes it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def is_same_output(out: Path, arguments: dict[str, object]) -> bool:
    """Tell whether a folder holds a complete earlier output of the same arguments, and nothing more."""
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
    parser = Parser(prog="sample_data.py", allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                    description="Draw sample people in the competition's layout, to try the toolkit with no data.")
    parser.add_argument("--out", type=Path, default=Path("./input/data"), help="folder to write, new or empty")
    parser.add_argument("--people", type=int, default=60, help="training people, 7 pictures each")
    parser.add_argument("--eval-people", type=int, default=30, help="evaluation people, 7 pictures each")
    parser.add_argument("--seed", type=int, default=42, help="the same seed draws the same people")
    parser.add_argument("--balance", choices=("even", "real"), default="even",
                        help="even: every gender and age group alike; real: the competition archive's shares")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Draw into a folder beside --out and move it there when all is drawn."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.people < 1:
        parser.error(f"--people is {args.people}: give 1 or more")
    if args.eval_people < 0:
        parser.error(f"--eval-people is {args.eval_people}: give 0 or more")
    out, counts = args.out.resolve(), f"{args.people} training people and {args.eval_people} evaluation people"
    arguments: dict[str, object] = {"version": VERSION, "people": args.people, "eval_people": args.eval_people,
                                    "seed": args.seed, "balance": args.balance}
    try:
        if out.exists() and not out.is_dir():
            parser.error(f"{args.out} is a file: give another --out, a folder that is new or empty")
        if out.exists() and any(out.iterdir()):
            if is_same_output(out, arguments):
                print(f"{args.out} holds these {counts} already: nothing to do")
                return 0
            parser.error(f"{args.out} is not empty and holds something else: give another --out, or empty it first")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            drawn = Path(folder) / "data"
            draw_all(drawn, args.people, args.eval_people, args.seed, args.balance)
            (drawn / MARKER).write_text("{}", encoding="utf-8")  # it is in its own list of files
            arguments["files"] = digest_of(drawn)
            (drawn / MARKER).write_text(json.dumps(arguments) + "\n", encoding="utf-8")
            out.mkdir(exist_ok=True)
            for name in ("eval", "train", MARKER):  # into the folder: it may be the current one, or a mount
                os.replace(drawn / name, out / name)
    except OSError as error:
        parser.error(f"cannot write {args.out} ({error.strerror}): give an --out that can be written")
    except KeyboardInterrupt:
        print("sample_data.py: stopped, nothing was written", file=sys.stderr)
        return 130
    print(f"wrote {counts}, 7 pictures each, to {args.out} (answers: {args.out / 'eval' / 'answers.csv'}); "
          "the people are drawn, not real")
    return 0


if __name__ == "__main__":
    sys.exit(main())
