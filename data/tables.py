"""Folders and CSV tables -> one DataFrame, a row per photograph; errors name file and row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.csv_tables import read_csv, row_error
from data.faces import Box
from data.folders import (
    find_table,
    image_folder,
    list_folder,
    nfc,
    suggest_root,
    warn_left_out,
    why_left_out,
)
from data.images import MAX_PIXELS, is_image_name
from labels import GENDERS, TASKS, Task
from runtime.errors import UserError, plural, warn, warn_counted

EVAL_ROOTS = (Path("./input/data/images"), Path("./input/data/eval/images"))
SHOT = r"(?P<shot>incorrect_mask|mask[1-5]|normal)"
FOLDER_SHOT = re.compile(SHOT, re.IGNORECASE | re.ASCII)
FLAT_SHOT = re.compile(rf"(?P<person>.+)_{SHOT}", re.IGNORECASE | re.ASCII)
PERSON_NAME = re.compile(
    r"(?P<id>.+)_(?P<gender>male|female)_(?P<race>[^_]*)_(?P<age>\d+)", re.IGNORECASE | re.ASCII
)
SHOTS = 7  # of a person
SIDES = ["left", "top", "right", "bottom"]  # of a box
EXAMPLE = "expected folders like 000001_female_Asian_45/mask1.jpg"
YEARS = re.compile(r"\d{1,3}(\.\d*)?", re.ASCII)
MAX_AGE_YEARS = 120


def read_train(root: str | Path) -> pd.DataFrame:
    """One row per photograph of a training root: person, shot, file, path, gender, years, mask and
    a column per task.

    `file` is relative to the root and in NFC, `path` is what to open. A person is its folder's name
    (or the part before the shot in a flat folder). Sorted by person and shot. Raises UserError.
    """
    root = Path(root)
    image_dir = image_folder(root, "--train-root")
    table_path = find_table(root, "train.csv", above=root.resolve().name == "images")
    photographs = list_images(root, image_dir)
    people = label_people(photographs["person"].unique(), table_path, image_dir)
    rows = photographs.merge(people, on="person")
    if rows.empty:
        raise UserError(f"{image_dir}: no labelled photographs; {EXAMPLE}")
    twice = rows.loc[rows.duplicated(["person", "shot"]), "file"]
    warn_counted(sorted(twice), "photographs of a shot that their person has twice, all are used")
    few = sorted(person for person, n in rows["person"].value_counts().items() if n < SHOTS)
    warn_counted(few, f"people with fewer than {SHOTS} photographs")
    rows["mask"] = rows["shot"].map({"incorrect_mask": 1, "normal": 2}).fillna(0).astype(np.int64)
    return with_labels(rows.sort_values(["person", "shot", "file"], ignore_index=True))


def with_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column of labels per task, from its mask, gender and years."""
    distinct, indices = distinct_rows(table["mask"], table["gender"], table["years"])
    labels = {}
    for name, task in TASKS.items():
        values = [task.label(*row) for row in distinct]
        labels[name] = np.array(values, float if task.regression else np.int64)[indices]
    return table.assign(**labels)


def distinct_rows(*columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct rows of these columns, the index among them of each row)."""
    rows, indices = np.unique(np.column_stack(columns), axis=0, return_inverse=True)
    return rows, indices.reshape(-1)  # numpy 2.0 gives it a second axis


def list_images(root: Path, image_dir: Path) -> pd.DataFrame:
    """Every photograph below `image_dir`: person, shot, file, path. Raises UserError."""
    rows, unnamed, others = list[tuple[str, str, str, str]](), list[str](), list[str]()
    for name, entry in list_folder(image_dir).items():
        in_folder = entry.is_dir()
        for path in list_folder(entry).values() if in_folder else [entry]:
            file = path.relative_to(root).as_posix()
            match = (FOLDER_SHOT if in_folder else FLAT_SHOT).fullmatch(path.stem)
            if not is_image_name(path.name):
                others.append(file)
            elif match is None:
                unnamed.append(file)
            else:
                person = name if in_folder else nfc(match["person"]).strip()
                rows.append((person, match["shot"].lower(), nfc(file), str(path)))
    warn_left_out(others)
    if not rows:
        remedy = suggest_root(root, "train") or EXAMPLE
        raise UserError(f"{image_dir}: no photographs in it; {remedy}")
    shots = "incorrect_mask, mask1..5, normal"
    warn_counted(unnamed, f"photographs left out, their names hold no mask state ({shots})")
    return pd.DataFrame(rows, columns=["person", "shot", "file", "path"])


def label_people(people: Sequence[str], table: Path | None, image_dir: Path) -> pd.DataFrame:
    """person, gender, years of all people, from the table or else from their names."""
    by_name = {
        person: (gender_code(match["gender"]), float(match["age"]))
        for person in people
        if (match := PERSON_NAME.fullmatch(person))
    }
    if table is None:
        nameless = [p for p in people if p not in by_name or by_name[p][1] > MAX_AGE_YEARS]
        if nameless:
            problem = f"the name tells no gender and age up to {MAX_AGE_YEARS}, and no train.csv"
            remedy = "name it like 000001_female_Asian_45 or add the table"
            raise UserError(f"{image_dir / nameless[0]}: {problem} exists; {remedy}")
        many = plural(len(people), "person", "people")
        warn(f"{image_dir}: no train.csv; gender and age are read from the names of {many}")
        named = [(person, *given) for person, given in by_name.items()]
        return pd.DataFrame(named, columns=["person", "gender", "years"])
    labels = read_people(table)
    missing = labels.loc[~labels["person"].isin(people), "person"]
    if len(missing):
        folder, count = image_dir / missing.iloc[0][:100], f"{len(missing)} of {len(labels)} people"
        problem = f"{folder} is not there ({count} are missing)"
        remedy = "restore the photographs or remove the rows"
        raise row_error(table, missing.index[0], problem, remedy)
    unlisted = sorted(set(people) - set(labels["person"]))
    warn_counted(unlisted, f"people left out, {table.name} has no row for them")
    rows = labels.itertuples(index=False)
    differ = [p for p, *given in rows if by_name.get(p, tuple(given)) != tuple(given)]
    message = f"people whose folder's name and {table.name} disagree; the table is taken"
    warn_counted(differ, message)
    return labels


def gender_code(text: str) -> int:
    """0 male, 1 female. Raises ValueError for anything else."""
    return GENDERS.index(text.strip().lower())


def parse_years(text: str) -> float:
    """An age in years. Raises ValueError for anything else."""
    if not YEARS.fullmatch(text.strip()) or float(text) > MAX_AGE_YEARS:
        raise ValueError(f"{text[:40]!r} is no age; write years from 0 to {MAX_AGE_YEARS}")
    return float(text)


def unique_names(table: str | Path, column: pd.Series) -> dict[str, int]:
    """{name in NFC: row number} of a column. Raises UserError for an empty or repeated name."""
    rows: dict[str, int] = {}
    for number, name in column.map(lambda text: nfc(text.strip())).items():
        if not name:
            raise row_error(table, number, f"the {column.name} is empty")
        first = rows.setdefault(name, number)
        if first != number:
            problem = f"the {column.name} {name[:100]!r} is that of row {first} too"
            raise row_error(table, number, problem)
    return rows


def read_people(table: Path) -> pd.DataFrame:
    """train.csv -> person (its path, NFC), gender (0, 1), years; indexed by row numbers."""
    raw = read_csv(table, ("gender", "age", "path"))
    names = unique_names(table, raw["path"])
    rows: list[tuple[str, int, float]] = []
    for (person, number), gender, age in zip(names.items(), raw["gender"], raw["age"], strict=True):
        if person in (".", "..") or "/" in person or "\\" in person:
            problem = f"the path {person[:100]!r} is not the plain name of a folder"
            raise row_error(table, number, problem)
        try:
            rows.append((person, gender_code(gender), parse_years(age)))
        except ValueError:
            given = f"gender {gender[:40]!r}, age {age[:40]!r}"
            expected = f"expected male or female and years from 0 to {MAX_AGE_YEARS}"
            raise row_error(table, number, f"{given}: {expected}") from None
    return pd.DataFrame(rows, columns=["person", "gender", "years"], index=raw.index)


def read_eval(data_root: str | None) -> tuple[list[str], list[str]]:
    """(names, paths) of the photographs to predict, in info.csv's order or sorted by name."""
    default = next((path for path in EVAL_ROOTS if path.is_dir()), EVAL_ROOTS[-1])
    root = Path(data_root) if data_root else default
    if root.is_file() and is_image_name(root.name):
        return [root.name], [str(root)]
    image_dir = image_folder(root, "--data-root")
    info = find_table(root, "info.csv", above=True)
    entries = list_folder(image_dir)
    photographs = {name: str(path) for name, path in entries.items() if is_image_name(name)}
    others = [name for name in entries if name not in photographs]
    if info is None:
        warn_left_out(others)
        if not photographs:
            remedy = suggest_root(root, "eval") or "name the folder with --data-root"
            raise UserError(f"{image_dir}: no photographs in it, and no info.csv; {remedy}")
        many = plural(len(photographs), "photograph")
        warn(f"{root}: no info.csv; its {many} are answered in the order of their names")
        return list(photographs), list(photographs.values())
    listed = read_csv(info, ("ImageID",))["ImageID"]
    rows = unique_names(info, listed)
    for name, number in rows.items():
        if name not in photographs:
            left_out = f"is not read, {why_left_out(name)}"
            problem = left_out if name in entries else f"is not in {image_dir}"
            remedy = "correct the row or restore the photograph"
            raise row_error(info, number, f"{name[:100]!r} {problem}", remedy)
    warn_left_out(others)
    unlisted = [name for name in photographs if name not in rows]
    warn_counted(unlisted, f"photographs left out, {info.name} has no row for them")
    return listed.tolist(), [photographs[name] for name in rows]


def read_boxes(path: str, names: Sequence[str], paths: Sequence[str]) -> dict[str, Box]:
    """{name: the face's box in the photograph's own pixels} from a CSV
    (file,left,top,right,bottom). Raises UserError.

    A row belongs to the photograph whose path ends in its `file`, at whole folder names.
    Photographs without a row are counted in one warning; their faces are found in the pixels.
    """
    table = read_csv(Path(path), ("file", *SIDES))
    files = table["file"].str.strip().str.replace("\\", "/", regex=False).str.removeprefix("./")
    rows = unique_names(path, files)
    sides = table[SIDES].apply(pd.to_numeric, errors="coerce").round()
    not_pixels = ~(sides.abs() <= MAX_PIXELS).all(axis=1)
    empty = (sides["right"] <= sides["left"]) | (sides["bottom"] <= sides["top"])
    expected = f"{', '.join(SIDES)} must be pixels"
    for wrong, problem in ((not_pixels, expected), (empty, "the box is empty")):
        if wrong.any():
            raise row_error(path, wrong.idxmax(), problem)
    pixels = sides.astype(np.int64).itertuples(index=False, name=None)
    box_of_file = dict(zip(rows, pixels, strict=True))
    owners: dict[str, str] = {}  # {file: the photograph's name}
    for name, photograph in zip(names, paths, strict=True):
        parts = nfc(Path(photograph).absolute().as_posix()).split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        file = next((end for end in ends if end in rows), None)
        if file in owners:
            problem = f"{file!r} fits both {owners[file]} and {name}"
            raise row_error(path, rows[file], problem, "write more of its path")
        if file is not None:
            owners[file] = name
    if not owners:
        photographs = f"{plural(len(names), 'photograph')} ({names[0]} ...)"
        raise UserError(f"{path}: none of its rows names one of the {photographs}; check `file`")
    boxes = {name: box_of_file[file] for file, name in owners.items()}
    without = [name for name in names if name not in boxes]
    warn_counted(without, f"photographs without a box in {path}, found in the pixels instead")
    return boxes


def read_labels(path: str, names: Sequence[str], task: str) -> np.ndarray:
    """True labels of `names` for a task from a CSV (ImageID,ans; ans is the 18-class label; age
    needs a column `age`). Raises UserError.
    """
    spec = TASKS[task]
    column = "age" if spec.regression else "ans"
    table = read_csv(Path(path), ("ImageID", column))
    own_classes = set(map(str, range(spec.outputs)))
    if spec.from_main and spec.outputs < 18 and set(table[column].str.strip()) <= own_classes:
        highest = f"{path}: ans is never above {spec.outputs - 1}"
        warn(f"{highest}: it is read as one of the 18 classes of main, not as a {task}")
    labels: dict[str, float] = {}
    for number, name, text in table.itertuples():
        try:
            value = parse_years(text) if spec.regression else parse_label(text, spec)
        except ValueError:
            expected = "years" if spec.regression else "a class's number"
            raise row_error(path, number, f"{column} {text[:40]!r}: expected {expected}") from None
        if labels.setdefault(nfc(name.strip()), value) != value:
            problem = f"{name[:100]!r} has another answer in an earlier row"
            raise row_error(path, number, problem, "remove one")
    keys = [nfc(name.strip()) for name in names]
    missing = [key for key in keys if key not in labels]
    if missing:
        problem = f"no answer for {missing[0]!r} ({len(missing)} of {len(names)} lack one)"
        raise UserError(f"{path}: {problem}; use the answers of these photographs")
    return np.array([labels[key] for key in keys], float if spec.regression else np.int64)


def parse_label(text: str, spec: Task) -> int:
    """A label (of the 18 classes, for a part of them) -> the task's class. Raises ValueError."""
    classes = spec.from_main or tuple(range(len(spec.classes)))
    number = float(text)
    if number not in range(len(classes)):
        raise ValueError(f"{text!r} is no class")
    return classes[int(number)]
