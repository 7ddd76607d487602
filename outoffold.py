"""Out-of-fold scores: what each fold said of the people it never saw, put together without flattering anybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import config
import dataset
import ensemble
import metrics
from utils import UserError, atomic_write

FILE = "oof.csv"


@dataclass(frozen=True)
class Held:
    """What one fold said of its held-out people in every epoch."""

    fold: int
    rows: pd.DataFrame  # those photographs, with their true labels
    answers: np.ndarray  # [epochs, images, classes]
    curve: np.ndarray  # macro F1 of each epoch


def held(task: str, fold: int, rows: pd.DataFrame, answers: np.ndarray) -> Held:
    """A fold's answers [epochs, images, classes] with their curve."""
    truth = rows[task].to_numpy()
    curve = [metrics.score(task, ensemble.decide(task, epoch), truth).macro_f1 for epoch in answers]
    return Held(fold, rows, answers, np.array(curve))


def others_best(curves: np.ndarray) -> list[int]:
    """For each fold the epoch (from 0) at which the mean curve of the OTHER folds [folds, epochs] is best.

    So a fold's own held-out people have no say in which of its epochs they are scored by. One fold alone: its own best.
    """
    if len(curves) == 1:
        return [int(np.argmax(curves[0]))]
    total = curves.sum(0)
    return [int(np.argmax(total - own)) for own in curves]


def table(folds: Sequence[Held], epochs: Sequence[int]) -> tuple[pd.DataFrame, np.ndarray]:
    """(rows of all held-out photographs together, their probabilities [images, classes]), fold k's from epochs[k]."""
    answers = np.concatenate([f.answers[epoch] for f, epoch in zip(folds, epochs, strict=True)])
    return pd.concat([f.rows for f in folds], ignore_index=True), answers


def pooled(task: str, folds: Sequence[Held], epochs: Sequence[int]) -> metrics.Scores:
    """Scores of all held-out people together, each fold's answers taken from the given epoch."""
    rows, answers = table(folds, epochs)
    return metrics.score(task, ensemble.decide(task, answers), rows[task].to_numpy())


def write(tree: Path, task: str, folds: Sequence[Held]) -> None:
    """oof.csv: file, person, fold, the true labels and p0, p1 ... of every held-out photograph (`value` for a regression).

    Each fold's epoch is the one that the other folds chose.
    """
    rows, answers = table(folds, others_best(np.stack([f.curve for f in folds])))
    names = columns(task)
    told = rows[["file", "person", "fold", "mask", "gender", "age", "ageg", "main"]]
    whole = pd.concat([told, pd.DataFrame(answers, columns=names)], axis=1)
    with atomic_write(tree / FILE, "w") as file:
        whole.to_csv(file, index=False, float_format="%.7g")


def columns(task: str) -> list[str]:
    """Names of the columns of probabilities."""
    spec = config.TASKS[task]
    return ["value"] if spec.regression else [f"p{number}" for number in range(spec.outputs)]


def read(tree: Path, task: str) -> tuple[pd.DataFrame, np.ndarray] | None:
    """(rows with true labels, probabilities [images, classes]) of a tree, None where it has no oof.csv. Raises UserError."""
    path = tree / FILE
    if not path.is_file():
        return None
    whole = dataset.read_csv(path, ["file", "person", "fold", "mask", "gender", "age", "ageg", "main", *columns(task)])
    try:
        numbers = whole.drop(columns=["file", "person"]).astype(float)
    except ValueError as error:
        raise UserError(f"{path}: {error}; the run that completes the tree writes it again") from None
    rows = whole[["file", "person"]].join(numbers[["age"]]).join(numbers[["fold", "mask", "gender", "ageg", "main"]].astype(int))
    return rows, numbers[columns(task)].to_numpy(np.float64)


def summary(task: str, folds: Sequence[Held], failed: dict[int, str]) -> list[str]:
    """The closing table of a run, with the out-of-fold scores."""
    lines = ["", f"{'fold':>4}  {'people':>6}  {'best epoch':>10}  {'macro F1':>8}  {'accuracy':>8}  {'last F1':>8}"]
    best = [int(np.argmax(f.curve)) for f in folds]
    for f, epoch in zip(folds, best, strict=True):
        scores = pooled(task, [f], [epoch])
        lines.append(f"{f.fold:>4}  {f.rows['person'].nunique():>6}  {epoch + 1:>10}  {scores.macro_f1:>8.4f}  "
                     f"{scores.accuracy:>8.4f}  {f.curve[-1]:>8.4f}")  # fmt: skip
    lines += [f"{fold:>4}  failed: {why}" for fold, why in failed.items()]
    if len(folds) == 1:
        lines.append("A single split: its best epoch was chosen on the people that score it, so expect less; "
                     "--cv 5 gives an out-of-fold score.")  # fmt: skip
    if len(folds) > 1:
        top = np.array([f.curve.max() for f in folds])
        lines.append(f"mean macro F1 of the folds' best epochs {top.mean():.4f}, standard deviation {top.std(ddof=1):.4f}")
        chosen = others_best(np.stack([f.curve for f in folds]))
        honest, selected = pooled(task, folds, chosen), pooled(task, folds, best)
        lines.append(f"out-of-fold, {sum(len(f.rows) for f in folds)} photographs:")
        lines.append(f"  headline  {honest.line()}  (each fold's epoch chosen by the other folds)")
        lines.append(f"  selected  {selected.line()}  (each fold's own best epoch: optimistic by "
                     f"{selected.macro_f1 - honest.macro_f1:+.4f})")  # fmt: skip
    return lines
