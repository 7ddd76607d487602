"""Stored probabilities, voted CSVs and their scores: what both submit scripts write. Free of torch,
for quick votes.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

import config
import ensemble
import metrics
from labels import TASKS, scoring_task
from runtime.errors import UserError, plural, printable, reason, warn, warn_on_failure
from runtime.files import atomic_write, create_new_folder, load_npz, timestamp

PROBS = "probs.npz"
MAX_NAME_BYTES = 255  # bytes of a file's name


def save_probabilities(folder: Path, probs: ensemble.Probabilities) -> None:
    """probs.npz: plain arrays, read without unpickling; not compressed, which saves a tenth and
    takes most of a vote's time.
    """
    with atomic_write(folder / PROBS) as file:
        np.savez(
            file,
            task=np.array(probs.task),
            probabilities=probs.array,
            members=np.array(probs.members),
            folds=np.array(probs.folds),
            weights=np.array(probs.weights),
            images=np.array(probs.images),
        )


def load_probabilities(folder: Path) -> ensemble.Probabilities:
    """Stored probabilities. Raises UserError for a file that is missing, damaged or not what it
    should be.
    """
    path = folder / PROBS
    arrays = load_npz(path, "predict again")
    if arrays is None:
        raise UserError(
            f"{path}: no such file; name the folder of an earlier prediction with --from-probs"
        )
    try:
        with np.errstate(all="ignore"):  # what overflows is refused, not warned of
            return _check_arrays(arrays)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{path}: damaged ({reason(error)}); predict again") from None


def _check_arrays(arrays: dict[str, np.ndarray]) -> ensemble.Probabilities:
    """The arrays of probs.npz as they are used. Raises ValueError and its like where they are not
    what `save` writes.
    """
    task = str(arrays["task"])
    spec = TASKS[task]
    array = _check_types(arrays, "probabilities", "fiu", 4).astype(np.float32, copy=False)
    folds = _check_types(arrays, "folds", "iu", 1).tolist()
    # the weights of an older prediction; f1 is the validation F1 then
    fitted = "f1" in arrays and arrays["f1"].size > 0
    weights = (
        _check_types(arrays, "f1" if fitted else "weights", "fiu", 1).astype(np.float64).tolist()
    )
    members, images = (
        _check_types(arrays, axis, "U", 1).tolist() for axis in ("members", "images")
    )
    fits = (
        array.shape[:1] + array.shape[2:] == (len(members), len(images), spec.outputs)
        and array.size > 0
    )
    if not fits or not len(folds) == len(weights) == len(members):
        raise ValueError("its arrays do not fit each other")
    if not np.isfinite(np.sum(weights)) or min(folds) < 0:
        raise ValueError("a weight or a fold is out of range")
    if not ensemble.plausible(task, array):
        raise ValueError(
            "its values are not finite"
            if spec.regression
            else "its probabilities are not within 0..1, their sum 1"
        )
    check_members(members)
    return ensemble.Probabilities(task, array, members, folds, weights, images)


def _check_types(arrays: dict[str, np.ndarray], name: str, kinds: str, axes: int) -> np.ndarray:
    """One of the arrays, of one of numpy's kinds. Raises ValueError for another kind or shape,
    KeyError for none.
    """
    array = arrays[name]
    if array.dtype.kind not in kinds or array.ndim != axes:
        raise ValueError(f"{name}: its type is {array.dtype}, its shape {list(array.shape)}")
    return array


def check_members(names: Sequence[str]) -> None:
    """Raise ValueError where the members' own answers cannot be written, each into a file of its
    own.
    """
    if not all(name.isprintable() for name in names):
        raise ValueError("a member's name is no text")
    paths = [member_csv(name) for name in names]
    if any(len(part.encode()) > MAX_NAME_BYTES for path in paths for part in path.parts):
        raise ValueError("a member's name is too long for a file")
    if len(set(paths)) < len(paths) or not set(paths).isdisjoint(path.parent for path in paths):
        raise ValueError("its members' names are not distinct")


def member_csv(name: str) -> Path:
    """The file of a member's own answers, within the prediction's folder of members."""
    path = member_file(name)
    return path.with_name(f"{path.name}.csv")


def member_file(name: str) -> Path:
    """Where a member's own answers go: its checkpoint's name without suffix, in a folder of its
    tree's where several vote.
    """
    path = PurePosixPath(name)
    tree = path.parent.parent.name
    return Path("" if tree == ".." else tree) / path.stem


def write_predictions(path: Path, task: str, images: Sequence[str], answers: np.ndarray) -> None:
    """A submission: ImageID,ans in the order of the images; years with two decimals."""
    with atomic_write(path, "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["ImageID", "ans"])
        shown = (
            [f"{a:.2f}" for a in answers]
            if TASKS[task].regression
            else [str(int(a)) for a in answers]
        )
        rows.writerows(zip(images, shown, strict=True))


def write_confusion(path: Path, task: str, scores: metrics.Scores) -> None:
    """The confusion matrix as a table: a row per true class, a column per predicted."""
    names = TASKS[scoring_task(task)].classes
    with atomic_write(path, "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["true / predicted", *names])
        rows.writerows(
            [name, *counts] for name, counts in zip(names, scores.matrix.tolist(), strict=True)
        )


def read_truth(settings: config.PredictSettings, names: Sequence[str]) -> np.ndarray | None:
    """The true answers of these photographs where --answers names them."""
    if settings.answers is None:
        return None
    from data import tables  # needs pandas, and a vote without answers does not

    return tables.read_labels(settings.answers, names, settings.task)


def training_counts(tree: Path, task: str) -> np.ndarray | None:
    """[classes]: how many training photographs each class of a task has (for years each group),
    where a tree's run.json or oof.csv tells it.
    """
    import out_of_fold
    import run_directory  # needs torch, and a vote on stored probabilities does not

    try:
        run = run_directory.read_run_json(tree)
        trained, told = run["settings"]["task"], run["data"]["photographs_per_class"]
        counts = [told[name] for name in TASKS[scoring_task(trained)].classes]
        if not all(type(count) is int and 0 <= count < 1 << 53 for count in counts):
            return None
        if trained == task:
            return np.array(counts)
        if trained == "main" and TASKS[task].from_main:
            return np.bincount(TASKS[task].from_main, counts, TASKS[task].outputs)
        if TASKS[trained].regression or TASKS[task].regression:
            return None
        held_out = out_of_fold.read_oof(tree, trained)  # trees of parts, multiplied
        return (
            None
            if held_out is None
            else np.bincount(held_out[0][task], minlength=TASKS[task].outputs)
        )
    except (UserError, KeyError, TypeError):
        return None


def training_shares(tree: Path, task: str) -> list[float] | None:
    """The classes' shares among the training photographs, where the tree tells them."""
    counts = training_counts(tree, task)
    return (counts / counts.sum()).tolist() if counts is not None and counts.any() else None


def output_folder(save_path: str, tree: str, task: str) -> Path:
    """A new folder for a prediction, named after tree, task and time."""
    end = f"_{task}_{timestamp()}"
    start = tree.encode()[: MAX_NAME_BYTES - len(end.encode()) - len("-999")].decode(
        errors="ignore"
    )
    return create_new_folder(Path(save_path), start + end)


def write_prediction(
    folder: Path,
    voted: dict[str, np.ndarray],
    probs: ensemble.Probabilities,
    truth: np.ndarray | None,
    source: Path,
    settings: config.PredictSettings,
    notes: Sequence[str] = (),
) -> None:
    """All CSVs of a prediction, the probabilities and a report, and where the truth is known the
    scores; prints where everything is. source: the tree, or the earlier prediction. notes: what was
    said on the way, for the report.
    """
    save_probabilities(folder, probs)
    if len(probs.members) > 1:
        for name, alone in zip(probs.members, member_answers(probs), strict=True):
            path = folder / "members" / member_csv(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, probs.task, probs.images, alone)
    for name, decided in voted.items():
        write_predictions(folder / f"{name}.csv", probs.task, probs.images, decided)
        note = ""
        if truth is not None:
            scores = metrics.score(probs.task, decided, truth)
            write_confusion(folder / f"{name}_confusion.csv", probs.task, scores)
            note = f"  {scores.line()}"
        print(f"{printable(folder / f'{name}.csv')}{note}")
    if not (source / PROBS).is_file():  # another vote on stored probabilities is to be quick
        with warn_on_failure(f"report of {folder}"):
            from reporting import summary

            made = {"settings": dataclasses.asdict(settings), "notes": list(notes)}
            summary.prediction_report(
                folder, probs, voted, truth, training_shares(source, probs.task), made
            )
    if truth is not None:
        print_members(probs, truth)
        absent = metrics.absent_classes(probs.task, truth)
        if absent:
            warn(
                f"--answers: {plural(len(absent), 'class is', 'classes are')} not in it (the "
                f"first: {absent[0]}): macro F1 "
                "leaves out such a class unless it is predicted"
            )


def print_members(probs: ensemble.Probabilities, truth: np.ndarray) -> None:
    """Each member's own score, and their mean."""
    if len(probs.members) < 2:
        return
    alone = [metrics.score(probs.task, answers, truth) for answers in member_answers(probs)]
    for name, scores in zip(probs.members, alone, strict=True):
        print(f"  {printable(str(member_file(name)).partition('bs(')[0]):<60}  {scores.line()}")
    print(
        f"  mean macro F1 of the {len(alone)} members alone: "
        f"{np.mean([scores.macro_f1 for scores in alone]):.4f}"
    )


def member_answers(probs: ensemble.Probabilities) -> list[np.ndarray]:
    """What each member alone would answer [images]."""
    each = [ensemble.arithmetic(probs.array[m : m + 1]) for m in range(len(probs.members))]
    return [ensemble.decide(probs.task, mean) for mean in each]
