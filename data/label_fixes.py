"""Corrections of labels from a table, applied after the split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from data import csv_tables, tables
from labels import GENDERS, MASKS
from runtime.errors import UserError

# --- fixes


def apply_fixes(table: pd.DataFrame, path: str | Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """(the table of tables.read_train with corrected labels, how many of each column were
    corrected).

    The CSV has the columns (path, column, value): a person and its gender (male, female) or age
    (years), or a photograph and its mask (wear, incorrect, not_wear); or (image, mask). Codes do
    for names. Raises UserError for a row that names nobody, holds a wrong column or value, comes
    twice, or changes nothing.
    """
    rows = csv_tables.read_csv(Path(path), ("path", "column", "value"), ("image", "mask"))
    short = "image" in rows
    people, files = table.groupby("person").indices, table.groupby("file").indices
    fixed, counts = table.copy(), Counter[str]()
    seen: dict[tuple[str, str], int] = {}
    for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
        words = (
            (row["image"], "mask", row["mask"])
            if short
            else (row["path"], row["column"], row["value"])
        )
        name, column, text = (tables.nfc(str(word)).strip() for word in words)
        name, column = name.replace("\\", "/").removeprefix("./").rstrip("/"), column.lower()
        where, shown = f"{path}: row {number}", name[:100]
        if column not in ("gender", "age", "mask"):
            raise UserError(
                f"{where}: the column {column[:40]!r} cannot be fixed; write gender, age or mask"
            )
        own = people.get(name) if column != "mask" else files.get(name, files.get(f"images/{name}"))
        if own is None:
            example = table["file" if column == "mask" else "person"].iloc[0]
            raise UserError(
                f"{where}: there is no {'photograph' if column == 'mask' else 'person'} "
                f"{shown!r}; "
                f"write it like {example}, or remove the row"
            )
        field, value = "years" if column == "age" else column, label_value(where, column, text)
        if (name, column) in seen:
            raise UserError(
                f"{where}: the {column} of {shown} is fixed by row {seen[name, column]} too; "
                "remove one of them"
            )
        seen[name, column] = number
        if (table[field].to_numpy()[own] == value).all():
            raise UserError(
                f"{where}: changes nothing, the {column} of {shown} is {text[:40]} already; "
                "remove the row"
            )
        fixed.iloc[own, fixed.columns.get_loc(field)] = value
        counts[column] += 1
    return tables.with_labels(fixed), dict(counts)


def label_value(where: str, column: str, text: str) -> float:
    """A fix's value as the table holds it: a code, or years. Raises UserError."""
    if column == "age":
        try:
            years = float(text)
        except ValueError:
            years = -1
        if not 0 <= years <= 120:
            raise UserError(f"{where}: {text[:40]!r} is no age; write years from 0 to 120")
        return years
    names = GENDERS if column == "gender" else MASKS
    codes = {
        **{name: code for code, name in enumerate(names)},
        **{str(code): code for code in range(len(names))},
    }
    if text.lower() not in codes:
        raise UserError(f"{where}: {text[:40]!r} is no {column}; write one of {', '.join(names)}")
    return codes[text.lower()]
