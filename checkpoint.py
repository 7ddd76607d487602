"""Checkpoints: file names, contents, safe reading, the N best of a fold."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import registries
import run_directory
from data import foreign_weights
from labels import TASKS
from runtime.errors import UserError, path_error, reason, short_repr
from runtime.files import atomic_write, refuse_irregular, zip_members

FORMAT = 1
MAX_FOLDS = 1_000_000  # as --cv
MAX_TEXT_CHARACTERS = 300  # of a text in a checkpoint's metadata
METADATA_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (16, 2048),  # as --image-size
    "padding": (16, 2048),
    "fold": (0, MAX_FOLDS),
    "epoch": (0, MAX_FOLDS),
    "macro_f1": (0, 1),
}


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
    """A file of weights. `info` is None for a bare state dict whose name does not describe it."""

    path: Path
    weights: dict[str, Tensor]
    info: CheckpointInfo | None
    bare: bool = False  # a state dict and nothing else, as the original entry wrote them


@dataclass(frozen=True)
class Hyperparameters:
    """What a checkpoint's name says of its training beside its CheckpointInfo."""

    batch_size: int
    lr: float | None
    optim: str
    loss_type: str | None
    seed: int


# how a value is written (a format spec), and the pattern that reads it
TEXT, INTEGER, FOUR_DECIMALS = ("", "[^)]+"), ("d", r"\d+"), (".4f", "[^)]+")
# `label(value)` in a checkpoint's name, in order; the value is that field of CheckpointInfo or
# Hyperparameters
NAME_FIELDS = (
    ("task", "task", TEXT),
    ("ep", "epoch", INTEGER),
    ("f1", "macro_f1", FOUR_DECIMALS),
    ("bs", "batch_size", INTEGER),
    ("loss", "loss", FOUR_DECIMALS),
    ("lr", "lr", TEXT),
    ("trans", "transform", TEXT),
    ("optim", "optim", TEXT),
    ("crit", "loss_type", TEXT),
    ("seed", "seed", INTEGER),
)
FILE_NAME = re.compile(
    r"Fold(?P<fold>\d+)_(?P<model>\w+?)_"
    + "".join(rf"{label}\((?P<{name}>{form[1]})\)" for label, name, form in NAME_FIELDS)
    + r"\.pth"
)


def file_name(info: CheckpointInfo, training: Hyperparameters) -> str:
    """Fold00_VanillaEfficientNet_task(main)ep(28)f1(0.8311)...seed(42).pth"""
    values = {**vars(info), **vars(training)}
    parts = (f"{label}({values[name]:{form[0]}})" for label, name, form in NAME_FIELDS)
    return f"Fold{info.fold:02d}_{info.model}_{''.join(parts)}.pth"


def info_from_values(values: dict[str, str]) -> CheckpointInfo | None:
    """Of a file without metadata, by the values in its name; None where one of them is invalid.
    Backbone, image size and padding are the original entry's.
    """
    values = {"transform": "base", "fold": "0", "epoch": "0", "macro_f1": "0", "loss": "0"} | values
    model, task, transform = model_names().get(values["model"]), values["task"], values["transform"]
    if not model or task not in TASKS or transform not in registries.TRANSFORMS:
        return None
    try:
        fold, epoch = int(values["fold"]), int(values["epoch"])
        macro_f1, loss = float(values["macro_f1"]), float(values["loss"])
    except ValueError:
        return None
    if not math.isfinite(macro_f1) or fold > MAX_FOLDS:  # such a checkpoint cannot be ranked
        return None
    backbone = registries.MODELS[model].backbone
    return CheckpointInfo(model, task, transform, backbone, 224, None, fold, epoch, macro_f1, loss)


def info_from_name(file: str) -> CheckpointInfo | None:
    """What the name of a checkpoint says; None for any other name."""
    # the original entry's single models have no fold
    match = FILE_NAME.fullmatch(file) or FILE_NAME.fullmatch(f"Fold00_{file}")
    return info_from_values(match.groupdict()) if match else None


def model_names() -> dict[str, str]:
    """{name or alias: name} of all models."""
    models = registries.MODELS.items()
    return {known: name for name, entry in models for known in (name, entry.alias) if known}


def info_of_older_file(path: Path, weights: dict[str, Tensor]) -> CheckpointInfo | None:
    """What is known of a file without metadata: by its name, or by `f1(0.81)` in it, the name of
    its run's folder (kfold-ensemble-<model>...) and the outputs of its last layer. None where that
    is not enough.
    """
    fold_dir = path.absolute().parent
    fold = re.fullmatch(r"fold(\d{1,6})", fold_dir.name)
    info = info_from_name(f"Fold{fold[1]}_{path.name}") if fold else None
    info = info or info_from_name(path.name)
    if info is not None:
        return info
    longest_first = sorted(map(re.escape, model_names()), key=len, reverse=True)
    run_pattern = rf"{run_directory.RUN_DIR_PREFIX}({'|'.join(longest_first)})(?![A-Za-z0-9])"
    model = re.match(run_pattern, fold_dir.parent.name)
    patterns = {
        "macro_f1": r"f1\((\d{1,3}(?:\.\d{1,20})?)\)",
        "task": r"task\(([^)]+)\)",
        "epoch": r"ep\((\d{1,7})\)",
        "transform": rf"trans\(({'|'.join(registries.TRANSFORMS)})\)",
    }
    matches = {name: re.search(pattern, path.name) for name, pattern in patterns.items()}
    values = {name: match[1] for name, match in matches.items() if match}
    if not fold or not model or "macro_f1" not in values:
        return None
    if "task" not in values:
        outputs = weights["linear.bias"].numel() if "linear.bias" in weights else 0
        tasks = [task for task, spec in TASKS.items() if spec.outputs == outputs]
        several_heads = registries.MODELS[model_names()[model[1]]].heads
        values["task"] = "main" if several_heads else tasks[0] if len(tasks) == 1 else ""
    return info_from_values({**values, "model": model[1], "fold": fold[1]})


def save_checkpoint(path: Path, weights: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Save weights and their metadata as plain types and tensors, whole or not at all."""
    content = {
        "format": FORMAT,
        "info": dataclasses.asdict(info),
        "state_dict": {name: value.cpu() for name, value in weights.items()},
    }
    with atomic_write(path) as file:
        torch.save(content, file)


# --- safe reading


def safe_load(path: Path, mapped: bool = False) -> dict[str, Any]:
    """A dictionary from a torch file, unpickling nothing but plain types, tensors and argparse's
    Namespace, which others keep beside their weights. Raises UserError.

    mapped: read tensors from the file when they are used. If the file is cut short meanwhile, the
    process dies.
    """
    try:
        refuse_irregular(path)
        refuse_compressed(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch's, of odd pickles
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except (RuntimeError, ValueError):  # the format before torch 1.6 cannot be mapped
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise path_error(path, error, "use another file", "read") from None
    except Exception as error:  # over damaged bytes the unpickler raises nearly every kind
        # torch's message advises to unpickle everything
        unsafe = isinstance(error, pickle.UnpicklingError)
        why = "it holds more than tensors and plain types" if unsafe else reason(error)
        problem = f"cannot be read safely as weights ({why}); use another file"
        problem = foreign_weights.describe_foreign_file(path) or problem
        raise UserError(f"{path}: {problem}") from None
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise UserError(f"{path}: holds a {kind}, not weights; use a checkpoint or a state dict")
    return loaded


def refuse_compressed(path: Path) -> None:
    """Raise ValueError for a zip file with compressed parts: torch writes none, zip bombs have."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch decides
            return
    members, file_size = zip_members(path), path.stat().st_size
    size = sum(member.file_size for member in members)
    if size > file_size or any(part.compress_type != zipfile.ZIP_STORED for part in members):
        raise ValueError(f"{size:,} bytes unpacked from {file_size:,}; torch compresses nothing")


def load_checkpoint(path: Path, mapped: bool = False) -> Checkpoint:
    """A checkpoint, or other weights, described by their file's name where possible. Raises
    UserError.

    Others' files may hold the weights in one entry beside other things, or under names with a
    common prefix (`module.`): a warning says so.
    """
    loaded = safe_load(path, mapped)
    weights = loaded.get("state_dict", {})
    if foreign_weights.is_state_dict(weights) and ("info" in loaded or "format" in loaded):
        try:
            return Checkpoint(path, weights, checked_info(loaded.get("info")))
        except ValueError as error:
            raise UserError(f"{path}: its {error}; use another file") from None
    weights = foreign_weights.find_state_dict(loaded, path)
    prefix = foreign_weights.common_prefix(weights)
    if prefix:
        note = f"all names of its weights begin with {prefix[:100]!r}, which is dropped"
        foreign_weights.note_once(path, note)
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    info, bare = info_of_older_file(path, weights), foreign_weights.is_state_dict(loaded)
    return Checkpoint(path, weights, info, bare)


def checked_info(plain: Any) -> CheckpointInfo:
    """A checkpoint's metadata. Raises ValueError where it is of wrong types, out of range, or names
    something unknown.
    """
    if not isinstance(plain, dict):
        raise ValueError("metadata is missing")
    fields = dataclasses.fields(CheckpointInfo)
    for member in fields:
        value = plain.get(member.name)
        if member.name not in plain or not is_plain(value, str(member.type)):
            raise ValueError(f"metadata gives {member.name} as {short_repr(value)}")
    for name, (low, high) in METADATA_RANGES.items():
        value = plain[name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"metadata is out of range ({name} {short_repr(value)})")
    known: dict[str, Container[str]] = {
        "model": registries.MODELS,
        "task": TASKS,
        "transform": registries.TRANSFORMS,
    }
    unknown = [name for name, registry in known.items() if plain[name] not in registry]
    try:
        registries.backbone_entry(plain["backbone"])
    except UserError:
        unknown.append("backbone")
    if unknown:
        value = short_repr(plain[unknown[0]])
        raise ValueError(f"{unknown[0]} {value} is unknown here (not in registries.py)")
    return CheckpointInfo(**{member.name: plain[member.name] for member in fields})


def is_plain(value: object, kind: str) -> bool:
    """Whether a value has the type that a field of CheckpointInfo is annotated with, its texts no
    longer than MAX_TEXT_CHARACTERS.
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


def load_described(
    path: Path, model: str | None = None, task: str = "main", mapped: bool = True
) -> tuple[Checkpoint, CheckpointInfo]:
    """A checkpoint and its metadata. `model` and `task` describe a bare state dict that does not
    say them itself. Raises UserError where nothing does.
    """
    stored = load_checkpoint(path, mapped)
    info = stored.info or (info_from_values({"model": model, "task": task}) if model else None)
    if info is None:
        raise UserError(
            f"{path}: a bare state dict whose name does not tell its model and task; name it as "
            "train.py does, or give submit_singular.py --model-type and --task"
        )
    if stored.bare:
        weights = reorder_mask_outputs(stored.weights, info, path)
        stored = dataclasses.replace(stored, weights=weights)
    return stored, info


def reorder_mask_outputs(
    weights: dict[str, Tensor], info: CheckpointInfo, path: Path
) -> dict[str, Tensor]:
    """A bare file's weights with the mask head's outputs in today's order: the original entry
    numbered a mask worn incorrectly 0 and one worn rightly 1. A warning says so.
    """
    if registries.MODELS[info.model].heads:
        layer = "linear_mask"
    elif info.task == "mask":
        layer = "linear"
    else:
        return weights
    swapped = {
        name: value[[1, 0, 2]]
        for name, value in weights.items()
        if name in (f"{layer}.weight", f"{layer}.bias")
        and value.shape[:1] == (3,)
        and value.layout == torch.strided
        and value.is_floating_point()
    }
    if swapped:
        order = "its mask outputs incorrect, wear are taken as wear, incorrect"
        foreign_weights.note_once(path, f"without metadata, so by the original entry: {order}")
    return {**weights, **swapped}


# --- a fold's checkpoints


@dataclass
class KeptCheckpoint:
    """One of a fold's best checkpoints."""

    file: str
    epoch: int
    macro_f1: float


def rank(checkpoint: KeptCheckpoint | CheckpointInfo) -> tuple[float, int]:
    """Sorts the best first: higher macro F1, then the earlier epoch."""
    return (-checkpoint.macro_f1, checkpoint.epoch)


def save_if_best(
    folder: Path,
    kept: list[KeptCheckpoint],
    new: KeptCheckpoint,
    weights: dict[str, Tensor],
    info: CheckpointInfo,
    top: int,
) -> None:
    """Save the new checkpoint if it is among the `top` best, and update `kept`. The file that it
    displaces stays until `delete_displaced`.
    """
    ranked = sorted([*kept, new], key=rank)
    if new not in ranked[top:]:
        save_checkpoint(folder / new.file, weights, info)
        kept[:] = ranked[:top]


def delete_displaced(folder: Path, kept: list[KeptCheckpoint]) -> None:
    """Delete a fold's checkpoints that are not among its best.

    Call it after the state that lists `kept` is on the disk, so that every listed file exists.
    """
    files = {best.file for best in kept}
    for path in folder.glob("*.pth"):
        if path.name not in files and FILE_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def load_ranked(folder: Path) -> list[tuple[Checkpoint, CheckpointInfo]]:
    """A fold's checkpoints, the best by validation macro F1 first."""
    described = [load_described(path) for path in run_directory.fold_checkpoints(folder)]
    return sorted(described, key=lambda pair: (rank(pair[1]), pair[0].path.name))


def member_name(path: Path, run_dir: Path) -> str:
    """fold00/Fold00_...: a checkpoint's name within its run; a name without its fold gets it."""
    inside = path.relative_to(run_dir)
    if not re.match(r"Fold\d+_", path.name):
        inside = inside.with_name(f"{path.parent.name.capitalize()}_{path.name}")
    return inside.as_posix()
