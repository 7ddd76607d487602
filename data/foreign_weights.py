"""Weights as other programs write them: state dicts inside other things, files of other kinds."""

from __future__ import annotations

import contextlib
import itertools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.errors import UserError, is_rank_zero, plural, printable, short_repr, warn

# where other programs put a model's weights, beside other things
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
FOREIGN_FILES = (  # the first bytes, in lower case; what the file is, and what to do
    ((b"version https://git-lfs",), "a Git LFS pointer to the weights; run git lfs pull"),
    ((b"<!doctype", b"<html", b"<head", b"<?xml"), "a web page, not weights; download the file"),
    (  # gzip, bzip2, xz, 7z, rar, zstandard
        (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!", b"\x28\xb5\x2f\xfd"),
        "a packed file; unpack it, and name the file inside",
    ),
    ((b"\x89hdf",), "an HDF5 file, of Keras perhaps; only files of torch.save are read"),
)


def describe_foreign_file(path: Path) -> str:
    """What a file that torch cannot read is, and what to do; empty where it is not known."""
    with open(path, "rb") as file:
        start = file.read(512)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for first_bytes, description in FOREIGN_FILES:
        if text.startswith(first_bytes):
            return description
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "a safetensors file; convert it: torch.save(safetensors.torch.load_file(PATH), NEW)"
    names: list[str] = []
    if start.startswith(b"PK\3\4"):
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as parts:  # may be damaged
            names = parts.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript program, not weights; save the state_dict() of its model instead"
    if names and not any(name.endswith("data.pkl") for name in names):
        first = printable(names[0])[:100]
        return f"a zip file of other files ({first}); unpack it, and name the one with the weights"
    return ""


def note_once(path: Path, text: str) -> None:
    """Warn of how a file was read, once for all files of a run."""
    if is_rank_zero():
        in_run = re.fullmatch(r"fold[0-9]+", path.parent.name)
        warn(f"{path.parent.parent if in_run else path}: {text}")


def is_state_dict(value: object) -> bool:
    """Whether this is a dictionary of named tensors, and not empty."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def find_state_dict(loaded: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict that a file is, or holds in one of its entries, or beside other things; a
    warning says which. Raises UserError for none, and for several under unknown names.
    """
    if is_state_dict(loaded):
        return loaded
    wrapped = [loaded[key] for key in WRAPPER_KEYS if isinstance(loaded.get(key), dict)]
    if wrapped and not any(map(is_state_dict, loaded.values())):
        loaded = wrapped[0]
    parts = {k: v for k, v in loaded.items() if isinstance(k, str) and is_state_dict(v)}
    if not parts:
        tensors = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if not tensors:
            raise UserError(f"{path}: holds no state dict; use a checkpoint or a state dict")
        others = plural(len(loaded) - len(tensors), "entry is", "entries are")
        note_once(path, f"{others} no tensor beside its weights, and left out")
        return tensors
    shown = ", ".join(short_repr(name) for name in list(parts)[:5])
    name = next((key for key in WRAPPER_KEYS if key in parts), "")
    if len(parts) > 1 and not name:
        several = f"{len(parts)} state dicts ({shown})"
        raise UserError(f"{path}: holds {several}; save the one you mean in a file of its own")
    name = name or next(iter(parts))
    others = f" (it holds {shown})" if len(parts) > 1 else ""
    note_once(path, f"its weights are those in {short_repr(name)}{others}")
    return parts[name]


def common_prefix(names: Iterable[str]) -> str:
    """What all names begin with, up to a dot (`module.`), but no layer's whole name."""
    layers = {tuple(name.split(".")[:-1]) for name in names}
    levels = zip(*layers, strict=False)
    shared = [parts[0] for parts in itertools.takewhile(lambda p: len({*p}) == 1, levels)]
    return "".join(f"{part}." for part in (shared[:-1] if len(layers) == 1 else shared))
