"""Scores of people whom the predicting fold never saw, at an epoch that others chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import ensemble
import metrics
from data import csv_tables, tables
from labels import PARTS, TASKS
from runtime.errors import path_error, plural

OOF_FILE = "oof.csv"
LABEL_COLUMNS = ["mask", "gender", "age"]  # the true labels; all others follow
PAIRING_COLUMNS = ["file", "person", "fold", *LABEL_COLUMNS]  # alike in runs that can be paired


class OutOfFold(NamedTuple):
    """Predictions for images that the predicting models never saw."""

    rows: pd.DataFrame  # file, person, fold and the labels of all tasks
    predictions: np.ndarray  # probabilities [images, classes]; values for a regression

    def is_paired_with(self, other: OutOfFold) -> bool:
        """Whether another has the same images, people, folds and labels in the same order."""
        return self.rows[PAIRING_COLUMNS].equals(other.rows[PAIRING_COLUMNS])


@dataclass(frozen=True)
class FoldPredictions:
    """One fold's predictions for its held-out people in every epoch."""

    fold: int
    rows: pd.DataFrame  # their images, with the labels
    predictions: np.ndarray  # [epochs, images, classes]
    curve: np.ndarray  # macro F1 of each epoch


def fold_predictions(
    task: str, fold: int, rows: pd.DataFrame, predictions: np.ndarray
) -> FoldPredictions:
    """A fold's predictions [epochs, images, classes] with their curve."""
    curve = [score_rows(task, rows, epoch).macro_f1 for epoch in predictions]
    return FoldPredictions(fold, rows, predictions, np.array(curve))


def epochs_chosen_by_others(curves: np.ndarray) -> list[int]:
    """For each fold the epoch (from 0) at which the mean curve of the OTHER folds [folds, epochs]
    is best, so that its own held-out people have no say in it. One fold alone: its own best.
    """
    others = curves.sum(0) - curves if len(curves) > 1 else curves
    return [int(epoch) for epoch in others.argmax(1)]


def stack_folds(folds: Sequence[FoldPredictions], epochs: Sequence[int]) -> OutOfFold:
    """All held-out images together, those of the k-th fold as predicted in its epoch epochs[k]."""
    chosen = [fold.predictions[epoch] for fold, epoch in zip(folds, epochs, strict=True)]
    rows = pd.concat([fold.rows for fold in folds], ignore_index=True)
    return OutOfFold(rows, np.concatenate(chosen))


def score_rows(task: str, rows: pd.DataFrame, predictions: np.ndarray) -> metrics.Scores:
    """Scores of predictions [images, classes] for those rows."""
    return metrics.score(task, ensemble.decide(task, predictions), rows[task].to_numpy())


def nested_epoch_predictions(folds: Sequence[FoldPredictions]) -> OutOfFold:
    """All held-out images, each fold's epoch the one that the other folds chose."""
    return stack_folds(folds, epochs_chosen_by_others(np.stack([f.curve for f in folds])))


def selected_scores(task: str, folds: Sequence[FoldPredictions]) -> metrics.Scores:
    """Each fold by its own best epoch: optimistic by construction."""
    return score_rows(task, *stack_folds(folds, [int(f.curve.argmax()) for f in folds]))


def count_people(rows: pd.DataFrame) -> str:
    """For a message: `7 photographs of 1 person`."""
    people = plural(rows["person"].nunique(), "person", "people")
    return f"{plural(len(rows), 'photograph')} of {people}"


def probability_columns(task: str) -> list[str]:
    """Names of the columns of probabilities."""
    spec = TASKS[task]
    return ["value"] if spec.regression else [f"p{number}" for number in range(spec.outputs)]


def write_oof(run_dir: Path, task: str, rows: pd.DataFrame, predicted: np.ndarray) -> pd.DataFrame:
    """oof.csv: file, person, fold, labels, p0, p1 ... (or `value`) of held-out images; returned."""
    labels = dict.fromkeys([*LABEL_COLUMNS, "ageg", "main", task])
    probabilities = pd.DataFrame(predicted, columns=probability_columns(task))
    table = pd.concat([rows[["file", "person", "fold", *labels]], probabilities], axis=1)
    csv_tables.write_csv(run_dir / OOF_FILE, table, "%.7g")
    return table


def read_oof(run_dir: Path, task: str) -> OutOfFold | None:
    """A run's oof.csv, sorted by file; None where it has none. Raises UserError for a damaged one.
    Labels follow from mask, gender and age, also those of tasks that are newer than the table.
    """
    path, remedy = run_dir / OOF_FILE, "--resume that run to have it written again"
    if not path.is_file():
        return None
    columns = probability_columns(task)
    table = csv_tables.read_csv(path, ["file", "person", "fold", *LABEL_COLUMNS, *columns])
    names = table[["file", "person"]].replace(r"^'(?=[=+\-@])", "", regex=True)
    try:
        numbers = table[["fold", *LABEL_COLUMNS, *columns]].astype(float)
        numbers = numbers.astype({"fold": int, "mask": int, "gender": int})
        limits = {"age": 200, "mask": 2, "gender": 1}
        in_range = all(numbers[name].between(0, limit).all() for name, limit in limits.items())
        is_valid = in_range and ensemble.are_valid(task, numbers[columns].to_numpy())
        if not is_valid or names["file"].duplicated().any():
            raise ValueError("invalid labels or probabilities")
    except ValueError as error:
        raise path_error(path, error, remedy) from None
    rows = names.join(numbers).sort_values("file", kind="stable", ignore_index=True)
    predictions = rows[columns].to_numpy()
    rows = rows.drop(columns=columns).assign(years=rows["age"])
    return OutOfFold(tables.with_labels(rows), predictions)


def summary(task: str, folds: Sequence[FoldPredictions], failed: dict[int, str]) -> list[str]:
    """The closing table of a run, with the out-of-fold scores."""
    lines = ["", "fold  people  best epoch  macro F1  accuracy   last F1"]
    for f in folds:
        epoch, people = int(f.curve.argmax()), f.rows["person"].nunique()
        scores = score_rows(task, f.rows, f.predictions[epoch])
        values = "  ".join(f"{v:>8.4f}" for v in (scores.macro_f1, scores.accuracy, f.curve[-1]))
        lines.append(f"{f.fold:>4}  {people:>6}  {epoch + 1:>10}  {values}")
    lines += [f"{fold:>4}  failed: {why}" for fold, why in failed.items()]
    if len(folds) == 1:
        why = "its best epoch was chosen on the people that score it, so expect less"
        return [*lines, f"A single split: {why}; --cv 5 gives an out-of-fold score."]
    best = np.array([f.curve.max() for f in folds])
    rows, predictions = nested_epoch_predictions(folds)
    headline, selected = score_rows(task, rows, predictions), selected_scores(task, folds)
    parts = {task: predictions}
    if task == "main":
        parts |= {part: ensemble.marginalize_main(predictions, part) for part in PARTS}
    return [
        *lines,
        f"mean macro F1 of the folds' best epochs {best.mean():.4f}, standard deviation "
        f"{best.std(ddof=1):.4f}",
        f"out-of-fold, {count_people(rows)}:",
        f"  headline  {headline.line()}  (each fold's epoch chosen by the other folds)",
        f"  selected  {selected.line()}  (each fold's own best epoch: optimistic by "
        f"{selected.macro_f1 - headline.macro_f1:+.4f})",
        "95 % intervals by bootstrap over people:",
        *(f"  {score_line(part, rows, values)}" for part, values in parts.items()),
    ]


def score_line(task: str, rows: pd.DataFrame, predictions: np.ndarray) -> str:
    """Task, macro F1 and accuracy, with their 95 % intervals by bootstrap over people."""
    scores, folds = score_rows(task, rows, predictions), rows["fold"].nunique()
    decided, people = ensemble.decide(task, predictions), rows["person"].to_numpy()
    draws = metrics.bootstrap(task, decided, rows[task].to_numpy(), people)
    f1 = metrics.out_of_fold_interval(scores.macro_f1, metrics.macro_f1(draws), folds)
    accuracy = metrics.out_of_fold_interval(scores.accuracy, metrics.accuracy(draws), folds)
    return (
        f"{task} macro F1 {scores.macro_f1:.4f} [{f1[0]:.4f}, {f1[1]:.4f}]  "
        f"accuracy {scores.accuracy:.4f} [{accuracy[0]:.4f}, {accuracy[1]:.4f}]"
    )
