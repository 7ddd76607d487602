"""Probabilities -> files: probs.npz, voted CSVs, scores. Free of torch, for quick votes."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import ensemble
import metrics
import run_directory
from labels import TASKS, scoring_task
from runtime.errors import UserError, path_error, printable, warn_on_failure
from runtime.files import atomic_write, create_folder, create_new_folder, load_npz

PROBS = "probs.npz"
SUBMISSION = "submission"  # the CSV to upload
MAX_NAME_BYTES = 255  # bytes of a file's name
MAX_COUNT = 1 << 53  # images of a class that run.json may hold


@dataclass(frozen=True)
class ReportContext:
    """What a prediction's report shows beside the predictions."""

    run_dir: Path  # whose training labels the predicted classes are compared with
    settings: Any  # of the script: a dataclass
    notes: Sequence[str] = ()
    paths: Mapping[str, str] | None = None  # {image: where its file is}


def save_probabilities(folder: Path, probs: ensemble.Probabilities) -> None:
    """probs.npz: plain arrays; not compressed, which would take most of a vote's time."""
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(probs).items()}
    arrays["probabilities"] = arrays.pop("array")
    with atomic_write(folder / PROBS) as file:
        np.savez(file, **arrays)


def load_probabilities(folder: Path) -> ensemble.Probabilities:
    """Stored probabilities. Raises UserError for a missing or damaged file."""
    path = folder / PROBS
    arrays = load_npz(path, "predict again") if folder.is_dir() else None
    if arrays is None:
        remedy = "name the folder of an earlier prediction with --from-probs"
        raise UserError(f"{path}: no such file; {remedy}")
    try:
        with np.errstate(all="ignore"):  # what overflows is refused, not warned of
            return probabilities_from_arrays(arrays)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise path_error(path, error, "predict again") from None


def probabilities_from_arrays(arrays: Mapping[str, np.ndarray]) -> ensemble.Probabilities:
    """The arrays of probs.npz, checked. Raises ValueError and its like for others."""

    def checked(name: str, kinds: str, axes: int = 1) -> np.ndarray:
        array = arrays[name]
        if array.dtype.kind not in kinds or array.ndim != axes:
            raise ValueError(f"{name}: its type is {array.dtype}, its shape {list(array.shape)}")
        return array

    task = str(arrays["task"])
    array = checked("probabilities", "fiu", 4).astype(np.float32, copy=False)
    # an older prediction's `weights` may be fitted ones; `f1` is the validation F1 then
    weights_name = "f1" if "f1" in arrays and arrays["f1"].size > 0 else "weights"
    weights = checked(weights_name, "fiu").astype(np.float64).tolist()
    folds = checked("folds", "iu").tolist()
    members, images = checked("members", "U").tolist(), checked("images", "U").tolist()
    shape = (len(members), array.shape[1], len(images), TASKS[task].outputs)
    if not array.size or array.shape != shape or not len(folds) == len(weights) == len(members):
        raise ValueError("its arrays do not fit each other")
    if not np.isfinite(np.sum(weights)) or min(folds) < 0:
        raise ValueError("a weight or a fold is out of range")
    if not ensemble.are_valid(task, array):
        raise ValueError("its values are not finite, or no probabilities whose sum is 1")
    check_members(members)
    return ensemble.Probabilities(task, array, members, folds, weights, images)


def check_members(names: Sequence[str]) -> None:
    """Raise ValueError where not every member's predictions can have a file of their own."""
    paths = [member_csv(name) for name in names]
    parts = [part for path in paths for part in path.parts]
    if any(not part.isprintable() or len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise ValueError("a member's name is not printable text, or too long for a file")
    if len(set(paths)) < len(paths) or not set(paths).isdisjoint(path.parent for path in paths):
        raise ValueError("its members' names are not distinct")


def member_csv(name: str) -> Path:
    """A member's file within the folder of members, in its run's folder where several vote."""
    path = PurePosixPath(name)
    run_name = path.parent.parent.name
    return Path("" if run_name == ".." else run_name) / f"{path.stem}.csv"


def training_counts(run_dir: Path, task: str) -> np.ndarray | None:
    """Training images per class (for years per group), where a run's files hold them."""
    try:
        run = run_directory.read_run_json(run_dir)
        trained, per_class = run["settings"]["task"], run["data"]["photographs_per_class"]
        counts = [per_class[name] for name in TASKS[scoring_task(trained)].classes]
        if not all(type(count) is int and 0 <= count < MAX_COUNT for count in counts):
            return None
        judged = scoring_task(task)
        converted = ensemble.convert_task(np.array(counts), scoring_task(trained), judged)
        if converted is not None:
            return converted
        import out_of_fold  # needs pandas, and a vote on stored probabilities does not

        oof, classes = out_of_fold.read_oof(run_dir, trained), TASKS[judged].outputs
        return None if oof is None else np.bincount(oof.rows[judged], minlength=classes)
    except (UserError, KeyError, TypeError):
        return None


def training_shares(run_dir: Path, task: str) -> list[float] | None:
    """The classes' shares among the training images, where the run's files hold them."""
    counts = training_counts(run_dir, task)
    return (counts / counts.sum()).tolist() if counts is not None and counts.any() else None


def read_labels(path: str | None, images: Sequence[str], task: str) -> np.ndarray | None:
    """The labels [images] in the CSV that --answers names; None where it is not given."""
    if path is None:
        return None
    from data import tables  # needs pandas, and a vote without labels does not

    return tables.read_labels(path, images, task)


def create_output_folder(save_path: str, run_name: str, task: str) -> Path:
    """A new folder for a prediction, named after run, task and time."""
    end = f"_{task}" + time.strftime("_%Y%m%d-%H%M%S")
    most = MAX_NAME_BYTES - len(f"{end}-999".encode())
    start = run_name.encode()[:most].decode(errors="ignore")
    return create_new_folder(Path(save_path), start + end)


def revote_title(folder_name: str) -> str:
    """The title of another vote on a prediction's folder; of a vote on that one, the same."""
    tasks = "|".join(TASKS)
    return re.sub(rf"(_again)?_({tasks})_\d{{8}}-\d{{6}}(-\d+)?$", "", folder_name) + "_again"


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write rows, the header first, into a new or existing folder."""
    create_folder(path.parent)
    with atomic_write(path, "w") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_predictions(path: Path, task: str, images: Sequence[str], predicted: np.ndarray) -> None:
    """A submission: ImageID,ans in the order of the images; years with two decimals."""
    form = "{:.2f}".format if TASKS[task].regression else "{:.0f}".format
    write_csv(path, [("ImageID", "ans"), *zip(images, map(form, predicted), strict=True)])


def write_confusion(path: Path, task: str, scores: metrics.Scores) -> None:
    """The confusion matrix as a table: a row per true class, a column per predicted."""
    classes = TASKS[scoring_task(task)].classes
    rows = [[name, *row] for name, row in zip(classes, scores.matrix, strict=True)]
    write_csv(path, [["true / predicted", *classes], *rows])


def write_prediction(
    folder: Path,
    probs: ensemble.Probabilities,
    votes: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    report: ReportContext | None,
) -> None:
    """Write CSVs, probs.npz, a report (None: for a quick vote), and scores where labels [images]
    are known; print the paths, the file to upload last. votes: {file: predictions [images]}.
    """
    save_probabilities(folder, probs)
    task, images = probs.task, probs.images
    if len(probs.members) > 1:
        own = ensemble.member_predictions(probs)
        for name, predictions in zip(probs.members, own, strict=True):
            write_predictions(folder / "members" / member_csv(name), task, images, predictions)
    for name, predictions in votes.items():
        write_predictions(folder / f"{name}.csv", task, images, predictions)
        if labels is not None:
            scores = metrics.score(task, predictions, labels)
            write_confusion(folder / f"{name}_confusion.csv", task, scores)
            print(f"{printable(folder / name)}.csv  {scores.line()}")
        elif name != SUBMISSION:
            print(f"{printable(folder / name)}.csv")
    if report is not None:
        with warn_on_failure(f"report of {folder}"):
            from reporting import summary

            origin = {"settings": asdict(report.settings), "notes": list(report.notes)}
            shares = training_shares(report.run_dir, task)
            summary.prediction_report(folder, probs, votes, labels, shares, origin, report.paths)
    if labels is not None:
        print_members(probs, labels)
        metrics.warn_absent_classes(task, labels, "--answers")
    if SUBMISSION not in votes:
        name, predictions = next(iter(votes.items()))
        write_predictions(folder / f"{SUBMISSION}.csv", task, images, predictions)
        print(f"{SUBMISSION}.csv is {name}.csv: {ensemble.RECOMMENDED[name]}")
    print(f"{printable(folder / SUBMISSION)}.csv")


def print_members(probs: ensemble.Probabilities, labels: np.ndarray) -> None:
    """Each member's own score, and their mean."""
    if len(probs.members) < 2:
        return
    own = ensemble.member_predictions(probs)
    scores = [metrics.score(probs.task, predictions, labels) for predictions in own]
    for name, score in zip(probs.members, scores, strict=True):
        print(f"  {printable(str(member_csv(name)).partition('bs(')[0]):<60}  {score.line()}")
    mean = np.mean([score.macro_f1 for score in scores])
    print(f"  mean macro F1 of the {len(scores)} members alone: {mean:.4f}")
