"""Trees of checkpoints that vote together: their members, their mixture's out-of-fold score,
weights fitted there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import checkpoint
import config
import ensemble
import members
import metrics
import outoffold
import tables
from utils import UserError, counted, printable

ROUNDS = 20  # of greedy selection, after its start
FACTS = ["person", "fold", *outoffold.BASE]  # what trees must agree on to be scored together


@dataclass(frozen=True)
class Tree:
    """A run's checkpoints that vote."""

    path: Path
    name: str  # its folder's, made distinct
    task: str  # what it was trained for
    members: list[members.Member]


@dataclass(frozen=True)
class Told:
    """What a tree said of the people it had not seen, and what is true of them; photographs in the
    order of their names.
    """

    rows: pd.DataFrame  # indexed by file; FACTS and the labels of all tasks
    answers: np.ndarray  # [images, outputs] of the tree's own task


def find(roots: Sequence[str] | None, top_k: int, task: str) -> list[Tree]:
    """The trees to use (where none is named the newest that answers the task), the k best
    checkpoints of each fold as members; their names begin with the tree's where there are several.

    Raises UserError for a tree named twice and for one without checkpoints.
    """
    found: dict[str, Tree] = {}
    paths = (
        [checkpoint.find_tree(root) for root in roots]
        if roots
        else [members.newest_able(task, "--root")[0]]
    )
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"--root {path}: named twice; name each tree once")
        own = members.members_of(path, top_k)
        plain = printable(path.resolve().name)
        name = next(
            n
            for n in (plain, *(f"{plain}-{k}" for k in range(2, len(paths) + 1)))
            if n not in found
        )
        if len(paths) > 1:
            own = [dataclasses.replace(member, name=f"{name}/{member.name}") for member in own]
        found[name] = Tree(path, name, own[0].info.task, own)
    return list(found.values())


def title(trees: Sequence[Tree]) -> str:
    """What a prediction's folder is named after."""
    first = trees[0].path.resolve().name
    return f"{first}-and-{len(trees) - 1}-more" if len(trees) > 1 else first


def told(tree: Tree) -> Told | None:
    """A tree's oof.csv, None where it has none. Raises UserError for a damaged one."""
    read = outoffold.read(tree.path, tree.task)
    if read is None:
        return None
    rows, answers = read
    order = rows["file"].argsort(kind="stable").to_numpy()
    return Told(rows.iloc[order].set_index("file"), answers[order])


def folds_of(tree: Tree) -> dict[str, str] | None:
    """Person -> fold, both as folds.csv writes them; None where there is none. Raises UserError for
    a damaged file.
    """
    path = tree.path / "folds.csv"
    if not path.is_file():
        return None
    table = tables.read_csv(path, ["person", "fold"])
    return dict(zip(table["person"], table["fold"], strict=True))


def in_task(answers: np.ndarray, trained: str, task: str) -> np.ndarray | None:
    """Answers [..., outputs] of a tree for a task, None where they do not tell."""
    if trained == task:
        return answers
    return (
        ensemble.answer_from_main(answers, task)
        if trained == "main" and config.TASKS[task].from_main
        else None
    )


def mixture(trees: Sequence[Tree], task: str) -> list[str]:
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
    held = [told(tree) for tree in trees]
    known = [own for own in held if own is not None]
    if len(known) < len(trees):
        return [f"{why}{trees[held.index(None)].name} has no {outoffold.FILE}; finish its training"]
    rows = known[0].rows
    if any(not own.rows[FACTS].equals(rows[FACTS]) for own in known):
        return [f"{why}the trees were trained with other photographs or labels of the same people"]
    pairs = list(zip(trees, known, strict=True))
    part = {tree.name: members.part_known(tree.members[0], task) for tree in trees}
    parts = [
        [own.answers for tree, own in pairs if part[tree.name] == name] for name in config.PARTS
    ]
    lines = [f"out of fold, {outoffold.of_people(rows)}, one epoch of each fold:"]
    able = []
    for tree, own in pairs:
        judged_by = part[tree.name] or task
        answers = in_task(own.answers, tree.task, judged_by)
        if answers is None or len({len(found) for found in parts}) > 1:
            return [f"{why}the {outoffold.FILE} of {tree.name} tells nothing of {task}"]
        lines.append(f"  {tree.name}: {scored(judged_by, answers, rows)}")
        able += [] if part[tree.name] else [answers]
    able += [
        ensemble.multiply(dict(zip(config.PARTS, three, strict=True)))
        for three in zip(*parts, strict=True)
    ]
    return [*lines, f"  mixture: {scored(task, np.mean(able, axis=0), rows)}"]


def scored(task: str, answers: np.ndarray, rows: pd.DataFrame) -> str:
    """Task, macro F1 and accuracy of answers [images, outputs], with their 95 % intervals by
    bootstrap over people.
    """
    decided, truth = ensemble.decide(task, answers), rows[task].to_numpy()
    scores = metrics.score(task, decided, truth)
    draws = metrics.bootstrap_people(
        metrics.to_classes(task, truth),
        metrics.to_classes(task, decided),
        rows["person"].to_numpy(),
        len(scores.matrix),
    )
    folds = rows["fold"].nunique()
    low, high = metrics.out_of_fold_interval(scores.macro_f1, metrics.macro_f1s(draws), folds)
    least, most = metrics.out_of_fold_interval(scores.accuracy, metrics.accuracies(draws), folds)
    return (
        f"{task} macro F1 {scores.macro_f1:.4f} [{low:.4f}, {high:.4f}]  "
        f"accuracy {scores.accuracy:.4f} [{least:.4f}, {most:.4f}]"
    )


def fitted_weights(trees: Sequence[Tree], task: str) -> tuple[list[float], list[str]]:
    """(a weight for each member of all trees, in their order; a line for each fold).

    Each fold's members are chosen by ensemble.greedy_weights on what they said of the fold's
    held-out people, whom none of them has seen; the weights of a fold sum to 1 / folds. Raises
    UserError where what is needed is missing.
    """
    voters = [(tree, member) for tree in trees for member in tree.members]
    remedy = "use --weights f1"
    held: dict[str, Told] = {}
    for tree in trees:
        if tree.task not in (task, "main"):
            raise UserError(
                f"--weights oof: {tree.path} was trained for {tree.task}, so nothing tells how "
                "well its members "
                f"alone answer {task}; {remedy}"
            )
        known = told(tree)
        if known is None:
            raise UserError(
                f"--weights oof: {tree.path / outoffold.FILE} is missing; finish that training, "
                f"or {remedy}"
            )
        held[tree.name] = known
    folds = sorted({member.info.fold for _, member in voters})
    weights, lines, halves = np.zeros(len(voters)), [], []
    for fold in folds:
        own = [v for v, (_, member) in enumerate(voters) if member.info.fold == fold]
        views = [validated(*voters[v], held[voters[v][0].name], task) for v in own]
        truth = views[0][0]
        if any(not other.equals(truth) for other, _ in views):
            raise UserError(
                f"--weights oof: the trees' folds {fold} hold out other photographs or labels; "
                "train them with one "
                f"--split-seed and --cv, or {remedy}"
            )
        stacked = np.stack([answers for _, answers in views])
        counts = ensemble.greedy_weights(stacked, truth.to_numpy(), ROUNDS)
        weights[own] = counts / counts.sum() / len(folds)
        f1 = [voters[v][1].info.macro_f1 for v in own]
        rows = held[voters[own[0]][0].name].rows.loc[truth.index]
        halves.append((rows, *in_halves(stacked, truth.to_numpy(), rows["person"].to_numpy(), f1)))
        taken = [(weights[v], *voters[v]) for v in own if weights[v]]
        shown = ", ".join(
            f"{tree.name} ep {member.info.epoch} {weight:.3f}" for weight, tree, member in taken
        )
        lines.append(
            f"weights, fold {fold}, chosen on its {counted(len(truth), 'held-out photograph')}: "
            f"{shown}"
        )
    rows, plain, fitted = (
        pd.concat(part) if isinstance(part[0], pd.DataFrame) else np.concatenate(part)
        for part in zip(*halves, strict=True)
    )
    lines.append(
        "weights oof against f1 within the folds, each half of a fold's people by weights chosen "
        "on the other half: "
        f"{outoffold.gain(task, rows, plain, fitted)}"
    )
    return weights.tolist(), lines


def in_halves(
    answers: np.ndarray, truth: np.ndarray, people: np.ndarray, f1: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Classes [images] by the weights f1, and by weights that greedy selection chose on the other
    half of the people.

    answers: probabilities [members, images, classes] of a fold's members for its held-out
    photographs.
    """
    second = np.unique(people, return_inverse=True)[1] % 2 == 1
    fitted = np.empty(len(truth), np.int64)
    for half in (second, ~second):
        counts = ensemble.greedy_weights(answers[:, ~half], truth[~half], ROUNDS)
        fitted[half] = ensemble.weighted_mean(answers[:, None, half], counts.tolist()).argmax(1)
    return ensemble.weighted_mean(answers[:, None], f1).argmax(1), fitted


def validated(
    tree: Tree, member: members.Member, held: Told, task: str
) -> tuple[pd.Series, np.ndarray]:
    """(true classes by file, a member's probabilities [images, classes]) of its held-out
    photographs. Raises UserError.
    """
    folder = member.found.path.parent
    stored, epoch = checkpoint.read_validation(folder, tree.task), member.info.epoch - 1
    if stored is None:
        raise UserError(
            f"--weights oof: {folder / checkpoint.VALIDATION} is missing; train the fold again, "
            "or use --weights f1"
        )
    files, epochs = stored
    rows = held.rows[held.rows["fold"] == member.info.fold]
    if sorted(files) != rows.index.tolist() or not 0 <= epoch < len(epochs):
        raise UserError(
            f"--weights oof: {folder / checkpoint.VALIDATION} does not fit {outoffold.FILE} and "
            f"{member.found.path.name}; use --weights f1"
        )
    answers = epochs[epoch][np.argsort(np.array(files), kind="stable")]
    return rows[task], answers if tree.task == task else ensemble.answer_from_main(answers, task)
