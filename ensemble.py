"""Votes: pure functions of probabilities [members, views, images, classes]. No model in sight.

For a regression the last axis holds one value (years), and the same functions give means and the
median of values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labels import PARTS, TASKS
from runtime.errors import UserError, warn_counted

PROBABILITY_FLOOR = 1e-12  # so that one member's 0 does not veto all others in a geometric mean
SUM_ERROR = 1e-3  # of an image's probabilities: float32 sums and products are off by far less

RECOMMENDED = {  # why a vote is the one to upload
    "arithmetic": "the mean of the members, the vote of the original entry; the "
    "other means rarely differ by more than chance",
    "hardvoting": "what most members predict",
}


@dataclass(frozen=True)
class Probabilities:
    """What follows the model: an array with the names of its axes."""

    task: str
    # float32 [members, views, images, classes]; values in the last axis for a regression
    array: np.ndarray
    members: list[str]
    folds: list[int]
    weights: list[float]  # of the weighted mean: each member's validation macro F1
    images: list[str]

    def select(self, indices: Sequence[int]) -> Probabilities:
        """Only these members."""
        return dataclasses.replace(
            self,
            array=self.array[list(indices)],
            members=[self.members[m] for m in indices],
            folds=[self.folds[m] for m in indices],
            weights=[self.weights[m] for m in indices],
        )

    def top(self, k: int) -> Probabilities:
        """The k best members of each fold; warns where a fold has fewer."""
        ranked = sorted(range(len(self.members)), key=lambda m: -self.weights[m])
        folds = sorted(set(self.folds))
        best = {fold: [m for m in ranked if self.folds[m] == fold][:k] for fold in folds}
        warn_fewer_members([f"fold{f:02d}" for f, own in best.items() if len(own) < k], k)
        return self.select([m for own in best.values() for m in own])

    def for_task(self, task: str) -> Probabilities:
        """The same for a task that these probabilities hold. Raises UserError for another."""
        array = convert_task(self.array, self.task, task)
        if array is None:
            raise UserError(
                f"--task {task}: the stored probabilities are of {self.task}; use --task "
                f"{self.task}"
            )
        return dataclasses.replace(self, task=task, array=array)

    def multiply_groups(self, groups: Sequence[Sequence[int]]) -> Probabilities:
        """Of `main`, with one member in place of each group of three that know mask, gender and
        ageg; after the other members. Its weight is the product of theirs.
        """
        if not groups:
            return self
        table = np.array(groups)  # [groups, 3]: numbers of members
        others = self.select([m for m in range(len(self.members)) if m not in table])
        by_part = zip(PARTS, self.array[table.T], strict=True)
        products = multiply_parts({part: marginalize_main(array, part) for part, array in by_part})
        folds = [self.folds[m] for m in table[:, 0]]
        ranks = [folds[: n + 1].count(fold) for n, fold in enumerate(folds)]
        names = [f"fold{f:02d}/Fold{f:02d}_rank{r}" for f, r in zip(folds, ranks, strict=True)]
        return dataclasses.replace(
            self,
            array=np.concatenate([others.array, products]),
            members=others.members + [f"{' x '.join(PARTS)}/{name}" for name in names],
            folds=others.folds + folds,
            weights=others.weights + np.array(self.weights)[table].prod(1).tolist(),
        )


def warn_fewer_members(folds: list[str], top_k: int) -> None:
    """Warn of the folds that have fewer than k members."""
    warn_counted(folds, f"--top-k {top_k}: all that a fold holds vote in folds that hold fewer")


def are_valid(task: str, predictions: np.ndarray) -> bool:
    """Whether predictions [..., classes] are finite, and probabilities where there are classes."""
    if TASKS[task].regression or not np.isfinite(predictions).all():
        return bool(np.isfinite(predictions).all())
    errors = np.abs(predictions.sum(-1, dtype=np.float64) - 1)
    return bool((predictions >= 0).all() and (errors <= SUM_ERROR).all())


def _passes(probabilities: np.ndarray) -> np.ndarray:
    """[members, views, images, classes] -> float64 [members * views, images, classes]."""
    members, views, images, classes = probabilities.shape
    return probabilities.astype(np.float64).reshape(members * views, images, classes)


def arithmetic(probabilities: np.ndarray) -> np.ndarray:
    """Mean over members and views -> [images, classes]."""
    return _passes(probabilities).mean(0)


def geometric(probabilities: np.ndarray) -> np.ndarray:
    """Geometric mean over members and views, in log space with a floor; classes are normalised."""
    mean = np.exp(np.log(np.maximum(_passes(probabilities), PROBABILITY_FLOOR)).mean(0))
    return mean if mean.shape[1] == 1 else mean / mean.sum(1, keepdims=True)


def weighted_mean(probabilities: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Mean weighted by member -> [images, classes].

    Equal weights, or all 0: the arithmetic mean itself, since rounded products break exact ties.
    """
    each = np.asarray(weights, float)
    if each.sum() <= 0 or (each == each[0]).all():
        return arithmetic(probabilities)
    member_means = probabilities.astype(np.float64).mean(1)
    return np.tensordot(each / each.sum(), member_means, axes=1)


def majority(probabilities: np.ndarray) -> np.ndarray:
    """The class [images] that most passes (members x views) predict; ties: the larger summed
    probability, then the lowest class. Values (one column): their median.
    """
    passes = _passes(probabilities)
    classes = passes.shape[2]
    if classes == 1:
        return np.median(passes[:, :, 0], axis=0)
    votes = (passes.argmax(2)[:, :, None] == np.arange(classes)).sum(0)
    sums = np.where(votes == votes.max(1, keepdims=True), passes.sum(0), -np.inf)
    return sums.argmax(1)


def decide(task: str, probabilities: np.ndarray) -> np.ndarray:
    """[images, classes] -> each image's likeliest class, the lowest on a tie; or the values."""
    return probabilities[:, 0] if TASKS[task].regression else probabilities.argmax(1)


def vote(
    method: str, task: str, probabilities: np.ndarray, weights: Sequence[float]
) -> dict[str, np.ndarray]:
    """{name of the file: predictions [images]}: three for softvoting, one for hardvoting."""
    if method == "hardvoting":
        return {"hardvoting": majority(probabilities)}
    return {
        "arithmetic": decide(task, arithmetic(probabilities)),
        "geometric": decide(task, geometric(probabilities)),
        "weighted_mean": decide(task, weighted_mean(probabilities, weights)),
    }


def member_predictions(probs: Probabilities) -> list[np.ndarray]:
    """What each member alone predicts [images], by the mean over its views."""
    return [decide(probs.task, arithmetic(member[None])) for member in probs.array]


def multiply_parts(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """{part: probabilities [..., classes]} -> [..., 18] of `main`, as if they were independent."""
    mask, gender, group = (parts[part][..., list(TASKS[part].from_main)] for part in PARTS)
    return mask * gender * group


def marginalize_main(probabilities: np.ndarray, task: str) -> np.ndarray:
    """[..., 18] probabilities of `main` -> [..., classes] of a task that `main` knows."""
    index = np.array(TASKS[task].from_main)
    columns = [probabilities[..., index == c].sum(-1) for c in range(TASKS[task].outputs)]
    return np.stack(columns, axis=-1)


def convert_task(probabilities: np.ndarray, source: str, task: str) -> np.ndarray | None:
    """[..., outputs] of a source task -> of another; None where the source does not hold it."""
    if source == task:
        return probabilities
    is_summed = source == "main" and TASKS[task].from_main
    return marginalize_main(probabilities, task) if is_summed else None
