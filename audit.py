"""Checks before the long part: photographs whose file shows that they cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
from PIL import Image

import photographs
from runtime.cli import progress
from runtime.errors import UserError, warn_counted

MAX_NAMED = 5  # of the photographs that an error counts


def check_photos(
    names: Sequence[str],
    paths: Sequence[str],
    look: Callable[[str], Image.Image] = photographs.open_image,
    workers: int = 4,
) -> list[tuple[str, str]]:
    """(name, problem) of every photograph that is no regular file, has no readable header, or whose
    end is missing.

    One warning counts those of another size than the competition's. Nothing is decoded, unless
    `look` does: about a tenth of a millisecond each where the disk is warm. `workers` threads wait
    for a slow one. Raises as `photographs.raise_if_machine_failed` does.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        seen = pool.map(lambda path: photographs.inspect_image(path, look), paths)
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
    bad = check_photos(paths, paths, photographs.decode_image if skip else photographs.open_image)
    if bad and (not skip or len(bad) == len(paths)):
        first = "; ".join(f"{name!r} ({problem})" for name, problem in bad[:MAX_NAMED])
        more = "; ..." if len(bad) > MAX_NAMED else ""
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
    `unreadable` does.
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
