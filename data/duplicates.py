"""Near-duplicate photographs of "different" people: whoever is in two folds under two names
flatters the score.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data import images
from runtime.cli import progress
from runtime.devices import usable_processors
from runtime.errors import UserError, warn_counted
from runtime.files import atomic_write, csv_cell

WIDTH, HEIGHT = 72, 96  # of the thumbnails
FREQUENCIES = 12  # in each direction of the perceptual hash
MAX_HASH_BITS = 0.23  # part of the hash's bits in which candidates may differ
MAX_DISTANCE = 0.15  # 1 - correlation up to which aligned candidates are the same photograph
BLOCK_IMAGES = 1024  # photographs compared with all others at once
# left, top, right, bottom: what crops leave
MIDDLE_BOX = np.array([0.06 * WIDTH, 0.06 * HEIGHT, 0.94 * WIDTH, 0.94 * HEIGHT])
ALIGNMENT_STEPS = 4  # of the alignment
DETAIL_SPAN_PIXELS = 4  # pixels of a thumbnail over which details are compared
MAX_PAIRS_PER_IMAGE = (
    1  # looked at closely per photograph of a block on average, at most; the nearest ones
)

Pair = tuple[str, str, float]


def find_duplicates(paths: Sequence[str], people: Sequence[str]) -> list[Pair]:
    """(path, path, distance) of photographs of different people that are the same one, the nearest
    first.

    Finds copies that were re-encoded, scaled, mirrored, or cropped by a few percent, whatever their
    shots: a perceptual hash (the signs of a cosine transform's low frequencies) proposes pairs;
    these are aligned and their details correlated. distance is 1 - that correlation, 0 for equal
    photographs. Unreadable files are left out, with a count.
    """
    thumbnails = read_thumbnails(paths)
    warn_counted(
        [p for p, found in zip(paths, thumbnails, strict=True) if found is None],
        "photographs left out of the search for duplicates, they cannot be read",
    )
    kept = [number for number, found in enumerate(thumbnails) if found is not None]
    if not kept:
        return []
    pixels = np.stack([thumbnails[number] for number in kept])  # type: ignore[misc]
    codes = np.unique([people[number] for number in kept], return_inverse=True)[1]
    pairs = candidate_pairs(perceptual_hashes(pixels), codes)
    # in threads it takes twice as long
    apart = (distance(pixels[i], pixels[j], mirrored) for i, j, mirrored in pairs)
    measured = list(progress(apart, "comparing look-alikes", len(pairs)))
    nearest: dict[tuple[int, int], float] = {}
    for (i, j, _), found in zip(pairs, measured, strict=True):
        if found <= MAX_DISTANCE:
            nearest[i, j] = min(found, nearest.get((i, j), found))
    return sorted(
        ((paths[kept[i]], paths[kept[j]], found) for (i, j), found in nearest.items()),
        key=lambda pair: pair[2],
    )


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """duplicates.csv: first, second, distance; the nearest first."""
    with atomic_write(path, "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["first", "second", "distance"])
        rows.writerows(
            [csv_cell(first), csv_cell(second), f"{apart:.4f}"] for first, second, apart in pairs
        )


def read_thumbnails(paths: Sequence[str]) -> list[np.ndarray | None]:
    """Gray thumbnails, uint8 [HEIGHT, WIDTH]; None for a file that cannot be read."""

    def read(path: str) -> np.ndarray | None:
        try:
            photo = images.read_image(path, 4)
        except UserError:
            return None
        return np.asarray(photo.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(usable_processors()) as pool:
        found: Iterable[np.ndarray | None] = progress(
            pool.map(read, paths), "looking for duplicates", len(paths)
        )
        return list(found)


def perceptual_hashes(pixels: np.ndarray) -> np.ndarray:
    """Perceptual hashes, float32 -1 or 1 [photographs, FREQUENCIES, FREQUENCIES]: signs of the
    lowest cosine frequencies.

    Signs of odd horizontal frequencies turn around when a photograph is mirrored; the others stay.
    """
    down, across = (
        np.cos(np.pi * np.outer(np.arange(FREQUENCIES), np.arange(n) + 0.5) / n, dtype=np.float32)
        for n in (HEIGHT, WIDTH)
    )
    parts = [
        down @ pixels[k : k + BLOCK_IMAGES].astype(np.float32) @ across.T
        for k in range(0, len(pixels), BLOCK_IMAGES)
    ]
    found = np.where(np.concatenate(parts) > 0, np.float32(1), np.float32(-1))
    found[:, 0, 0] = 0  # the mean brightness tells nothing
    return found


def candidate_pairs(hashed: np.ndarray, codes: np.ndarray) -> list[tuple[int, int, bool]]:
    """(i, j, whether j is mirrored), i < j, of different people whose hashes differ in few bits (by
    matrix products).
    """
    straight = hashed.reshape(len(hashed), -1)
    turned = (hashed * (-1.0) ** np.arange(FREQUENCIES, dtype=np.float32)).reshape(straight.shape)
    bits, pairs = straight.shape[1] - 1, []
    for start in range(0, len(straight), BLOCK_IMAGES):
        block = straight[start : start + BLOCK_IMAGES]
        others = np.arange(start, len(straight)) > np.arange(start, start + len(block))[:, None]
        others &= codes[start:] != codes[start : start + len(block), None]
        for mirrored, against in ((False, straight), (True, turned)):
            differing = (bits - block @ against[start:].T) / 2
            differing[~others] = bits
            i, j = np.nonzero(differing <= MAX_HASH_BITS * bits)
            nearest = np.argsort(differing[i, j], kind="stable")[
                : MAX_PAIRS_PER_IMAGE * BLOCK_IMAGES
            ]
            pairs += [
                (start + int(a), start + int(b), mirrored)
                for a, b in zip(i[nearest], j[nearest], strict=True)
            ]
    return pairs


def crop_gray(photo: Image.Image, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A part of a thumbnail, float32 [height, width] of `size`."""
    left, top, right, bottom = box
    return np.asarray(photo.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom)))


def align(first: Image.Image, second: Image.Image) -> np.ndarray:
    """The box of the second thumbnail that shows what is in the first's middle: Gauss-Newton steps
    on place and scale.

    Brightness and contrast are fitted along (Lucas and Kanade 1981, with these two parameters
    more).
    """
    size = (WIDTH // 2, HEIGHT // 2)
    sought, box = crop_gray(first, MIDDLE_BOX, size).ravel(), MIDDLE_BOX.copy()
    places = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in size[::-1])
    y, x = (grid.ravel() for grid in np.meshgrid(*places, indexing="ij"))
    for _ in range(ALIGNMENT_STEPS):
        shown = crop_gray(second, box, size)
        down, across = (gradient.ravel() for gradient in np.gradient(shown))
        columns = np.stack([across, across * x, down, down * y, shown.ravel(), np.ones_like(x)])
        shift, wider, fall, taller = np.linalg.lstsq(
            columns @ columns.T, columns @ (sought - shown.ravel()), rcond=None
        )[0][:4]
        change = [shift - wider / 2, fall - taller / 2, shift + wider / 2, fall + taller / 2]
        box = np.clip(
            box + np.clip(np.multiply(change, 2), -2, 2), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]
        )
        if min(box[2] - box[0], box[3] - box[1]) < WIDTH / 2:
            return MIDDLE_BOX  # lost
    return box


def detail_vector(photo: Image.Image, box: np.ndarray) -> np.ndarray:
    """The fine structure of a part of a thumbnail (less the mean of the four pixels beside it), a
    unit vector.
    """
    shown = crop_gray(photo, box, (WIDTH, HEIGHT))
    span = DETAIL_SPAN_PIXELS
    around = sum(np.roll(shown, shift, axis) for shift in (-span, span) for axis in (0, 1)) / 4
    fine = (shown - around)[span:-span, span:-span].ravel()
    fine = fine - fine.mean()
    return fine / max(float(np.linalg.norm(fine)), 1e-6)


def distance(first: np.ndarray, second: np.ndarray, mirrored: bool) -> float:
    """1 - correlation of the details of two thumbnails, after aligning them."""
    a, b = (
        Image.fromarray(pixels.astype(np.float32))
        for pixels in (first, second[:, ::-1] if mirrored else second)
    )
    return 1 - float(detail_vector(a, MIDDLE_BOX) @ detail_vector(b, align(a, b)))
