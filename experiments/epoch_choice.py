#!/usr/bin/env python3
"""Which epoch to take? python -m experiments.epoch_choice DIR [--settings NAME ...]

Nothing is trained: DIR is one that ablation.py screened, with every epoch's predictions of each
fold's held-out people. A rule sees predictions for some people and takes an epoch; others are
scored. `own`: the held-out people of a fold are parted into halves at random; each half is scored
by the epoch that the other half chose, as a checkpoint is chosen for people nobody has seen.
`others`: all held-out people of a fold are scored by the epoch that the other folds' people chose,
as the headline is (curves' mean). Rules that choose nothing: the last epoch, the mean of the last
three epochs' probabilities (a vote of three checkpoints).

Scores are means over all settings, seeds and halvings; the gain is that in even F1 over the rule in
use, with its 95 % interval by bootstrap over people.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import metrics
import out_of_fold
from benchmarks import harness
from experiments.ablation import SETTINGS, complete_folders, even_macro_f1
from runtime.errors import UserError
from runtime.files import load_npz

HALVINGS = 4
IN_USE = "macro F1, own"

Score = Callable[[np.ndarray, np.ndarray], float]  # (probabilities, classes) -> higher is better


def macro_f1(probabilities: np.ndarray, truth: np.ndarray) -> float:
    return metrics.score("main", probabilities.argmax(1), truth).macro_f1


def even_f1(probabilities: np.ndarray, truth: np.ndarray) -> float:
    return float(even_macro_f1(metrics.score("main", probabilities.argmax(1), truth).matrix))


def log_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The mean over photographs."""
    return float(np.log(probabilities[np.arange(len(truth)), truth].clip(1e-7)).mean())


def even_log_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the classes of the mean over their photographs: minus the balanced log loss."""
    each = np.log(probabilities[np.arange(len(truth)), truth].clip(1e-7))
    return float(pd.Series(each).groupby(truth).mean().mean())


RULES: dict[str, Score] = {
    "macro F1": macro_f1,
    "even F1": even_f1,
    "log loss": log_likelihood,
    "balanced log loss": even_log_likelihood,
}


def read_folds(folder: Path) -> list[out_of_fold.FoldPredictions]:
    """Every epoch's predictions of one setting and seed."""
    oof = out_of_fold.read_oof(folder, "main")
    if oof is None:
        raise UserError(f"{folder}: no oof.csv; remove the folder and screen it again")
    rows = oof.rows.set_index("file", drop=False)
    folds = []
    for path in sorted(folder.glob("fold??.npz")):
        arrays = load_npz(path, "remove the folder and screen it again")
        assert arrays is not None
        own = rows.loc[arrays["files"]].reset_index(drop=True)
        number = int(path.stem.removeprefix("fold"))
        folds.append(out_of_fold.fold_predictions("main", number, own, arrays["probs_main"]))
    return folds


def halves(people: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Which photographs [images] belong to a random half of the people."""
    names = np.unique(people)
    chosen = generator.permutation(names)[: len(names) // 2]
    return np.isin(people, chosen)


def curve(fold: out_of_fold.FoldPredictions, seen: np.ndarray, score: Score) -> np.ndarray:
    """The score [epochs] on those of a fold's photographs."""
    truth = fold.rows["main"].to_numpy()[seen]
    return np.array([score(epoch[seen], truth) for epoch in fold.predictions])


def chosen_predictions(
    folds: list[out_of_fold.FoldPredictions], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """{rule: classes [images]} of all folds' held-out people."""
    parts: dict[str, list[np.ndarray]] = {}
    every = [np.ones(len(fold.rows), bool) for fold in folds]
    for name, score in RULES.items():
        curves = np.stack([curve(f, seen, score) for f, seen in zip(folds, every, strict=True)])
        epochs = out_of_fold.epochs_chosen_by_others(curves)
        stacked = out_of_fold.stack_folds(folds, epochs)
        parts[f"{name}, others"] = [stacked.predictions.argmax(1)]
    for fold in folds:
        half = halves(fold.rows["person"].to_numpy(), generator)
        for name, score in RULES.items():
            taken = fold.predictions[0].copy()
            for seen in (half, ~half):
                taken[~seen] = fold.predictions[curve(fold, seen, score).argmax()][~seen]
            parts.setdefault(f"{name}, own", []).append(taken.argmax(1))
        parts.setdefault("the last", []).append(fold.predictions[-1].argmax(1))
        mean = fold.predictions[-3:].mean(0)
        parts.setdefault("mean of the last three", []).append(mean.argmax(1))
    return {name: np.concatenate(classes) for name, classes in parts.items()}


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="of screened settings")
    names = list(SETTINGS)
    parser.add_argument("--settings", nargs="+", choices=names, default=names, metavar="NAME")
    args = parser.parse_args(argv)
    scores: dict[str, list[tuple[float, float]]] = {}
    gains: dict[str, list[np.ndarray]] = {}
    generator, runs = np.random.default_rng(0), 0
    for setting in args.settings:
        for _, folder in complete_folders(args.folder, setting):
            folds = read_folds(folder)
            rows = pd.concat([fold.rows for fold in folds], ignore_index=True)
            truth, people = rows["main"].to_numpy(), rows["person"].to_numpy()
            runs += 1
            for _ in range(HALVINGS):
                draws = {}
                for rule, classes in chosen_predictions(folds, generator).items():
                    matrix = metrics.score("main", classes, truth).matrix
                    figures = (float(even_macro_f1(matrix)), float(metrics.macro_f1(matrix)))
                    scores.setdefault(rule, []).append(figures)
                    drawn = metrics.bootstrap("main", classes, truth, people)
                    draws[rule] = even_macro_f1(drawn)
                for rule, values in draws.items():
                    gains.setdefault(rule, []).append(values - draws[IN_USE])
    if not runs:
        raise UserError(f"{args.folder}: nothing is complete; screen settings by ablation.py first")
    table = []
    for rule, both in scores.items():
        even_mean, plain_mean = np.mean(both, axis=0)
        row = {"rule": rule, "even F1": even_mean, "macro F1": plain_mean}
        row["gain"] = even_mean - np.mean(scores[IN_USE], axis=0)[0]
        row["low"], row["high"] = metrics.interval(np.mean(gains[rule], axis=0))
        table.append(row)
    print(f"{runs} runs")
    print(pd.DataFrame(table).round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
