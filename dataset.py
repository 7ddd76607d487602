"""A folder -> one table (a row per photograph); people -> folds; photographs -> batches of pixels."""

from __future__ import annotations

import atexit
import csv
import io
import itertools
import logging
import multiprocessing.queues
import os
import re
import signal
import threading
import unicodedata
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler

import augmentation
import config
from utils import (
    RunError,
    UserError,
    blame_machine,
    derive_seed,
    read_file,
    reason,
    seeded,
    usable_processors,
    warn,
    warn_counted,
)

EXTENSIONS = {".jpg", ".jpeg", ".png"}
SHOT = r"(?P<shot>incorrect_mask|mask[1-5]|normal)"
FOLDER_SHOT = re.compile(SHOT, re.IGNORECASE)
FLAT_SHOT = re.compile(rf"(?P<person>.+)_{SHOT}", re.IGNORECASE)
PERSON = re.compile(r"(?P<id>.+)_(?P<gender>male|female)_(?P<race>[^_]*)_(?P<age>\d+)", re.IGNORECASE)
SHOTS_PER_PERSON = 7
PREFETCH = 4  # batches that each worker reads ahead
YEARS = re.compile(r"\d{1,3}(\.\d*)?", re.ASCII)

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # whatever the extension says; others' readers are not let near files
MOST_BYTES = 1 << 28  # of one photograph
MOST_PIXELS = 100_000_000
LONGEST_SHAPE = 20  # long side over short side: scaled to cover the crop, a strip would fill the memory
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # EXIF's orientation -> what makes the picture upright  # fmt: skip
Image.MAX_IMAGE_PIXELS = None  # open_photo has a limit of its own, which tells the size
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is an error of read_photo's


# ----------------------------------------------------------------------------------------- reading a training root


def nfc(text: str) -> str:
    """One spelling for a name, however the file system stores its accents."""
    return unicodedata.normalize("NFC", text)


def is_photo(name: str) -> bool:
    """Whether a file's name is a photograph's; macOS's `._*` and other hidden files are not."""
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def read_train(root: str | Path) -> pd.DataFrame:
    """One row per photograph of a training root: file, path, person, shot, mask, gender, age and a column per task.

    `file` is relative to the root and in NFC, `path` is what to open, `age` is in years. A person is its folder's
    name (or the part before the shot in a flat folder). Sorted by person and shot. Raises UserError.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the folder of labelled photographs with --train-root")
    images = root / "images" if (root / "images").is_dir() else root
    tables = [p for p in (root / "train.csv", root.parent / "train.csv" if root.name == "images" else None) if p]
    table_path = next((p for p in tables if os.path.lexists(p)), None)
    found = list_photos(root, images)
    labels = label_people(found["person"].unique(), table_path, images)
    rows = found.merge(labels, on="person", how="inner")
    if rows.empty:
        raise UserError(f"{images}: no labelled photographs; expected folders like 000001_female_Asian_45/mask1.jpg")
    counts = rows.groupby("person").size()
    warn_counted(sorted(counts[counts < SHOTS_PER_PERSON].index), "people with fewer than 7 photographs")
    rows["mask"] = rows["shot"].map(lambda shot: 0 if shot.startswith("mask") else 1 if shot != "normal" else 2)
    return with_labels(rows.sort_values(["person", "shot", "file"], ignore_index=True))


def with_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column of labels per task, from its mask, gender and years."""
    distinct, where = distinct_rows(table["mask"], table["gender"], table["years"])
    labels = {name: np.array([task.label(*row) for row in distinct], float if task.regression else np.int64)[where]
              for name, task in config.TASKS.items()}  # fmt: skip
    return table.assign(**labels)


def distinct_rows(*columns: Any) -> tuple[list[tuple[Any, ...]], np.ndarray]:
    """(the different rows of these columns, which of them each row is): a label is worked out once for all alike."""
    frame = pd.DataFrame(dict(enumerate(map(np.asarray, columns))))
    groups = frame.groupby(list(frame.columns), sort=False).ngroup().to_numpy(copy=True)
    firsts = np.unique(groups, return_index=True)[1]
    return list(frame.iloc[firsts].itertuples(index=False, name=None)), groups


def list_photos(root: Path, images: Path) -> pd.DataFrame:
    """Every photograph below `images`, in folders of people or flat: person, shot, file, path. Raises UserError."""
    rows: list[tuple[str, str, str, str]] = []
    strange: list[str] = []
    try:
        entries = [e for e in sorted(images.iterdir()) if not e.name.startswith(".") and (e.is_dir() or is_photo(e.name))]
        check_names([nfc(e.name) for e in entries], [str(e) for e in entries])
        for entry in entries:
            names = [(p, FOLDER_SHOT.fullmatch(p.stem)) for p in sorted(entry.iterdir())] if entry.is_dir() else [
                (entry, FLAT_SHOT.fullmatch(entry.stem))
            ]  # fmt: skip
            for path, match in names:
                if not is_photo(path.name):
                    continue
                if match is None:
                    strange.append(str(path.relative_to(root)))
                    continue
                person = nfc(entry.name if entry.is_dir() else match["person"])
                rows.append((person, match["shot"].lower(), nfc(path.relative_to(root).as_posix()), str(path)))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from None
    if not rows:
        raise UserError(f"{images}: no photographs in it; expected folders like 000001_female_Asian_45/mask1.jpg")
    check_names([row[2] for row in rows], [row[3] for row in rows])
    warn_counted(strange, "photographs left out, their names tell no mask state (incorrect_mask, mask1..5, normal)")
    return pd.DataFrame(rows, columns=["person", "shot", "file", "path"])


def check_names(names: Sequence[str], paths: Sequence[str]) -> None:
    """Every name (in NFC) must be text and there once. Raises UserError naming the path."""
    seen: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if not name.isprintable() and any("\ud800" <= c <= "\udfff" for c in name):
            raise UserError(f"{path}: its name is not UTF-8; rename it")
        if name in seen:
            raise UserError(f"{path}: {seen[name]} has the same name in another Unicode form; rename or remove one")
        seen[name] = path


def label_people(people: Sequence[str], table: Path | None, images: Path) -> pd.DataFrame:
    """person, gender, years of all people: by the table where there is one, else by their folders' names."""
    named = {person: PERSON.fullmatch(person) for person in people}
    if table is None:
        warn(f"{images.parent}: no train.csv; gender and age are read from the names of {len(people)} people")
        nameless = [person for person, match in named.items() if match is None]
        if nameless:
            raise UserError(
                f"{images / nameless[0]}: the name tells no gender and age, and there is no train.csv; "
                "name it like 000001_female_Asian_45 or add the table"
            )
        rows = [(p, gender_code(m["gender"]), float(m["age"])) for p, m in named.items() if m]
        return pd.DataFrame(rows, columns=["person", "gender", "years"])
    labels = read_people(table)
    missing = [p for p in labels["person"] if p not in named]
    if missing:
        row = labels.index[labels["person"] == missing[0]][0]
        raise UserError(
            f"{table}: row {row}: {images / missing[0][:100]} is not there ({len(missing)} of {len(labels)} people are "
            "missing); restore the photographs or remove the rows"
        )
    listed = set(labels["person"])
    warn_counted([p for p in people if p not in listed], f"people left out, {table.name} has no row for them")
    told = {p: (gender_code(m["gender"]), float(m["age"])) for p, m in named.items() if m}
    tabled = zip(labels["person"], labels["gender"], labels["years"], strict=True)
    differ = [p for p, gender, years in tabled if p in told and told[p] != (gender, years)]
    warn_counted(differ, f"people whose folder's name and {table.name} disagree; the table is taken")
    return labels


def gender_code(text: str) -> int:
    """0 male, 1 female. Raises ValueError for anything else."""
    return config.GENDERS.index(text.strip().lower())


def read_people(table: Path) -> pd.DataFrame:
    """train.csv -> person (its path, NFC), gender (0, 1), years; indexed by the table's row numbers. Raises UserError."""
    raw = read_csv(table, ("gender", "age", "path"))
    rows: list[tuple[str, int, float]] = []
    seen: dict[str, int] = {}
    for number, path, gender, age in zip(raw.index, raw["path"], raw["gender"], raw["age"], strict=True):
        person = nfc(path.strip())
        if not person or person in seen:
            problem = f"the path {person[:100]!r} is that of row {seen[person]} too" if person else "the path is empty"
            raise UserError(f"{table}: row {number}: {problem}; a person's path must be there once")
        if person in (".", "..") or "/" in person or "\\" in person:
            problem = f"the path {person[:100]!r} may lead elsewhere"
            raise UserError(f"{table}: row {number}: {problem}; write the plain name of a folder")
        seen[person] = number
        try:
            rows.append((person, gender_code(gender), years_of(age)))
        except ValueError:
            raise UserError(
                f"{table}: row {number}: gender {gender[:40]!r}, age {age[:40]!r}: expected male or female and years from 0 "
                "to 120; correct the row"
            ) from None
    return pd.DataFrame(rows, columns=["person", "gender", "years"], index=raw.index)


def years_of(text: str) -> float:
    """An age in years, from 0 to 120. Raises ValueError for anything else."""
    if not YEARS.fullmatch(text.strip()) or float(text) > 120:
        raise ValueError(f"{text!r} is no age")
    return float(text)


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV as text, with at least these columns and one row; commas, semicolons or tabs between, as its header has it.

    The index holds the rows' numbers as a spreadsheet counts them: 1 is the file's first row, blank ones count, a
    quoted line break does not. Raises UserError naming file and row.
    """
    try:
        text = read_file(path).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); mend or remove the file") from None
    first = next((line for line in io.StringIO(text, newline="") if line.strip(" ,;\t\r\n")), "")
    fits = (d for d in (",", ";", "\t") if set(columns) <= {name.strip(' "\r\n') for name in first.split(d)})
    rows = csv_rows(path, text, next(fits, ","))
    header = [name.strip() for name in next(rows, (0, []))[1]]
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(name[:40] for name in header[:20]) or "an empty file"
        raise UserError(f"{path}: no column {missing[0]!r} (found: {found}); its first row must have {', '.join(columns)}")
    for name in columns:
        if header.count(name) > 1:
            raise UserError(f"{path}: the column {name!r} is there twice; remove one")
    numbers, records = [], []
    for number, record in rows:
        if len(record) != len(header):
            raise UserError(f"{path}: row {number}: {len(record)} fields, the header has {len(header)}; correct the row")
        numbers.append(number)
        records.append(record)
    if not records:
        raise UserError(f"{path}: no rows below the header; fill the table")
    return pd.DataFrame(records, columns=header, index=numbers)


def csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of a CSV's rows that are not blank. Raises UserError for bad quotes and bytes that are no text."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    broken = "\ufffd" in text or "\0" in text
    for number in itertools.count(1):
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}: row {number}: no CSV ({reason(error)}); correct its quotes") from None
        if record is None:
            return
        if broken and any("\ufffd" in field or "\0" in field for field in record):
            raise UserError(f"{path}: row {number}: bytes that are not UTF-8 text; save the table as CSV in UTF-8")
        if any(field.strip() for field in record):
            yield number, record


# ------------------------------------------------------------------------------------------------ people -> folds


def assign_folds(table: pd.DataFrame, folds: int, split_seed: int) -> dict[str, int]:
    """Person -> fold, all photographs of a person in one; stratified by gender and age group.

    People are sorted by name, shuffled within each stratum and dealt out one by one, each stratum going on where
    the last one stopped: every stratum and every total is balanced to within one person, however small.
    """
    people = table.drop_duplicates("person").sort_values("person")
    if folds > len(people):
        raise UserError(f"--cv {folds}: there are only {len(people)} people; use at most --cv {len(people)}")
    draw = np.random.RandomState(split_seed)  # numpy promises that this stream never changes
    strata = people.groupby(["gender", "ageg"], sort=True)["person"]
    dealt = [person for _, stratum in strata for person in stratum.to_numpy()[draw.permutation(len(stratum))]]
    return {person: position % folds for position, person in enumerate(dealt)}


def label_tensors(table: pd.DataFrame, tasks: Sequence[str], age_filter: int | None = None) -> dict[str, torch.Tensor]:
    """{task: labels of every row}: int64 classes, float32 values of a regression.

    `age_filter` (training labels only): whoever is that old or older counts as 60 where age groups matter.
    """
    years = table["years"].to_numpy(float)
    grouped = years if age_filter is None else np.where(years >= age_filter, np.maximum(years, 60), years)
    labels = {}
    for name in tasks:
        task = config.TASKS[name]
        ages = years if task.regression else grouped
        distinct, where = distinct_rows(table["mask"], table["gender"], ages)
        values = torch.tensor([task.label(*row) for row in distinct], dtype=torch.float32 if task.regression else torch.int64)
        labels[name] = values[torch.from_numpy(where)]
    return labels


# -------------------------------------------------------------------------------------- reading an evaluation root


def read_eval(data_root: str | None) -> tuple[list[str], list[str]]:
    """(names, paths) of the photographs to answer, in info.csv's order, or sorted by name. Raises UserError."""
    defaults = [Path("./input/data/images"), Path("./input/data/eval/images")]
    root = Path(data_root) if data_root else next((p for p in defaults if p.is_dir()), defaults[-1])
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the evaluation folder or its images with --data-root")
    images = root / "images" if (root / "images").is_dir() else root
    info = next((p for p in (root / "info.csv", root.parent / "info.csv") if os.path.lexists(p)), None)
    try:
        photos = [p for p in sorted(images.iterdir()) if is_photo(p.name)]
    except OSError as error:
        raise UserError(f"{images}: cannot be listed ({reason(error)}); check its permissions") from None
    check_names([nfc(p.name) for p in photos], [str(p) for p in photos])
    there = {nfc(p.name): str(p) for p in photos}
    if info is None:
        if not there:
            raise UserError(f"{images}: no photographs in it, and no info.csv; name the folder with --data-root")
        return list(there), list(there.values())
    listed = read_csv(info, ("ImageID",))["ImageID"]
    seen: dict[str, int] = {}
    for number, name in listed.items():
        key = nfc(name.strip())
        if key not in there or key in seen:
            problem = f"is in an earlier row too (row {seen[key]})" if key in seen else f"is not in {images}"
            raise UserError(f"{info}: row {number}: {name[:100]!r} {problem}; correct the row or restore the photograph")
        seen[key] = number
    return listed.tolist(), [there[key] for key in seen]


def read_boxes(path: str, names: Sequence[str], paths: Sequence[str]) -> dict[str, augmentation.Box]:
    """{name: the face's box in the photograph's own pixels} from a CSV (file,left,top,right,bottom). Raises UserError.

    A row belongs to the photograph whose path ends in its `file`, at whole folder names. Photographs without a row are
    counted in one warning; their faces are found in the pixels.
    """
    table = read_csv(Path(path), ("file", "left", "top", "right", "bottom"))
    told: dict[str, tuple[int, augmentation.Box]] = {}
    for number, *fields in table[["file", "left", "top", "right", "bottom"]].itertuples():
        file = nfc(fields[0]).strip().replace("\\", "/").removeprefix("./")
        try:
            left, top, right, bottom = (round(float(value)) for value in fields[1:])
            if max(map(abs, (left, top, right, bottom))) > MOST_PIXELS:
                raise ValueError
        except (ValueError, OverflowError):
            raise UserError(f"{path}: row {number}: left, top, right, bottom must be pixels; correct the row") from None
        if file in told or right <= left or bottom <= top:
            problem = f"{file!r} is in row {told[file][0]} too" if file in told else "the box is empty"
            raise UserError(f"{path}: row {number}: {problem}; correct the row")
        told[file] = (number, (left, top, right, bottom))
    boxes: dict[str, augmentation.Box] = {}
    taken: dict[str, str] = {}
    for name, where in zip(names, paths, strict=True):
        parts = nfc(Path(where).absolute().as_posix()).split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        end = next((e for e in ends if e in told), None)
        if end is None:
            continue
        if end in taken:
            raise UserError(f"{path}: row {told[end][0]}: {end!r} fits both {taken[end]} and {name}; write more of its path")
        taken[end] = name
        boxes[name] = told[end][1]
    if not boxes:
        raise UserError(f"{path}: none of its rows names one of the {len(names)} photographs ({names[0]} ...); check `file`")
    warn_counted([n for n in names if n not in boxes], f"photographs without a box in {path}, found in the pixels instead")
    return boxes


def read_answers(path: str, names: Sequence[str], task: str) -> np.ndarray:
    """True labels of `names` for a task from a CSV (ImageID,ans; ans is the 18-class answer; age needs a column `age`)."""
    spec = config.TASKS[task]
    column = "age" if spec.regression else "ans"
    table = read_csv(Path(path), ("ImageID", column))
    answers: dict[str, float] = {}
    for number, name, text in zip(table.index, table["ImageID"], table[column], strict=True):
        try:
            value = years_of(text) if spec.regression else answer_of(text, spec)
        except ValueError:
            expected = "years" if spec.regression else "a class's number"
            raise UserError(f"{path}: row {number}: {column} {text[:40]!r}: expected {expected}; correct the row") from None
        if answers.setdefault(nfc(name.strip()), value) != value:
            raise UserError(f"{path}: row {number}: {name[:100]!r} has another answer in an earlier row; remove one")
    keys = [nfc(name.strip()) for name in names]
    lost = [key for key in keys if key not in answers]
    if lost:
        raise UserError(f"{path}: no answer for {lost[0]!r} ({len(lost)} of {len(names)} lack one); use its own answers")
    return np.array([answers[key] for key in keys], float if spec.regression else np.int64)


def answer_of(text: str, spec: config.Task) -> int:
    """An answer (one of the 18 classes where the task is a part of them) -> the task's class. Raises ValueError."""
    classes = spec.from_main or tuple(range(len(spec.classes)))
    number = float(text)
    if number not in range(len(classes)):
        raise ValueError(f"{text!r} is no class")
    return classes[int(number)]


# ---------------------------------------------------------------------------------------- photographs -> batches


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


def photo_problem(path: str) -> str:
    """Why a photograph's header or end shows that it cannot be read; empty where they are in order."""
    try:
        open_photo(path).close()
    except Exception as error:  # as in read_photo
        blame_machine(path, error)
        return reason(error)
    return ""


def read_photo(path: str, shrink: int = 1) -> Image.Image:
    """An upright RGB image, whatever the file's format, mode or EXIF orientation; what is transparent, on white.

    Of an animation the first picture. shrink (2, 4, 8): decode a JPEG of the competition's size so many times smaller;
    other photographs come whole. Raises UserError naming the file.
    """
    try:
        with open_photo(path) as photo:
            if shrink > 1 and photo.size == config.PHOTO_SIZE:
                photo.draft(None, (photo.width // shrink, photo.height // shrink))
            photo.load()
            return upright_rgb(photo)
    except Exception as error:  # over damaged bytes Pillow's readers raise nearly every kind there is
        blame_machine(path, error)
        raise UserError(f"{path}: cannot be read as a photograph ({reason(error)}); mend or remove it") from None


def upright_rgb(photo: Image.Image) -> Image.Image:
    """A decoded image as upright RGB. Raises ValueError for pixels of a kind that has no one reading."""
    try:
        turn = TURNS.get(photo.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata tells no orientation, and the pixels are whole
        turn = None
    if photo.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip them to white
        photo = Image.fromarray(np.clip(np.asarray(photo).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    elif photo.mode == "F":
        raise ValueError("its pixels are fractions of an unknown range; save it with 8 bits")
    if photo.has_transparency_data:
        seen = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    upright = photo if turn is None else photo.transpose(turn)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


@dataclass(frozen=True)
class Blending:
    """For oversampling by mixup: with whom a photograph may be blended."""

    seed: tuple[Hashable, ...]
    partners: Mapping[int, np.ndarray]  # photograph -> photographs of other people with the same labels


class Photos(Dataset[tuple[torch.Tensor, list[torch.Tensor], bool]]):
    """Item (epoch, i, copy) -> ((i, j), one uint8 [height, width, 3] per view, whether it had to be scaled).

    Each photograph is decoded once, whatever the number of views (at half its size where its one view allows that).
    A view's random draws hang on its key, the epoch, the photograph's name and the copy (above 0 where oversampling
    repeats it) alone, so neither workers nor order change them. j is i itself, or the partner that a copy is blended
    with half and half.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[str],
        views: Sequence[augmentation.View],
        boxes: Mapping[str, augmentation.Box] | None = None,
        blending: Blending | None = None,
    ) -> None:
        self.names, self.paths, self.views = list(names), list(paths), list(views)
        self.boxes, self.blending = boxes or {}, blending

    def __len__(self) -> int:
        return len(self.paths)

    def look(self, i: int, epoch: int, copy: int) -> tuple[list[Image.Image], bool]:
        """All views of one photograph, and whether it was of another size."""
        photo: Image.Image | None = None
        seen, shrink = [], 1
        for view in self.views:
            with seeded(*view.key, epoch, copy, self.names[i]):
                less, form = augmentation.drawn(view.form)  # before decoding
                if photo is None:
                    shrink = less if len(self.views) == 1 else 1
                    photo = self.read(i, shrink)
                seen.append(form(photo, self.boxes.get(self.names[i])))
        # One that has the size of a half-decoded photograph needs no scaling where that was asked for.
        sizes = (config.PHOTO_SIZE, tuple(side // shrink for side in config.PHOTO_SIZE))
        return seen, photo is not None and photo.size not in sizes

    def read(self, i: int, shrink: int) -> Image.Image:
        """Photograph i, decoded smaller where that can be."""
        return read_photo(self.paths[i], shrink)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, list[torch.Tensor], bool]:
        epoch, i, copy = key
        seen, scaled = self.look(i, epoch, copy)
        j = i
        if copy and self.blending is not None and len(self.blending.partners.get(i, ())):
            able = self.blending.partners[i]
            j = int(able[derive_seed("partner", *self.blending.seed, epoch, copy, self.names[i]) % len(able)])
            others, also = self.look(j, epoch, copy)
            seen, scaled = [Image.blend(a, b, 0.5) for a, b in zip(seen, others, strict=True)], scaled or also
        return torch.tensor((i, j)), [torch.from_numpy(augmentation.pixels(image)) for image in seen], scaled


class Batches(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, index, copy): the epoch travels with the index, for persistent workers never hear of a new one.

    copy counts from 0 how often an index stood earlier in `indices`. shuffle: parts of the seed (with the epoch) of each
    epoch's order, or None for the order as it is. A last batch that would leave a process with fewer than `least`
    photographs joins the batch before it, for BatchNorm cannot train on a single one. Process `rank` of `world` is given
    its share of every batch.
    """

    def __init__(
        self,
        indices: Sequence[int],
        size: int,
        shuffle: tuple[Any, ...] | None = None,
        least: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.indices, self.size, self.shuffle = list(indices), size, shuffle
        self.least, self.rank, self.world = least, rank, world
        before: Counter[int] = Counter()
        self.copies = []
        for index in self.indices:
            self.copies.append(before[index])
            before[index] += 1
        self.epoch = 0
        self.start = 0  # batches of this epoch to leave out, because they were trained on before

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole = -(-len(self.indices) // self.size)
        rest = len(self.indices) % self.size
        return whole - 1 if 0 < rest < self.least * self.world and whole > 1 else whole

    def bounds(self, number: int) -> tuple[int, int]:
        """From where to where in the epoch's order a batch goes, all processes together."""
        return number * self.size, (number + 1) * self.size if number < len(self) - 1 else len(self.indices)

    def weight(self, step: int) -> float:
        """This process' part of the batch of a step (counted over all epochs), times the number of processes.

        By it the mean of the processes' gradients is that of the whole batch, where shares differ by one.
        """
        start, end = self.bounds(step % len(self))
        return len(range(self.rank, end - start, self.world)) * self.world / (end - start)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order: Sequence[int] = range(len(self.indices))
        if self.shuffle is not None:
            generator = torch.Generator().manual_seed(derive_seed("order", *self.shuffle, self.epoch))
            order = torch.randperm(len(self.indices), generator=generator).tolist()
        keys = [(self.epoch, self.indices[i], self.copies[i]) for i in order]
        for number in range(self.start, len(self)):
            start, end = self.bounds(number)
            yield keys[start:end][self.rank :: self.world]


def oversampled(rows: Sequence[int], classes: np.ndarray, seed: Hashable) -> list[int]:
    """Row numbers with the rarer classes' repeated, as evenly as can be, until each has as many as the largest.

    classes: the class of each of the rows. Whom the last round repeats hangs on the seed.
    """
    extended = list(rows)
    largest = int(np.bincount(classes).max())
    for number in np.unique(classes):
        own = np.asarray(rows)[classes == number]
        for turn in range(largest // len(own)):
            generator = torch.Generator().manual_seed(derive_seed("more", seed, number, turn))
            order = torch.randperm(len(own), generator=generator)
            extended += own[order.numpy()][: largest - (turn + 1) * len(own)].tolist()
    return extended


def blending(table: pd.DataFrame, rows: Sequence[int], tasks: Sequence[str], seed: tuple[Hashable, ...]) -> Blending:
    """For each of the rows those of other people with the same labels in all tasks (a regression's: its groups).

    A photograph without any is repeated instead, which is said once with a count.
    """
    part = table.iloc[list(rows)]
    keys = part[[config.judged(task) for task in tasks]].apply(tuple, axis=1)
    people = part["person"].to_numpy()
    partners: dict[int, np.ndarray] = {}
    alone: list[str] = []
    numbers = np.asarray(rows)
    for _, where in pd.Series(range(len(part))).groupby(keys.to_numpy()):
        inside = where.to_numpy()
        for k in inside:
            partners[int(numbers[k])] = numbers[inside[people[inside] != people[k]]]
        if len(set(people[inside])) == 1:
            alone.append(str(people[inside[0]]))
    warn_counted(alone, "classes of a single person have nobody to blend with, their photographs are repeated instead")
    return Blending(seed, partners)


class Loader(DataLoader[Any]):
    """A DataLoader whose dead workers are noticed while their batch is waited for (within 5 seconds), and then alone:
    torch's own signal handler would raise wherever the program is, in the middle of saving or of telling the cause."""

    def __iter__(self) -> Any:
        batches = super().__iter__()
        if self.num_workers:
            atexit.unregister(end_workers)
            atexit.register(end_workers)
        if self.num_workers and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *failure: object) -> None:
        """End the workers here: where a failure's traceback keeps their queues alive until the garbage collector finds them
        in any order, they would never be told to stop, and be waited for, ten seconds each."""
        batches, self._iterator = self._iterator, None
        if self.num_workers and batches is not None:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def allow_open_files(workers: int, tensors: int) -> None:
    """Raise the limit of open files to what so many tensors per batch need: each is a file on its way from a worker.

    Raises RunError where the system does not allow that; torch would wait for ever.
    """
    if resource is None or not workers:
        return
    needed = 64 + workers * (8 + PREFETCH * tensors)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise RunError(f"--workers {workers}: about {needed} files will be open at once, the system allows {hard}; "
                       "use fewer --workers (0 needs none), or raise that limit (ulimit -n)")  # fmt: skip
    if soft < needed and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def loader(photos: Photos, batches: Batches, workers: int, device: torch.device) -> Loader:
    """A DataLoader over those batches, in their order; `with` ends its workers. Its own generator spares torch's global one."""
    allow_open_files(workers, 2 + len(photos.views))
    return Loader(
        photos,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),
        worker_init_fn=start_worker,
    )


def end_workers() -> None:
    """At the program's end: workers that are still there do not heed the SIGTERM by which multiprocessing would end them,
    and it would wait for them for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def start_worker(worker: int) -> None:
    """Ctrl-C and SIGTERM may reach workers too; how to stop is for the main process to say. A batch that cannot be sent
    ends the worker, or the main process would wait for it for ever."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(give_up)  # type: ignore[attr-defined]


def give_up(error: BaseException, batch: object) -> None:
    """End a worker that could not send a batch."""
    warn(f"a process that reads photographs cannot send them: {reason(error)}")
    os._exit(1)


def choose_workers(asked: int | None, device: torch.device, sharing: int = 1) -> int:
    """Worker processes: as asked; else every processor but one beside an accelerator (at most 16), two beside a CPU.

    sharing: processes like this one that share the machine's processors.
    """
    if asked is not None:
        return asked
    processors = max(1, usable_processors() // sharing)
    return min(16, max(1, processors - 1)) if device.type != "cpu" else min(2, processors)
