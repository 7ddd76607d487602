"""Votes and decisions: pure functions of probabilities [members, views, images, classes]. No model
in sight.

For a regression the last axis holds one value (years), and the same functions give means and the
median of values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

import config
import metrics
from utils import UserError, read_file, reason, warn_counted

RULE = "decision.json"  # in a tree, and in predictions made from it
FLOOR = 1e-12  # a probability of 0 from one member must not veto all others in a geometric mean
SUM_ERROR = (
    1e-3  # of a photograph's probabilities: far more than float32 sums and products are off by
)


@dataclass(frozen=True)
class Probabilities:
    """The currency after the model: an array with the names of its axes."""

    task: str
    array: (
        np.ndarray
    )  # float32 [members, views, images, classes]; values in the last axis for a regression
    members: list[str]
    folds: list[int]
    weights: list[float]  # of the weighted mean: each member's validation macro F1, or fitted
    images: list[str]
    f1: list[float] = dataclasses.field(
        default_factory=list
    )  # the validation macro F1 where the weights are fitted

    @property
    def validation_f1(self) -> list[float]:
        """Each member's validation macro F1, whatever the weights are."""
        return self.f1 or self.weights

    def weighted(self, asked: str | None) -> Probabilities:
        """With weights `f1` or `oof`, or as they are (None). Raises UserError where nothing was
        fitted.
        """
        if asked == "oof" and not self.f1:
            raise UserError(
                "--weights oof: the stored probabilities hold no such weights; predict again with "
                "--weights oof"
            )
        return (
            dataclasses.replace(self, weights=self.f1, f1=[]) if asked == "f1" and self.f1 else self
        )

    def select(self, keep: Sequence[int]) -> Probabilities:
        """Only these members."""
        return dataclasses.replace(
            self,
            array=self.array[list(keep)],
            members=[self.members[k] for k in keep],
            folds=[self.folds[k] for k in keep],
            weights=[self.weights[k] for k in keep],
            f1=[self.f1[k] for k in keep if self.f1],
        )

    def answering(self, task: str) -> Probabilities:
        """The same for a task that these probabilities know. Raises UserError for another."""
        if task == self.task:
            return self
        if self.task != "main" or not config.TASKS[task].from_main:
            raise UserError(
                f"--task {task}: the stored probabilities answer {self.task}; use --task "
                f"{self.task}"
            )
        return dataclasses.replace(self, task=task, array=answer_from_main(self.array, task))

    def top(self, k: int) -> Probabilities:
        """The k best members of each fold; says so where a fold has fewer. Raises UserError for
        fitted weights.
        """
        if self.f1:
            raise UserError(
                f"--top-k {k}: the stored weights were fitted for all members together; add "
                "--weights f1"
            )
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
    return config.TASKS[task].regression or bool(
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
    mean = np.exp(np.log(np.maximum(_passes(probabilities), FLOOR)).mean(0))
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


def greedy_weights(probabilities: np.ndarray, truth: np.ndarray, rounds: int) -> np.ndarray:
    """How often each member is taken, int [members], for the mean of those taken to have the best
    macro F1.

    Greedy selection with replacement (Caruana et al., Ensemble Selection from Libraries of Models,
    ICML 2004), begun with the best few members: as many of the ranking's first as score best
    together. Then `rounds` times the member that helps most is added, and the best selection on the
    way counts. Ties: fewer and better members.
    probabilities [members, images, classes]; truth [images].
    """
    classes = probabilities.shape[2]

    def scores(means: np.ndarray) -> np.ndarray:
        """Macro F1 of each of [candidates, images, classes]."""
        return metrics.macro_f1s(
            np.stack([metrics.confusion(truth, mean.argmax(1), classes) for mean in means])
        )

    ranked = np.argsort(-scores(probabilities), kind="stable")
    own = probabilities[ranked].astype(np.float64)
    sums = own.cumsum(0)
    firsts = scores(sums)
    start = int(firsts.argmax())
    counts, total, best = (np.arange(len(own)) <= start).astype(int), sums[start], firsts[start]
    chosen = counts.copy()
    for _ in range(rounds):
        after = scores(total + own)
        taken = int(after.argmax())
        counts[taken] += 1
        total = total + own[taken]
        if after[taken] > best:
            best, chosen = after[taken], counts.copy()
    found = np.empty_like(chosen)
    found[ranked] = chosen
    return found


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
    decided: np.ndarray = answers[:, 0] if config.TASKS[task].regression else answers.argmax(1)
    return decided


class Adjustment(Protocol):
    """What changes probabilities [..., classes] before the likeliest class is taken: a decision
    rule, a prior shift.
    """

    def adjust(self, probabilities: np.ndarray) -> np.ndarray: ...


def adjusted(probabilities: np.ndarray, steps: Sequence[Adjustment]) -> np.ndarray:
    """Probabilities [..., classes] after each of the steps in turn."""
    for step in steps:
        probabilities = step.adjust(probabilities)
    return probabilities


def vote(
    method: str,
    task: str,
    probabilities: np.ndarray,
    weights: Sequence[float],
    steps: Sequence[Adjustment] = (),
) -> dict[str, np.ndarray]:
    """{name of the file: answers [images]} of a method: three for softvoting, one for hardvoting.

    The steps adjust the means of softvoting, and for hardvoting each pass, before the likeliest
    class is taken.
    """
    if method == "hardvoting":
        return {"hardvoting": majority(adjusted(probabilities, steps))}
    means: dict[str, Callable[[], np.ndarray]] = {
        "arithmetic": lambda: arithmetic(probabilities),
        "geometric": lambda: geometric(probabilities),
        "weighted_mean": lambda: weighted_mean(probabilities, weights),
    }
    return {name: decide(task, adjusted(mean(), steps)) for name, mean in means.items()}


def multiply(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """{mask, gender, ageg: probabilities [..., classes]} -> [..., 18] of `main`, as if they were
    independent.
    """
    mask, gender, group = (
        parts[part][..., list(config.TASKS[part].from_main)] for part in config.PARTS
    )
    product: np.ndarray = mask * gender * group
    return product


def answer_from_main(probabilities: np.ndarray, task: str) -> np.ndarray:
    """[..., 18] probabilities of `main` -> [..., classes] of a task that `main` knows."""
    index = np.array(config.TASKS[task].from_main)
    columns = [probabilities[..., index == c].sum(-1) for c in range(config.TASKS[task].outputs)]
    return np.stack(columns, axis=-1)


# --- decision rules

STEPS = np.arange(-1, 1.01, 0.25)  # offsets that are tried for a class, in logits
# macro F1 that an offset must gain for each unit of its square: holds back what a few people
# suggest
PULL = 0.002
SWEEPS = 3


@dataclass(frozen=True)
class Rule:
    """Temperature and per-class offsets: softmax(log p / temperature + offset) in place of p."""

    task: str
    temperature: float
    offsets: tuple[float, ...]

    def adjust(self, probabilities: np.ndarray) -> np.ndarray:
        """[..., classes] probabilities -> the adjusted ones."""
        logits = np.log(
            np.maximum(probabilities.astype(np.float64), FLOOR)
        ) / self.temperature + np.array(self.offsets)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        adjusted: np.ndarray = powers / powers.sum(-1, keepdims=True)
        return adjusted


def fit_rule(task: str, probabilities: np.ndarray, truth: np.ndarray) -> Rule:
    """A rule for macro F1 from out-of-fold probabilities [images, classes] and true classes
    [images].

    The temperature makes the probabilities as likely as can be (Guo et al. 2017, arXiv:1706.04599);
    then the classes' offsets (logit adjustment, Menon et al. 2021, arXiv:2007.07314) climb in turn
    to the best macro F1, held back by their own size.
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), FLOOR))
    heats = np.exp(np.linspace(-1.5, 1.5, 61))
    rows = np.arange(len(truth))
    surprise = [-(logs[rows, truth] / t - np.log(np.exp(logs / t).sum(1))).mean() for t in heats]
    heat = float(heats[int(np.argmin(surprise))])
    logits, classes = logs / heat, probabilities.shape[1]
    offsets = np.zeros(classes)
    for _ in range(SWEEPS):
        for c in np.unique(truth):
            others = logits + offsets
            own = logits[:, c].copy()
            others[:, c] = -np.inf
            rival, best = others.argmax(1), others.max(1)
            gains = [
                _f1(np.where(own + step > best, c, rival), truth, classes) - PULL * step**2
                for step in STEPS
            ]
            offsets[c] = STEPS[int(np.argmax(gains))]
    return Rule(task, heat, tuple(offsets.tolist()))


def _f1(predicted: np.ndarray, truth: np.ndarray, classes: int) -> float:
    return metrics.macro_f1(metrics.confusion(truth, predicted, classes))


def nested(
    task: str, probabilities: np.ndarray, truth: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Classes [images] by rules that never saw the photograph's own fold: what a rule fitted on all
    can be expected to give.
    """
    decided = np.empty(len(truth), np.int64)
    for fold in np.unique(folds):
        inside = folds == fold
        decided[inside] = (
            fit_rule(task, probabilities[~inside], truth[~inside])
            .adjust(probabilities[inside])
            .argmax(1)
        )
    return decided


def read_rule(tree: Path, task: str) -> Rule:
    """The rule that a tree's run fitted, or a prediction kept. Raises UserError where it has none
    for this task.
    """
    path = tree / RULE
    try:
        told = json.loads(read_file(path))
        rule = Rule(
            str(told["task"]), float(told["temperature"]), tuple(map(float, told["offsets"]))
        )
    except FileNotFoundError:
        raise UserError(
            f"--decision macro-f1: {path} is not there; a run of --cv 2 or more writes it when it "
            "ends, "
            "and predictions of that one tree keep it; use --decision argmax"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({reason(error)}); remove it, or use --decision argmax"
        ) from None
    if rule.task != task:
        raise UserError(
            f"--decision macro-f1: the rule of {tree} is for {rule.task}; use --task {rule.task}"
        )
    if (
        len(rule.offsets) != config.TASKS[task].outputs
        or not 0.01 <= rule.temperature <= 100
        or (not all(abs(offset) <= 100 for offset in rule.offsets))
    ):
        raise UserError(
            f"{path}: damaged (its numbers do not fit {task}); remove it, or use --decision argmax"
        )
    return rule
