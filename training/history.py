"""What an epoch gave: its figures, its line in history.csv and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

import metrics


class TrainFigures(NamedTuple):
    """What an epoch of training gave."""

    loss: float
    accuracy: float  # NaN for a task without a head of its own
    images_per_second: float


class ValidationResult(NamedTuple):
    """What an epoch's validation gave."""

    predictions: dict[str, np.ndarray]  # task -> probabilities [images, classes]
    scores: dict[str, metrics.Scores]
    loss: float


def score_dict(scores: metrics.Scores) -> dict[str, float]:
    """Scores as plain numbers; RMSE and MAE only for years."""
    names = ("macro_f1", "accuracy", "rmse", "mae")
    return {name: getattr(scores, name) for name in names if getattr(scores, name) is not None}


def history_row(
    task: str, epoch: int, figures: TrainFigures, validation: ValidationResult, lr: float
) -> dict[str, float]:
    """An epoch's line in history.csv."""
    row = {"epoch": float(epoch), "train_loss": figures.loss, "valid_loss": validation.loss}
    row |= score_dict(validation.scores[task])
    if not math.isnan(figures.accuracy):
        row["train_accuracy"] = figures.accuracy
    others = {head: s.macro_f1 for head, s in validation.scores.items() if head != task}
    row |= {f"macro_f1_{head}": macro_f1 for head, macro_f1 in others.items()}
    return row | {"lr": lr, "images_per_second": figures.images_per_second}


def epoch_line(
    row: Mapping[str, float], epochs: int, task: str, scores: Mapping[str, metrics.Scores]
) -> str:
    """What the user reads after each epoch; row: of history.csv."""
    others = [f"{head} F1 {s.macro_f1:.4f}" for head, s in scores.items() if head != task]
    parts = [
        f"epoch {row['epoch']:>2.0f}/{epochs}",
        f"train loss {row['train_loss']:.4f}",
        f"valid loss {row['valid_loss']:.4f}",
        scores[task].line(),
        *others,
        f"lr {row['lr']:.2e}",
        f"{row['images_per_second']:.1f} images/s",
    ]
    return "  ".join(parts)
