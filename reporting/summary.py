"""What a run and a prediction are worth: report.json (plain numbers), from these report.html."""

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
import out_of_fold
import run_directory
from labels import GROUP_STARTS, PARTS, TASKS, scoring_task
from reporting import html
from reporting.html import Galleries, Numbers, Paths, Rows
from runtime.errors import UserError, path_error, printable
from runtime.files import atomic_write, read_file

MAX_DOUBTFUL_SHOWN = 6
MAX_PEOPLE_SHOWN = 12  # of those that are most wrong
MAX_SAMPLES_SHOWN = 6  # photographs that are predicted rightly, and as many wrong ones
MIN_PEOPLE_OF_AGE = 10  # behind a sentence about an age
BOUNDARY_YEARS = 3  # years on either side of a boundary between age groups
HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "macro_f1")  # that a page needs


def training_report(
    run_dir: Path,
    table: pd.DataFrame,
    oof: pd.DataFrame,
    extra: Mapping[str, Rows],
    galleries: Galleries | None = None,
) -> None:
    """Write report.json and report.html into a run's folder.

    table: a row per photograph as tables.read_train reads it; oof: as out_of_fold.write_oof returns
    it; extra: {title: (name, value) rows}, stored and shown; a value {file, note} is a photograph
    with a note, and `fix` (path, column, value) in it a choice for --label-fixes; galleries:
    {title: pictures}, shown only. Raises UserError for a table without predictions and for a
    damaged history.csv.
    """
    paths = dict(zip(table["file"], table["path"], strict=True))
    write_report(run_dir, training_numbers(run_dir, oof), extra, paths, galleries or {})


def training_numbers(run_dir: Path, oof: pd.DataFrame) -> Numbers:
    """Everything report.json holds, but the extra rows."""
    run = run_directory.read_run_json(run_dir)
    task = str(run.get("settings", {}).get("task", "main"))
    columns = out_of_fold.probability_columns(task)
    for name in ("file", "person", "fold", "age", *columns):
        if name not in oof:
            raise UserError(f"oof.csv: no column {name!r}; train the run again")
    predictions = oof[columns].to_numpy(float)
    decided, truth = ensemble.decide(task, predictions), oof[task].to_numpy()
    people, fold_count = oof["person"].to_numpy(), oof["fold"].nunique()
    scores = score_with_intervals(task, decided, truth, people, fold_count)
    scores["headline"]["people"] = oof["person"].nunique()
    if task == "main":
        parts = {part: ensemble.marginalize_main(predictions, part).argmax(1) for part in PARTS}
        scores |= score_parts(parts, decided, truth, people, fold_count)
    folds = [
        fold_numbers(run_dir, int(fold), task, decided[rows], oof.iloc[rows])
        for fold, rows in oof.groupby("fold").indices.items()
    ]
    ages = age_errors(task, decided, oof) if task in ("main", "ageg", "age") else []
    photos = photo_errors(task, predictions, oof)
    rates = [rate for fold in folds for rate in fold["history"].get("images_per_second", [])]
    speed = np.median(rates) if rates else None
    ends = [path.stat().st_mtime for path in run_dir.glob("fold*/history.csv")]
    seconds = max(ends) - run_directory.start_time(run_dir) if ends and run else None
    numbers = {
        "kind": "training",
        "task": task,
        **scores,
        "folds": folds,
        "ages": ages,
        "boundaries": boundary_errors(ages),
        "worst_ages": worst_ages(ages),
        "samples": sample_predictions(photos),
        "most_wrong": most_wrong(photos),
        "time": {"seconds": seconds and max(0.0, seconds), "images_per_second": speed},
        "run": run,
    }
    if not TASKS[task].regression:
        names = ("confidence", "accuracy", "photographs")
        bins = metrics.calibration(predictions, truth)
        numbers["calibration"] = {
            "ece": metrics.calibration_error(predictions, truth),
            "bins": [dict(zip(names, row, strict=True)) for row in bins],
            "confidence": predictions.max(1).mean(),
        }
    return numbers


def score_with_intervals(
    task: str, predicted: np.ndarray, truth: np.ndarray, people: np.ndarray | None, folds: int = 0
) -> Numbers:
    """Scores with 95 % intervals over people (None: over photographs), per class too, and the
    confusion matrix. folds: how many the predictions come from, out of fold; 0 where they do not.
    """
    names = TASKS[scoring_task(task)].classes
    scores = metrics.score(task, predicted, truth)
    draws = metrics.bootstrap(task, predicted, truth, people)

    def with_interval(name: str, value: float, values: np.ndarray) -> dict[str, float]:
        low, high = metrics.out_of_fold_interval(value, values, folds)
        return {name: value, "low": low, "high": high}

    headline = {
        "macro_f1": with_interval("value", scores.macro_f1, metrics.macro_f1(draws)),
        "accuracy": with_interval("value", scores.accuracy, metrics.accuracy(draws)),
        "photographs": len(truth),
        "is_guessing": metrics.is_guessing(scores.matrix),
    }
    if scores.rmse is not None:
        headline |= {"rmse": scores.rmse, "mae": scores.mae}
    true_counts, predicted_counts = scores.matrix.sum(1), scores.matrix.sum(0)
    class_f1, class_draws = metrics.class_f1(scores.matrix), metrics.class_f1(draws)
    columns = (names, class_f1, class_draws.T, true_counts, predicted_counts)
    return {
        "headline": headline,
        "classes": [
            {"name": name, **with_interval("f1", f1, drawn), "photographs": true, "answered": own}
            for name, f1, drawn, true, own in zip(*columns, strict=True)
        ],
        "confusion": scores.matrix,
        "class_names": names,
        "class_shares": predicted_counts / max(len(truth), 1),
        "true_shares": true_counts / max(len(truth), 1),
    }


def score_parts(
    parts: Mapping[str, np.ndarray],
    decided: np.ndarray,
    truth: np.ndarray,
    people: np.ndarray | None,
    folds: int = 0,
) -> Numbers:
    """For predictions of 18 classes: the scores of each part's own predictions, and in `if_right`
    the macro F1 of the 18 if that part were always right and the others stayed as they are.
    """
    of_main = {part: np.array(TASKS[part].from_main) for part in PARTS}
    scores, if_right = {}, {}
    for part in PARTS:
        scores[part] = score_with_intervals(part, parts[part], of_main[part][truth], people, folds)
        mask, gender, group = (of_main[name][truth if name == part else decided] for name in PARTS)
        mended = 6 * mask + 3 * gender + group
        if_right[part] = float(metrics.macro_f1(metrics.confusion(truth, mended, 18)))
    return {"parts": scores, "if_right": if_right}


def fold_numbers(
    run_dir: Path, fold: int, task: str, decided: np.ndarray, oof: pd.DataFrame
) -> Numbers:
    """One fold's people, photographs per class, out-of-fold scores and learning curves."""
    scores = score_with_intervals(task, decided, oof[task].to_numpy(), oof["person"].to_numpy(), 1)
    path = run_dir / f"fold{fold:02d}" / "history.csv"
    try:
        history = pd.read_csv(io.BytesIO(read_file(path))).astype(float).to_dict("list")
        for name in HISTORY_COLUMNS:
            if not history.get(name):
                raise ValueError(f"no column {name!r} with numbers")
    except FileNotFoundError:
        history = {}
    except (OSError, ValueError) as error:
        raise path_error(path, error, "train the fold again", "read") from None
    return {
        "fold": fold,
        "people": oof["person"].nunique(),
        "photographs": len(oof),
        "macro_f1": scores["headline"]["macro_f1"],
        "accuracy": scores["headline"]["accuracy"],
        "photographs_per_class": [row["photographs"] for row in scores["classes"]],
        "history": history,
    }


def age_errors(task: str, decided: np.ndarray, oof: pd.DataFrame) -> list[Numbers]:
    """By true age in whole years: people, photographs, counts of wrong groups, mean of years."""
    years = oof["age"].to_numpy(float)
    true_groups = metrics.to_classes("age", years)
    groups = decided % 3 if task == "main" else metrics.to_classes(task, decided)
    table = oof[["person"]].assign(too_young=groups < true_groups, too_old=groups > true_groups)
    by_age = table.assign(answer=decided).groupby(np.floor(years + 0.5).astype(int))
    columns = {name: (name, "sum") for name in ("too_young", "too_old")}
    if TASKS[task].regression:
        columns["mean_answer"] = ("answer", "mean")
    counts = {"people": ("person", "nunique"), "photographs": ("person", "size")}
    ages = by_age.agg(**counts, **columns)
    return ages.rename_axis("age").reset_index().to_dict("records")


def boundary_errors(ages: Sequence[Numbers]) -> list[Numbers]:
    """Photographs near each boundary between age groups, and how many crossed it."""
    boundaries = []
    for start in GROUP_STARTS:
        below = [row for row in ages if start - BOUNDARY_YEARS <= row["age"] < start]
        above = [row for row in ages if start <= row["age"] < start + BOUNDARY_YEARS]
        sums = {
            "people": sum(row["people"] for row in below + above),
            "below": sum(row["photographs"] for row in below),
            "below_called_older": sum(row["too_old"] for row in below),
            "above": sum(row["photographs"] for row in above),
            "above_called_younger": sum(row["too_young"] for row in above),
        }
        boundaries += [{"age": start, **sums}] if sums["people"] else []
    return boundaries


def worst_ages(ages: Sequence[Numbers]) -> list[Numbers]:
    """The three ages with the largest share in a wrong group, of those with enough people."""
    wrong = [
        {"age": row["age"], "share": (row["too_young"] + row["too_old"]) / row["photographs"]}
        for row in ages
        if row["people"] >= MIN_PEOPLE_OF_AGE
    ]
    return sorted(wrong, key=lambda row: -row["share"])[:3]


def photo_errors(task: str, predictions: np.ndarray, oof: pd.DataFrame) -> pd.DataFrame:
    """A row per photograph: person, file, true, answered (names), wrong (the class is), and the
    error: 1 - the probability of the truth, or years.
    """
    truth, decided = oof[task].to_numpy(), ensemble.decide(task, predictions)
    classes = TASKS[task].classes
    error = 1 - predictions[np.arange(len(truth)), truth] if classes else np.abs(decided - truth)
    table = oof[["person", "file"]].copy()
    for column, values in (("true", truth), ("answered", decided)):
        table[column] = [classes[v] if classes else f"{v:.0f} years" for v in values]
    wrong = metrics.to_classes(task, decided) != metrics.to_classes(task, truth)
    return table.assign(error=error, wrong=wrong)


def sample_predictions(photos: pd.DataFrame) -> list[Numbers]:
    """A few right and then a few wrong rows of photo_errors, from all over the table."""
    samples: list[Numbers] = []
    for _, rows in photos.groupby("wrong"):
        places = np.linspace(0, len(rows) - 1, min(MAX_SAMPLES_SHOWN, len(rows))).astype(int)
        samples += rows.iloc[places].to_dict("records")
    return samples


def most_wrong(table: pd.DataFrame) -> list[Numbers]:
    """The people with the largest mean error, each by its worst row of photo_errors."""
    worst = table[table["wrong"]].sort_values("error", ascending=False, kind="stable")
    worst = worst.drop_duplicates("person").set_index("person").drop(columns=["wrong", "error"])
    counts = {"wrong": ("wrong", "sum"), "photographs": ("wrong", "size")}
    people = table.groupby("person").agg(**counts, error=("error", "mean"))
    ranked = worst.join(people).reset_index()
    order = {"by": ["error", "person"], "ascending": [False, True]}
    return ranked.sort_values(**order).head(MAX_PEOPLE_SHOWN).to_dict("records")


def prediction_report(
    folder: Path,
    probs: ensemble.Probabilities,
    votes: Mapping[str, np.ndarray],
    truth: np.ndarray | None = None,
    training_shares: Sequence[float] | np.ndarray | None = None,
    origin: Mapping[str, object] | None = None,
    paths: Paths | None = None,
) -> None:
    """Write report.json and report.html into a prediction's folder.

    votes: {method: predictions [images]}; truth: the true labels, where they are known;
    training_shares: the share of each class (of `ageg` for years) among the training photographs;
    origin: the settings, and what was noted on the way; paths: {image: where its file is}.
    """
    task, names = probs.task, TASKS[scoring_task(probs.task)].classes
    first_vote = next(iter(votes.values()))
    first_classes = metrics.to_classes(task, first_vote)
    own = ensemble.member_predictions(probs)
    own_classes = np.stack([metrics.to_classes(task, predictions) for predictions in own])

    def scored(equal: str, predictions: np.ndarray) -> Numbers:
        classes = metrics.to_classes(task, predictions)
        result: Numbers = {equal: (classes == first_classes).mean()}
        if truth is not None:
            scores = metrics.score(task, predictions, truth)
            result |= {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy}
        return result

    members = zip(probs.members, probs.folds, probs.weights, own, strict=True)
    numbers: Numbers = {
        "kind": "prediction",
        "recommended": ensemble.RECOMMENDED.get(next(iter(votes)), ""),
        "task": task,
        "photographs": len(probs.images),
        "views": probs.array.shape[1],
        "members": [
            {"name": name, "fold": fold, "validation_macro_f1": f1, **scored("equal_to_vote", p)}
            for name, fold, f1, p in members
        ],
        "agreement": [(own_classes == classes).mean(1) for classes in own_classes],
        "methods": [{"name": name, **scored("equal_to_first", p)} for name, p in votes.items()],
        "class_names": names,
        "class_shares": [(first_classes == k).mean() for k in range(len(names))],
        "training_shares": training_shares,
        "made": origin or {},
    }
    if not TASKS[task].regression:
        numbers["confidence"] = ensemble.arithmetic(probs.array).max(1).mean()
    if truth is not None:
        numbers |= score_with_intervals(task, first_vote, truth, None)
        if task == "main":
            parts = {part: np.array(TASKS[part].from_main)[first_classes] for part in PARTS}
            numbers |= score_parts(parts, first_classes, truth, None)
    extra = doubtful_photographs(probs, first_classes, own_classes)
    write_report(folder, numbers, extra, paths or {}, {})


def doubtful_photographs(
    probs: ensemble.Probabilities, voted: np.ndarray, own: np.ndarray
) -> dict[str, Rows]:
    """{title: rows of photographs}: those that the vote is least sure of, and those that the
    members disagree on. voted: classes [images]; own: of each member [members, images].
    """
    names = TASKS[scoring_task(probs.task)].classes
    values = {"The most disputed photographs": ((own == voted).mean(0), "of the members agree")}
    if not TASKS[probs.task].regression:
        confidence = ensemble.arithmetic(probs.array).max(1)
        values = {"The least sure photographs": (confidence, "sure")} | values
    extra: dict[str, Rows] = {}
    for title, (shares, unit) in values.items():
        lowest = sorted(zip(shares, probs.images, voted, strict=True))[:MAX_DOUBTFUL_SHOWN]
        extra[title] = [
            (file, {"file": file, "note": f"{names[predicted]}: {share:.0%} {unit}"})
            for share, file, predicted in lowest
            if share < 1
        ]
    return extra


def write_report(
    folder: Path, numbers: Numbers, extra: Mapping[str, Rows], paths: Paths, galleries: Galleries
) -> None:
    """report.json, then report.html."""
    rows = {t: [{"name": n, "value": v} for n, v in pairs] for t, pairs in extra.items()}
    names = {"name": folder.name, "path": str(folder)}
    stored = to_json(names | numbers | {"extra": rows})
    run_directory.write_json(folder / "report.json", stored)
    with atomic_write(folder / "report.html", "w") as file:
        file.write(html.render_page(stored, paths, galleries))
    print(f"report: {printable(folder / 'report.html')}")


def to_json(value: object) -> Any:
    """JSON's own types: NaN and infinity become null, text that is no Unicode is mended."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(to_json(key)): to_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value).encode("utf-8", "replace").decode()
