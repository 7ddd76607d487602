"""Near-duplicate photographs of "different" people: one person in two folds flatters the score."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from data import images
from runtime.cli import progress
from runtime.devices import usable_processors
from runtime.errors import UserError, warn_counted

WIDTH, HEIGHT = 72, 96  # pixels of the thumbnails
FREQUENCIES = 12  # in each direction of the perceptual hash
MAX_HASH_BITS = 0.23  # share of the hash's bits in which candidates may differ
MAX_DISTANCE = 0.15  # 1 - correlation up to which aligned candidates are the same photograph
BLOCK_IMAGES = 1024  # photographs compared with all others at once
MAX_PAIRS_PER_IMAGE = 1  # candidates per photograph of a block, on average; the nearest ones
# left, top, right, bottom: what crops leave
MIDDLE_BOX = np.array([0.06 * WIDTH, 0.06 * HEIGHT, 0.94 * WIDTH, 0.94 * HEIGHT])
ALIGNMENT_STEPS = 4
DETAIL_SPAN_PIXELS = 4  # of a thumbnail over which details are compared

Pair = tuple[str, str, float]


def find_duplicates(paths: Sequence[str], people: Sequence[str]) -> list[Pair]:
    """(path, path, distance) of photographs of different people that are the same one, the nearest
    first. Unreadable files are left out, with a count.

    Finds copies that were re-encoded, scaled, mirrored, or cropped by a few percent: a perceptual
    hash (the signs of a cosine transform's low frequencies) proposes pairs; these are aligned and
    their details correlated. distance is 1 - that correlation, 0 for equal photographs.
    """
    rows = list(zip(paths, people, read_thumbnails(paths), strict=True))
    unreadable = [path for path, _, thumbnail in rows if thumbnail is None]
    warn_counted(unreadable, "photographs not searched for duplicates, they cannot be read")
    if len(unreadable) == len(paths):
        return []
    readable, owners, pixels = zip(*(row for row in rows if row[2] is not None), strict=True)
    codes = np.unique(owners, return_inverse=True)[1]
    pairs = candidate_pairs(perceptual_hashes(np.stack(pixels)), codes)
    # threads would take twice as long
    distances = (measure_distance(pixels[i], pixels[j], mirrored) for i, j, mirrored in pairs)
    measured = progress(distances, "comparing look-alikes", len(pairs))
    nearest: dict[tuple[str, str], float] = {}
    for (i, j, _), distance in zip(pairs, measured, strict=True):
        if distance <= MAX_DISTANCE:
            pair = readable[i], readable[j]
            nearest[pair] = min(distance, nearest.get(pair, distance))
    return sorted(((a, b, distance) for (a, b), distance in nearest.items()), key=lambda p: p[2])


def read_thumbnails(paths: Sequence[str]) -> list[np.ndarray | None]:
    """Gray thumbnails, uint8 [HEIGHT, WIDTH]; None for a file that cannot be read."""

    def read(path: str) -> np.ndarray | None:
        try:
            photo = images.read_image(path, 4)
        except UserError:
            return None
        return np.asarray(photo.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(usable_processors()) as pool:
        return list(progress(pool.map(read, paths), "looking for duplicates", len(paths)))


def perceptual_hashes(pixels: np.ndarray) -> np.ndarray:
    """Signs of the lowest cosine frequencies, float32 -1 or 1 [photographs, FREQUENCIES,
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
    hashes = np.where(np.concatenate(spectra) > 0, np.float32(1), np.float32(-1))
    hashes[:, 0, 0] = 0  # the mean brightness says nothing
    return hashes


def candidate_pairs(hashes: np.ndarray, codes: np.ndarray) -> list[tuple[int, int, bool]]:
    """(i, j, whether j is mirrored), i < j, of different people whose hashes differ in few bits."""
    flat = hashes.reshape(len(hashes), -1)
    flipped = (hashes * (-1.0) ** np.arange(FREQUENCIES, dtype=np.float32)).reshape(flat.shape)
    bits, pairs = flat.shape[1] - 1, []
    for start in range(0, len(flat), BLOCK_IMAGES):
        block = flat[start : start + BLOCK_IMAGES]
        later = np.arange(start, len(flat)) > np.arange(start, start + len(block))[:, None]
        different = codes[start:] != codes[start : start + len(block), None]
        for mirrored, others in ((False, flat), (True, flipped)):
            differing = (bits - block @ others[start:].T) / 2
            differing[~(later & different)] = bits
            i, j = np.nonzero(differing <= MAX_HASH_BITS * bits)
            order = np.argsort(differing[i, j], kind="stable")
            order = order[: MAX_PAIRS_PER_IMAGE * BLOCK_IMAGES]
            rows, columns = (i[order] + start).tolist(), (j[order] + start).tolist()
            pairs += [(row, column, mirrored) for row, column in zip(rows, columns, strict=True)]
    return pairs


def crop_gray(photo: Image.Image, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A part of a thumbnail, float32 [height, width] of `size`."""
    return np.asarray(photo.resize(size, Image.Resampling.BILINEAR, tuple(box)))


def align(first: Image.Image, second: Image.Image) -> np.ndarray:
    """The box of the second thumbnail that shows what is in the first's middle: Gauss-Newton steps
    on place, scale, brightness and contrast (after Lucas and Kanade 1981).
    """
    size = (WIDTH // 2, HEIGHT // 2)
    target, box = crop_gray(first, MIDDLE_BOX, size).ravel(), MIDDLE_BOX.copy()
    axes = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in size[::-1])
    y, x = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
    for _ in range(ALIGNMENT_STEPS):
        crop = crop_gray(second, box, size)
        down, across = (gradient.ravel() for gradient in np.gradient(crop))
        columns = np.stack([across, across * x, down, down * y, crop.ravel(), np.ones_like(x)])
        residual = columns @ (target - crop.ravel())
        dx, wider, dy, taller = np.linalg.lstsq(columns @ columns.T, residual, rcond=None)[0][:4]
        change = [dx - wider / 2, dy - taller / 2, dx + wider / 2, dy + taller / 2]
        step = np.clip(np.multiply(change, 2), -2, 2)
        box = np.clip(box + step, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        if min(box[2] - box[0], box[3] - box[1]) < WIDTH / 2:
            return MIDDLE_BOX  # diverged
    return box


def detail_vector(photo: Image.Image, box: np.ndarray) -> np.ndarray:
    """A part of a thumbnail less the mean of four pixels around each, as a unit vector."""
    crop = crop_gray(photo, box, (WIDTH, HEIGHT))
    span = DETAIL_SPAN_PIXELS
    around = sum(np.roll(crop, shift, axis) for shift in (-span, span) for axis in (0, 1)) / 4
    fine = (crop - around)[span:-span, span:-span].ravel()
    fine = fine - fine.mean()
    return fine / max(float(np.linalg.norm(fine)), 1e-6)


def measure_distance(first: np.ndarray, second: np.ndarray, mirrored: bool) -> float:
    """1 - correlation of the details of two thumbnails, after aligning them."""
    a = Image.fromarray(first.astype(np.float32))
    b = Image.fromarray((second[:, ::-1] if mirrored else second).astype(np.float32))
    return 1 - float(detail_vector(a, MIDDLE_BOX) @ detail_vector(b, align(a, b)))
