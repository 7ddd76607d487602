"""Scores from counts: confusion matrices -> macro F1 and accuracy, sums of errors -> RMSE and MAE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import config

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: row = true class, column = predicted."""
    return np.bincount(np.asarray(truth) * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_f1(matrix: np.ndarray) -> np.ndarray:
    """F1 per class; NaN for a class that is neither in the truth nor in the predictions."""
    hits, sums = np.diag(matrix).astype(float), (matrix.sum(0) + matrix.sum(1)).astype(float)
    return np.divide(2 * hits, sums, out=np.full(len(matrix), np.nan), where=sums > 0)


def macro_f1(matrix: np.ndarray) -> float:
    """Mean F1 over the classes in truth or predictions, as scikit-learn's f1_score(average="macro")."""
    scores = class_f1(matrix)
    return float(np.nanmean(scores)) if not np.isnan(scores).all() else 0.0


def accuracy(matrix: np.ndarray) -> float:
    """The part of the photographs answered rightly."""
    return float(np.trace(matrix) / max(matrix.sum(), 1))


@dataclass(frozen=True)
class Scores:
    """What a set of answers is worth. rmse and mae are in years, None for classes."""

    macro_f1: float
    accuracy: float
    matrix: np.ndarray
    rmse: float | None = None
    mae: float | None = None

    def line(self) -> str:
        """`macro F1 0.4312  accuracy 0.6604`, with RMSE and MAE for years."""
        years = "" if self.rmse is None else f"  RMSE {self.rmse:.2f}  MAE {self.mae:.2f}"
        return f"macro F1 {self.macro_f1:.4f}  accuracy {self.accuracy:.4f}{years}"


def to_classes(task: str, values: np.ndarray) -> np.ndarray:
    """A regression's values -> classes of the task it is judged as; classes stay as they are."""
    if not config.TASKS[task].regression:
        return values.astype(np.int64)
    label = config.TASKS[config.judged(task)].label
    return np.array([label(0, 0, value) for value in values], np.int64)


def score(task: str, answers: np.ndarray, truth: np.ndarray) -> Scores:
    """Scores of answers [images] (classes, or values of a regression) against the true ones."""
    classes = len(config.TASKS[config.judged(task)].classes)
    matrix = confusion(to_classes(task, truth), to_classes(task, answers), classes)
    if not config.TASKS[task].regression:
        return Scores(macro_f1(matrix), accuracy(matrix), matrix)
    errors = np.asarray(answers, float) - truth
    rmse, mae = math.sqrt(float(np.mean(errors**2))), float(np.mean(np.abs(errors)))
    return Scores(macro_f1(matrix), accuracy(matrix), matrix, rmse, mae)


def absent_classes(task: str, truth: np.ndarray) -> list[str]:
    """Names of the classes that the truth lacks (they count in macro F1 only where they are predicted)."""
    names = config.TASKS[config.judged(task)].classes
    there = set(to_classes(task, truth).tolist())
    return [name for number, name in enumerate(names) if number not in there]


class RunningLoss:
    """The mean loss and the hits of an epoch, summed in float64 where the batches are; read once, at the end."""

    def __init__(self, device: torch.device) -> None:
        import torch  # scores of stored answers do without it

        kind = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(3, dtype=kind, device=device)  # losses, photographs, hits
        self.judged = False

    def add(self, loss: Tensor, count: int) -> None:
        """loss: the mean of a batch of `count` photographs."""
        self.sums[0] += loss.detach() * count
        self.sums[1] += count

    def add_hits(self, outputs: Tensor, labels: Tensor) -> None:
        """outputs [batch, classes], labels [batch]."""
        self.judged = True
        self.sums[2] += (outputs.detach().argmax(1) == labels).sum()

    def read(self) -> tuple[float, float, int]:
        """(mean loss, accuracy or NaN where no hits were counted, photographs)."""
        losses, count, hits = self.sums.tolist()
        return losses / max(count, 1), hits / max(count, 1) if self.judged else math.nan, int(count)
