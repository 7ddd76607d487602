"""Checkpoints: their names and contents, the N best of a fold, the kfold tree, safe reading, a
run's state.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import registries
import run_directory
from labels import TASKS
from runtime.errors import (
    UserError,
    is_machine_error,
    is_rank_zero,
    plural,
    printable,
    read_error,
    reason,
    short_repr,
    warn,
)
from runtime.files import atomic_write, refuse_irregular, zip_members

FORMAT = 1
MAX_FOLDS = 1_000_000  # as --cv
# where other programs put a model's weights, beside other things
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
MAX_TEXT_CHARACTERS = 300  # characters of a text in a checkpoint's metadata


# --- names and contents


@dataclass(frozen=True)
class CheckpointInfo:
    """What is needed to use a checkpoint's weights alone."""

    model: str
    task: str
    transform: str
    backbone: str
    image_size: int
    # image size that the convolutions' padding was made for; None: the library's default
    padding: int | None
    fold: int
    epoch: int  # counted from 1
    macro_f1: float  # of the held-out people, in the task's classes
    loss: float
    scores: dict[str, float] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights. `info` is None for a bare state dict whose name does not tell enough
    either.
    """

    path: Path
    weights: dict[str, Tensor]
    info: CheckpointInfo | None
    bare: bool = (
        False  # the file is a state dict and nothing else, as the original entry wrote them
    )


FILE_NAME = re.compile(
    r"Fold(?P<fold>\d+)_(?P<model>\w+?)_task\((?P<task>[^)]+)\)ep\((?P<epoch>\d+)\)f1\((?P<f1>[^)]+)\)"
    r"bs\((?P<batch_size>\d+)\)loss\((?P<loss>[^)]+)\)lr\((?P<lr>[^)]+)\)trans\((?P<transform>[^)]+)\)"
    r"optim\((?P<optim>[^)]+)\)crit\((?P<loss_type>[^)]+)\)seed\((?P<seed>\d+)\)\.pth"
)


@dataclass(frozen=True)
class Hyperparameters:
    """What a checkpoint's name says of its training beside its CheckpointInfo."""

    batch_size: int
    lr: float | None
    optimizer: str
    loss: str | None
    seed: int


def file_name(info: CheckpointInfo, training: Hyperparameters) -> str:
    """Fold00_VanillaEfficientNet_task(main)ep(28)f1(0.8311)...seed(42).pth"""
    return (
        f"Fold{info.fold:02d}_{info.model}_task({info.task})ep({info.epoch})f1({info.macro_f1:.4f})"
        f"bs({training.batch_size})loss({info.loss:.4f})lr({training.lr!r})trans({info.transform})"
        f"optim({training.optimizer})crit({training.loss})seed({training.seed}).pth"
    )


def info_from_name(file: str) -> CheckpointInfo | None:
    """What an older file's name tells; its backbone, size and padding are the recipe's. None for
    another name.
    """
    # the original entry's single models have no fold
    match = FILE_NAME.fullmatch(file) or FILE_NAME.fullmatch(f"Fold00_{file}")
    name = model_names().get(match["model"], "") if match else ""
    model = registries.MODELS.get(name)
    if (
        not match
        or not model
        or match["task"] not in TASKS
        or match["transform"] not in registries.TRANSFORMS
    ):
        return None
    try:
        f1, loss = float(match["f1"]), float(match["loss"])
        fold, epoch = int(match["fold"]), int(match["epoch"])
    except ValueError:
        return None
    if not math.isfinite(f1) or fold > MAX_FOLDS:  # nothing could be ranked by it
        return None
    return CheckpointInfo(
        name, match["task"], match["transform"], model.backbone, 224, None, fold, epoch, f1, loss
    )


def model_names() -> dict[str, str]:
    """{name or alias: name} of all models."""
    return {
        known: name
        for name, entry in registries.MODELS.items()
        for known in (name, entry.alias)
        if known
    }


def info_of_older_file(path: Path, weights: dict[str, Tensor]) -> CheckpointInfo | None:
    """What is known of a file without metadata: by its name, or by `f1(0.81)` in it, the name of
    its tree (kfold-ensemble-<model>...) and the outputs of its last layer. None where that is not
    enough.
    """
    number = re.fullmatch(r"fold(\d{1,7})", path.absolute().parent.name)
    fold = min(int(number[1]), MAX_FOLDS) if number else 0
    info = info_from_name(path.name)
    if info is not None:
        return info if FILE_NAME.fullmatch(path.name) else dataclasses.replace(info, fold=fold)
    told = {
        name: re.search(rf"{name}\(([^)]+)\)", path.name) for name in ("f1", "ep", "task", "trans")
    }
    text = {name: match[1] if match else "" for name, match in told.items()}
    tree = path.absolute().parent.parent.name
    names = [
        name
        for name in model_names()
        if re.match(rf"{run_directory.RUN_DIR_PREFIX}{re.escape(name)}(?![A-Za-z0-9])", tree)
    ]
    if not number or not names or not re.fullmatch(r"\d{1,3}(\.\d{1,20})?", text["f1"]):
        return None
    model = model_names()[max(names, key=len)]
    outputs = weights["linear.bias"].numel() if "linear.bias" in weights else 0
    able = [task for task, spec in TASKS.items() if spec.outputs == outputs]
    task = text["task"] or (
        "main" if registries.MODELS[model].heads else able[0] if len(able) == 1 else ""
    )
    if task not in TASKS:
        return None
    transform = text["trans"] if text["trans"] in registries.TRANSFORMS else "base"
    epoch = int(text["ep"]) if re.fullmatch(r"\d{1,7}", text["ep"]) else 0
    return CheckpointInfo(
        model,
        task,
        transform,
        registries.MODELS[model].backbone,
        224,
        None,
        fold,
        epoch,
        float(text["f1"]),
        0.0,
    )


def save_checkpoint(path: Path, weights: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Save weights and what is needed to use them, as plain types and tensors, under the final name
    at once.
    """
    plain = {
        "format": FORMAT,
        "info": dataclasses.asdict(info),
        "state_dict": {k: v.cpu() for k, v in weights.items()},
    }
    with atomic_write(path) as file:
        torch.save(plain, file)


def safe_load(path: Path, mapped: bool = False) -> dict[str, Any]:
    """A dictionary from a torch file, unpickling nothing but plain types, tensors and argparse's
    bag of options, which others keep beside theirs. Raises UserError.

    mapped: read tensors from the file when they are used, not at once; cut short meanwhile, it
    would end the process.
    """
    try:
        refuse_irregular(path)
        refuse_packed(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch's, of odd pickles
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except (RuntimeError, ValueError):  # the format before torch 1.6 cannot be mapped
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # over damaged bytes the unpickler raises nearly every kind there is
        known = "" if is_machine_error(error) else describe_foreign_file(path)
        if known:
            raise UserError(f"{path}: {known}") from None
        # torch's own words advise to unpickle it all the same
        why = (
            "it holds more than tensors and plain types"
            if isinstance(error, pickle.UnpicklingError)
            else reason(error)
        )
        raise read_error(
            path, error, f"{path}: cannot be read safely as weights ({why}); use another file"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path}: holds a {type(loaded).__name__}, not weights; use a checkpoint or a state "
            "dict"
        )
    return loaded


def refuse_packed(path: Path) -> None:
    """Raise ValueError for a zip file that unpacks to more than it is, or is packed at all: torch
    writes none, a zip bomb is one.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch decides
            return
    members, held = zip_members(path), path.stat().st_size
    size = sum(member.file_size for member in members)
    if size > held or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"{size:,} bytes unpacked from {held:,}, and torch packs nothing")


# gzip, bzip2, xz, 7z, rar, zstandard
ARCHIVE_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")


def describe_foreign_file(path: Path) -> str:
    """What a file that torch cannot read is by its first bytes, and what to do; empty where they
    say nothing.
    """
    try:
        refuse_irregular(path)
        with open(path, "rb") as file:
            start, size = file.read(512), path.stat().st_size
        names: list[str] = []
        if start.startswith(b"PK\3\4"):
            with zipfile.ZipFile(path) as parts:
                names = parts.namelist()
    except Exception:  # as above
        return ""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer to the weights, not they themselves; fetch them with git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            "a web page, not weights (that about a file, or one that asks for a login); "
            "download the file itself"
        )
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript program, not weights; save the state_dict() of its model instead"
    if names and not any(name.endswith("data.pkl") for name in names):
        return (
            f"a zip file of other files ({printable(names[0])[:100]}); unpack it, and name the "
            "one with the weights"
        )
    if start.startswith(ARCHIVE_MAGIC):
        return "a packed file; unpack it, and name the file inside"
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file, of Keras perhaps; only files that torch.save wrote are read"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return (
            "a safetensors file; convert it by torch.save(safetensors.torch.load_file(PATH), NEW)"
        )
    return ""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else (hashlib.sha256(file.read()).hexdigest())
        )


def load_checkpoint(path: Path, mapped: bool = False) -> Checkpoint:
    """A checkpoint, or other weights described by their file's name where that tells enough. Raises
    UserError.

    Others' files may hold them in one entry beside other things, under names that all begin alike
    (`module.`): one line says so.
    """
    loaded = safe_load(path, mapped)
    if "state_dict" in loaded and ("info" in loaded or "format" in loaded):
        weights, info = loaded["state_dict"], _checked_info(loaded.get("info"), path)
        if not is_state_dict(weights):
            raise UserError(f"{path}: holds no state dict; use a checkpoint or a state dict")
        return Checkpoint(path, weights, info)
    weights = find_state_dict(loaded, path)
    prefix = common_prefix(weights)
    if prefix:
        note_once(path, f"all names of its weights begin with {prefix[:100]!r}, which is dropped")
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return Checkpoint(path, weights, info_of_older_file(path, weights), bare=is_state_dict(loaded))


def note_once(path: Path, text: str) -> None:
    """One line on how a file was read; for the many of a tree it is the same one."""
    if is_rank_zero():
        warn(
            f"{path.parent.parent if re.fullmatch(r'fold[0-9]+', path.parent.name) else path}: "
            f"{text}"
        )


def is_state_dict(value: object) -> bool:
    """Whether this is a dictionary of named tensors."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
        )
    )


def find_state_dict(loaded: dict[str, Any], path: Path, nested: bool = False) -> dict[str, Tensor]:
    """The state dict that a file is, or holds as one of its entries, or beside other things, which
    one line says. Raises UserError for none, and for several under unknown names.

    nested: `loaded` is such an entry itself.
    """
    if is_state_dict(loaded):
        return loaded
    parts = [
        name for name, value in loaded.items() if isinstance(name, str) and is_state_dict(value)
    ]
    known = [name for name in WRAPPER_KEYS if name in parts] or parts
    shown = ", ".join(short_repr(name) for name in parts[:5])
    if not known:
        inner = [loaded[key] for key in WRAPPER_KEYS if isinstance(loaded.get(key), dict)]
        if inner and not nested:
            return find_state_dict(inner[0], path, nested=True)
        flat = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if flat:
            others = plural(len(loaded) - len(flat), "entry is", "entries are")
            note_once(path, f"{others} no tensor beside its weights, and left out")
            return flat
        raise UserError(f"{path}: holds no state dict; use a checkpoint or a state dict")
    if len(known) > 1 and known[0] not in WRAPPER_KEYS:
        raise UserError(
            f"{path}: holds {len(parts)} state dicts ({shown}); save the one you mean in a file "
            "of its own"
        )
    note_once(
        path,
        f"its weights are those in {short_repr(known[0])}"
        + (f" (it holds {shown})" if len(parts) > 1 else ""),
    )
    weights: dict[str, Tensor] = loaded[known[0]]
    return weights


def common_prefix(names: Iterable[str]) -> str:
    """What all names begin with, up to a dot (`module.`); that of a single layer's is its own, and
    none.
    """
    names = list(names)
    first, last = (end.split(".")[:-1] for end in (min(names, default=""), max(names, default="")))
    shared = [
        part
        for part, _ in itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(first, last, strict=False)
        )
    ]
    if not any(name.count(".") > len(shared) for name in names):
        shared = shared[:-1]
    return "".join(f"{part}." for part in shared)


def _checked_info(plain: Any, path: Path) -> CheckpointInfo:
    if not isinstance(plain, dict):
        raise UserError(f"{path}: its metadata is missing; use another file")
    for member in dataclasses.fields(CheckpointInfo):
        value = plain.get(member.name)
        if member.name not in plain or not is_plain(value, str(member.type)):
            raise UserError(
                f"{path}: its metadata gives {member.name} as {short_repr(value)}; use another file"
            )
    info = CheckpointInfo(
        **{member.name: plain[member.name] for member in dataclasses.fields(CheckpointInfo)}
    )
    low, high = 16, 2048  # as --image-size
    sizes = low <= info.image_size <= high and (info.padding is None or low <= info.padding <= high)
    counts = all(0 <= count <= MAX_FOLDS for count in (info.fold, info.epoch))
    if not sizes or not 0 <= info.macro_f1 <= 1 or not counts:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {short_repr(getattr(info, name))}"
            for name in ("image_size", "padding", "macro_f1", "fold", "epoch")
        )
        raise UserError(f"{path}: its metadata is out of range ({shown}); use another file")
    known = (("model", registries.MODELS), ("task", TASKS), ("transform", registries.TRANSFORMS))
    for name, registry in known:
        if getattr(info, name) not in registry:
            raise UserError(
                f"{path}: its {name} {short_repr(getattr(info, name))} is unknown here; add it to "
                "registries.py"
            )
    try:
        registries.backbone_entry(info.backbone)
    except UserError as error:
        raise UserError(
            f"{path}: its metadata names a backbone that is unknown here ({error})"[:500]
        ) from None
    return info


def is_plain(value: object, kind: str) -> bool:
    """Whether a value of metadata is of the kind that a field of Info has, its texts no longer than
    MAX_TEXT_CHARACTERS.
    """
    if kind == "list[str]":
        return isinstance(value, list) and all(is_plain(each, "str") for each in value)
    if kind == "dict[str, float]":
        return isinstance(value, dict) and all(
            is_plain(k, "str") and isinstance(v, float) for k, v in value.items()
        )
    if kind == "str":
        return isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS
    return type(value).__name__ in kind.replace("None", "NoneType").split(" | ")


# --- a fold while it runs


@dataclass
class KeptCheckpoint:
    """One of a fold's best checkpoints."""

    file: str
    epoch: int
    macro_f1: float

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts the best first: higher macro F1, then the earlier epoch."""
        return (-self.macro_f1, self.epoch)


def save_if_best(
    folder: Path,
    kept: list[KeptCheckpoint],
    new: KeptCheckpoint,
    weights: dict[str, Tensor],
    info: CheckpointInfo,
    top: int,
) -> None:
    """Save the new checkpoint if it is among the `top` best; updates `kept`. What it displaces
    stays (see `delete_displaced`).
    """
    ranked = sorted([*kept, new], key=lambda k: k.rank)
    if new not in ranked[top:]:
        save_checkpoint(folder / new.file, weights, info)
        kept[:] = ranked[:top]


def delete_displaced(folder: Path, kept: list[KeptCheckpoint]) -> None:
    """Delete the checkpoints of a fold that are not among its best.

    Called after the state that lists `kept` is safe on the disk, so that every file which a state
    lists exists.
    """
    files = {best.file for best in kept}
    for path in folder.glob("*.pth"):
        if path.name not in files and FILE_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def load_described(
    path: Path, model: str | None = None, task: str = "main", mapped: bool = True
) -> tuple[Checkpoint, CheckpointInfo]:
    """A checkpoint that tells what it is; of a bare state dict, model and task may do so. Raises
    UserError for another.
    """
    found = load_checkpoint(path, mapped)
    info = found.info
    if info is None and model is not None:
        info = CheckpointInfo(
            model,
            task,
            "base",
            registries.MODELS[model].backbone,
            224,
            None,
            fold=0,
            epoch=0,
            macro_f1=0.0,
            loss=0.0,
        )
    if info is None:
        raise UserError(
            f"{path}: a bare state dict whose name does not tell its model and task; name it as "
            "train.py does, or "
            "tell both to submit_singular.py (--model-type, --task)"
        )
    return (
        dataclasses.replace(found, weights=reorder_mask_outputs(found.weights, info, path))
        if found.bare
        else found
    ), info


def reorder_mask_outputs(
    weights: dict[str, Tensor], info: CheckpointInfo, path: Path
) -> dict[str, Tensor]:
    """A bare file's weights with the mask head's outputs in today's order: the original entry,
    whose files had no metadata, numbered a mask worn incorrectly 0 and one worn rightly 1. One line
    says so.
    """
    layer = (
        "linear_mask"
        if registries.MODELS[info.model].heads
        else "linear"
        if info.task == "mask"
        else ""
    )
    swapped = {
        name: weights[name][[1, 0, 2]]
        for name in (f"{layer}.weight", f"{layer}.bias")
        if name in weights
        and weights[name].shape[:1] == (3,)
        and weights[name].layout == torch.strided
        and weights[name].is_floating_point()
    }
    if swapped:
        note_once(
            path,
            "without metadata, so by the original entry: its mask outputs incorrect, wear are "
            "taken as wear, incorrect",
        )
    return {**weights, **swapped}


def load_ranked(folder: Path) -> list[tuple[Checkpoint, CheckpointInfo]]:
    """A fold's checkpoints, the best by validation macro F1 first."""
    found = [load_described(path) for path in run_directory.fold_checkpoints(folder)]
    return sorted(found, key=lambda pair: (-pair[1].macro_f1, pair[1].epoch, pair[0].path.name))


def member_name(path: Path, tree: Path) -> str:
    """fold00/Fold00_...: a checkpoint's name within its tree; one that lacks its fold gets it, as
    each names a table.
    """
    inside = path.relative_to(tree)
    own = (
        inside.name
        if re.match(r"Fold\d+_", inside.name)
        else f"{path.parent.name.capitalize()}_{inside.name}"
    )
    return inside.with_name(own).as_posix()
