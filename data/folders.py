"""A folder's entries as they come: which are photographs, which are left out, where a table is."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from data.images import EXTENSIONS, HEIC_EXTENSIONS, HEIC_REMEDY, is_image_name
from runtime.errors import UserError, path_error, warn_counted

IGNORED_FILE_NAMES = {"thumbs.db", "desktop.ini", "train.csv", "info.csv", "answers.csv"}


def nfc(text: str) -> str:
    """One spelling for a name, however the file system stores its accents."""
    return unicodedata.normalize("NFC", text)


def image_folder(root: Path, option: str) -> Path:
    """`root/images` where it exists, else `root`. Raises UserError naming the option."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the folder of photographs with {option}")
    return root / "images" if (root / "images").is_dir() else root


def find_table(root: Path, name: str, above: bool) -> Path | None:
    """The table in a folder, or in the one above; a dangling link counts. Raises CliError."""
    absolute = Path(os.path.abspath(root))  # also of `.` and `..`
    for path in (root / name, absolute.parent / name)[: 2 if above else 1]:
        try:
            path.lstat()
            return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise path_error(path, error, "check its permissions") from None
    return None


def list_folder(folder: Path) -> dict[str, Path]:
    """{name in NFC: path} of a folder, sorted, without hidden entries. Raises CliError."""
    try:
        paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except OSError as error:
        raise path_error(folder, error, "check its permissions", "listed") from None
    entries: dict[str, Path] = {}
    for path in paths:
        name = nfc(path.name).strip()  # as names are read from tables
        is_text = not any("\ud800" <= character <= "\udfff" for character in name)
        if not is_text and (is_image_name(name) or path.is_dir()):
            raise UserError(f"{path}: its name is not UTF-8; rename it")
        if name in entries:
            problem = "has the same name in another Unicode form or with other spaces"
            raise UserError(f"{path}: {entries[name]} {problem}; rename one")
        entries[name] = path
    return entries


def why_left_out(name: str) -> str:
    """Why a file of this name is not read."""
    is_heic = Path(name).suffix.lower() in HEIC_EXTENSIONS
    return HEIC_REMEDY if is_heic else f"read are photographs named {', '.join(EXTENSIONS)}"


def warn_left_out(names: Sequence[str]) -> None:
    """Warn about files that are no photographs by name; HEIC files apart, with the remedy."""
    missed = [name for name in names if Path(name).name.lower() not in IGNORED_FILE_NAMES]
    for why, group in itertools.groupby(sorted(missed, key=why_left_out), why_left_out):
        warn_counted(list(group), f"files and folders left out, {why}")


def suggest_root(root: Path, kind: str) -> str:
    """A question naming the usual folder (train, eval) below `root`, empty where none exists."""
    paths = (root / above / kind for above in ("", "data", "input/data"))
    return next((f"did you mean {path}?" for path in paths if path.is_dir()), "")
