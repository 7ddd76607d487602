"""Stored probabilities, voted CSVs and their scores: what both submit scripts write. Free of torch, for quick votes."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

import config
import ensemble
import metrics
import shift
from utils import (
    UserError,
    atomic_write,
    dispensable,
    new_folder,
    printable,
    read_arrays,
    read_file,
    reason,
    timestamp,
    warn,
    warn_counted,
)  # fmt: skip

PROBS = "probs.npz"


def save(folder: Path, probs: ensemble.Probabilities) -> None:
    """probs.npz: plain arrays, read without unpickling; not compressed, which saves a tenth and takes most of a vote's time."""
    with atomic_write(folder / PROBS) as file:
        np.savez(
            file, task=np.array(probs.task), probabilities=probs.array, members=np.array(probs.members),
            folds=np.array(probs.folds), weights=np.array(probs.weights), images=np.array(probs.images),
            f1=np.array(probs.f1, float),
        )  # fmt: skip


def load(folder: Path) -> ensemble.Probabilities:
    """Stored probabilities. Raises UserError for a file that is missing, damaged or not what it should be."""
    path = folder / PROBS
    arrays = read_arrays(path, "predict again")
    if arrays is None:
        raise UserError(f"{path}: no such file; name the folder of an earlier prediction with --from-probs")
    try:
        task, array = str(arrays["task"]), arrays["probabilities"]
        members, images = list(map(str, arrays["members"].tolist())), list(map(str, arrays["images"].tolist()))
        folds, weights = arrays["folds"].astype(int).tolist(), arrays["weights"].astype(float).tolist()
        f1 = arrays.get("f1", np.empty(0)).astype(float).tolist()  # not in older files
        outputs = config.TASKS[task].outputs
        fits = array.shape[:1] + array.shape[2:] == (len(members), len(images), outputs) and array.ndim == 4 and array.size > 0
        fits = fits and len(folds) == len(weights) == len({member_file(name) for name in members}) == len(members)
        fits = fits and len(f1) in (0, len(members)) and bool(np.isfinite(f1).all())
        fits = fits and all(name.isprintable() for name in members)  # each names a file
        if not fits or not np.isfinite(array).all() or not np.isfinite(weights).all():
            raise ValueError("its arrays do not fit each other, or hold what is no number")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{path}: damaged ({reason(error)}); predict again") from None
    return ensemble.Probabilities(task, array.astype(np.float32), members, folds, weights, images, f1)


def member_file(name: str) -> Path:
    """Where a member's own answers go: its checkpoint's name without suffix, in a folder of its tree's where several vote."""
    path = PurePosixPath(name)
    tree = path.parent.parent.name
    return Path("" if tree == ".." else tree) / path.stem


def write_answers(path: Path, task: str, images: Sequence[str], answers: np.ndarray) -> None:
    """A submission: ImageID,ans in the order of the images; years with two decimals."""
    with atomic_write(path, "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["ImageID", "ans"])
        shown = [f"{a:.2f}" for a in answers] if config.TASKS[task].regression else [str(int(a)) for a in answers]
        rows.writerows(zip(images, shown, strict=True))


def write_confusion(path: Path, task: str, scores: metrics.Scores) -> None:
    """The confusion matrix as a table: a row per true class, a column per predicted."""
    names = config.TASKS[config.judged(task)].classes
    with atomic_write(path, "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["true / predicted", *names])
        rows.writerows([name, *counts] for name, counts in zip(names, scores.matrix.tolist(), strict=True))


def truth_of(settings: config.PredictSettings, names: Sequence[str]) -> np.ndarray | None:
    """The true answers of these photographs where --answers names them."""
    if settings.answers is None:
        return None
    import tables  # needs pandas, and a vote without answers does not

    return tables.read_answers(settings.answers, names, settings.task)


def check_fitted(settings: config.PredictSettings, source: Path, trees: int = 1) -> None:
    """Raise UserError where the tree (or the earlier prediction) lacks what --decision or --prior-shift needs, and where
    several trees vote: nothing was fitted for their mixture."""
    for name, value, usual in (("decision", settings.decision, "argmax"), ("prior-shift", settings.prior_shift, "none")):
        if trees > 1 and value != usual:
            raise UserError(f"--{name} {value}: what it needs was fitted for one tree; use it with a single --root")
    if settings.decision == "macro-f1":
        ensemble.read_rule(source, settings.task)
    if settings.prior_shift == "em":
        shift.read(source, settings.task)


def adjustments(
    settings: config.PredictSettings, source: Path, probs: ensemble.Probabilities
) -> tuple[list[ensemble.Adjustment], list[str]]:
    """(what is done to the probabilities before the likeliest class is taken, what is said of it; prints that).

    First the photographs' own class frequencies, by --prior-shift; then the rule of --decision. Raises UserError as
    `check_fitted` does.
    """
    steps: list[ensemble.Adjustment] = []
    lines: list[str] = []
    if settings.prior_shift == "em":
        found = shift.estimate(shift.read(source, settings.task), probs.array)
        steps, lines = [found], found.lines()
        print(*lines, sep="\n", flush=True)
        warn_counted(found.vanished(), "classes of which --prior-shift em finds next to nothing left; too few photographs, or a "
                     "model unsure of them, make it guess: --prior-shift none does not")  # fmt: skip
    if settings.decision == "macro-f1":
        steps.append(ensemble.read_rule(source, settings.task))
    return steps, lines


def keep_fitted(folder: Path, source: Path) -> None:
    """Keep a tree's decision rule and calibration (or an earlier prediction's) for other votes on a prediction of that tree
    alone."""
    for name in (ensemble.RULE, shift.FILE):
        if (source / name).is_file():
            with atomic_write(folder / name) as file:
                file.write((source / name).read_bytes())


def training_shares(tree: Path, task: str) -> list[float] | None:
    """The classes' shares among the training photographs, where a tree's run.json or oof.csv tells them for this task."""
    try:
        run = json.loads(read_file(tree / "run.json"))
        trained, counts = run["settings"]["task"], np.array(list(run["data"]["photographs_per_class"].values()), float)
        if trained == "main" and task != "main" and config.TASKS[task].from_main:
            counts = np.bincount(config.TASKS[task].from_main, counts, config.TASKS[task].outputs)
        elif trained != task:  # trees of parts, multiplied
            import outoffold

            told = None if config.TASKS[trained].regression or config.TASKS[task].regression else outoffold.read(tree, trained)
            if told is None:
                return None
            counts = np.bincount(told[0][task].to_numpy(), minlength=config.TASKS[task].outputs).astype(float)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # a report does without
    return (counts / counts.sum()).tolist() if 0 < counts.sum() < np.inf else None


def output_folder(save_path: str, tree: str, task: str) -> Path:
    """A new folder for a prediction, named after tree, task and time."""
    return new_folder(Path(save_path), f"{tree}_{task}_{timestamp()}")


def write_prediction(
    folder: Path, voted: dict[str, np.ndarray], probs: ensemble.Probabilities, truth: np.ndarray | None, source: Path,
    settings: config.PredictSettings, notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """All CSVs of a prediction, the probabilities and a report, and where the truth is known the scores; prints where
    everything is. source: the tree, or the earlier prediction. notes: what was said on the way, for the report."""
    save(folder, probs)
    if len(probs.members) > 1:
        for name, alone in zip(probs.members, member_answers(probs), strict=True):
            path = folder / "members" / f"{member_file(name)}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_answers(path, probs.task, probs.images, alone)
    for name, decided in voted.items():
        write_answers(folder / f"{name}.csv", probs.task, probs.images, decided)
        note = ""
        if truth is not None:
            scores = metrics.score(probs.task, decided, truth)
            write_confusion(folder / f"{name}_confusion.csv", probs.task, scores)
            note = f"  {scores.line()}"
        print(f"{printable(folder / f'{name}.csv')}{note}")
    if not (source / PROBS).is_file():  # another vote on stored probabilities is to be quick
        with dispensable(f"report of {folder}"):
            import report

            made = {"settings": dataclasses.asdict(settings), "notes": list(notes)}
            report.prediction_report(folder, probs, voted, truth, training_shares(source, probs.task), made)
    if truth is not None:
        print_members(probs, truth)
        absent = metrics.absent_classes(probs.task, truth)
        if absent:
            warn(f"--answers: {len(absent)} classes are not in it ({absent[0]}, ...): macro F1 leaves them out "
                 "unless they are predicted")  # fmt: skip


def print_members(probs: ensemble.Probabilities, truth: np.ndarray) -> None:
    """Each member's own score, and their mean."""
    if len(probs.members) < 2:
        return
    alone = [metrics.score(probs.task, answers, truth) for answers in member_answers(probs)]
    for name, scores in zip(probs.members, alone, strict=True):
        print(f"  {printable(str(member_file(name)).partition('bs(')[0]):<60}  {scores.line()}")
    print(f"  mean macro F1 of the {len(alone)} members alone: {np.mean([scores.macro_f1 for scores in alone]):.4f}")


def member_answers(probs: ensemble.Probabilities) -> list[np.ndarray]:
    """What each member alone would answer [images]."""
    each = [ensemble.arithmetic(probs.array[m : m + 1]) for m in range(len(probs.members))]
    return [ensemble.decide(probs.task, mean) for mean in each]
