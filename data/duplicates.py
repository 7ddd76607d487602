"""Near-duplicate photographs of "different" people: one person in two folds flatters the score."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from data import images
from runtime.cli import progress
from runtime.devices import usable_processors
from runtime.errors import UserError, warn_counted

WIDTH, HEIGHT = 72, 96  # pixels of the thumbnails
FREQUENCIES = 12  # in each direction of the perceptual hash
MAX_HASH_BITS = 0.23  # share of the hash's bits in which candidates may differ
MAX_ROUGH_DISTANCE = 0.3  # the same at half the size, above which candidates are dropped
MAX_DISTANCE = 0.15  # 1 - correlation up to which aligned candidates are the same photograph
BLOCK_IMAGES = 256  # photographs compared with all others at once
BLOCK_PAIRS = 64  # candidates compared at once
MAX_PAIRS_PER_IMAGE = 1  # candidates per photograph of a block, on average; the nearest ones
# left, top, right, bottom: what crops leave, in shares of width and height
MIDDLE_BOX = np.array([0.06, 0.06, 0.94, 0.94])
ALIGNMENT_STEPS, ROUGH_STEPS = 4, 2
MIN_SIDES = np.array([0.5, 0.5 * WIDTH / HEIGHT])  # of a box; smaller ones have diverged
MAX_STEP = 2 / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])  # of a box's sides
DETAIL_SPAN_PIXELS = 4  # of a thumbnail over which details are compared
BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)

Pair = tuple[str, str, float]
Candidate = tuple[int, int, bool]  # i, j, whether j is mirrored
Crop = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # thumbnails, boxes, shrink


def find_duplicates(paths: Sequence[str], people: Sequence[str]) -> list[Pair]:
    """(path, path, distance) of photographs of different people that are the same one, the nearest
    first. Unreadable files are left out, with a count.

    Finds copies that were re-encoded, scaled, mirrored, or cropped by a few percent: a perceptual
    hash (the signs of a cosine transform's low frequencies) proposes pairs; these are aligned and
    their details correlated, at half the size first, which leaves few. distance is 1 - that
    correlation, 0 for equal photographs.
    """
    thumbnails, readable = read_thumbnails(paths)
    unreadable = np.delete(paths, readable).tolist()
    warn_counted(unreadable, "photographs not searched for duplicates, they cannot be read")
    if len(unreadable) == len(paths):
        return []
    codes = np.unique(np.array(people)[readable], return_inverse=True)[1]
    pairs = candidate_pairs(perceptual_hashes(thumbnails), codes)
    rough = measure_distances(halve(thumbnails), pairs, crop_all, ROUGH_STEPS)
    pairs = [pairs[k] for k in np.flatnonzero(rough <= MAX_ROUGH_DISTANCE)]
    measured = measure_distances(thumbnails, pairs, crop_each, ALIGNMENT_STEPS).tolist()
    nearest: dict[tuple[str, str], float] = {}
    for (i, j, _), distance in zip(pairs, measured, strict=True):
        if distance <= MAX_DISTANCE:
            pair = paths[readable[i]], paths[readable[j]]
            nearest[pair] = min(distance, nearest.get(pair, distance))
    return sorted(((a, b, distance) for (a, b), distance in nearest.items()), key=lambda p: p[2])


def files_digest(table: pd.DataFrame) -> str:
    """A hash of what the search depends on: names, people, sizes and times of change of files."""
    digest = hashlib.sha256()
    for file, path, person in zip(table["file"], table["path"], table["person"], strict=True):
        try:
            status = os.stat(path)
        except OSError:  # the search counts it
            continue
        digest.update(repr((file, person, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def read_thumbnails(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(gray thumbnails, uint8 [readable files, HEIGHT, WIDTH]; the numbers of these files)."""
    thumbnails = np.empty((len(paths), HEIGHT, WIDTH), np.uint8)

    def read(number: int) -> bool:
        try:
            photo = images.read_image(paths[number], 4).convert("L")
        except UserError:
            return False
        thumbnails[number] = np.asarray(photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        return True

    with ThreadPoolExecutor(usable_processors()) as pool:
        numbers = range(len(paths))
        is_readable = list(progress(pool.map(read, numbers), "looking for duplicates", len(paths)))
    readable = np.flatnonzero(is_readable)
    return thumbnails if all(is_readable) else thumbnails[readable], readable


def perceptual_hashes(pixels: np.ndarray) -> np.ndarray:
    """Whether the lowest cosine frequencies are positive, bool [photographs, FREQUENCIES,
    FREQUENCIES]. Mirroring a photograph turns those of odd horizontal frequencies around.
    """
    down, across = (
        np.cos(np.pi * np.outer(np.arange(FREQUENCIES), np.arange(n) + 0.5) / n, dtype=np.float32)
        for n in (HEIGHT, WIDTH)
    )
    spectra = [
        down @ pixels[k : k + BLOCK_IMAGES].astype(np.float32) @ across.T
        for k in range(0, len(pixels), BLOCK_IMAGES)
    ]
    hashes = np.concatenate(spectra) > 0
    hashes[:, 0, 0] = False  # the mean brightness says nothing
    return hashes


def candidate_pairs(hashes: np.ndarray, codes: np.ndarray) -> list[Candidate]:
    """Pairs of different people, i < j, whose hashes differ in few bits."""
    even, odd = (
        np.packbits(hashes[:, :, first::2].reshape(len(hashes), -1), axis=1).T.copy()
        for first in (0, 1)
    )
    odd_bits, max_bits = hashes[0, :, 1::2].size, MAX_HASH_BITS * (hashes[0].size - 1)
    pairs: list[Candidate] = []
    for start in range(0, len(codes), BLOCK_IMAGES):
        stop = start + BLOCK_IMAGES
        differing_even, differing_odd = (
            sum(count_bits(byte[start:stop, None] ^ byte[start:]) for byte in packed)
            for packed in (even, odd)
        )
        for mirrored in (False, True):
            differing = differing_even + (odd_bits - differing_odd if mirrored else differing_odd)
            i, j = np.divmod(np.flatnonzero(differing <= max_bits), differing.shape[1])
            wanted = (i < j) & (codes[start + i] != codes[start + j])
            i, j = i[wanted], j[wanted]
            order = np.argsort(differing[i, j], kind="stable")
            order = order[: MAX_PAIRS_PER_IMAGE * BLOCK_IMAGES]
            rows, columns = (i[order] + start).tolist(), (j[order] + start).tolist()
            pairs += [(row, column, mirrored) for row, column in zip(rows, columns, strict=True)]
    return pairs


def count_bits(array: np.ndarray) -> Any:
    """How many bits of each byte are set (numpy has a function for it from 2.0 on)."""
    return np.bitwise_count(array) if hasattr(np, "bitwise_count") else BITS_OF_BYTE.take(array)


def measure_distances(
    pixels: np.ndarray, pairs: Sequence[Candidate], crop: Crop, steps: int
) -> np.ndarray:
    """1 - correlation of the details of each pair of thumbnails, after aligning them."""
    distances = [np.empty(0)]
    for start in range(0, len(pairs), BLOCK_PAIRS):
        i, j, mirrored = map(np.array, zip(*pairs[start : start + BLOCK_PAIRS], strict=True))
        first, second = pixels[i], pixels[j]
        second[mirrored] = second[mirrored, :, ::-1]
        boxes = align(first, second, crop, steps)
        details = detail_vectors(crop(first, MIDDLE_BOX, 1)), detail_vectors(crop(second, boxes, 1))
        distances.append(1 - (details[0] * details[1]).sum(1))
    return np.concatenate(distances)


def halve(pixels: np.ndarray) -> np.ndarray:
    """Thumbnails of half the size."""
    halved = []
    for k in range(0, len(pixels), BLOCK_IMAGES):  # sums take more memory than all thumbnails
        rows = pixels[k : k + BLOCK_IMAGES, ::2].astype(np.uint16)
        rows += pixels[k : k + BLOCK_IMAGES, 1::2]
        halved.append(((rows[:, :, ::2] + rows[:, :, 1::2]) // 4).astype(np.uint8))
    return np.concatenate(halved)


def crop_each(pixels: np.ndarray, boxes: np.ndarray, shrink: int) -> np.ndarray:
    """The part of each thumbnail in its box (or all in one), scaled to the thumbnails' size divided
    by `shrink`, float32.
    """
    count, height, width = pixels.shape
    size = width // shrink, height // shrink
    sides = np.broadcast_to(boxes * [width, height, width, height], (count, 4))
    crops = [
        Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR, tuple(box))
        for photo, box in zip(pixels.astype(np.float32), sides, strict=True)
    ]
    return np.stack([np.asarray(crop) for crop in crops])


def crop_all(pixels: np.ndarray, boxes: np.ndarray, shrink: int) -> np.ndarray:
    """As `crop_each`, by matrix products with the same filter: faster for small thumbnails."""

    def weights(start: np.ndarray, stop: np.ndarray, size: int) -> np.ndarray:
        scale = (shrink * (stop - start))[:, None, None]
        places = np.arange(0.5, size, dtype=np.float32)  # middles of pixels
        samples = size * start[:, None, None] + scale * places[: size // shrink, None]
        triangles = np.maximum(1 - abs(places - samples) / np.maximum(scale, 1), 0)
        return triangles / triangles.sum(2, keepdims=True)

    left, top, right, bottom = np.atleast_2d(boxes).astype(np.float32).T
    down, across = weights(top, bottom, pixels.shape[1]), weights(left, right, pixels.shape[2])
    return down @ pixels.astype(np.float32) @ across.transpose(0, 2, 1)


def align(first: np.ndarray, second: np.ndarray, crop: Crop, steps: int) -> np.ndarray:
    """The boxes [pairs, 4] of the second thumbnails that show what is in the middle of the first:
    Gauss-Newton steps on place, scale, brightness and contrast (after Lucas and Kanade 1981).
    """
    target, boxes = crop(first, MIDDLE_BOX, 2), MIDDLE_BOX
    height, width = target.shape[1:]
    x, y = np.meshgrid(*(np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in (width, height)))
    for _ in range(steps):
        crops = crop(second, boxes, 2)
        down, across = np.gradient(crops, axis=(1, 2))
        parts = [across, across * x, down, down * y, crops, np.ones_like(crops)]
        columns = np.stack(parts, 1).reshape(len(crops), len(parts), -1)
        residual = columns @ (target - crops).reshape(len(crops), -1, 1)
        products = columns @ columns.transpose(0, 2, 1)
        inverse = np.linalg.pinv(products, len(parts) * np.finfo(np.float32).eps, hermitian=True)
        dx, wider, dy, taller = (inverse @ residual)[:, :4, 0].T
        change = np.stack([dx - wider / 2, dy - taller / 2, dx + wider / 2, dy + taller / 2], 1)
        step = np.clip(change / [width, height, width, height], -MAX_STEP, MAX_STEP)
        boxes = np.clip(boxes + step, 0, 1)
        diverged = (boxes[:, 2:] - boxes[:, :2] < MIN_SIDES).any(1)
        boxes[diverged] = MIDDLE_BOX
    return boxes


def detail_vectors(crops: np.ndarray) -> np.ndarray:
    """Crops less the mean of four pixels around each, as unit vectors [crops, pixels]."""
    span = DETAIL_SPAN_PIXELS * crops.shape[1] // HEIGHT
    around = sum(np.roll(crops, shift, axis) for shift in (-span, span) for axis in (1, 2)) / 4
    fine = (crops - around)[:, span:-span, span:-span].reshape(len(crops), -1)
    fine = fine - fine.mean(1, keepdims=True)
    return fine / np.maximum(np.linalg.norm(fine, axis=1, keepdims=True), 1e-6)
