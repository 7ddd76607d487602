"""Out-of-fold scores: what each fold said of the people it never saw, put together without
flattering anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import ensemble
import metrics
from data import csv_tables, tables
from labels import TASKS
from runtime.errors import UserError, plural
from runtime.files import atomic_write, csv_cell

OOF_FILE = "oof.csv"
LABEL_COLUMNS = ["mask", "gender", "age"]  # the true labels that the others are worked out of


@dataclass(frozen=True)
class FoldPredictions:
    """What one fold said of its held-out people in every epoch."""

    fold: int
    rows: pd.DataFrame  # those photographs, with their true labels
    answers: np.ndarray  # [epochs, images, classes]
    curve: np.ndarray  # macro F1 of each epoch


def fold_predictions(
    task: str, fold: int, rows: pd.DataFrame, answers: np.ndarray
) -> FoldPredictions:
    """A fold's answers [epochs, images, classes] with their curve."""
    truth = rows[task].to_numpy()
    curve = [metrics.score(task, ensemble.decide(task, epoch), truth).macro_f1 for epoch in answers]
    return FoldPredictions(fold, rows, answers, np.array(curve))


def epochs_chosen_by_others(curves: np.ndarray) -> list[int]:
    """For each fold the epoch (from 0) at which the mean curve of the OTHER folds [folds, epochs]
    is best.

    So a fold's own held-out people have no say in which of its epochs they are scored by. One fold
    alone: its own best.
    """
    if len(curves) == 1:
        return [int(np.argmax(curves[0]))]
    total = curves.sum(0)
    return [int(np.argmax(total - own)) for own in curves]


def stack_folds(
    folds: Sequence[FoldPredictions], epochs: Sequence[int]
) -> tuple[pd.DataFrame, np.ndarray]:
    """(rows of all held-out photographs together, their probabilities [images, classes]), fold k's
    from epochs[k].
    """
    answers = np.concatenate([f.answers[epoch] for f, epoch in zip(folds, epochs, strict=True)])
    return pd.concat([f.rows for f in folds], ignore_index=True), answers


def score_rows(task: str, rows: pd.DataFrame, answers: np.ndarray) -> metrics.Scores:
    """Scores of answers [images, classes] to those rows."""
    return metrics.score(task, ensemble.decide(task, answers), rows[task].to_numpy())


def score_epochs(
    task: str, folds: Sequence[FoldPredictions], epochs: Sequence[int]
) -> metrics.Scores:
    """Scores of all held-out people together, each fold's answers taken from the given epoch."""
    return score_rows(task, *stack_folds(folds, epochs))


def nested_epoch_predictions(folds: Sequence[FoldPredictions]) -> tuple[pd.DataFrame, np.ndarray]:
    """(rows, probabilities) of all held-out photographs, each fold's epoch the one that the other
    folds chose.
    """
    return stack_folds(folds, epochs_chosen_by_others(np.stack([f.curve for f in folds])))


def score_people(rows: pd.DataFrame) -> str:
    """`7 photographs of 1 person`."""
    return (
        f"{plural(len(rows), 'photograph')} of "
        f"{plural(rows['person'].nunique(), 'person', 'people')}"
    )


def write_oof(tree: Path, task: str, rows: pd.DataFrame, answers: np.ndarray) -> pd.DataFrame:
    """oof.csv: file, person, fold, the true labels and p0, p1 ... of every held-out photograph
    (`value` for a regression).

    Returns the table.
    """
    told = rows[["file", "person", "fold", *label_columns()]]
    whole = pd.concat([told, pd.DataFrame(answers, columns=probability_columns(task))], axis=1)
    with atomic_write(tree / OOF_FILE, "w") as file:
        named = whole.assign(file=whole["file"].map(csv_cell), person=whole["person"].map(csv_cell))
        named.to_csv(file, index=False, float_format="%.7g")
    return whole


def probability_columns(task: str) -> list[str]:
    """Names of the columns of probabilities."""
    spec = TASKS[task]
    return ["value"] if spec.regression else [f"p{number}" for number in range(spec.outputs)]


def label_columns() -> list[str]:
    """The columns of true labels: the three that a photograph has, and the tasks that are worked
    out of them.
    """
    return list(dict.fromkeys([*LABEL_COLUMNS, "ageg", "main", *TASKS]))


def read_oof(tree: Path, task: str) -> tuple[pd.DataFrame, np.ndarray] | None:
    """(rows with the true labels of all tasks, probabilities [images, classes]) of a tree, None
    where it has no oof.csv.

    The labels follow from mask, gender and age, so that a table from before a task was registered
    has them too. Raises UserError.
    """
    path, remedy = tree / OOF_FILE, "--resume that run to have it written again"
    if not path.is_file():
        return None
    whole = csv_tables.read_csv(
        path, ["file", "person", "fold", *LABEL_COLUMNS, *probability_columns(task)]
    )
    try:
        answers = whole[probability_columns(task)].astype(float).to_numpy()
        numbers = (
            whole[["fold", *LABEL_COLUMNS]]
            .astype(float)
            .astype({"fold": int, "mask": int, "gender": int})
        )
    except ValueError as error:
        raise UserError(f"{path}: {str(error)[:100]!r}; {remedy}") from None
    rows = whole[["file", "person"]].replace(r"^'(?=[=+\-@])", "", regex=True).join(numbers)
    known = (
        rows["age"].between(0, 200) & rows["mask"].isin(range(3)) & rows["gender"].isin(range(2))
    )
    if not known.all() or rows["file"].duplicated().any() or not ensemble.plausible(task, answers):
        raise UserError(f"{path}: damaged (its labels or probabilities are none); {remedy}")
    return tables.with_labels(rows.assign(years=rows["age"])), answers


def selected_scores(task: str, folds: Sequence[FoldPredictions]) -> metrics.Scores:
    """Each fold by its own best epoch: optimistic by construction."""
    return score_epochs(task, folds, [int(np.argmax(f.curve)) for f in folds])


def summary(task: str, folds: Sequence[FoldPredictions], failed: dict[int, str]) -> list[str]:
    """The closing table of a run, with the out-of-fold scores."""
    lines = [
        "",
        f"{'fold':>4}  {'people':>6}  {'best epoch':>10}  {'macro F1':>8}  {'accuracy':>8}  "
        f"{'last F1':>8}",
    ]
    best = [int(np.argmax(f.curve)) for f in folds]
    for f, epoch in zip(folds, best, strict=True):
        scores = score_epochs(task, [f], [epoch])
        lines.append(
            f"{f.fold:>4}  {f.rows['person'].nunique():>6}  {epoch + 1:>10}  "
            f"{scores.macro_f1:>8.4f}  "
            f"{scores.accuracy:>8.4f}  {f.curve[-1]:>8.4f}"
        )
    lines += [f"{fold:>4}  failed: {why}" for fold, why in failed.items()]
    if len(folds) == 1:
        lines.append(
            "A single split: its best epoch was chosen on the people that score it, so expect "
            "less; "
            "--cv 5 gives an out-of-fold score."
        )
    if len(folds) > 1:
        top = np.array([f.curve.max() for f in folds])
        lines.append(
            f"mean macro F1 of the folds' best epochs {top.mean():.4f}, standard deviation "
            f"{top.std(ddof=1):.4f}"
        )
        rows, answers = nested_epoch_predictions(folds)
        headline, selected = score_rows(task, rows, answers), selected_scores(task, folds)
        lines.append(f"out-of-fold, {score_people(rows)}:")
        lines.append(
            f"  headline  {headline.line()}  (each fold's epoch chosen by the other folds)"
        )
        lines.append(
            f"  selected  {selected.line()}  (each fold's own best epoch: optimistic by "
            f"{selected.macro_f1 - headline.macro_f1:+.4f})"
        )
        lines += intervals(task, rows, answers)
    return lines


def intervals(task: str, rows: pd.DataFrame, answers: np.ndarray) -> list[str]:
    """The headline's 95 % intervals by bootstrap over people; a `main` model's parts are judged
    too.
    """
    lines = []
    parts = [task, *(("mask", "gender", "ageg") if task == "main" else ())]
    for part in parts:
        told = answers if part == task else ensemble.marginalize_main(answers, part)
        score, f1, right = with_intervals(part, rows, told)
        lines.append(
            f"  {part:<8}  macro F1 {score.macro_f1:.4f} (95 % {f1[0]:.3f} to {f1[1]:.3f})  "
            f"accuracy {right[0]:.3f} to {right[1]:.3f}"
        )
    return lines


def with_intervals(
    task: str, rows: pd.DataFrame, answers: np.ndarray
) -> tuple[metrics.Scores, tuple[float, float], tuple[float, float]]:
    """(scores of answers [images, classes], the 95 % interval of macro F1, that of accuracy) by
    bootstrap over people.
    """
    truth, decided = rows[task].to_numpy(), ensemble.decide(task, answers)
    score, folds = metrics.score(task, decided, truth), rows["fold"].nunique()
    draws = metrics.bootstrap_people(
        metrics.to_classes(task, truth),
        metrics.to_classes(task, decided),
        rows["person"].to_numpy(),
        len(score.matrix),
    )
    f1 = metrics.out_of_fold_interval(score.macro_f1, metrics.macro_f1s(draws), folds)
    return score, f1, metrics.out_of_fold_interval(score.accuracy, metrics.accuracies(draws), folds)
