"""Checkpoints: their file names, what they hold, the N best of a fold."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import config
import registries
import run_directory
from data import weight_files
from labels import TASKS
from runtime.errors import UserError, short_repr
from runtime.files import atomic_write

Weights = dict[str, Tensor]
FORMAT = 1
# of files without metadata whose name tells no task: by the outputs of the last layer
TASK_OF_OUTPUTS = {18: "main", 2: "gender", 1: "age"}
MAX_FOLDS = 1_000_000  # as --cv
MAX_TEXT_CHARACTERS = 300  # of a text in a checkpoint's metadata
# a checkpoint's name; the values are those of CheckpointInfo and config.OptimSettings
NAME_FORMAT = (
    "Fold{fold:02d}_{model}_task({task})ep({epoch})f1({macro_f1:.4f})bs({batch_size})"
    "loss({loss:.4f})lr({lr})trans({transform})optim({optim_type})crit({loss_type})seed({seed}).pth"
)


def name_pattern() -> str:
    """NAME_FORMAT as a regular expression; fields after the seed, newer ones, may be absent."""
    pattern, newer = "", ""
    for text, name, *_ in string.Formatter().parse(NAME_FORMAT):
        value = f"(?P<{name}>[^()]+?)){newer}" if name else ")"
        pattern += f"(?:{re.escape(text)}{value}"
        newer = "?" if name == "seed" else newer
    return pattern


FILE_NAME = re.compile(name_pattern())


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
    """A file of weights."""

    name: str  # of its predictions: the file's, in a vote that within the run or runs
    path: Path
    weights: Weights
    known_info: CheckpointInfo | None  # None for a bare state dict whose name does not describe it

    @property
    def info(self) -> CheckpointInfo:
        """Raises UserError where nothing describes the weights."""
        if self.known_info is None:
            problem = "a bare state dict whose name does not tell its model and task"
            remedy = "name it as train.py does, or give submit_singular.py --model-type and --task"
            raise UserError(f"{self.path}: {problem}; {remedy}")
        return self.known_info


def file_name(info: CheckpointInfo, training: config.OptimSettings) -> str:
    """Fold00_VanillaEfficientNet_task(main)ep(28)f1(0.8311)...seed(42).pth"""
    return NAME_FORMAT.format(**vars(info), **vars(training))


def model_names() -> dict[str, str]:
    """{name or alias: name} of all models."""
    models = registries.MODELS.items()
    return {known: name for name, entry in models for known in (name, entry.alias) if known}


def info_from_values(values: Mapping[str, str]) -> CheckpointInfo | None:
    """Of a file without metadata, by the values in its name; None where one is invalid."""
    try:
        model = model_names()[values["model"]]
        fold, epoch = (int(values.get(name, 0)) for name in ("fold", "epoch"))
        macro_f1, loss = (float(values.get(name, 0)) for name in ("macro_f1", "loss"))
        transform, backbone = values.get("transform", "base"), registries.MODELS[model].backbone
        # image size and padding are the original entry's
        info = CheckpointInfo(
            model, values["task"], transform, backbone, 224, None, fold, epoch, macro_f1, loss
        )
        return checked_info(vars(info))
    except (KeyError, ValueError):
        return None


def info_from_name(file: str) -> CheckpointInfo | None:
    """What the name of a checkpoint says; None for any other name."""
    # the original entry's single models have no fold
    match = FILE_NAME.fullmatch(file) or FILE_NAME.fullmatch(f"Fold00_{file}")
    return info_from_values(match.groupdict()) if match else None


def info_of_older_file(path: Path, weights: Weights) -> CheckpointInfo | None:
    """What is known of a file without metadata: by its name, or by `f1(0.81)` in it, its run's
    folder (kfold-ensemble-<model>...) and its last layer's outputs. None where it is not enough.
    """
    fold_dir = path.absolute().parent
    fold = fold_dir.name.removeprefix("fold")
    info = info_from_name(f"Fold{fold}_{path.name}") or info_from_name(path.name)
    labels = {"f1": "macro_f1", "task": "task", "ep": "epoch", "trans": "transform"}
    pairs = re.findall(rf"({'|'.join(labels)})\(([^()]+)\)", path.name)
    values = {labels[label]: value for label, value in pairs}
    run_name = fold_dir.parent.name.removeprefix(run_directory.RUN_DIR_PREFIX)
    models = [name for name in model_names() if re.match(rf"{name}(?![A-Za-z0-9])", run_name)]
    if info is not None or "macro_f1" not in values or not models:
        return info
    model = model_names()[max(models, key=len)]
    outputs = weights["linear.bias"].numel() if "linear.bias" in weights else 0
    task = "main" if registries.MODELS[model].heads else TASK_OF_OUTPUTS.get(outputs, "")
    if values.get("transform") not in registries.TRANSFORMS:
        values["transform"] = "base"
    return info_from_values({"task": task, **values, "model": model, "fold": fold})


def save_checkpoint(path: Path, weights: Weights, info: CheckpointInfo) -> None:
    """Save weights and their metadata as plain types and tensors, whole or not at all."""
    content = {
        "format": FORMAT,
        "info": dataclasses.asdict(info),
        "state_dict": {name: value.cpu() for name, value in weights.items()},
    }
    with atomic_write(path) as file:
        torch.save(content, file)


def load_checkpoint(
    path: Path, mapped: bool = False, model: str | None = None, task: str = "main"
) -> Checkpoint:
    """A checkpoint, or other weights (as weight_files.find_state_dict takes them), described by
    their file's name, else by `model` and `task`. Raises UserError.
    """
    loaded = weight_files.safe_load(path, mapped)
    weights = loaded.get("state_dict", {})
    if weight_files.is_state_dict(weights) and ("info" in loaded or "format" in loaded):
        try:
            return Checkpoint(path.name, path, weights, checked_info(loaded.get("info")))
        except ValueError as error:
            raise UserError(f"{path}: its {error}; use another file") from None
    weights = weight_files.find_state_dict(loaded, path)
    info = info_of_older_file(path, weights)
    if info is None and model is not None:
        info = info_from_values({"model": model, "task": task})
    if info is not None and weight_files.is_state_dict(loaded):
        weights = reorder_mask_outputs(weights, info, path)
    return Checkpoint(path.name, path, weights, info)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS


def _is_backbone(value: Any) -> bool:
    try:
        return _is_text(value) and bool(registries.backbone_entry(value))
    except UserError:
        return False


def _between(kind: type, low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in [kind] and low <= value <= high


# which values a checkpoint's metadata may have
FIELD_CHECKS: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: value in [*registries.MODELS],
    "task": lambda value: value in [*TASKS],
    "transform": lambda value: value in [*registries.TRANSFORMS],
    "backbone": _is_backbone,
    "image_size": _between(int, 16, 2048),  # as --image-size
    "padding": lambda value: value is None or _between(int, 16, 2048)(value),
    "fold": _between(int, 0, MAX_FOLDS),
    "epoch": _between(int, 0, MAX_FOLDS),
    "macro_f1": _between(float, 0, 1),
    "loss": lambda value: type(value) is float,
    "scores": lambda value: (
        isinstance(value, dict)
        and all(_is_text(name) and type(score) is float for name, score in value.items())
    ),
    "held_out": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}


def checked_info(plain: Any) -> CheckpointInfo:
    """A checkpoint's metadata. Raises ValueError for values that FIELD_CHECKS refuses."""
    if not isinstance(plain, dict):
        raise ValueError("metadata is missing")
    try:  # a checkpoint from before a field lacks it, and takes its default
        info = CheckpointInfo(**{name: plain[name] for name in FIELD_CHECKS if name in plain})
    except TypeError as error:
        raise ValueError(f"metadata is incomplete ({error})") from None
    for name, is_valid in FIELD_CHECKS.items():
        if not is_valid(getattr(info, name)):
            value = short_repr(getattr(info, name))
            raise ValueError(f"metadata gives {name} as {value}, unknown here or out of range")
    return info


def reorder_mask_outputs(weights: Weights, info: CheckpointInfo, path: Path) -> Weights:
    """A bare file's weights with the mask head's outputs in today's order: the original entry
    numbered a mask worn incorrectly 0 and one worn rightly 1. A warning says so.
    """
    layer = "linear_mask" if registries.MODELS[info.model].heads else "linear"
    swapped = {}
    if layer == "linear_mask" or info.task == "mask":
        for name in weights.keys() & {f"{layer}.weight", f"{layer}.bias"}:
            value = weights[name]
            is_plain = value.layout == torch.strided and value.is_floating_point()
            if is_plain and value.shape[:1] == (3,):
                swapped[name] = value[[1, 0, 2]]
    if swapped:
        order = "its mask outputs incorrect, wear are taken as wear, incorrect"
        weight_files.note_once(path, f"without metadata, so by the original entry: {order}")
    return {**weights, **swapped}


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
    weights: Weights,
    info: CheckpointInfo,
    top: int,
) -> None:
    """Save a checkpoint if it is among the `top` best, and update `kept`; it deletes none."""
    ranked = sorted([*kept, new], key=rank)
    if new not in ranked[top:]:
        save_checkpoint(folder / new.file, weights, info)
        kept[:] = ranked[:top]


def delete_displaced(folder: Path, kept: list[KeptCheckpoint]) -> None:
    """Delete checkpoints that are not in `kept`, when the state that lists `kept` is saved."""
    for path in run_directory.fold_checkpoints(folder):
        if path.name not in [best.file for best in kept] and FILE_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def load_ranked(folder: Path) -> list[Checkpoint]:
    """A fold's checkpoints, the best by validation macro F1 first."""
    stored = [load_checkpoint(path, mapped=True) for path in run_directory.fold_checkpoints(folder)]
    return sorted(stored, key=lambda own: (rank(own.info), own.name))
