"""Weights of any origin, read safely: state dicts, alone or inside other things."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import pickle
import re
import socket
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from runtime import errors
from runtime.errors import UserError, is_rank_zero, path_error, plural, reason, short_repr, warn
from runtime.files import check_members, refuse_irregular, zip_members

DOWNLOAD_TIMEOUT_SECONDS = 30
# where other programs put a model's weights, beside other things
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
FOREIGN_FILES = {  # the first bytes, in lower case: what the file is, and what to do
    (b"version https://git-lfs",): "a Git LFS pointer to the weights; run git lfs pull",
    (b"<!doctype", b"<html", b"<head", b"<?xml"): "a web page, not weights; download the file",
    # gzip, bzip2, xz, 7z, rar, zstandard
    (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!", b"\x28\xb5\x2f\xfd"): (
        "a packed file; unpack it, and name the file inside"
    ),
    (b"\x89hdf",): "an HDF5 file, of Keras perhaps; only files of torch.save are read",
}


def load_published(url: str, remedy: str) -> dict[str, Any]:
    """A state dict from torch's cache, or downloaded into it; the file's name ends in the start of
    its SHA-256. Raises UserError, whose text ends in the remedy.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    prefix, timeout = path.stem.rpartition("-")[2], socket.getdefaulttimeout()
    if path.is_file():
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(prefix):
            warn(f"{path}: not the published file (another SHA-256); it is used as it is")
        return safe_load(path)
    try:
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=True)
    except (OSError, RuntimeError) as error:  # also URLError
        raise UserError(
            f"--pretrained imagenet: the weights could not be downloaded from {url} ({error}); put "
            f"that file at {path}, or {remedy}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return safe_load(path)


def safe_load(path: Path, mapped: bool = False, remedy: str = "use another file") -> dict[str, Any]:
    """A dictionary from a torch file, unpickling nothing but plain types, tensors and argparse's
    Namespace. Raises UserError, whose text ends in the remedy. mapped: read tensors when they are
    used; if the file is cut short meanwhile, the process dies.
    """
    try:
        refuse_irregular(path)
        if not path.stat().st_size:
            raise ValueError("it is empty")
        mapped = is_uncompressed_zip(path) and mapped
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch's, of odd pickles
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # over damaged bytes the unpickler raises nearly every kind
        if errors.system_cause(error) is not None:
            raise path_error(path, error, remedy, "read") from None
        # torch's message advises to unpickle everything
        unsafe = isinstance(error, pickle.UnpicklingError)
        why = (
            "no torch file, or it holds more than tensors and plain types"
            if unsafe
            else reason(error)
        )
        problem = f"cannot be read safely as weights ({why}); {remedy}"
        raise UserError(f"{path}: {describe_foreign_file(path) or problem}") from None
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise UserError(f"{path}: holds a {kind}, not weights; use a checkpoint or a state dict")
    return loaded


def is_uncompressed_zip(path: Path) -> bool:
    """Whether a file is of torch's format since 1.6; that before cannot be mapped. Raises
    ValueError for a damaged one, and one with compressed parts: torch writes none, zip bombs have.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch decides
            return False
    members, file_size = zip_members(path), path.stat().st_size
    size = sum(member.file_size for member in members)
    if size > file_size or any(part.compress_type != zipfile.ZIP_STORED for part in members):
        raise ValueError(f"{size:,} bytes unpacked from {file_size:,}; torch compresses nothing")
    check_members(path, members)
    return True


def describe_foreign_file(path: Path) -> str:
    """What a file that torch cannot read is, and what to do; empty where it is not known."""
    with open(path, "rb") as file:
        start = file.read(512)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for first_bytes, description in FOREIGN_FILES.items():
        if text.startswith(first_bytes):
            return description
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "a safetensors file; convert it: torch.save(safetensors.torch.load_file(PATH), NEW)"
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as parts:  # may be damaged, or none
        names = parts.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            return "a TorchScript program, not weights; save the state_dict() of its model instead"
        if not any(name.endswith("data.pkl") for name in names):
            others = f"a zip file of other files ({names[0][:100]})"
            return f"{others}; unpack it, and name the one with the weights"
    return ""


def note_once(path: Path, text: str) -> None:
    """Warn of how a file was read, once for all files of a run."""
    if is_rank_zero():
        in_run = re.fullmatch(r"fold[0-9]+", path.parent.name)
        warn(f"{path.parent.parent if in_run else path}: {text}")


def is_state_dict(value: object) -> bool:
    """Whether this is a dictionary of named tensors, and not empty."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def find_state_dict(loaded: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict that a file is, or holds, without a prefix that all its names share; warnings
    say so. Raises UserError for none, and for several under unknown names.
    """
    weights = loaded if is_state_dict(loaded) else _unwrap(loaded, path)
    prefix = common_prefix(weights)
    if prefix:
        note_once(path, f"all its weights' names begin with {prefix[:100]!r}, which is dropped")
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def _unwrap(loaded: dict[str, Any], path: Path) -> dict[str, Tensor]:
    wrapped = [loaded[key] for key in WRAPPER_KEYS if isinstance(loaded.get(key), dict)]
    if wrapped and not any(map(is_state_dict, loaded.values())):
        loaded = wrapped[0]
    parts = {k: v for k, v in loaded.items() if isinstance(k, str) and is_state_dict(v)}
    shown = ", ".join(map(short_repr, list(parts)[:5]))
    if len(parts) > 1 and parts.keys().isdisjoint(WRAPPER_KEYS):
        several = f"{len(parts)} state dicts ({shown})"
        raise UserError(f"{path}: holds {several}; save the one you mean in a file of its own")
    if parts:
        key = next(key for key in [*WRAPPER_KEYS, *parts] if key in parts)
        others = f" (it holds {shown})" if len(parts) > 1 else ""
        note_once(path, f"its weights are those in {short_repr(key)}{others}")
        return parts[key]
    tensors = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no state dict; use a checkpoint or a state dict")
    others = plural(len(loaded) - len(tensors), "entry is", "entries are")
    note_once(path, f"{others} no tensor beside its weights, and left out")
    return tensors


def common_prefix(names: Iterable[str]) -> str:
    """What all names begin with, up to a dot (`module.`), but no layer's whole name."""
    layers = {tuple(name.split(".")[:-1]) for name in names}
    levels = zip(*layers, strict=False)
    shared = [parts[0] for parts in itertools.takewhile(lambda p: len({*p}) == 1, levels)]
    return "".join(f"{part}." for part in (shared[:-1] if len(layers) == 1 else shared))
