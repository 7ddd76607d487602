"""Corrections of labels from a table, applied after the split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from data import tables
from data.csv_tables import read_csv, row_error
from labels import GENDERS, MASKS
from runtime.errors import UserError

# {what a row may fix: (the table's column that names whose, the table's column with the value)}
FIELDS = {"gender": ("person", "gender"), "age": ("person", "years"), "mask": ("file", "mask")}


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
    rows_of = {key: table.groupby(key).indices for key in ("person", "file")}
    fixed, first_rows = table.copy(), dict[tuple[str, str], int]()
    for number, *cells in rows.itertuples():
        name, column, text = (tables.nfc(cell).strip() for cell in cells)
        name, column = name.replace("\\", "/").removeprefix("./").rstrip("/"), column.lower()
        if column not in FIELDS:
            problem = f"the column {column[:40]!r} cannot be fixed"
            raise row_error(path, number, problem, "write gender, age or mask")
        key, field = FIELDS[column]
        affected = rows_of[key].get(name, rows_of[key].get(f"images/{name}"))
        if affected is None:
            problem = f"there is no {'photograph' if key == 'file' else key} {name[:100]!r}"
            remedy = f"write it like {table[key].iloc[0]}, or remove the row"
            raise row_error(path, number, problem, remedy)
        try:
            value = tables.parse_years(text) if column == "age" else parse_code(column, text)
        except ValueError as error:
            raise UserError(f"{path}: row {number}: {error}") from None
        first = first_rows.setdefault((name, column), number)
        if first != number:
            problem = f"the {column} of {name[:100]} is fixed by row {first} too"
            raise row_error(path, number, problem, "remove the row")
        if (table[field].to_numpy()[affected] == value).all():
            problem = f"changes nothing, the {column} of {name[:100]} is {text[:40]} already"
            raise row_error(path, number, problem, "remove the row")
        fixed.iloc[affected, fixed.columns.get_loc(field)] = value
    return tables.with_labels(fixed), dict(Counter(column for _, column in first_rows))


def parse_code(column: str, text: str) -> int:
    """The code of a gender or mask state, given by name or code. Raises ValueError."""
    names = GENDERS if column == "gender" else MASKS
    for code, name in enumerate(names):
        if text.lower() in (name, str(code)):
            return code
    raise ValueError(f"{text[:40]!r} is no {column}; write one of {', '.join(names)}")
