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

import checkpoint
from labels import TASKS
from runtime.errors import UserError, reason
from runtime.files import atomic_write, load_npz

VALIDATION_FILE = "validation.npz"  # every epoch's probabilities of the fold's held-out people
STATE_FILE = "state.pt"  # what an unfinished fold goes on from


@dataclass
class FoldState:
    """All that a fold goes on from, beside the weights and the optimizer's state."""

    fold: int
    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps of the next epoch that are done
    # what metrics.RunningLoss has counted in those steps
    sums: list[float] = field(default_factory=list)
    kept: list[checkpoint.KeptCheckpoint] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)  # a row per epoch
    # task -> [images, classes] per epoch
    probabilities: dict[str, list[np.ndarray]] = field(default_factory=dict)


def save_fold_state(folder: Path, state: FoldState, learner: dict[str, Any]) -> None:
    """Keep what a fold goes on from; learner: state dicts of model, optimizer and scaler. The
    probabilities of complete epochs are not repeated here: `save_validation` comes first.
    """
    plain = dataclasses.asdict(dataclasses.replace(state, probabilities={}))
    with atomic_write(folder / STATE_FILE) as file:
        torch.save({"format": checkpoint.FORMAT, "state": plain, "learner": learner}, file)


def load_fold_state(folder: Path) -> tuple[FoldState, dict[str, Any]] | None:
    """(state, state dicts) of a fold that was begun, None where nothing was kept. Raises UserError
    for a damaged file.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    loaded = checkpoint.safe_load(path, mapped=False)
    remedy = f"remove {folder} to train the fold again"
    try:
        plain, learner = loaded["state"], loaded["learner"]
        state = FoldState(
            **{
                **plain,
                "kept": [checkpoint.KeptCheckpoint(**kept) for kept in plain["kept"]],
                "probabilities": {},
            }
        )
        ({**learner["model"]}, {**learner["optimizer"]}, {**learner["scaler"]})
        if not is_plausible(state):
            raise TypeError("invalid step count")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no state of a fold ({reason(error)}); {remedy}") from None
    add_probabilities(folder, state)
    return state, learner


def is_plausible(state: FoldState) -> bool:
    """Whether a state that was read holds what `write_state` writes: plain types of the right
    kinds, in their ranges.
    """
    counts = all(type(n) is int and 0 <= n < 1 << 53 for n in (state.fold, state.epoch, state.step))
    sums = (
        type(state.sums) is list
        and len(state.sums) in (0, 5)
        and all(type(n) is float and math.isfinite(n) for n in state.sums)
    )
    kept = counts and all(
        type(k.file) is str
        and Path(k.file).name == k.file
        and type(k.epoch) is int
        and 1 <= k.epoch <= state.epoch
        and type(k.macro_f1) is float
        and 0 <= k.macro_f1 <= 1
        for k in state.kept
    )
    rows = type(state.history) is list and all(
        type(row) is dict
        and row.keys() == state.history[0].keys()
        and all(
            type(c) is str and re.fullmatch(r"\w+", c, re.ASCII) and type(n) is float
            for c, n in row.items()
        )
        for row in state.history
    )
    return sums and kept and rows


def add_probabilities(folder: Path, state: FoldState) -> None:
    """Fill a state's probabilities of the epochs it counts from the fold's own file. Raises
    UserError where they lack.
    """
    if not state.epoch:
        return
    arrays = load_npz(folder / VALIDATION_FILE, f"remove {folder} to train it again") or {}
    told = {
        name.removeprefix("probs_"): array
        for name, array in arrays.items()
        if name.startswith("probs_")
    }
    whole = (
        array.ndim == 3 and array.dtype.kind == "f" and len(array) >= state.epoch
        for array in told.values()
    )
    if not told or len(state.history) != state.epoch or not all(whole):
        raise UserError(
            f"{folder / STATE_FILE}: counts epochs that {VALIDATION_FILE} lacks; remove {folder} "
            "to train "
            "the fold again"
        )
    if not all(np.isfinite(array).all() for array in told.values()):
        raise UserError(
            f"{folder / VALIDATION_FILE}: damaged (it holds what is no number); remove {folder} "
            "to "
            "train the fold again"
        )
    state.probabilities = {task: list(array[: state.epoch]) for task, array in told.items()}


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
        or files.ndim != 1
        or files.dtype.kind != "U"
        or (
            probabilities.dtype.kind != "f"
            or probabilities.shape[1:] != (len(files), TASKS[task].outputs)
        )
        or not np.isfinite(probabilities).all()
    ):
        raise UserError(
            f"{path}: damaged (its arrays do not fit {task}, or hold what is no number); remove "
            f"{folder} to train "
            "it again"
        )
    return files.tolist(), probabilities
