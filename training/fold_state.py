"""What an unfinished fold goes on from, and every epoch's probabilities of its held-out people."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

import checkpoint
import model
import optim
from data import weight_files
from labels import TASKS
from runtime.errors import UserError, reason
from runtime.files import atomic_write, load_npz

VALIDATION_FILE = "validation.npz"  # every epoch's probabilities of the fold's held-out people
STATE_FILE = "state.pt"  # what an unfinished fold resumes from
# what torch raises for the state of another optimizer
LOAD_ERRORS = (
    *(ValueError, KeyError, RuntimeError, TypeError),
    *(AttributeError, IndexError, AssertionError),
)


@dataclass
class FoldState:
    """All that a fold goes on from, beside the weights and the optimizer's state."""

    fold: int
    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps of the next epoch that are done
    # what engine.RunningLoss has counted in those steps
    sums: list[float] = field(default_factory=list)
    kept: list[checkpoint.KeptCheckpoint] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)  # a row per epoch
    # task -> [images, classes] per epoch
    probabilities: dict[str, list[np.ndarray]] = field(default_factory=dict)


def training_state_dict(
    network: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, dict[str, Any]]:
    """The weights, the optimizer's and the scaler's state, as plain types and tensors."""
    return {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }


def load_training_state(
    state: dict[str, dict[str, Any]],
    network: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    source: str,
) -> None:
    """Load what `training_state_dict` gave. Raises UserError where it is of another network."""
    model.load_weights(network, state["model"], source)
    try:
        optim.load_optimizer_state(optimizer, state["optimizer"])
        numbers = state["scaler"].values()
        if not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
            raise ValueError("invalid gradient scaler state")
        scaler.load_state_dict(state["scaler"])
    except LOAD_ERRORS as error:
        raise UserError(
            f"{source}: holds another optimizer's state ({reason(error)}); remove its folder to "
            "train it again"
        ) from None


def save_fold_state(folder: Path, state: FoldState, training: dict[str, Any]) -> None:
    """Save what a fold resumes from; training: see `training_state_dict`. The probabilities of
    complete epochs are not repeated here: `save_validation` comes first.
    """
    plain = dataclasses.asdict(dataclasses.replace(state, probabilities={}))
    with atomic_write(folder / STATE_FILE) as file:
        torch.save({"format": checkpoint.FORMAT, "state": plain, "learner": training}, file)


def load_fold_state(folder: Path) -> tuple[FoldState, dict[str, Any]] | None:
    """(state, state dicts) of a fold that was begun, None where nothing was saved. Raises UserError
    for a damaged file.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    remedy = f"remove {folder} to train the fold again"
    loaded = weight_files.safe_load(path, remedy=remedy)
    try:
        plain, training = loaded["state"], loaded["learner"]
        kept = [checkpoint.KeptCheckpoint(**entry) for entry in plain["kept"]]
        state = FoldState(**{**plain, "kept": kept, "probabilities": {}})
        for name in ("model", "optimizer", "scaler"):
            dict(**training[name])  # a mapping with text keys
        if not is_plausible(state):
            raise TypeError("invalid step count")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no state of a fold ({reason(error)}); {remedy}") from None
    if state.epoch:
        state.probabilities = load_epochs(folder, state)
    return state, training


def is_plausible(state: FoldState) -> bool:
    """Whether a state that was read holds what `save_fold_state` writes: plain types of the right
    kinds, in their ranges.
    """
    counts = (state.fold, state.epoch, state.step)
    if not all(type(n) is int and 0 <= n < 1 << 53 for n in counts):
        return False
    if type(state.sums) is not list or len(state.sums) not in (0, 5):
        return False
    if not all(type(n) is float and math.isfinite(n) for n in state.sums):
        return False
    for k in state.kept:
        if type(k.file) is not str or Path(k.file).name != k.file:
            return False
        if type(k.epoch) is not int or not 1 <= k.epoch <= state.epoch:
            return False
        if type(k.macro_f1) is not float or not 0 <= k.macro_f1 <= 1:
            return False
    if type(state.history) is not list or not all(type(row) is dict for row in state.history):
        return False
    if any(row.keys() != state.history[0].keys() for row in state.history):
        return False
    return all(
        type(name) is str and re.fullmatch(r"\w+", name, re.ASCII) and type(value) is float
        for row in state.history
        for name, value in row.items()
    )


def load_epochs(folder: Path, state: FoldState) -> dict[str, list[np.ndarray]]:
    """{task: probabilities [images, classes] of each epoch that the state counts}, from
    validation.npz. Raises UserError where they are missing or damaged.
    """
    remedy = f"remove {folder} to train the fold again"
    arrays = {
        name.removeprefix("probs_"): array
        for name, array in (load_npz(folder / VALIDATION_FILE, remedy) or {}).items()
        if name.startswith("probs_")
    }
    shapes_fit = all(
        array.ndim == 3 and array.dtype.kind == "f" and len(array) >= state.epoch
        for array in arrays.values()
    )
    if not arrays or len(state.history) != state.epoch or not shapes_fit:
        raise UserError(
            f"{folder / STATE_FILE}: counts epochs that {VALIDATION_FILE} lacks; {remedy}"
        )
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{folder / VALIDATION_FILE}: damaged (it holds NaN or infinity); {remedy}")
    return {task: list(array[: state.epoch]) for task, array in arrays.items()}


def save_validation(folder: Path, state: FoldState, files: list[str]) -> None:
    """Keep every epoch's validation probabilities: one array [epochs, images, classes] per task,
    and the file names.
    """
    columns = list(state.history[0])
    with atomic_write(folder / "history.csv", "w") as file:
        file.write(",".join(columns) + "\n")
        file.writelines(
            ",".join(f"{row.get(c, math.nan):.8g}" for c in columns) + "\n" for row in state.history
        )
    arrays = {f"probs_{task}": np.stack(rows) for task, rows in state.probabilities.items()}
    with atomic_write(folder / VALIDATION_FILE) as file:
        np.savez_compressed(file, files=np.array(files), **arrays)  # type: ignore[arg-type]


def load_validation(folder: Path, task: str) -> tuple[list[str], np.ndarray] | None:
    """(file names, [epochs, images, classes]) of a fold, None where it has none."""
    path = folder / VALIDATION_FILE
    arrays = load_npz(path, f"remove {folder} to train it again")
    if arrays is None:
        return None
    files, probabilities = arrays.get("files"), arrays.get(f"probs_{task}")
    if (
        files is None
        or probabilities is None
        or (files.ndim, files.dtype.kind, probabilities.dtype.kind) != (1, "U", "f")
        or probabilities.shape[1:] != (len(files), TASKS[task].outputs)
        or not np.isfinite(probabilities).all()
    ):
        raise UserError(
            f"{path}: damaged (its arrays do not fit {task}, or hold NaN or infinity); remove "
            f"{folder} to train it again"
        )
    return files.tolist(), probabilities
