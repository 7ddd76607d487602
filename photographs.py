"""A photograph's file -> upright RGB pixels, or the reason why it cannot be read."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

import config
from utils import UserError, blame_machine, read_file, reason

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # whatever the extension says; others' readers are not let near files
MOST_BYTES = 1 << 28  # of one photograph
MOST_PIXELS = 100_000_000
LONGEST_SHAPE = 20  # long side over short side: scaled to cover the crop, a strip would fill the memory
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # EXIF's orientation -> what makes the picture upright  # fmt: skip
LYING = {TURNS[orientation] for orientation in (5, 6, 7, 8)}  # those by which width and height change places
Image.MAX_IMAGE_PIXELS = None  # open_photo has a limit of its own, which tells the size
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is an error of read_photo's


def open_photo(path: str) -> Image.Image:
    """A photograph whose header and end are in order, not decoded yet. Raises OSError or ValueError, or whatever else
    Pillow's readers stumble into over damaged bytes."""
    data = read_file(path, MOST_BYTES)
    try:
        photo = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("no picture of a known format" if data else "empty") from None
    width, height = photo.size
    if width * height > MOST_PIXELS or max(photo.size) > LONGEST_SHAPE * min(photo.size):
        raise ValueError(f"{width}x{height} pixels, which is no photograph's size")
    if not is_whole(photo.format or "", data):
        raise ValueError("cut off: its end is missing")
    return photo


def is_whole(kind: str, data: bytes) -> bool:
    """Whether a JPEG's end marker comes after its first scan (thumbnails end before), or a PNG has its last chunk.

    Pillow passes over a missing end where the pixels before it happen to suffice. Other formats are left to it.
    """
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in data
    if kind not in ("JPEG", "MPO"):
        return True
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # from segment to segment to the first scan
        at += 1 if data[at + 1 : at + 2] == b"\xff" else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.rfind(b"\xff\xd9", at) > 0  # from the end, where it nearly always is


def look_over(path: str, look: Callable[[str], Image.Image] = open_photo) -> tuple[str, bool]:
    """(why a photograph cannot be read, as far as `look` sees, empty where all is in order; whether it is of another size
    than the competition's). By default only its header and end are looked at."""
    try:
        with open_photo(path) as photo:
            size = photo.size[::-1] if turn_of(photo) in LYING else photo.size
        if look is not open_photo:
            look(path).close()
        return "", size != config.PHOTO_SIZE
    except Exception as error:  # as in read_photo
        blame_machine(path, error)
        return reason(error), False


def read_photo(path: str, shrink: int = 1) -> Image.Image:
    """An upright RGB image, whatever the file's format, mode or EXIF orientation; what is transparent, on white.

    Of an animation the first picture. shrink (2, 4, 8): decode a JPEG of the competition's size so many times smaller, for
    a rough look; other photographs come whole. Raises UserError naming the file.
    """
    try:
        return decoded(path, shrink)
    except Exception as error:  # over damaged bytes Pillow's readers raise nearly every kind there is
        blame_machine(path, error)
        raise UserError(f"{path}: cannot be read as a photograph ({reason(error)}); mend or remove it, or go on without it by "
                        "--skip-bad-images") from None  # fmt: skip


def decoded(path: str, shrink: int = 1) -> Image.Image:
    """What `read_photo` gives. Raises what `open_photo` and Pillow's decoders do."""
    with open_photo(path) as photo:
        if shrink > 1 and photo.size == config.PHOTO_SIZE:
            photo.draft(None, (photo.width // shrink, photo.height // shrink))
        photo.load()
        return upright_rgb(photo)


def turn_of(photo: Image.Image) -> Image.Transpose | None:
    """What makes a photograph upright, None for nothing."""
    try:
        return TURNS.get(photo.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata tells no orientation, and the pixels are whole
        return None


def upright_rgb(photo: Image.Image) -> Image.Image:
    """A decoded image as upright RGB. Raises ValueError for pixels of a kind that has no one reading."""
    turn = turn_of(photo)
    if photo.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip them to white
        photo = Image.fromarray(np.clip(np.asarray(photo).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    elif photo.mode == "F":
        raise ValueError("its pixels are fractions of an unknown range; save it with 8 bits")
    if photo.has_transparency_data:
        seen = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    upright = photo if turn is None else photo.transpose(turn)
    return upright if upright.mode == "RGB" else upright.convert("RGB")
