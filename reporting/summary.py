"""What a run and a prediction are worth, for people: report.json (plain numbers) and report.html
(one file, no network).

The page is made from the numbers alone, with small copies of photographs where the user's own data
is at hand.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ensemble
import metrics
import run_directory
from labels import GROUP_STARTS, PARTS, TASKS, age_group, scoring_task
from reporting import html
from reporting.html import Numbers, Picture, Rows
from runtime.errors import UserError, printable, reason
from runtime.files import atomic_write, read_file

MOST_WRONG = 12  # people shown
BOUNDARY_YEARS = 3  # years on either side of a boundary between age groups


# --- what a run is worth


def training_report(
    tree: Path, table: pd.DataFrame, oof: pd.DataFrame, extra: Mapping[str, Rows]
) -> None:
    """Write report.json and report.html into a tree.

    table: a row per photograph as tables.read_train reads it. oof: file, person, fold, mask,
    gender, age (years), ageg, main and p0 ... p{C-1}, or value for a regression. extra: title ->
    (name, value) rows, shown and stored as they are.
    """
    numbers = training_numbers(tree, oof)
    numbers["extra"] = {
        title: [{"name": name, "value": value} for name, value in rows]
        for title, rows in extra.items()
    }
    paths = dict(zip(table["file"], table["path"], strict=True))
    write(tree, numbers, paths)


def training_numbers(tree: Path, oof: pd.DataFrame) -> Numbers:
    """Everything report.json holds, but the extra rows."""
    run = run_directory.read_run_json(tree)
    task = str(run.get("settings", {}).get("task", "main"))
    answers = answers_of(task, oof)
    decided = ensemble.decide(task, answers)
    people, folds = oof["person"].to_numpy(), oof["fold"].nunique()
    truth = oof[task].to_numpy()
    numbers = {
        "kind": "training",
        "name": tree.name,
        "task": task,
        **score_with_interval(task, decided, truth, people, folds),
    }
    numbers["headline"]["people"] = int(oof["person"].nunique())
    if task == "main":
        parts = {part: ensemble.marginalize_main(answers, part).argmax(1) for part in PARTS}
        numbers |= score_parts(parts, decided, truth, people, folds)
    numbers["folds"] = [
        fold_numbers(tree, int(fold), task, decided[rows], oof.iloc[rows])
        for fold, rows in oof.groupby("fold").indices.items()
    ]
    groups = {"main": decided % 3, "ageg": decided, "age": metrics.to_classes("age", decided)}.get(
        task
    )
    numbers["ages"] = (
        []
        if groups is None
        else age_errors(oof["age"].to_numpy(float), groups, decided if task == "age" else None)
    )
    numbers["boundaries"] = [] if groups is None else boundaries(numbers["ages"])
    if not TASKS[task].regression:
        names = ("confidence", "accuracy", "photographs")
        rows = metrics.calibration(answers, truth)
        numbers["calibration"] = {
            "ece": metrics.calibration_error(answers, truth),
            "bins": [dict(zip(names, row, strict=True)) for row in rows],
            "confidence": float(answers.max(1).mean()),
        }
    numbers["most_wrong"] = most_wrong(task, answers, decided, oof)
    rates = [
        rate for fold in numbers["folds"] for rate in fold["history"].get("images_per_second", [])
    ]
    numbers["time"] = {
        "seconds": elapsed(tree),
        "images_per_second": float(np.median(rates)) if rates else None,
    }
    return numbers | {"run": run}


def answers_of(task: str, oof: pd.DataFrame) -> np.ndarray:
    """The probabilities (or values) [images, classes] of an out-of-fold table. Raises UserError for
    one that lacks them.
    """
    spec = TASKS[task]
    columns = ["value"] if spec.regression else [f"p{number}" for number in range(spec.outputs)]
    needed = ("file", "person", "fold", "age", task, *columns)
    missing = [column for column in needed if column not in oof]
    if missing or oof.empty:
        raise UserError(
            f"oof.csv: {'no rows' if not missing else f'no column {missing[0]!r}'}; train the run "
            "again"
        )
    return oof[columns].to_numpy(float)


def score_with_interval(
    task: str, decided: np.ndarray, truth: np.ndarray, people: np.ndarray | None, folds: int = 0
) -> Numbers:
    """Scores with 95 % intervals over people (None: over photographs), per class too, and the
    confusion matrix.

    folds: how many the answers come from, out of fold; 0 where they do not.
    """
    names = TASKS[scoring_task(task)].classes
    scores = metrics.score(task, decided, truth)
    if people is None:
        draws = metrics.bootstrap_photographs(scores.matrix)
    else:
        true, mine = metrics.to_classes(task, truth), metrics.to_classes(task, decided)
        draws = metrics.bootstrap_people(true, mine, people, len(names))
    each, spread = metrics.class_f1(scores.matrix), metrics.class_f1(draws)
    headline = {
        "macro_f1": with_interval(scores.macro_f1, metrics.macro_f1s(draws), folds),
        "accuracy": with_interval(scores.accuracy, metrics.accuracies(draws), folds),
        "photographs": len(truth),
    }
    years = {"rmse": scores.rmse, "mae": scores.mae} if scores.rmse is not None else {}
    rows = []
    for number, name in enumerate(names):
        span = with_interval(float(each[number]), spread[:, number], folds)
        counted = {
            "photographs": int(scores.matrix[number].sum()),
            "answered": int(scores.matrix[:, number].sum()),
        }
        rows.append(
            {"name": name, "f1": span["value"], "low": span["low"], "high": span["high"], **counted}
        )
    count = max(len(truth), 1)
    return {
        "headline": headline | years,
        "classes": rows,
        "confusion": scores.matrix.tolist(),
        "class_names": list(names),
        "class_shares": (scores.matrix.sum(0) / count).tolist(),
        "true_shares": (scores.matrix.sum(1) / count).tolist(),
    }


def with_interval(value: float, draws: np.ndarray, folds: int) -> dict[str, float]:
    """A value with its 95 % interval."""
    low, high = (
        metrics.out_of_fold_interval(value, draws, folds) if folds else metrics.interval(draws)
    )
    return {"value": value, "low": low, "high": high}


def score_parts(
    parts: Mapping[str, np.ndarray],
    decided: np.ndarray,
    truth: np.ndarray,
    people: np.ndarray | None,
    folds: int = 0,
) -> Numbers:
    """For answers of 18 classes: the scores of each part's own answers, and in `if_right` the macro
    F1 of the 18 if that part of every answer were right and the others stayed as they are.
    """
    index = {part: np.array(TASKS[part].from_main) for part in PARTS}
    scores, would = {}, {}
    for part in PARTS:
        scores[part] = score_with_interval(part, parts[part], index[part][truth], people, folds)
        mask, gender, group = (index[other][truth if other == part else decided] for other in PARTS)
        would[part] = metrics.macro_f1(metrics.confusion(truth, 6 * mask + 3 * gender + group, 18))
    return {"parts": scores, "if_right": would}


def fold_numbers(
    tree: Path, fold: int, task: str, decided: np.ndarray, oof: pd.DataFrame
) -> Numbers:
    """One fold's people, photographs per class, out-of-fold scores and learning curves."""
    own = score_with_interval(task, decided, oof[task].to_numpy(), oof["person"].to_numpy(), 1)
    path = tree / f"fold{fold:02d}" / "history.csv"
    try:
        history = {
            name: values.tolist()
            for name, values in pd.read_csv(io.BytesIO(read_file(path))).astype(float).items()
        }
        lost = [
            name
            for name in ("epoch", "train_loss", "valid_loss", "macro_f1")
            if not history.get(name)
        ]
        if lost:
            raise ValueError(f"no column {lost[0]!r} with numbers")
    except FileNotFoundError:
        history = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({reason(error)}); train the fold again") from None
    return {
        "fold": fold,
        "people": int(oof["person"].nunique()),
        "photographs": len(oof),
        "macro_f1": own["headline"]["macro_f1"],
        "accuracy": own["headline"]["accuracy"],
        "photographs_per_class": [row["photographs"] for row in own["classes"]],
        "history": history,
    }


def age_errors(
    years: np.ndarray, groups: np.ndarray, answers: np.ndarray | None = None
) -> list[Numbers]:
    """By true age in whole years: photographs, how many were put into too young or too old a group,
    and the mean answer where the answers are years.
    """
    whole = np.floor(years + 0.5).astype(int)
    true = np.array([age_group(year) for year in years])
    rows = []
    for age in np.unique(whole):
        own = whole == age
        row = {
            "age": int(age),
            "photographs": int(own.sum()),
            "too_young": int((own & (groups < true)).sum()),
            "too_old": int((own & (groups > true)).sum()),
        }
        rows.append(row if answers is None else {**row, "mean_answer": float(answers[own].mean())})
    return rows


def boundaries(ages: Sequence[Numbers]) -> list[Numbers]:
    """For each boundary between age groups: the photographs within three years of it and how many
    crossed it.
    """
    found = []
    for start in GROUP_STARTS:
        below = [row for row in ages if start - BOUNDARY_YEARS <= row["age"] < start]
        above = [row for row in ages if start <= row["age"] < start + BOUNDARY_YEARS]
        sides = {
            "below": sum(row["photographs"] for row in below),
            "below_called_older": sum(row["too_old"] for row in below),
            "above": sum(row["photographs"] for row in above),
            "above_called_younger": sum(row["too_young"] for row in above),
        }
        if sides["below"] or sides["above"]:
            found.append({"age": start, **sides})
    return found


def most_wrong(
    task: str, answers: np.ndarray, decided: np.ndarray, oof: pd.DataFrame
) -> list[Numbers]:
    """The people whom the model contradicts most, each with the photograph it is most wrong about.

    `error` is the mean over a person's photographs of 1 - the probability of the truth, or of the
    error in years.
    """
    regression = TASKS[task].regression
    truth, files = oof[task].to_numpy(), oof["file"].to_numpy()
    error = (
        np.abs(answers[:, 0] - truth) if regression else 1 - answers[np.arange(len(truth)), truth]
    )
    classes, true = metrics.to_classes(task, decided), metrics.to_classes(task, truth)
    names = TASKS[scoring_task(task)].classes
    found = []
    for person, rows in oof.groupby("person").indices.items():
        wrong = rows[classes[rows] != true[rows]]
        if not len(wrong):
            continue
        worst = wrong[np.argmax(error[wrong])]
        is_, said = (
            f"{v:.0f} years" if regression else names[int(v)]
            for v in (truth[worst], decided[worst])
        )
        found.append(
            {
                "person": person,
                "file": files[worst],
                "true": is_,
                "answered": said,
                "wrong": len(wrong),
                "photographs": len(rows),
                "error": float(error[rows].mean()),
            }
        )
    return sorted(found, key=lambda row: (-row["error"], row["person"]))[:MOST_WRONG]


def elapsed(tree: Path) -> float | None:
    """Seconds from the run's start to its last epoch; None where the tree does not tell."""
    ends = [path.stat().st_mtime for path in tree.glob("fold*/history.csv")]
    return (
        max(0.0, max(ends) - run_directory.start_time(tree))
        if ends and run_directory.read_run_json(tree)
        else None
    )


# --- what a prediction is worth


def prediction_report(
    folder: Path,
    probs: ensemble.Probabilities,
    voted: Mapping[str, np.ndarray],
    truth: np.ndarray | None = None,
    training_shares: Sequence[float] | np.ndarray | None = None,
    made: Mapping[str, object] | None = None,
) -> None:
    """Write report.json and report.html into a prediction's folder.

    voted: {method: answers [images]}; truth: the true answers, where they are known;
    training_shares: the share of each class (of `ageg` for years) among the training photographs;
    made: the settings, and what was noted on the way.
    """
    numbers = prediction_numbers(folder.name, probs, voted, truth, training_shares) | {
        "made": made or {}
    }
    write(folder, numbers, {})


def prediction_numbers(
    name: str,
    probs: ensemble.Probabilities,
    voted: Mapping[str, np.ndarray],
    truth: np.ndarray | None,
    training_shares: Sequence[float] | np.ndarray | None,
) -> Numbers:
    """Everything a prediction's report.json holds."""
    task, classes = probs.task, len(TASKS[scoring_task(probs.task)].classes)
    members = [
        ensemble.decide(task, ensemble.arithmetic(probs.array[m : m + 1]))
        for m in range(len(probs.members))
    ]
    grouped = np.stack([metrics.to_classes(task, answers) for answers in members])
    methods = {method: metrics.to_classes(task, answers) for method, answers in voted.items()}
    first = next(iter(methods))
    told = zip(probs.members, probs.folds, probs.weights, grouped, members, strict=True)
    numbers: Numbers = {
        "kind": "prediction",
        "name": name,
        "task": task,
        "photographs": len(probs.images),
        "views": probs.array.shape[1],
        "members": [
            {
                "name": member,
                "fold": int(fold),
                "validation_macro_f1": float(weight),
                "equal_to_vote": float((own == methods[first]).mean()),
                **scored(task, answers, truth),
            }
            for member, fold, weight, own, answers in told
        ],
        "agreement": [(grouped == own).mean(1).tolist() for own in grouped],
        "methods": [
            {
                "name": method,
                "equal_to_first": float((answers == methods[first]).mean()),
                **scored(task, voted[method], truth),
            }
            for method, answers in methods.items()
        ],
        "class_names": list(TASKS[scoring_task(task)].classes),
        "class_shares": (
            np.bincount(methods[first], minlength=classes) / max(len(probs.images), 1)
        ).tolist(),
        "training_shares": None
        if training_shares is None
        else [float(share) for share in training_shares],
    }
    if not TASKS[task].regression:
        numbers["confidence"] = float(ensemble.arithmetic(probs.array).max(1).mean())
    if truth is not None:
        numbers |= score_with_interval(task, voted[first], truth, None)
        if task == "main":
            parts = {part: np.array(TASKS[part].from_main)[methods[first]] for part in PARTS}
            numbers |= score_parts(parts, methods[first], truth, None)
    return numbers


def scored(task: str, answers: np.ndarray, truth: np.ndarray | None) -> dict[str, float]:
    """Macro F1 and accuracy where the truth is known."""
    if truth is None:
        return {}
    scores = metrics.score(task, answers, truth)
    return {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy}


# --- writing


def write(folder: Path, numbers: Numbers, paths: Mapping[str, str]) -> None:
    """report.json first, then report.html: a page that fails leaves the numbers."""
    stored = to_json(numbers)
    run_directory.write_json(folder / "report.json", stored)
    with atomic_write(folder / "report.html", "w") as file:
        file.write(html.render_page(stored, paths))
    print(f"report: {printable(folder / 'report.html')}")


def to_json(value: object) -> Any:
    """JSON's own types: numbers that are none become null, names that are no Unicode are mended."""
    if isinstance(value, Mapping):
        return {str(to_json(key)): to_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Picture):
        return to_json({"file": value.path, "note": value.note})
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value).encode("utf-8", "replace").decode()
