"""CSV text -> columns of text; errors name file and row.

Not `pandas.read_csv`: it neither counts rows as a spreadsheet does, nor refuses a wrong quote, nor
tells a row that lacks cells from one with empty cells.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from runtime.errors import UserError, path_error, plural, reason
from runtime.files import atomic_write, read_file

MAX_TABLE_BYTES = 1 << 29
MAX_ROWS = 4_000_000
MAX_HEADER_BYTES = 1 << 16  # in which the separator is looked for
MAX_LINE_CHARACTERS = 1_000_000
# what Excel may write as a first line
SEPARATOR_LINE = re.compile(r'\A[ \t]*"?sep=(.)\1*"?[ ,;\t]*(\r\n?|\n)', re.IGNORECASE)


def row_error(path: object, row: int, problem: str, remedy: str = "correct the row") -> UserError:
    """The error of one row of a table."""
    return UserError(f"{path}: row {row}: {problem}; {remedy}")


def read_csv(path: Path, *choices: Sequence[str]) -> pd.DataFrame:
    """A CSV's columns as text, at least one row. The separator is a comma, semicolon or tab, or
    what Excel's `sep=` line names.

    Of several choices of columns the first that the header has is read. A row may lack trailing
    cells of other columns, and have further ones after an empty cell, as Excel writes them. The
    index holds row numbers as a spreadsheet counts them: the header is row 1, blank rows count,
    `sep=` and a quoted line break do not. Raises UserError.
    """
    try:
        data = read_file(path, MAX_TABLE_BYTES)
    except OSError as error:
        raise path_error(path, error, "repair or remove the file", "read") from None
    start = data[:MAX_HEADER_BYTES].decode("utf-8-sig", errors="replace")
    marked = SEPARATOR_LINE.match(start)
    lines = re.split("[\r\n]+", SEPARATOR_LINE.sub("", start, count=1))
    first_line = next((line for line in lines if line.strip(" ,;\t")), "")
    candidates = [*(marked[1] if marked else ""), ",", ";", "\t"]
    cells = {d: {name.strip(' "') for name in first_line.split(d)} for d in candidates}
    wanted = set(itertools.chain(*choices))
    delimiter = max(candidates, key=lambda d: len(wanted & cells[d]))
    rows = csv_rows(path, data, delimiter, skip=1 if marked else 0)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    columns = next((c for c in choices if set(c) <= set(header)), None)
    if columns is None:
        missing = next(name for name in choices[0] if name not in header)
        present = ", ".join(name[:40] for name in header[:20]) or "an empty file"
        problem = f"no column {missing!r} (found: {present})"
        expected = " or ".join(",".join(choice) for choice in choices)
        raise UserError(f"{path}: {problem}; expected {expected} in row 1")
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise UserError(f"{path}: the column {twice[0]!r} is there twice; remove one")
    positions = [header.index(name) for name in columns]
    records: dict[int, list[str]] = {}
    for number, record in rows:
        # a filled cell right after the last column may come from a comma without quotes, which
        # moved all cells
        if len(record) <= max(positions) or "".join(record[len(header) :][:1]).strip():
            fields = f"{plural(len(record), 'field')}, the header has {len(header)}"
            raise row_error(path, number, fields)
        if len(records) == MAX_ROWS:
            raise row_error(path, number, f"more than {MAX_ROWS:,} rows", "use another file")
        records[number] = [record[position] for position in positions]
    if not records:
        raise UserError(f"{path}: no rows below the header; fill the table")
    return pd.DataFrame(list(records.values()), list(records), list(columns))


def csv_cell(value: Any) -> Any:
    """A cell for a CSV; an apostrophe keeps a spreadsheet from running text as a formula."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def write_csv(path: Path, table: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a table whole or not at all, its texts as `csv_cell`s. Raises RunError."""
    texts = table.select_dtypes(exclude="number")
    with atomic_write(path, "w") as file:
        cells = table.assign(**{name: texts[name].map(csv_cell) for name in texts})
        cells.to_csv(file, index=False, float_format=float_format)


def csv_rows(path: Path, data: bytes, delimiter: str, skip: int) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of a CSV's rows that are not blank, after `skip` lines. Raises UserError."""
    lines = itertools.islice(iter_lines(data), skip, None)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    number = 0
    try:
        for number, record in enumerate(reader, 1):
            text = "".join(record)
            if "\ufffd" in text:
                problem, remedy = "bytes that are not UTF-8 text", "save it as UTF-8 CSV"
                raise row_error(path, number, problem, remedy)
            if text.strip():
                yield number, record
    except csv.Error as error:
        problem = f"no CSV ({reason(error)})"
        raise row_error(path, number + 1, problem, "correct its quotes") from None


def iter_lines(data: bytes) -> Iterator[str]:
    """A table's lines, one at a time, for memory's sake. Raises csv.Error for an absurd one."""
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "replace", newline="")
    while line := stream.readline(MAX_LINE_CHARACTERS + 1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise csv.Error(f"a line of more than {MAX_LINE_CHARACTERS:,} characters")
        yield line.replace("\0", "\ufffd")  # Python 3.10's csv stops at NUL
