"""Find the face of a portrait from the distribution of its pixels (deterministic; no model).

A photograph is shrunk to about 48x64 pixels. Maps hold how foreign each pixel's colour is to the
frame's edge, where the background shows, how much it looks like skin, and how steep the brightness
is across and along the picture. Boxes of all likely places and sizes are scored by what a person
before a background shows (see face_measures). The result is the mean of all candidate boxes, each
weighted by exp(score), which is finer than their grid, or None where the pixels favour no place.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom in the photograph's pixels

# of the working image: a face is 12 to 35 pixels wide, noise and JPEG blocks are averaged away
SHORT_SIDE_PIXELS = 48
MIN_SIDE_PIXELS = 32  # no face is looked for in smaller pictures
MAX_ASPECT_RATIO = 2.0  # of a longer picture only the middle is searched
FACE_ASPECT = 0.83  # width over height from hairline to chin

WIDTHS = np.geomspace(0.24, 0.72, 9)  # candidate widths, in short sides of the frame
CENTRE = (0.50, 0.49)  # where a portrait's face usually is, of the frame's width and height
OFFSETS = np.linspace(-0.22, 0.22, 13)  # candidate centres about it
USUAL_WIDTH = 0.44  # of a portrait's face, in short sides
SPREAD = (0.12, 0.08, 0.17)  # weak prior: standard deviations of centre x, centre y and log width

FOREIGN, SKIN, UPRIGHT, LEVEL = range(4)  # the maps, before the three of COLOUR
COLOUR = range(4, 7)

# The means that are compared: a map, then a part of or around the face (left, top, right, bottom in
# units of the box).
PARTS = {
    "chin": (FOREIGN, 0.30, 0.86, 0.70, 0.98),
    "left jaw": (FOREIGN, -0.15, 0.95, 0.12, 1.08),  # beside the neck, above the shoulder
    "right jaw": (FOREIGN, 0.88, 0.95, 1.15, 1.08),
    "left half": (FOREIGN, -0.32, 0.10, 0.50, 0.95),
    "right half": (FOREIGN, 0.50, 0.10, 1.32, 0.95),
    "brow": (SKIN, 0.15, 0.08, 0.85, 0.45),  # never under a mask
    "mouth": (SKIN, 0.15, 0.55, 0.85, 0.92),
    "neck": (SKIN, 0.30, 1.03, 0.70, 1.20),
    "left flank": (SKIN, -0.32, 0.15, -0.10, 0.70),
    "right flank": (SKIN, 1.10, 0.15, 1.32, 0.70),
    "left outline": (UPRIGHT, -0.10, 0.20, 0.10, 0.65),
    "right outline": (UPRIGHT, 0.90, 0.20, 1.10, 0.65),
    "eye line": (LEVEL, 0.15, 0.30, 0.85, 0.48),
    "chin line": (LEVEL, 0.30, 0.92, 0.70, 1.06),
}
# Parts whose mean colours are compared
COLOUR_PARTS = {
    "hair": (0.20, -0.25, 0.80, -0.05),
    "over hair": (0.20, -0.40, 0.80, -0.20),
    "lower face": (0.20, 0.62, 0.80, 0.95),  # or the mask
    "under chin": (0.25, 1.05, 0.75, 1.25),
    "left cheek": (0.08, 0.60, 0.35, 0.92),
    "right cheek": (0.65, 0.60, 0.92, 0.92),
    "left of cheek": (-0.15, 0.80, 0.08, 1.05),
    "right of cheek": (0.92, 0.80, 1.15, 1.05),
}
PARTS |= {f"{name} {c}": (c, *part) for name, part in COLOUR_PARTS.items() for c in COLOUR}
# of the measures of face_measures, each between -1 and 1
WEIGHTS = np.array([5.3, 5.3, 4.8, -3.5, 3.5, 10.5, 4.3, 3.9, 4.7, 3.6, 3.6], np.float32)
# Least log ratio of the candidates' weight with the pixels to without: none of 710 faces has less,
# 9 drawn places without people in 10.
MIN_LOG_EVIDENCE = 9.0


class Grid(NamedTuple):
    """The n candidates for one size of working image."""

    boxes: Array  # (n, 4): left, top, right, bottom as shares of the width and height
    prior: Array  # (n,): log weight before the pixels are seen
    corners: NDArray[np.intp]  # (4, len(PARTS), n): in the flattened integral images
    per_pixel: Array  # (len(PARTS), n): 1 / a part's pixels, 0 for a part outside the picture


@lru_cache(maxsize=32)
def candidate_grid(height: int, width: int) -> Grid:
    """Lay the candidates over a working image of height x width pixels."""
    size, dx, dy = (axis.ravel() for axis in np.meshgrid(WIDTHS, OFFSETS, OFFSETS, indexing="ij"))
    span = size * min(height, width) * np.array([[1.0], [1 / FACE_ASPECT]])
    start = np.stack([(CENTRE[0] + dx) * width, (CENTRE[1] + dy) * height]) - span / 2
    deviation = np.stack([dx, dy, np.log(size / USUAL_WIDTH)]) / np.array(SPREAD)[:, None]
    part = np.array(list(PARTS.values()))[:, :, None]
    x0, y0, x1, y1 = (
        np.clip(np.rint(start[k % 2] + part[:, k + 1] * span[k % 2]), 0, side).astype(np.intp)
        for k, side in enumerate((width, height, width, height))
    )
    row, first = width + 1, part[:, 0].astype(np.intp) * (height + 1) * (width + 1)
    area = (x1 - x0) * (y1 - y0)
    boxes = np.concatenate([start, start + span]).T / [width, height, width, height]
    return Grid(
        boxes.astype(np.float32),
        (-0.5 * (deviation**2).sum(0)).astype(np.float32),
        first + np.stack([y1 * row + x1, y0 * row + x0, y0 * row + x1, y1 * row + x0]),
        np.where(area > 0, 1 / np.maximum(area, 1), 0).astype(np.float32),
    )


def pixel_maps(rgb: Array) -> Array:
    """Turn a working image (h, w, 3), 0 to 255, into the maps (7, h, w): those from 0 to 1, then
    COLOUR in grey levels."""
    red, green, blue = np.ascontiguousarray(np.moveaxis(rgb, 2, 0))
    light = (red + green + blue) / 3
    colour = np.stack([light, red - green, (red + green) / 2 - blue])
    beside = int(0.6 * len(light))  # rows above the shoulders; the frame goes up, across, down
    frame = np.concatenate([colour[:, beside::-1, 0], colour[:, 0], colour[:, :beside, -1]], 1)
    # no single odd pixel is background
    samples = frame[:, : frame.shape[1] // 3 * 3].reshape(3, -1, 3).mean(2).T
    flat = colour.reshape(3, -1)
    squares = (flat**2).sum(0) + ((samples**2).sum(1)[:, None] - 2 * samples @ flat).min(0)
    distance = np.sqrt(np.maximum(squares, 0)).reshape(light.shape)
    # ratios, whatever the exposure
    skin_red, skin_yellow = np.log((red + 8) / (green + 8)), np.log((green + 8) / (blue + 8))
    across, along = np.zeros_like(light), np.zeros_like(light)
    across[:, 1:-1] = np.abs(light[:, 2:] - light[:, :-2])
    along[1:-1] = np.abs(light[2:] - light[:-2])
    foreign = distance / (distance + 30)
    # red > green > blue
    skin = np.exp(-0.5 * (((skin_red - 0.33) / 0.2) ** 2 + ((skin_yellow - 0.2) / 0.2) ** 2))
    return np.stack([foreign, skin, across / (across + 20), along / (along + 20), *colour])


def face_measures(maps: Array, grid: Grid) -> Array:
    """What the pixels tell of every candidate (len(WEIGHTS), n)."""
    integral = np.zeros((len(maps), maps.shape[1] + 1, maps.shape[2] + 1), np.float32)
    integral[:, 1:, 1:] = maps.cumsum(1).cumsum(2)
    one, two, three, four = integral.ravel()[grid.corners]
    mean = dict(zip(PARTS, (one + two - three - four) * grid.per_pixel, strict=True))

    def contrast(first: str, second: str) -> Array:
        difference = [mean[f"{first} {c}"] - mean[f"{second} {c}"] for c in COLOUR]
        distance = np.sqrt(np.square(difference).sum(0))
        return np.asarray(distance / (distance + 30))

    cheeks = contrast("left cheek", "left of cheek"), contrast("right cheek", "right of cheek")
    measures = [
        # the chin foreign to the background, the corners beside the neck not: ends at the chin
        mean["chin"] - (mean["left jaw"] + mean["right jaw"]) / 2,
        -np.abs(mean["left half"] - mean["right half"]),  # symmetry of the foreign pixels
        # skin at the brow, not beside the head: against furniture
        mean["brow"] - (mean["left flank"] + mean["right flank"]) / 2,
        mean["mouth"],  # skin there may be an uncovered face, but a mask is a surer sign
        mean["neck"],
        np.minimum(mean["left outline"], mean["right outline"]),  # upright edges on both sides
        mean["eye line"],  # level edges: eyes, brows, glasses
        mean["chin line"],  # level edge under the chin
        np.minimum(*cheeks),  # cheeks or mask of another colour than what is beside them
        contrast("lower face", "under chin"),
        contrast("hair", "over hair"),
    ]
    return np.stack(measures)


def find_face(photo: Image.Image) -> Box | None:
    """Return the face's box from hairline to chin, or None where nothing face-like stands out."""
    short = min(photo.size)
    if short < MIN_SIDE_PIXELS:
        return None
    wide, high = (min(side, MAX_ASPECT_RATIO * short) for side in photo.size)
    left, top = (photo.width - wide) / 2, (photo.height - high) / 2
    size = round(wide / short * SHORT_SIDE_PIXELS), round(high / short * SHORT_SIDE_PIXELS)
    window = (left, top, left + wide, top + high)
    rgb = photo if photo.mode == "RGB" else photo.convert("RGB")
    small = rgb.resize(size, Image.Resampling.BOX, window, reducing_gap=2.0)
    grid = candidate_grid(size[1], size[0])
    measures = face_measures(pixel_maps(np.asarray(small, np.float32)), grid)
    belief = np.exp(grid.prior + WEIGHTS @ measures)
    if np.log(belief.sum() / np.exp(grid.prior).sum()) < MIN_LOG_EVIDENCE:
        return None
    shares = belief @ grid.boxes / belief.sum()
    x0, y0, x1, y1 = map(round, shares * [wide, high, wide, high] + [left, top, left, top])
    return max(0, x0), max(0, y0), min(photo.width, x1), min(photo.height, y1)
