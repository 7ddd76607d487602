"""Trees of checkpoints that vote together: their members, their mixture's out-of-fold score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import ensemble
import out_of_fold
import run_directory
from data import csv_tables
from inference import predictor
from labels import PARTS
from runtime.errors import UserError, printable

# what trees must agree on to be scored together
LABEL_COLUMNS = ["person", "fold", *out_of_fold.LABEL_COLUMNS]


@dataclass(frozen=True)
class Run:
    """A run's checkpoints that vote."""

    path: Path
    name: str  # its folder's, made distinct
    task: str  # what it was trained for
    members: list[predictor.Member]


@dataclass(frozen=True)
class RunOutOfFold:
    """What a tree said of the people it had not seen, and what is true of them; photographs in the
    order of their names.
    """

    rows: pd.DataFrame  # indexed by file; FACTS and the labels of all tasks
    answers: np.ndarray  # [images, outputs] of the tree's own task


def find_runs(roots: Sequence[str] | None, top_k: int, task: str) -> list[Run]:
    """The trees to use (where none is named the newest that answers the task), the k best
    checkpoints of each fold as members; their names begin with the tree's where there are several.

    Raises UserError for a tree named twice and for one without checkpoints.
    """
    found: dict[str, Run] = {}
    paths = (
        [run_directory.find_run_dir(root) for root in roots]
        if roots
        else [predictor.newest_able_run(task, "--root")[0]]
    )
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"--root {path}: named twice; name each tree once")
        own = predictor.load_members(path, top_k)
        plain = printable(path.resolve().name)
        name = next(
            n
            for n in (plain, *(f"{plain}-{k}" for k in range(2, len(paths) + 1)))
            if n not in found
        )
        if len(paths) > 1:
            own = [dataclasses.replace(member, name=f"{name}/{member.name}") for member in own]
        found[name] = Run(path, name, own[0].info.task, own)
    return list(found.values())


def runs_title(trees: Sequence[Run]) -> str:
    """What a prediction's folder is named after."""
    first = trees[0].path.resolve().name
    return f"{first}-and-{len(trees) - 1}-more" if len(trees) > 1 else first


def read_out_of_fold(tree: Run) -> RunOutOfFold | None:
    """A tree's oof.csv, None where it has none. Raises UserError for a damaged one."""
    read = out_of_fold.read_oof(tree.path, tree.task)
    if read is None:
        return None
    rows, answers = read
    order = rows["file"].argsort(kind="stable").to_numpy()
    return RunOutOfFold(rows.iloc[order].set_index("file"), answers[order])


def folds_of(tree: Run) -> dict[str, str] | None:
    """Person -> fold, both as folds.csv writes them; None where there is none. Raises UserError for
    a damaged file.
    """
    path = tree.path / "folds.csv"
    if not path.is_file():
        return None
    table = csv_tables.read_csv(path, ["person", "fold"])
    return dict(zip(table["person"], table["fold"], strict=True))


def mixture(trees: Sequence[Run], task: str) -> list[str]:
    """Lines on the out-of-fold score of the trees' mean, and of each alone, with intervals; or why
    there is none.

    A tree takes part with one epoch of each fold, that of its oof.csv. Trees of mask, gender and
    ageg are multiplied.
    """
    why = "out of fold: the mixture has no score: "
    folds = [folds_of(tree) for tree in trees]
    for tree, people in zip(trees, folds, strict=True):
        if people is None or people != folds[0]:
            return [
                f"{why}{tree.name} has other folds than {trees[0].name} (same people, --cv and "
                "--split-seed share them)"
            ]
    held = [read_out_of_fold(tree) for tree in trees]
    known = [own for own in held if own is not None]
    if len(known) < len(trees):
        return [
            f"{why}{trees[held.index(None)].name} has no {out_of_fold.OOF_FILE}; finish its "
            "training"
        ]
    rows = known[0].rows
    if any(not own.rows[LABEL_COLUMNS].equals(rows[LABEL_COLUMNS]) for own in known):
        return [f"{why}the trees were trained with other photographs or labels of the same people"]
    lines = [f"out of fold, {out_of_fold.score_people(rows)}, one epoch of each fold:"]
    whole: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for tree, own in zip(trees, known, strict=True):
        part = predictor.known_part(tree.members[0], task)
        answers = ensemble.answer_for(part or task, own.answers, tree.task)
        if answers is None:
            return [f"{why}the {out_of_fold.OOF_FILE} of {tree.name} tells nothing of {task}"]
        lines.append(f"  {tree.name}: {scored(part or task, answers, rows)}")
        (parts[part] if part else whole).append(answers)
    if len({len(own) for own in parts.values()}) > 1:
        return [f"{why}the {out_of_fold.OOF_FILE} of {trees[0].name} tells nothing of {task}"]
    whole += [
        ensemble.multiply_parts(dict(zip(PARTS, three, strict=True)))
        for three in zip(*parts.values(), strict=True)
    ]
    return [*lines, f"  mixture: {scored(task, np.mean(whole, axis=0), rows)}"]


def scored(task: str, answers: np.ndarray, rows: pd.DataFrame) -> str:
    """Task, macro F1 and accuracy of answers [images, outputs], with their 95 % intervals by
    bootstrap over people.
    """
    scores, (low, high), (least, most) = out_of_fold.with_intervals(task, rows, answers)
    return (
        f"{task} macro F1 {scores.macro_f1:.4f} [{low:.4f}, {high:.4f}]  "
        f"accuracy {scores.accuracy:.4f} [{least:.4f}, {most:.4f}]"
    )
