"""Scores from counts: confusion matrices -> macro F1, accuracy; sums of errors -> RMSE, MAE."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from labels import TASKS, scoring_task
from runtime.errors import plural, warn

MIN_GAIN_OVER_GUESSING = 0.1  # of what lies between the macro F1 of guessing and a perfect one


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: row = true class, column = predicted."""
    cells = np.asarray(truth) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_f1(matrix: np.ndarray) -> np.ndarray:
    """F1 per class of matrices [..., C, C] -> [..., C]; NaN for a class that is absent."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    sums = (matrix.sum(-2) + matrix.sum(-1)).astype(float)
    return np.divide(2 * hits, sums, out=np.full(hits.shape, np.nan), where=sums > 0)


def macro_f1(matrices: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes in truth or predictions of matrices [..., C, C] -> [...]."""
    scores = class_f1(matrices)
    return np.nansum(scores, axis=-1) / np.maximum((~np.isnan(scores)).sum(-1), 1)


def accuracy(matrices: np.ndarray) -> np.ndarray:
    """The share of the photographs that are predicted rightly, of matrices [..., C, C] -> [...]."""
    return np.trace(matrices, axis1=-2, axis2=-1) / np.maximum(matrices.sum((-2, -1)), 1)


def is_guessing(matrix: np.ndarray) -> bool:
    """Whether a confusion matrix [C, C] is hardly better than one of predictions that do not depend
    on the photograph and have the same shares of classes.
    """
    guessed = macro_f1(np.outer(matrix.sum(1), matrix.sum(0)))
    return bool(macro_f1(matrix) - guessed < MIN_GAIN_OVER_GUESSING * (1 - guessed))


def bootstrap(
    task: str,
    predicted: np.ndarray,
    truth: np.ndarray,
    people: np.ndarray | None,
    draws: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Confusion matrices int64 [draws, classes, classes] of predictions (classes, or values of a
    regression) for as many people, or photographs where these are None, drawn with replacement.

    A person's photographs stay together: they err together, and drawing them one by one would make
    the interval too narrow. Equal people, seed and draws give equal weights, so that two
    predictions' draws can be subtracted pairwise.
    """
    classes, generator = len(TASKS[scoring_task(task)].classes), np.random.default_rng(seed)
    predicted, truth = to_classes(task, predicted), to_classes(task, truth)
    if people is None:  # the draws depend on the counts alone
        counts = confusion(truth, predicted, classes).ravel()
        drawn = generator.multinomial(counts.sum(), counts / counts.sum(), draws)
    else:
        names, person = np.unique(people, return_inverse=True)
        each = np.zeros((len(names), classes * classes))  # a confusion matrix per person
        np.add.at(each, (person, truth * classes + predicted), 1)
        share = np.full(len(names), 1 / len(names))
        drawn = (generator.multinomial(len(names), share, draws) @ each).astype(np.int64)
    return drawn.reshape(draws, classes, classes)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of draws (percentile bootstrap), without NaN; (NaN, NaN) for none."""
    known = np.asarray(values, float)[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def out_of_fold_interval(
    value: float, draws: np.ndarray, folds: int, lowest: float = 0.0
) -> tuple[float, float]:
    """The interval of an out-of-fold score from its draws [draws] by bootstrap over people.

    The folds' models share most of their training people, so the held-out people's luck alone makes
    too narrow an interval (Bengio and Grandvalet 2004). The draws' variance is multiplied by 1 +
    folds * held out / trained (Nadeau and Bengio 2003, Inference for the Generalization Error).
    folds: how many the score is made of; held out / trained is 1 / (folds - 1), of a single split
    1 / 9. 0 folds, for a score that is not out of fold: the plain interval. lowest: of what is
    measured, -1 for a difference of two scores.
    """
    if not folds:
        return interval(draws)
    wider = math.sqrt(1 + (folds / (folds - 1) if folds > 1 else 1 / 9))
    low, high = (value + wider * (end - value) for end in interval(draws))
    return max(low, lowest), min(high, 1.0)


def calibration(
    probabilities: np.ndarray, truth: np.ndarray, bins: int = 10
) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, photographs) of each bin of equal width that holds any.

    probabilities [images, classes]; the confidence is that of the likeliest class.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    filled = [place == number for number in np.unique(place)]
    return [
        (float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum()))
        for rows in filled
    ]


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017), weighted by photographs."""
    rows = calibration(probabilities, truth, bins)
    return sum(count * abs(sure - right) for sure, right, count in rows) / max(len(truth), 1)


@dataclass(frozen=True)
class Scores:
    """Scores of a set of predictions. rmse and mae are in years, None for classes."""

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
    if not TASKS[task].regression:
        return values.astype(np.int64)
    label = TASKS[scoring_task(task)].label
    return np.array([label(0, 0, value) for value in values], np.int64)


def score(task: str, predicted: np.ndarray, truth: np.ndarray) -> Scores:
    """Scores of predictions [images] (classes, or values of a regression) against the truth."""
    classes = len(TASKS[scoring_task(task)].classes)
    matrix = confusion(to_classes(task, truth), to_classes(task, predicted), classes)
    rmse = mae = None
    if TASKS[task].regression:
        errors = np.asarray(predicted, float) - truth
        rmse, mae = math.sqrt(float(np.mean(errors**2))), float(np.mean(np.abs(errors)))
    return Scores(float(macro_f1(matrix)), float(accuracy(matrix)), matrix, rmse, mae)


def warn_absent_classes(task: str, truth: np.ndarray, source: str) -> None:
    """Warn of classes that the truth lacks. source: where it is from, for the message."""
    present = set(to_classes(task, truth).tolist())
    names = TASKS[scoring_task(task)].classes
    absent = [name for number, name in enumerate(names) if number not in present]
    if absent:
        warn(
            f"{source}: {plural(len(absent), 'class is', 'classes are')} absent (the first: "
            f"{absent[0]}); macro F1 leaves out such a class unless it is predicted"
        )
