"""Corrections of labels from a table, applied after the split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from data import tables
from data.csv_tables import read_csv, row_error
from labels import GENDERS, MASKS
from runtime.errors import UserError


def apply_fixes(table: pd.DataFrame, path: str | Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """(the table of tables.read_train with corrected labels, {column: number of corrections}).

    The CSV has the columns (path, column, value): a person and its gender (male, female) or age
    (years), or a photograph and its mask (wear, incorrect, not_wear); or (image, mask). Codes do
    for names. Raises UserError for a row that names nobody, has a wrong column or value, comes
    twice, or changes nothing.
    """
    rows = read_csv(Path(path), ("path", "column", "value"), ("image", "mask"))
    if "image" in rows:
        rows.insert(1, "column", "mask")
    rows_of_person, rows_of_file = (table.groupby(key).indices for key in ("person", "file"))
    fixed, counts = table.copy(), Counter[str]()
    first_rows: dict[tuple[str, str], int] = {}
    for number, *cells in rows.itertuples():
        name, column, text = (tables.nfc(cell).strip() for cell in cells)
        name, column = name.replace("\\", "/").removeprefix("./").rstrip("/"), column.lower()
        if column not in ("gender", "age", "mask"):
            problem = f"the column {column[:40]!r} cannot be fixed"
            raise row_error(path, number, problem, "write gender, age or mask")
        kind, rows_of = (
            ("photograph", rows_of_file) if column == "mask" else ("person", rows_of_person)
        )
        affected = rows_of.get(name, rows_of.get(f"images/{name}"))
        if affected is None:
            example = table["file" if column == "mask" else "person"].iloc[0]
            problem, remedy = f"there is no {kind} {name[:100]!r}", f"write it like {example}"
            raise row_error(path, number, problem, f"{remedy}, or remove the row")
        try:
            value = tables.parse_years(text) if column == "age" else parse_code(column, text)
        except ValueError as error:
            raise UserError(f"{path}: row {number}: {error}") from None
        field, problem = "years" if column == "age" else column, ""
        if (name, column) in first_rows:
            first = first_rows[name, column]
            problem = f"the {column} of {name[:100]} is fixed by row {first} too"
        elif (table[field].to_numpy()[affected] == value).all():
            problem = f"changes nothing, the {column} of {name[:100]} is {text[:40]} already"
        if problem:
            raise row_error(path, number, problem, "remove the row")
        first_rows[name, column] = number
        fixed.iloc[affected, fixed.columns.get_loc(field)] = value
        counts[column] += 1
    return tables.with_labels(fixed), dict(counts)


def parse_code(column: str, text: str) -> int:
    """The code of a gender or mask state, given by name or code. Raises ValueError."""
    names = GENDERS if column == "gender" else MASKS
    for code, name in enumerate(names):
        if text.lower() in (name, str(code)):
            return code
    raise ValueError(f"{text[:40]!r} is no {column}; write one of {', '.join(names)}")
