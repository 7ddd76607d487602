"""A photograph's file -> upright RGB pixels, or the reason why it cannot be read."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from labels import PHOTO_SIZE
from runtime.cli import progress
from runtime.errors import (
    MISSING_FILE_ERRNOS,
    UserError,
    dist_info_from_environment,
    path_error,
    reason,
    warn_counted,
)
from runtime.files import read_file

PHOTO_EXTENSION = re.compile(r"\.(jpe?g|jfif|png|webp|bmp|tiff?|gif|avif)")
# {extension: Pillow's name of the format}, those that the installed Pillow reads; its readers of
# other formats never see a file
EXTENSIONS = {
    extension: name
    for extension, name in Image.registered_extensions().items()
    if PHOTO_EXTENSION.fullmatch(extension)
}
FORMATS = sorted(set(EXTENSIONS.values()))  # tried whatever the extension
HEIC_EXTENSIONS = (".heic", ".heif")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEIC_REMEDY = "HEIC is not read here, save it as JPEG (phone: camera settings, most compatible)"
MAX_IMAGE_BYTES = 1 << 28
MAX_PIXELS = 210_000_000  # phones take 108 and 200 million
MAX_ASPECT_RATIO = 20  # a longer strip, scaled to cover the crop, would fill the memory
MAX_PNG_TEXT_BYTES = 1 << 20  # unpacked, of a text that may hold the orientation
MAX_LISTED_CHARACTERS = 1500  # of an error's line, which is cut at 2,000
CHECK_THREADS = 4  # that wait for a slow disk
# EXIF's orientation -> what makes the image upright
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # of such texts
ORIENTATION_KEYS = (b"eXIf", *ORIENTATION_KEYWORDS)
Image.MAX_IMAGE_PIXELS = None  # open_image has its own limit, and names the size
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; damage raises


def is_image_name(name: str) -> bool:
    """Whether a file of this name is read as a photograph; hidden ones (macOS's `._*`) are not."""
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def open_image(path: str) -> Image.Image:
    """A photograph whose header and end are in order, not decoded yet. Raises OSError or
    ValueError, or whatever else Pillow's readers stumble into over damaged bytes.
    """
    data = strip_ancillary_chunks(read_file(path, MAX_IMAGE_BYTES))
    try:
        photo = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS
        problem = "no picture of a known format" if data else "empty"
        raise ValueError(HEIC_REMEDY if heic else problem) from None
    width, height = photo.size
    if width * height > MAX_PIXELS or max(photo.size) > MAX_ASPECT_RATIO * min(photo.size):
        raise ValueError(f"{width}x{height} pixels, which is no photograph's size")
    if not is_complete(photo.format or "", data):
        raise ValueError("cut off: its end is missing")
    if data.startswith(PNG_MAGIC) and not any(key in data for key in ORIENTATION_KEYS):
        photo.info["exif"] = b""  # Pillow would decode all pixels to look for one behind them
    return photo


def strip_ancillary_chunks(data: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not need, over which Pillow would refuse it:
    those with a wrong checksum (libpng skips them too), long texts, profiles and the like. What may
    hold the orientation stays. Other formats, and what follows the first damaged chunk, stay too.
    """
    if not data.startswith(PNG_MAGIC):
        return data
    kept, start, keywords = [PNG_MAGIC], len(PNG_MAGIC), set[bytes]()
    while data[start + 4 : start + 8].isalpha():
        kind = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            break
        checksum = int.from_bytes(data[end - 4 : end], "big")
        needed = kind[:1].isupper()  # a critical chunk
        if not needed and zlib.crc32(data[start + 4 : end - 4]) == checksum:
            keyword, _, text = data[start + 8 : end - 4].partition(b"\0")
            needed = kind in (b"tRNS", b"eXIf")
            if kind in PNG_TEXT_CHUNKS and keyword in ORIENTATION_KEYWORDS:
                needed = keyword not in keywords and is_short_text(kind, text)
                keywords.add(keyword)  # each is unpacked once, however often it comes
        if needed:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def is_short_text(kind: bytes, text: bytes) -> bool:
    """Whether the text of a PNG's chunk takes at most MAX_PNG_TEXT_BYTES, also unpacked."""
    plain = kind == b"tEXt" or (kind == b"iTXt" and text[:1] == b"\0")
    packed = b"" if plain else text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, MAX_PNG_TEXT_BYTES)
    except zlib.error:
        return False
    return len(text) <= MAX_PNG_TEXT_BYTES and not unpacking.unconsumed_tail


def is_complete(kind: str, data: bytes) -> bool:
    """Whether a PNG has its last chunk, or a JPEG an end marker after its first scan (a thumbnail's
    comes before). Pillow ignores a missing end where the pixels suffice.
    """
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in data
    if kind not in ("JPEG", "MPO"):
        return True
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        padding = data[position + 1 : position + 2] == b"\xff"
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if padding else 2 + length
    return data.rfind(b"\xff\xd9", position) > 0


def inspect_image(path: str, decode: bool = False) -> tuple[str, bool]:
    """(why a photograph cannot be read, or ""; whether its size is not the competition's). Without
    `decode` only its header and end are looked at. Raises as `raise_if_machine_failed` does.
    """
    try:
        with open_image(path) as photo:
            if decode:  # first: a PNG's metadata loads its pixels, and a second load hides damage
                upright_rgb(photo)
            size = photo.size[::-1] if exif_orientation(photo) in SIDEWAYS else photo.size
        return "", size != PHOTO_SIZE
    except Exception as error:  # as in read_image
        raise_if_machine_failed(path, error)
        return reason(error), False


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """An image in memory, uint8 [height, width, 3] or of Pillow, as `read_image` gives it."""
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
        problem = f"an array {image.dtype} {list(image.shape)} is no image"
        raise UserError(f"{problem}; use uint8 [height, width, 3]")
    return Image.fromarray(image)


def read_image(path: str, shrink: int = 1) -> Image.Image:
    """An upright RGB image, whatever the file's format, mode or EXIF orientation, transparent parts
    on white; of an animation the first frame.

    shrink (2, 4, 8): decode a JPEG of the competition's size so many times smaller; others come
    whole. Raises UserError naming the file, or as `raise_if_machine_failed` does.
    """
    try:
        with open_image(path) as photo:
            if shrink > 1 and photo.size == PHOTO_SIZE:
                photo.draft(None, (photo.width // shrink, photo.height // shrink))
            return upright_rgb(photo)
    except Exception as error:  # damaged bytes make Pillow raise nearly every kind of error
        raise_if_machine_failed(path, error)
        raise UserError(
            f"{path}: cannot be read as a photograph ({reason(error)}); repair or remove it, or go "
            "on without it by --skip-bad-images"
        ) from None


def raise_if_machine_failed(path: str, error: Exception) -> None:
    """Raise a full memory, a failing drive or a missing permission, which are not the photograph's
    fault; what decoding finds, and a missing or irregular file, are.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno not in (None, *MISSING_FILE_ERRNOS):
        raise path_error(path, error, "check its permissions") from None


def exif_orientation(photo: Image.Image) -> int:
    """A photograph's EXIF orientation; 1, upright, where its metadata is damaged."""
    try:
        orientation = photo.getexif().get(0x0112)
        return orientation if orientation in EXIF_TRANSPOSE else 1
    except Exception:
        return 1


def upright_rgb(photo: Image.Image) -> Image.Image:
    """An image as upright RGB. Raises ValueError for float pixels, and what Pillow does."""
    photo.load()
    transpose = EXIF_TRANSPOSE.get(exif_orientation(photo))
    if photo.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip them to white
        high_bytes = np.clip(np.asarray(photo).astype(np.int64) >> 8, 0, 255)
        photo = Image.fromarray(high_bytes.astype(np.uint8))
    elif photo.mode == "F":
        raise ValueError("its pixels are fractions of an unknown range; save it with 8 bits")
    if photo.has_transparency_data:
        rgba = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    upright = photo if transpose is None else photo.transpose(transpose)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def check_images(paths: Sequence[str], decode: bool = False) -> dict[str, str]:
    """{path: problem} of the photographs that cannot be read, as `inspect_image` sees them. One
    warning counts those of another size than the competition's.
    """
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        inspected = pool.map(lambda path: inspect_image(path, decode), paths)
        measured = progress(inspected, "checking photographs", len(paths))
        results = dict(zip(paths, measured, strict=True))
    resized = [path for path, (_, other_size) in results.items() if other_size]
    warn_counted(resized, "photographs of another size than 384x512, scaled to cover the crop")
    return {path: problem for path, (problem, _) in results.items() if problem}


def find_unreadable(paths: Sequence[str], skip: bool) -> list[str]:
    """The paths that cannot be read, in order. Raises UserError listing them, unless `skip`; and
    where none is left. With `skip` all are decoded, so that no later one stops the program.
    """
    bad = check_images(paths, decode=skip)
    if bad and (not skip or len(bad) == len(paths)):
        lines = [f"{path!r} ({problem})" for path, problem in bad.items()]
        shown = f": {'; '.join(lines)}"
        if len(shown) > MAX_LISTED_CHARACTERS:
            shown = f", all listed above (the first: {lines[0]})"
            if dist_info_from_environment().local_rank == 0:
                print(*lines, sep="\n", file=sys.stderr)
        remedy = "" if skip else ", or go on without them by --skip-bad-images"
        problem = f"{len(bad)} of {len(paths)} photographs cannot be read{shown}"
        raise UserError(f"{problem}; repair or remove them{remedy}")
    return list(bad)


def drop_unreadable_rows(tables: Sequence[pd.DataFrame], skip: bool) -> list[pd.DataFrame]:
    """Tables (with `path`, `person`) without the photographs that cannot be read, counted in a
    warning. People keep their folds. Raises UserError as `find_unreadable` does.
    """
    bad = find_unreadable([path for table in tables for path in table["path"]], skip)
    kept = [table[~table["path"].isin(bad)].reset_index(drop=True) for table in tables]
    before, after = ({p for part in parts for p in part["person"]} for parts in (tables, kept))
    warn_counted(bad, "photographs left out, they cannot be read")
    warn_counted(sorted(before - after), "people left out, none of their photographs can be read")
    return kept
