"""Prior shift: how frequent the classes are among unlabelled photographs, and answers that reckon
with it. No model in sight.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import config
import ensemble
from utils import UserError, atomic_write, read_file, reason

FILE = "calibration.json"  # in a tree, and in predictions made from it
RIDGE = 1e-3  # holds the biases of rare classes back
ROUNDS, STILL = (
    500,
    1e-7,
)  # of the expectation maximisation: at most so many, or until no share moves by more
RAREST = 1e-6  # no share is counted as less
# of its training share: a class of which less seems to be left makes the estimate doubtful
VANISHED = 0.05
LEAST = 1e-6  # factor of a class: not so small that its probabilities vanish
LIMIT = 100.0  # no calibration has a temperature (or its inverse), or a bias in logits, beyond this


@dataclass(frozen=True)
class Calibration:
    """softmax(log p / temperature + biases) is how likely each class is among people as those of
    the training.

    Temperature and biases together: bias-corrected temperature scaling (Alexandari et al. 2020,
    arXiv:1901.06852).
    """

    task: str
    temperature: float
    biases: tuple[float, ...]
    shares: tuple[
        float, ...
    ]  # of the classes among the photographs that it was fitted on, by the calibrated probabilities
    assumed: tuple[
        float, ...
        # the shares that the uncalibrated answers reckon with: those, but where training changed
        # them
    ]

    def adjust(self, probabilities: np.ndarray) -> np.ndarray:
        """[..., classes] probabilities -> the calibrated ones."""
        return ensemble.Rule(self.task, self.temperature, self.biases).adjust(probabilities)


@dataclass(frozen=True)
class Shift:
    """How much more frequent than in training each class is, and so how its probabilities are to be
    weighed.
    """

    task: str
    factors: tuple[float, ...]
    shares: tuple[float, ...]  # in training
    assumed: tuple[float, ...]  # by the answers as they are

    def adjust(self, probabilities: np.ndarray) -> np.ndarray:
        """[..., classes] probabilities -> those for the estimated shares, not the assumed ones."""
        weighed = probabilities * (np.array(self.factors) * self.shares / self.assumed)
        adjusted: np.ndarray = weighed / weighed.sum(-1, keepdims=True)
        return adjusted

    @property
    def priors(self) -> np.ndarray:
        """The estimated shares of the classes."""
        return _normal(np.array(self.shares) * self.factors)

    def found(self) -> dict[str, list[tuple[str, float, float]]]:
        """{part of `main`, or the task: (class, its share in training, its share here) of each
        class}.
        """
        told = {}
        for task in config.PARTS if self.task == "main" else (self.task,):
            before, now = (
                _sums(shares, part_of(self.task, task))
                for shares in (np.array(self.shares), self.priors)
            )
            told[task] = list(
                zip(config.TASKS[task].classes, before.tolist(), now.tolist(), strict=True)
            )
        return told

    def lines(self) -> list[str]:
        """What was found beside the training's shares: a line for each part of `main`, or for the
        task.
        """
        shown = {
            task: ", ".join(
                f"{name} {100 * old:.1f} -> {100 * new:.1f} %" for name, old, new in rows
            )
            for task, rows in self.found().items()
        }
        return [
            f"prior shift, {task} in training -> estimated here: {text}"
            for task, text in shown.items()
        ]

    def vanished(self) -> list[str]:
        """The classes of which next to nothing seems to be left."""
        rows = [row for part in self.found().values() for row in part]
        return [name for name, old, new in rows if new < VANISHED * old]


def fit(
    task: str, probabilities: np.ndarray, truth: np.ndarray, alike: bool = False
) -> Calibration:
    """The calibration under which out-of-fold probabilities [images, classes] make the true classes
    [images] likeliest.

    alike: they come of a training in which the classes counted as alike frequent.
    """
    import torch  # using a calibration does without

    classes = probabilities.shape[1]
    logs = torch.from_numpy(np.log(np.maximum(probabilities.astype(np.float64), ensemble.FLOOR)))
    labels = torch.from_numpy(truth.astype(np.int64))
    heat = torch.zeros((), dtype=torch.float64, requires_grad=True)  # log of the temperature
    biases = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([heat, biases], max_iter=200, line_search_fn="strong_wolfe")

    def surprise() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(logs / heat.exp() + biases, labels)
            + RIDGE * (biases**2).sum()
        )
        loss.backward()
        return loss

    optimizer.step(surprise)
    temperature = float(heat.detach().exp().clamp(1 / LIMIT, LIMIT).nan_to_num(1.0))
    bounded = biases.detach().nan_to_num(0.0).clamp(-LIMIT, LIMIT)
    uniform = (1 / classes,) * classes
    found = Calibration(task, temperature, tuple(bounded.tolist()), uniform, uniform)
    # By the probabilities, not by the labels: they agree but for classes that are absent or rare,
    # whose biases are held back.
    # With shares from labels these would seem more frequent than they were, in any photographs.
    shares = tuple(found.adjust(probabilities).mean(0).tolist())
    return dataclasses.replace(found, shares=shares, assumed=uniform if alike else shares)


def write(folder: Path, calibration: Calibration) -> None:
    """calibration.json."""
    with atomic_write(folder / FILE, "w") as file:
        json.dump(dataclasses.asdict(calibration), file)


def read(folder: Path, task: str) -> Calibration:
    """The calibration that a tree's run fitted, or a prediction kept. Raises UserError where it has
    none for this task.
    """
    path, remedy = folder / FILE, "use --prior-shift none"
    try:
        told = json.loads(read_file(path))
        told.setdefault(
            "assumed", told["shares"]
        )  # files from before there were runs in which the two differ
        biases, shares, assumed = (
            tuple(map(float, told[name])) for name in ("biases", "shares", "assumed")
        )
        found = Calibration(str(told["task"]), float(told["temperature"]), biases, shares, assumed)
    except FileNotFoundError:
        raise UserError(
            f"--prior-shift em: {path} is not there; a run writes it when it ends (not of "
            "Factorised, to which all "
            f"ages are alike frequent), and predictions of that one tree keep it; {remedy}"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(f"{path}: damaged ({reason(error)}); remove it, or {remedy}") from None
    if found.task != task:
        raise UserError(
            f"--prior-shift em: the calibration of {folder} is for {found.task}; use --task "
            f"{found.task}"
        )
    fits = (
        len(biases) == len(shares) == len(assumed) == config.TASKS[task].outputs
        and 1 / LIMIT <= found.temperature <= LIMIT
    )
    fits = (
        fits
        and all(abs(bias) <= LIMIT for bias in biases)
        and all(0 <= share <= 1 for share in shares)
    )
    fits = fits and all(0 <= share <= 1 for share in assumed)
    if not fits or not all(0.99 <= sum(each) <= 1.01 for each in (shares, assumed)):
        raise UserError(f"{path}: damaged (its numbers do not fit {task}); remove it, or {remedy}")
    return found


def part_of(task: str, part: str) -> np.ndarray:
    """int [classes of task]: to which class of a part (or of the task itself) each belongs."""
    return np.array(
        config.TASKS[part].from_main if task == "main" else range(config.TASKS[task].outputs)
    )


def estimate(calibration: Calibration, probabilities: np.ndarray) -> Shift:
    """The shift that makes these photographs' probabilities [members, views, images, classes]
    likeliest.

    Expectation maximisation on the mean of the calibrated passes (Saerens et al. 2002, Adjusting
    the Outputs of a Classifier to New a Priori Probabilities). For `main` the factor of a class is
    the product of one for its mask state, one for its gender and one for its age group: 18 free
    ones would fit the noise of the rare classes.
    """
    task = calibration.task
    passes = ensemble.arithmetic(calibration.adjust(probabilities))
    shares = _normal(np.maximum(calibration.shares, RAREST))
    parts = [part_of(task, part) for part in (config.PARTS if task == "main" else (task,))]
    factors, priors = np.ones(len(shares)), shares
    for _ in range(ROUNDS):
        weighed = passes * factors
        expected = (weighed / weighed.sum(1, keepdims=True)).mean(0)
        # one turn of iterative proportional fitting: the shares of each part's classes as expected
        for part in parts:
            factors = (
                factors * (_sums(expected, part) / _sums(_normal(shares * factors), part))[part]
            )
        factors = np.maximum(factors, LEAST)
        before, priors = priors, _normal(shares * factors)
        if np.abs(priors - before).max() < STILL:
            break
    assumed = _normal(np.maximum(calibration.assumed, RAREST))
    return Shift(task, tuple(factors.tolist()), tuple(shares.tolist()), tuple(assumed.tolist()))


def _sums(values: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Values [classes] summed over the classes of a part."""
    return np.bincount(part, values)


def _normal(values: np.ndarray) -> np.ndarray:
    """Values that sum to 1."""
    normal: np.ndarray = values / values.sum()
    return normal
