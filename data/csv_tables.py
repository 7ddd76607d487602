"""CSV text -> columns of text: separators, quotes, encodings; refused with file and row number."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from runtime.errors import UserError, path_error, plural, reason
from runtime.files import read_file

MAX_TABLE_BYTES = 1 << 29  # of a table
MAX_ROWS = 4_000_000
MAX_HEADER_BYTES = 1 << 16  # bytes in which the separator is looked for
MAX_LINE_CHARACTERS = 1_000_000  # characters of a table's line
# what Excel may have as a first line
EXCEL_SEPARATOR_LINE = re.compile(r'[ \t]*"?sep=(.)\1*"?[ ,;\t]*(\r\n?|\n)', re.IGNORECASE)


def read_csv(path: Path, *choices: Sequence[str]) -> pd.DataFrame:
    """A CSV's columns as text, at least one row; commas, semicolons or tabs between, as its header
    or Excel's `sep=` has it.

    Of several choices of columns the first that the header has. As Excel writes tables, a row may
    lack trailing cells of other columns, and have further ones after an empty cell. The index holds
    the rows' numbers as a spreadsheet counts them:
    1 is the file's first row, blank ones count, `sep=` and a quoted line break do not. Raises
    UserError naming file and row.
    """
    try:
        data = read_file(path, MAX_TABLE_BYTES)
    except OSError as error:
        raise path_error(path, error, "mend or remove the file", "read") from None
    start = data[:MAX_HEADER_BYTES].decode("utf-8-sig", errors="replace")
    declared = EXCEL_SEPARATOR_LINE.match(start)
    below = io.StringIO(start[declared.end() if declared else 0 :], newline="")
    first = next((line for line in below if line.strip(" ,;\t\r\n")), "")
    delimiters = (*((declared[1],) if declared else ()), ",", ";", "\t")
    fits = [
        d
        for d in delimiters
        for c in choices
        if set(c) <= {name.strip(' "\r\n') for name in first.split(d)}
    ]
    rows = csv_rows(path, data, fits[0] if fits else delimiters[0], skip=1 if declared else 0)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    columns = next((c for c in choices if set(c) <= set(header)), None)
    if columns is None:
        seen = ", ".join(name[:40] for name in header[:20]) or "an empty file"
        missing = next(name for name in choices[0] if name not in header)
        expected = " or ".join(",".join(choice) for choice in choices)
        raise UserError(
            f"{path}: no column {missing!r} (found: {seen}); expected {expected} in its first row"
        )
    for name in columns:
        if header.count(name) > 1:
            raise UserError(f"{path}: the column {name!r} is there twice; remove one")
    where = [header.index(name) for name in columns]
    numbers: list[int] = []
    records: list[list[str]] = []
    for number, record in rows:
        # A filled cell right behind the last column may as well come from a comma without quotes,
        # by which all have moved.
        if len(record) <= max(where) or "".join(record[len(header) : len(header) + 1]).strip():
            fields = plural(len(record), "field")
            raise UserError(
                f"{path}: row {number}: {fields}, the header has {len(header)}; correct the row"
            )
        if len(records) == MAX_ROWS:
            raise UserError(
                f"{path}: row {number}: more than {MAX_ROWS:,} rows, which no table here has; "
                "name another file"
            )
        numbers.append(number)
        records.append([record[k] for k in where])
    if not records:
        raise UserError(f"{path}: no rows below the header; fill the table")
    return pd.DataFrame(records, columns=list(columns), index=numbers)


def csv_rows(path: Path, data: bytes, delimiter: str, skip: int) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of a CSV's rows that are not blank, after `skip` lines. Raises UserError for
    bad quotes, endless lines and bytes that are no text.
    """
    lines = itertools.islice(iter_lines(data), skip, None)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    for number in itertools.count(1):
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}: row {number}: no CSV ({reason(error)}); correct its quotes"
            ) from None
        if record is None:
            return
        text = "".join(record)
        if "\ufffd" in text:
            raise UserError(
                f"{path}: row {number}: bytes that are not UTF-8 text; save the table as CSV in "
                "UTF-8"
            )
        if text.strip():
            yield number, record


def iter_lines(data: bytes) -> Iterator[str]:
    """A table's lines with their ends, one at a time: all at once would take ten times the memory.
    Raises csv.Error for one of absurd length.
    """
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "replace", newline="")
    while line := stream.readline(MAX_LINE_CHARACTERS + 1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise csv.Error(f"a line of more than {MAX_LINE_CHARACTERS:,} characters")
        yield line.replace("\0", "\ufffd")  # at NUL csv stops before Python 3.11
