"""A folder -> one table (a row per photograph); people -> folds; photographs -> batches of pixels."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler

import augmentation
import config
from utils import UserError, derive_seed, seeded, usable_processors, warn, warn_counted

EXTENSIONS = {".jpg", ".jpeg", ".png"}
SHOT = r"(?P<shot>incorrect_mask|mask[1-5]|normal)"
FOLDER_SHOT = re.compile(SHOT, re.IGNORECASE)
FLAT_SHOT = re.compile(rf"(?P<person>.+)_{SHOT}", re.IGNORECASE)
PERSON = re.compile(r"(?P<id>.+)_(?P<gender>male|female)_(?P<race>[^_]*)_(?P<age>\d+)", re.IGNORECASE)
SHOTS_PER_PERSON = 7


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
    table_path = next((p for p in tables if p.is_file()), None)
    found = list_photos(root, images)
    labels = label_people(found["person"].unique(), table_path, images)
    rows = found.merge(labels, on="person", how="inner")
    if rows.empty:
        raise UserError(f"{images}: no labelled photographs; expected folders like 000001_female_Asian_45/mask1.jpg")
    counts = rows.groupby("person").size()
    warn_counted(sorted(counts[counts < SHOTS_PER_PERSON].index), "people with fewer than 7 photographs")
    rows["mask"] = rows["shot"].map(lambda shot: 0 if shot.startswith("mask") else 1 if shot != "normal" else 2)
    rows = rows.sort_values(["person", "shot", "file"], ignore_index=True)
    distinct, where = distinct_rows(rows["mask"], rows["gender"], rows["years"])
    for name, task in config.TASKS.items():
        rows[name] = np.array([task.label(*row) for row in distinct], float if task.regression else np.int64)[where]
    return rows


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
        for entry in sorted(images.iterdir()):
            if entry.name.startswith("."):
                continue
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
    warn_counted(strange, "photographs left out, their names tell no mask state (incorrect_mask, mask1..5, normal)")
    return pd.DataFrame(rows, columns=["person", "shot", "file", "path"])


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
        row = int(labels.index[labels["person"] == missing[0]][0]) + 2
        raise UserError(
            f"{table}: row {row}: {images / missing[0]} is not there ({len(missing)} of {len(labels)} people are "
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
    """train.csv -> person (its path, NFC), gender (0, 1), years; row r of it is line r + 2. Raises UserError."""
    raw = read_csv(table, ("gender", "age", "path"))
    rows: list[tuple[str, int, float]] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(raw.itertuples(index=False), start=2):
        person = nfc(row.path.strip())
        if not person or person in seen:
            problem = f"the path {person!r} is that of row {seen[person]} too" if person else "the path is empty"
            raise UserError(f"{table}: row {number}: {problem}; a person's path must be there once")
        seen[person] = number
        try:
            rows.append((person, gender_code(row.gender), float(row.age)))
        except ValueError:
            raise UserError(
                f"{table}: row {number}: gender {row.gender!r}, age {row.age!r}: expected male or female and years; "
                "correct the row"
            ) from None
        if not 0 <= rows[-1][2] <= 120:
            raise UserError(f"{table}: row {number}: an age of {row.age} years; correct the row")
    return pd.DataFrame(rows, columns=["person", "gender", "years"])


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV as text, with at least these columns and one row. Raises UserError."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]}); mend the file") from None
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r} (found: {', '.join(table.columns)}); expected {columns}")
    if table.empty:
        raise UserError(f"{path}: no rows below the header; fill the table")
    return table


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
    info = next((p for p in (root / "info.csv", root.parent / "info.csv") if p.is_file()), None)
    there = {nfc(p.name): str(p) for p in sorted(images.iterdir()) if is_photo(p.name)}
    if info is None:
        if not there:
            raise UserError(f"{images}: no photographs in it, and no info.csv; name the folder with --data-root")
        return list(there), list(there.values())
    names = [nfc(name.strip()) for name in read_csv(info, ("ImageID",))["ImageID"]]
    seen: set[str] = set()
    for number, name in enumerate(names, start=2):
        if name not in there or name in seen:
            problem = f"is in an earlier row too (row {names.index(name) + 2})" if name in seen else f"is not in {images}"
            raise UserError(f"{info}: row {number}: {name!r} {problem}; correct the row or restore the photograph")
        seen.add(name)
    return names, [there[name] for name in names]


def read_boxes(path: str, names: Sequence[str], paths: Sequence[str]) -> dict[str, augmentation.Box]:
    """{name: the face's box in the photograph's own pixels} from a CSV (file,left,top,right,bottom). Raises UserError.

    A row belongs to the photograph whose path ends in its `file`, at whole folder names. Photographs without a row are
    counted in one warning; their faces are found in the pixels.
    """
    table = read_csv(Path(path), ("file", "left", "top", "right", "bottom"))
    told: dict[str, tuple[int, augmentation.Box]] = {}
    for number, row in enumerate(table.itertuples(index=False), start=2):
        file = nfc(str(row.file)).strip().replace("\\", "/").removeprefix("./")
        try:
            left, top, right, bottom = (round(float(str(v))) for v in (row.left, row.top, row.right, row.bottom))
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
    answers = dict(zip(map(nfc, table["ImageID"]), table[column], strict=True))
    lost = [name for name in names if name not in answers]
    if lost:
        raise UserError(f"{path}: no answer for {lost[0]!r} ({len(lost)} of {len(names)} lack one); use its own answers")
    try:
        values = np.array([float(answers[name]) for name in names])
        if spec.regression:
            return values
        if not spec.from_main:
            return values.astype(np.int64)
        return np.array([spec.from_main[int(value)] for value in values], np.int64)
    except (ValueError, IndexError):
        raise UserError(f"{path}: column {column!r} holds something else than this task's answers; correct it") from None


# ---------------------------------------------------------------------------------------- photographs -> batches


def read_photo(path: str, shrink: int = 1) -> Image.Image:
    """An upright RGB image, whatever the file's format, mode or EXIF orientation. Raises UserError naming the file.

    shrink (2, 4, 8): decode a JPEG of the competition's size so many times smaller; other photographs come whole.
    """
    try:
        with Image.open(path) as file:
            if shrink > 1 and file.size == config.PHOTO_SIZE:
                file.draft(None, (file.width // shrink, file.height // shrink))
            photo = ImageOps.exif_transpose(file)
            if photo.mode.startswith("I"):  # 16 bits a channel: Pillow's own conversion would clip it to white
                photo = Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8))
            return photo.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a photograph ({error}); mend or remove it") from None


@dataclass(frozen=True)
class Blending:
    """For oversampling by mixup: with whom a photograph may be blended."""

    seed: tuple[Hashable, ...]
    partners: Mapping[int, np.ndarray]  # photograph -> photographs of other people with the same labels


class Photos(Dataset[tuple[torch.Tensor, list[torch.Tensor], bool]]):
    """Item (epoch, i, copy) -> ((i, j), one uint8 [height, width, 3] per view, whether it had to be scaled).

    Each photograph is decoded once, whatever the number of views (once more at half its size for views that allow it).
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
        decoded: dict[int, Image.Image] = {}
        seen = []
        for view in self.views:
            with seeded(*view.key, epoch, copy, self.names[i]):
                shrink, form = augmentation.drawn(view.form)  # before decoding
                if shrink not in decoded:
                    decoded[shrink] = self.read(i, shrink)
                seen.append(form(decoded[shrink], self.boxes.get(self.names[i])))
        # One that has the size of a half-decoded photograph needs no scaling where that was asked for.
        sizes = [tuple(side // shrink for side in config.PHOTO_SIZE) for shrink in (1, *decoded)]
        return seen, any(photo.size not in sizes for photo in decoded.values())

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
    epoch's order, or None for the order as it is. A last batch of one joins the batch before it where `pairs` is set, for
    BatchNorm cannot train on a single photograph.
    """

    def __init__(self, indices: Sequence[int], size: int, shuffle: tuple[Any, ...] | None = None, pairs: bool = False) -> None:
        self.indices, self.size, self.shuffle, self.pairs = list(indices), size, shuffle, pairs
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
        return whole - 1 if self.pairs and len(self.indices) % self.size == 1 and whole > 1 else whole

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order: Sequence[int] = range(len(self.indices))
        if self.shuffle is not None:
            generator = torch.Generator().manual_seed(derive_seed("order", *self.shuffle, self.epoch))
            order = torch.randperm(len(self.indices), generator=generator).tolist()
        keys = [(self.epoch, self.indices[i], self.copies[i]) for i in order]
        for number in range(self.start, len(self)):
            end = (number + 1) * self.size if number < len(self) - 1 else len(keys)
            yield keys[number * self.size : end]


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


def loader(photos: Photos, batches: Batches, workers: int, device: torch.device) -> DataLoader[Any]:
    """A DataLoader over those batches, in their order. Its own generator keeps torch's global one untouched."""
    return DataLoader(
        photos,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),
    )


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Worker processes: as asked; else every processor but one beside an accelerator (at most 16), two beside a CPU."""
    if asked is not None:
        return asked
    processors = usable_processors()
    return min(16, max(1, processors - 1)) if device.type != "cpu" else min(2, processors)
