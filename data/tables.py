"""Folders and CSV tables -> one DataFrame, a row per photograph; errors name file and row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data import csv_tables, images
from data.faces import Box
from data.images import is_image_name
from labels import GENDERS, TASKS, Task
from runtime.errors import UserError, path_error, plural, warn, warn_counted

# no photographs, and nobody misses them
IGNORED_FILE_NAMES = {"thumbs.db", "desktop.ini", "train.csv", "info.csv", "answers.csv"}
SHOT = r"(?P<shot>incorrect_mask|mask[1-5]|normal)"
FOLDER_SHOT = re.compile(SHOT, re.IGNORECASE | re.ASCII)
FLAT_SHOT = re.compile(rf"(?P<person>.+)_{SHOT}", re.IGNORECASE | re.ASCII)
PERSON_NAME = re.compile(
    r"(?P<id>.+)_(?P<gender>male|female)_(?P<race>[^_]*)_(?P<age>\d+)", re.IGNORECASE | re.ASCII
)
SHOTS_PER_PERSON = 7
YEARS = re.compile(r"\d{1,3}(\.\d*)?", re.ASCII)


def nfc(text: str) -> str:
    """One spelling for a name, however the file system stores its accents."""
    return unicodedata.normalize("NFC", text)


def exists(path: Path) -> bool:
    """Whether the path exists. Raises UserError or RunError where the system cannot say."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise path_error(path, error, "check its permissions") from None
    return True


def parent_of(folder: Path) -> Path:
    """The folder above, also of `.` and `..`."""
    return folder.parent if folder.name not in ("", "..") else folder / ".."


def suggest_root(root: Path, kind: str) -> str:
    """A question naming the usual folder (train, eval) below `root`, empty where none is."""
    below = (root / above / kind for above in ("", "data", "input/data"))
    return next((f"did you mean {path}?" for path in below if path.is_dir()), "")


def warn_left_out(names: Sequence[str]) -> None:
    """Warn about files that are no images by name; HEIC files apart, with the remedy."""
    missed = [
        name
        for name in names
        if not Path(name).name.startswith(".") and Path(name).name.lower() not in IGNORED_FILE_NAMES
    ]
    heic = [name for name in missed if Path(name).suffix.lower() in images.HEIC_EXTENSIONS]
    warn_counted(heic, f"photographs left out, {images.HEIC_REMEDY}")
    others = [name for name in missed if name not in set(heic)]
    warn_counted(
        others,
        f"files and folders left out, read are photographs named {', '.join(images.EXTENSIONS)}",
    )


def read_train(root: str | Path) -> pd.DataFrame:
    """One row per photograph of a training root: file, path, person, shot, mask, gender, age and a
    column per task.

    `file` is relative to the root and in NFC, `path` is what to open, `age` is in years. A person
    is its folder's name (or the part before the shot in a flat folder). Sorted by person and shot.
    Raises UserError.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; name the folder of labelled photographs with --train-root"
        )
    image_dir = root / "images" if (root / "images").is_dir() else root
    tables = [
        root / "train.csv",
        *([parent_of(root) / "train.csv"] if root.absolute().name == "images" else []),
    ]
    table_path = next((p for p in tables if exists(p)), None)
    found = list_images(root, image_dir)
    labels = label_people(found["person"].unique(), table_path, image_dir, root)
    rows = found.merge(labels, on="person", how="inner")
    if rows.empty:
        raise UserError(
            f"{image_dir}: no labelled photographs; expected folders like "
            "000001_female_Asian_45/mask1.jpg"
        )
    twice = rows.loc[rows.duplicated(["person", "shot"]), "file"]
    warn_counted(sorted(twice), "photographs of a shot that their person has twice, all are taken")
    counts = rows.groupby("person").size()
    warn_counted(
        sorted(counts[counts < SHOTS_PER_PERSON].index), "people with fewer than 7 photographs"
    )
    rows["mask"] = rows["shot"].map(
        lambda shot: 0 if shot.startswith("mask") else 1 if shot != "normal" else 2
    )
    return with_labels(rows.sort_values(["person", "shot", "file"], ignore_index=True))


def with_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column of labels per task, from its mask, gender and years."""
    distinct, where = distinct_rows(table["mask"], table["gender"], table["years"])
    labels = {
        name: np.array(
            [task.label(*row) for row in distinct], float if task.regression else np.int64
        )[where]
        for name, task in TASKS.items()
    }
    return table.assign(**labels)


def distinct_rows(*columns: Any) -> tuple[list[tuple[Any, ...]], np.ndarray]:
    """(the distinct rows of these columns, the index among them of each row)."""
    frame = pd.DataFrame(dict(enumerate(map(np.asarray, columns))))
    groups = frame.groupby(list(frame.columns), sort=False).ngroup().to_numpy(copy=True)
    firsts = np.unique(groups, return_index=True)[1]
    return list(frame.iloc[firsts].itertuples(index=False, name=None)), groups


def list_images(root: Path, image_dir: Path) -> pd.DataFrame:
    """Every photograph below `image_dir`, in folders of people or flat: person, shot, file, path.
    Raises UserError.
    """
    rows: list[tuple[str, str, str, str]] = []
    strange: list[str] = []
    others: list[str] = []
    try:
        entries = [e for e in sorted(image_dir.iterdir()) if not e.name.startswith(".")]
        folders = {e for e in entries if e.is_dir()}
        taken = [e for e in entries if e in folders or is_image_name(e.name)]
        check_names([nfc(e.name).strip() for e in taken], [str(e) for e in taken])
        for entry in entries:
            names = (
                [(p, FOLDER_SHOT.fullmatch(p.stem)) for p in sorted(entry.iterdir())]
                if entry in folders
                else [(entry, FLAT_SHOT.fullmatch(entry.stem))]
            )
            for path, match in names:
                if not is_image_name(path.name):
                    others.append(str(path.relative_to(root)))
                    continue
                if match is None:
                    strange.append(str(path.relative_to(root)))
                    continue
                person = nfc(
                    entry.name if entry in folders else match["person"]
                ).strip()  # as tables are read
                rows.append(
                    (
                        person,
                        match["shot"].lower(),
                        nfc(path.relative_to(root).as_posix()),
                        str(path),
                    )
                )
    except OSError as error:
        raise path_error(
            error.filename or image_dir, error, "check its permissions", "listed"
        ) from None
    warn_left_out(others)
    if not rows:
        meant = (
            suggest_root(root, "train") or "expected folders like 000001_female_Asian_45/mask1.jpg"
        )
        raise UserError(f"{image_dir}: no photographs in it; {meant}")
    check_names([row[2] for row in rows], [row[3] for row in rows])
    warn_counted(
        strange,
        "photographs left out, their names tell no mask state (incorrect_mask, mask1..5, normal)",
    )
    return pd.DataFrame(rows, columns=["person", "shot", "file", "path"])


def check_names(names: Sequence[str], paths: Sequence[str]) -> None:
    """Every name (in NFC) must be text and there once. Raises UserError naming the path."""
    seen: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if not name.isprintable() and any("\ud800" <= c <= "\udfff" for c in name):
            raise UserError(f"{path}: its name is not UTF-8; rename it")
        if name in seen:
            raise UserError(
                f"{path}: {seen[name]} has the same name in another Unicode form or with other "
                "spaces; rename one"
            )
        seen[name] = path


def label_people(
    people: Sequence[str], table: Path | None, image_dir: Path, root: Path
) -> pd.DataFrame:
    """person, gender, years of all people: by the table where there is one, else by their folders'
    names.
    """
    named = {person: PERSON_NAME.fullmatch(person) for person in people}
    if table is None:
        warn(
            f"{root}: no train.csv; gender and age are read from the names of "
            f"{plural(len(people), 'person', 'people')}"
        )
        nameless = [
            person for person, match in named.items() if match is None or float(match["age"]) > 120
        ]
        if nameless:
            raise UserError(
                f"{image_dir / nameless[0]}: the name tells no gender and age up to 120, and there "
                "is no train.csv; "
                "name it like 000001_female_Asian_45 or add the table"
            )
        rows = [(p, gender_code(m["gender"]), float(m["age"])) for p, m in named.items() if m]
        return pd.DataFrame(rows, columns=["person", "gender", "years"])
    labels = read_people(table)
    missing = [p for p in labels["person"] if p not in named]
    if missing:
        row = labels.index[labels["person"] == missing[0]][0]
        raise UserError(
            f"{table}: row {row}: {image_dir / missing[0][:100]} is not there ({len(missing)} of "
            f"{len(labels)} people are "
            "missing); restore the photographs or remove the rows"
        )
    listed = set(labels["person"])
    warn_counted(
        [p for p in people if p not in listed], f"people left out, {table.name} has no row for them"
    )
    told = {p: (gender_code(m["gender"]), float(m["age"])) for p, m in named.items() if m}
    tabled = zip(labels["person"], labels["gender"], labels["years"], strict=True)
    differ = [p for p, gender, years in tabled if p in told and told[p] != (gender, years)]
    warn_counted(
        differ, f"people whose folder's name and {table.name} disagree; the table is taken"
    )
    return labels


def gender_code(text: str) -> int:
    """0 male, 1 female. Raises ValueError for anything else."""
    return GENDERS.index(text.strip().lower())


def read_people(table: Path) -> pd.DataFrame:
    """train.csv -> person (its path, NFC), gender (0, 1), years; indexed by the table's row
    numbers. Raises UserError.
    """
    raw = csv_tables.read_csv(table, ("gender", "age", "path"))
    rows: list[tuple[str, int, float]] = []
    seen: dict[str, int] = {}
    for number, path, gender, age in zip(
        raw.index, raw["path"], raw["gender"], raw["age"], strict=True
    ):
        person = nfc(path.strip())
        if not person or person in seen:
            problem = (
                f"the path {person[:100]!r} is that of row {seen[person]} too"
                if person
                else "the path is empty"
            )
            raise UserError(f"{table}: row {number}: {problem}; a person's path must be there once")
        if person in (".", "..") or "/" in person or "\\" in person:
            problem = f"the path {person[:100]!r} may lead elsewhere"
            raise UserError(f"{table}: row {number}: {problem}; write the plain name of a folder")
        seen[person] = number
        try:
            rows.append((person, gender_code(gender), parse_years(age)))
        except ValueError:
            raise UserError(
                f"{table}: row {number}: gender {gender[:40]!r}, age {age[:40]!r}: expected male "
                "or female and years from 0 "
                "to 120; correct the row"
            ) from None
    return pd.DataFrame(rows, columns=["person", "gender", "years"], index=raw.index)


def parse_years(text: str) -> float:
    """An age in years, from 0 to 120. Raises ValueError for anything else."""
    if not YEARS.fullmatch(text.strip()) or float(text) > 120:
        raise ValueError(f"{text!r} is no age")
    return float(text)


def read_eval(data_root: str | None) -> tuple[list[str], list[str]]:
    """(names, paths) of the photographs to answer, in info.csv's order, or sorted by name. Raises
    UserError.
    """
    defaults = [Path("./input/data/images"), Path("./input/data/eval/images")]
    root = Path(data_root) if data_root else next((p for p in defaults if p.is_dir()), defaults[-1])
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; name the evaluation folder or its images with --data-root"
        )
    image_dir = root / "images" if (root / "images").is_dir() else root
    info = next((p for p in (root / "info.csv", parent_of(root) / "info.csv") if exists(p)), None)
    try:
        entries = [p for p in sorted(image_dir.iterdir()) if not p.name.startswith(".")]
    except OSError as error:
        raise path_error(image_dir, error, "check its permissions", "listed") from None
    photos = [p for p in entries if is_image_name(p.name)]
    check_names([nfc(p.name) for p in photos], [str(p) for p in photos])
    there = {nfc(p.name): str(p) for p in photos}
    others = {nfc(p.name): p for p in entries if not is_image_name(p.name)}
    if info is None:
        warn_left_out(list(others))
        if not there:
            meant = suggest_root(root, "eval") or "name the folder with --data-root"
            raise UserError(f"{image_dir}: no photographs in it, and no info.csv; {meant}")
        warn(
            f"{root}: no info.csv; its {len(there)} photographs are answered in the order of "
            "their names"
        )
        return list(there), list(there.values())
    listed = csv_tables.read_csv(info, ("ImageID",))["ImageID"]
    seen: dict[str, int] = {}
    for number, name in listed.items():
        key = nfc(name.strip())
        if key not in there or key in seen:
            problem = (
                f"is in an earlier row too (row {seen[key]})"
                if key in seen
                else f"is not in {image_dir}"
            )
            if key in others:
                problem = (
                    images.HEIC_REMEDY
                    if others[key].suffix.lower() in images.HEIC_EXTENSIONS
                    else (f"is no photograph by its name; read are {', '.join(images.EXTENSIONS)}")
                )
            raise UserError(
                f"{info}: row {number}: {name[:100]!r} {problem}; correct the row or restore the "
                "photograph"
            )
        seen[key] = number
    warn_left_out(list(others))
    warn_counted(
        [name for name in there if name not in seen],
        f"photographs left out, {info.name} has no row for them",
    )
    return listed.tolist(), [there[key] for key in seen]


def read_boxes(path: str, names: Sequence[str], paths: Sequence[str]) -> dict[str, Box]:
    """{name: the face's box in the photograph's own pixels} from a CSV
    (file,left,top,right,bottom). Raises UserError.

    A row belongs to the photograph whose path ends in its `file`, at whole folder names.
    Photographs without a row are counted in one warning; their faces are found in the pixels.
    """
    table = csv_tables.read_csv(Path(path), ("file", "left", "top", "right", "bottom"))
    told: dict[str, tuple[int, Box]] = {}
    for number, *fields in table[["file", "left", "top", "right", "bottom"]].itertuples():
        file = nfc(fields[0]).strip().replace("\\", "/").removeprefix("./")
        try:
            left, top, right, bottom = (round(float(value)) for value in fields[1:])
            if max(map(abs, (left, top, right, bottom))) > images.MAX_PIXELS:
                raise ValueError
        except (ValueError, OverflowError):
            raise UserError(
                f"{path}: row {number}: left, top, right, bottom must be pixels; correct the row"
            ) from None
        if file in told or right <= left or bottom <= top:
            problem = (
                f"{file!r} is in row {told[file][0]} too" if file in told else "the box is empty"
            )
            raise UserError(f"{path}: row {number}: {problem}; correct the row")
        told[file] = (number, (left, top, right, bottom))
    boxes: dict[str, Box] = {}
    taken: dict[str, str] = {}
    for name, where in zip(names, paths, strict=True):
        parts = nfc(Path(where).absolute().as_posix()).split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        end = next((e for e in ends if e in told), None)
        if end is None:
            continue
        if end in taken:
            raise UserError(
                f"{path}: row {told[end][0]}: {end!r} fits both {taken[end]} and {name}; write "
                "more of its path"
            )
        taken[end] = name
        boxes[name] = told[end][1]
    if not boxes:
        many = plural(len(names), "photograph")
        raise UserError(
            f"{path}: none of its rows names one of the {many} ({names[0]} ...); check `file`"
        )
    warn_counted(
        [n for n in names if n not in boxes],
        f"photographs without a box in {path}, found in the pixels instead",
    )
    return boxes


def read_labels(path: str, names: Sequence[str], task: str) -> np.ndarray:
    """True labels of `names` for a task from a CSV (ImageID,ans; ans is the 18-class answer; age
    needs a column `age`).
    """
    spec = TASKS[task]
    column = "age" if spec.regression else "ans"
    table = csv_tables.read_csv(Path(path), ("ImageID", column))
    if (
        spec.from_main
        and set(table[column].str.strip()) <= set(map(str, range(spec.outputs)))
        and spec.outputs < 18
    ):
        warn(
            f"{path}: ans is never above {spec.outputs - 1}: it is read as one of the 18 classes "
            f"of main, not as a {task}"
        )
    answers: dict[str, float] = {}
    for number, name, text in zip(table.index, table["ImageID"], table[column], strict=True):
        try:
            value = parse_years(text) if spec.regression else parse_label(text, spec)
        except ValueError:
            expected = "years" if spec.regression else "a class's number"
            raise UserError(
                f"{path}: row {number}: {column} {text[:40]!r}: expected {expected}; correct the "
                "row"
            ) from None
        if answers.setdefault(nfc(name.strip()), value) != value:
            raise UserError(
                f"{path}: row {number}: {name[:100]!r} has another answer in an earlier row; "
                "remove one"
            )
    keys = [nfc(name.strip()) for name in names]
    lost = [key for key in keys if key not in answers]
    if lost:
        raise UserError(
            f"{path}: no answer for {lost[0]!r} ({len(lost)} of {len(names)} lack one); use its "
            "own answers"
        )
    return np.array([answers[key] for key in keys], float if spec.regression else np.int64)


def parse_label(text: str, spec: Task) -> int:
    """A label (of the 18 classes, for a part of them) -> the task's class. Raises ValueError."""
    classes = spec.from_main or tuple(range(len(spec.classes)))
    number = float(text)
    if number not in range(len(classes)):
        raise ValueError(f"{text!r} is no class")
    return classes[int(number)]
