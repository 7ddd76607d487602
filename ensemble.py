"""Votes: pure functions of probabilities [members, views, images, classes]. No model in sight.

For a regression the last axis holds one value (years), and the same functions give means and the
median of values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labels import PARTS, TASKS
from runtime.errors import UserError, warn_counted

PROBABILITY_FLOOR = (
    1e-12  # a probability of 0 from one member must not veto all others in a geometric mean
)
SUM_ERROR = (
    1e-3  # of a photograph's probabilities: far more than float32 sums and products are off by
)


@dataclass(frozen=True)
class Probabilities:
    """The currency after the model: an array with the names of its axes."""

    task: str
    # float32 [members, views, images, classes]; values in the last axis for a regression
    array: np.ndarray
    members: list[str]
    folds: list[int]
    weights: list[float]  # of the weighted mean: each member's validation macro F1
    images: list[str]

    def select(self, keep: Sequence[int]) -> Probabilities:
        """Only these members."""
        return dataclasses.replace(
            self,
            array=self.array[list(keep)],
            members=[self.members[k] for k in keep],
            folds=[self.folds[k] for k in keep],
            weights=[self.weights[k] for k in keep],
        )

    def answering(self, task: str) -> Probabilities:
        """The same for a task that these probabilities know. Raises UserError for another."""
        array = answer_for(task, self.array, self.task)
        if array is None:
            raise UserError(
                f"--task {task}: the stored probabilities answer {self.task}; use --task "
                f"{self.task}"
            )
        return dataclasses.replace(self, task=task, array=array)

    def multiplied(self, groups: Sequence[Sequence[int]]) -> Probabilities:
        """Of `main`, with one member in place of each group of three that know mask, gender and
        ageg; after the other members.

        Its validation F1 is taken to be the product of theirs, as if the parts erred independently:
        of the size that one of `main` has, so that it weighs beside those.
        """
        if not groups:
            return self
        products = [
            multiply_parts(
                {
                    part: marginalize_main(self.array[m], part)
                    for part, m in zip(PARTS, group, strict=True)
                }
            )
            for group in groups
        ]
        others = self.select(
            [m for m in range(len(self.members)) if not any(m in group for group in groups)]
        )
        folds = [self.folds[group[0]] for group in groups]
        names = [
            f"{' x '.join(PARTS)}/fold{fold:02d}/Fold{fold:02d}_rank{folds[:place].count(fold) + 1}"
            for place, fold in enumerate(folds)
        ]
        weights = [float(np.prod([self.weights[m] for m in group])) for group in groups]
        return dataclasses.replace(
            self,
            array=np.concatenate([others.array, products]),
            members=others.members + names,
            folds=others.folds + folds,
            weights=others.weights + weights,
        )

    def top(self, k: int) -> Probabilities:
        """The k best members of each fold; says so where a fold has fewer."""
        keep: list[int] = []
        fewer: list[str] = []
        for fold in sorted(set(self.folds)):
            ranked = sorted(
                (m for m, f in enumerate(self.folds) if f == fold), key=lambda m: -self.weights[m]
            )
            fewer += [f"fold{fold:02d}"] if len(ranked) < k else []
            keep += ranked[:k]
        warn_counted(fewer, f"--top-k {k}: all that a fold holds vote in folds that hold fewer")
        return self.select(keep)


def plausible(task: str, answers: np.ndarray) -> bool:
    """Whether an array [..., classes] holds what a model may answer: finite values, and for classes
    probabilities from 0 to 1 that sum to 1 within rounding.
    """
    if not np.isfinite(answers).all():
        return False
    sums = answers.sum(-1, dtype=np.float64)
    return TASKS[task].regression or bool(
        (answers >= 0).all() and (np.abs(sums - 1) <= SUM_ERROR).all()
    )


def _passes(probabilities: np.ndarray) -> np.ndarray:
    """[members, views, images, classes] -> float64 [members * views, images, classes]."""
    members, views, images, classes = probabilities.shape
    return probabilities.astype(np.float64).reshape(members * views, images, classes)


def arithmetic(probabilities: np.ndarray) -> np.ndarray:
    """Mean over members and views -> [images, classes]."""
    mean: np.ndarray = _passes(probabilities).mean(0)
    return mean


def geometric(probabilities: np.ndarray) -> np.ndarray:
    """Geometric mean over members and views, in log space with a floor; normalised where there are
    classes.
    """
    mean = np.exp(np.log(np.maximum(_passes(probabilities), PROBABILITY_FLOOR)).mean(0))
    return mean if mean.shape[1] == 1 else mean / mean.sum(1, keepdims=True)


def weighted_mean(probabilities: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Mean weighted by member (each checkpoint's validation F1) -> [images, classes]. Equal weights
    if all are 0.

    With equal weights it is the arithmetic mean itself: products with 1 / members would be rounded,
    and break exact ties.
    """
    each = np.asarray(weights, float)
    if each.sum() <= 0 or (each == each[0]).all():
        return arithmetic(probabilities)
    combined: np.ndarray = np.tensordot(
        each / each.sum(), probabilities.astype(np.float64).mean(1), axes=1
    )
    return combined


def majority(probabilities: np.ndarray) -> np.ndarray:
    """The class [images] that most passes (members x views) answer; ties: the larger summed
    probability, then the lowest class. Values (one column): their median.
    """
    passes = _passes(probabilities)
    if passes.shape[2] == 1:
        median: np.ndarray = np.median(passes[:, :, 0], axis=0)
        return median
    classes = passes.shape[2]
    votes = (passes.argmax(2)[:, :, None] == np.arange(classes)).sum(0)
    sums = np.where(votes == votes.max(1, keepdims=True), passes.sum(0), -np.inf)
    winner: np.ndarray = sums.argmax(1)
    return winner


def decide(task: str, answers: np.ndarray) -> np.ndarray:
    """[images, classes] -> the likeliest class of each, the lowest on a tie; a regression's values
    as they are.
    """
    decided: np.ndarray = answers[:, 0] if TASKS[task].regression else answers.argmax(1)
    return decided


def vote(
    method: str, task: str, probabilities: np.ndarray, weights: Sequence[float]
) -> dict[str, np.ndarray]:
    """{name of the file: answers [images]}: three for softvoting, one for hardvoting."""
    if method == "hardvoting":
        return {"hardvoting": majority(probabilities)}
    means: dict[str, Callable[[], np.ndarray]] = {
        "arithmetic": lambda: arithmetic(probabilities),
        "geometric": lambda: geometric(probabilities),
        "weighted_mean": lambda: weighted_mean(probabilities, weights),
    }
    return {name: decide(task, mean()) for name, mean in means.items()}


def multiply_parts(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """{mask, gender, ageg: probabilities [..., classes]} -> [..., 18] of `main`, as if they were
    independent.
    """
    mask, gender, group = (parts[part][..., list(TASKS[part].from_main)] for part in PARTS)
    product: np.ndarray = mask * gender * group
    return product


def marginalize_main(probabilities: np.ndarray, task: str) -> np.ndarray:
    """[..., 18] probabilities of `main` -> [..., classes] of a task that `main` knows."""
    index = np.array(TASKS[task].from_main)
    columns = [probabilities[..., index == c].sum(-1) for c in range(TASKS[task].outputs)]
    return np.stack(columns, axis=-1)


def answer_for(task: str, probabilities: np.ndarray, trained: str) -> np.ndarray | None:
    """Answers [..., outputs] of what was trained for one task, for a task; None where they tell
    nothing of it.
    """
    if trained == task:
        return probabilities
    return (
        marginalize_main(probabilities, task)
        if trained == "main" and TASKS[task].from_main
        else None
    )
