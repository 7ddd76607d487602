"""A photograph's file -> upright RGB pixels, or the reason why it cannot be read."""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from labels import PHOTO_SIZE
from runtime.cli import progress
from runtime.errors import MISSING_FILE_ERRNOS, UserError, path_error, reason, warn_counted
from runtime.files import read_file

# What the installed Pillow reads of these: its name for the format of each. Readers of other
# formats are not let near files.
EXTENSIONS = {
    extension: Image.registered_extensions()[extension]
    for extension in (
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".jfif",
        ".avif",
    )
    if extension in Image.registered_extensions()
}
FORMATS = sorted(set(EXTENSIONS.values()))  # whatever the extension says
HEIC_EXTENSIONS = (".heic", ".heif")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEIC_REMEDY = (
    "HEIC is not read here, save it as JPEG (a telephone: camera settings, most compatible)"
)
MAX_IMAGE_BYTES = 1 << 28  # of one photograph
MAX_PIXELS = 210_000_000  # telephones take 108 and 200 million
MAX_PNG_TEXT_BYTES = 1 << 20  # bytes, unpacked, of a PNG's text that is looked at
MAX_ASPECT_RATIO = (
    20  # long side over short side: scaled to cover the crop, a strip would fill the memory
)
# EXIF's orientation -> what makes the picture upright
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"  # the first bytes of one
PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")  # a PNG's chunks of text
# the keywords of those that may tell the orientation
ORIENTATION_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
# those by which width and height change places
QUARTER_TURNS = {EXIF_TRANSPOSE[orientation] for orientation in (5, 6, 7, 8)}
Image.MAX_IMAGE_PIXELS = None  # open_image has a limit of its own, which tells the size
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# odd metadata; what matters is an error of read_image's
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image_name(name: str) -> bool:
    """Whether a file's name is a photograph's that is read here; macOS's `._*` and other hidden
    files are not.
    """
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
        raise ValueError(
            HEIC_REMEDY if heic else "no picture of a known format" if data else "empty"
        ) from None
    width, height = photo.size
    if width * height > MAX_PIXELS or max(photo.size) > MAX_ASPECT_RATIO * min(photo.size):
        raise ValueError(f"{width}x{height} pixels, which is no photograph's size")
    if not is_complete(photo.format or "", data):
        raise ValueError("cut off: its end is missing")
    return photo


def strip_ancillary_chunks(data: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not need, and over which Pillow would refuse it:
    those with a wrong checksum (libpng passes over them too), and text, profiles and the like. What
    may tell the orientation stays.

    Other formats, and what comes after the first chunk that is none, are left as they are.
    """
    if not data.startswith(PNG_MAGIC):
        return data
    kept, at, seen = [PNG_MAGIC], len(PNG_MAGIC), set[bytes]()
    while data[at + 4 : at + 8].isalpha():
        kind, body = data[at + 4 : at + 8], at + 8
        end = body + int.from_bytes(data[at : at + 4], "big") + 4
        if end > len(data):
            break
        whole = (
            kind[:1].isupper()
            or zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]
        )
        if whole and (
            kind[:1].isupper() or kind in (b"tRNS", b"eXIf")
        ):  # an upper case letter: critical
            kept.append(data[at:end])
        elif (
            whole
            and kind in PNG_TEXT_CHUNKS
            and (keyword := data[body:end].partition(b"\0")[0]) in ORIENTATION_KEYWORDS
            and keyword not in seen
        ):
            seen.add(keyword)  # each is unpacked once, however many there are
            if is_short_text(kind, data[body + len(keyword) + 1 : end - 4]):
                kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def is_short_text(kind: bytes, text: bytes) -> bool:
    """Whether what follows the keyword in a PNG's chunk of text takes at most MAX_PNG_TEXT_BYTES,
    also unpacked.
    """
    flat = kind == b"tEXt" or (kind == b"iTXt" and text[:1] == b"\0")
    packed = b"" if flat else text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, MAX_PNG_TEXT_BYTES)
    except zlib.error:
        return False
    return len(text) <= MAX_PNG_TEXT_BYTES and not unpacking.unconsumed_tail


def is_complete(kind: str, data: bytes) -> bool:
    """Whether a JPEG's end marker comes after its first scan (thumbnails end before), or a PNG has
    its last chunk.

    Pillow passes over a missing end where the pixels before it happen to suffice. Other formats are
    left to it.
    """
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in data
    if kind not in ("JPEG", "MPO"):
        return True
    at = 2
    while (
        data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda"
    ):  # from segment to segment to the first scan
        at += (
            1
            if data[at + 1 : at + 2] == b"\xff"
            else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        )
    return data.rfind(b"\xff\xd9", at) > 0  # from the end, where it nearly always is


def inspect_image(path: str, look: Callable[[str], Image.Image] = open_image) -> tuple[str, bool]:
    """(why a photograph cannot be read, as far as `look` sees, empty where all is in order; whether
    it is of another size than the competition's). By default only its header and end are looked at.
    Raises as `raise_if_machine_failed` does.
    """
    try:
        with open_image(path) as photo:
            size = photo.size[::-1] if exif_transpose(photo) in QUARTER_TURNS else photo.size
        if look is not open_image:
            look(path).close()
        return "", size != PHOTO_SIZE
    except Exception as error:  # as in read_image
        raise_if_machine_failed(path, error)
        return reason(error), False


def read_image(path: str, shrink: int = 1) -> Image.Image:
    """An upright RGB image, whatever the file's format, mode or EXIF orientation; what is
    transparent, on white.

    Of an animation the first picture. shrink (2, 4, 8): decode a JPEG of the competition's size so
    many times smaller, for a rough look; other photographs come whole. Raises UserError naming the
    file, or as `raise_if_machine_failed` does.
    """
    try:
        return decode_image(path, shrink)
    except (
        Exception
    ) as error:  # over damaged bytes Pillow's readers raise nearly every kind there is
        raise_if_machine_failed(path, error)
        raise UserError(
            f"{path}: cannot be read as a photograph ({reason(error)}); mend or remove it, or go "
            "on without it by "
            "--skip-bad-images"
        ) from None


def raise_if_machine_failed(path: str, error: Exception) -> None:
    """Raise where an error says nothing of the photograph. Its own fault is what decoding finds,
    and a file that is missing or no regular one; a full memory, a drive that fails and a file that
    may not be read are no reason to go on without it.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno not in (None, *MISSING_FILE_ERRNOS):
        raise path_error(path, error, "check its permissions") from None


def decode_image(path: str, shrink: int = 1) -> Image.Image:
    """What `read_image` gives. Raises what `open_image` and Pillow's decoders do."""
    with open_image(path) as photo:
        if shrink > 1 and photo.size == PHOTO_SIZE:
            photo.draft(None, (photo.width // shrink, photo.height // shrink))
        photo.load()
        return upright_rgb(photo)


def exif_transpose(photo: Image.Image) -> Image.Transpose | None:
    """What makes a photograph upright, None for nothing."""
    try:
        return EXIF_TRANSPOSE.get(photo.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata tells no orientation, and the pixels are whole
        return None


def upright_rgb(photo: Image.Image) -> Image.Image:
    """A decoded image as upright RGB. Raises ValueError for pixels of a kind that has no one
    reading.
    """
    turn = exif_transpose(photo)
    if photo.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip them to white
        photo = Image.fromarray(
            np.clip(np.asarray(photo).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        )
    elif photo.mode == "F":
        raise ValueError("its pixels are fractions of an unknown range; save it with 8 bits")
    if photo.has_transparency_data:
        seen = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    upright = photo if turn is None else photo.transpose(turn)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


MAX_LISTED_IMAGES = 5  # of the photographs that an error counts


def check_images(
    names: Sequence[str],
    paths: Sequence[str],
    look: Callable[[str], Image.Image] = open_image,
    workers: int = 4,
) -> list[tuple[str, str]]:
    """(name, problem) of every photograph that is no regular file, has no readable header, or whose
    end is missing.

    One warning counts those of another size than the competition's. Nothing is decoded, unless
    `look` does: about a tenth of a millisecond each where the disk is warm. `workers` threads wait
    for a slow one. Raises as `photographs.raise_if_machine_failed` does.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        seen = pool.map(lambda path: inspect_image(path, look), paths)
        looks = list(progress(seen, "checking photographs", len(paths)))
    warn_counted(
        [name for name, (_, other) in zip(names, looks, strict=True) if other],
        "photographs of another size than 384x512, scaled to cover the crop",
    )
    return [(name, problem) for name, (problem, _) in zip(names, looks, strict=True) if problem]


def find_unreadable(paths: Sequence[str], skip: bool) -> list[str]:
    """The paths that cannot be read, in order. Raises UserError counting them, the first by name,
    unless they are to be skipped; and where none is left. Those to be skipped are found by decoding
    all, so that no later one stops the program.
    """
    bad = check_images(paths, paths, decode_image if skip else open_image)
    if bad and (not skip or len(bad) == len(paths)):
        first = "; ".join(f"{name!r} ({problem})" for name, problem in bad[:MAX_LISTED_IMAGES])
        more = "; ..." if len(bad) > MAX_LISTED_IMAGES else ""
        remedy = (
            "mend them"
            if skip
            else "mend or remove them, or go on without them by --skip-bad-images"
        )
        raise UserError(
            f"{len(bad)} of {len(paths)} photographs cannot be read: {first}{more}; {remedy}"
        )
    return [path for path, _ in bad]


def drop_unreadable_rows(tables: Sequence[pd.DataFrame], skip: bool) -> list[pd.DataFrame]:
    """Tables of photographs (with `path`, `person`) without the rows that cannot be read, which is
    said with a count.

    People stay in the fold they have; one without a photograph left drops out. Raises UserError as
    `find_unreadable` does.
    """
    paths = [path for table in tables for path in table["path"]]
    bad = find_unreadable(paths, skip)
    kept = [table[~table["path"].isin(set(bad))].reset_index(drop=True) for table in tables]
    gone = [
        set(before["person"]) - set(after["person"])
        for before, after in zip(tables, kept, strict=True)
    ]
    warn_counted(bad, "photographs left out, they cannot be read")
    warn_counted(
        sorted(set().union(*gone)), "people left out, none of their photographs can be read"
    )
    return kept
