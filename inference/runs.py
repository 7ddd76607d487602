"""Several runs that vote together: their members, and the out-of-fold score of their mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ensemble
import out_of_fold
import run_directory
from checkpoint import Checkpoint
from inference import members
from labels import PARTS
from out_of_fold import OutOfFold
from runtime.errors import UserError, printable


@dataclass(frozen=True)
class Run:
    """A training run and its checkpoints that vote."""

    path: Path
    name: str  # its folder's, made distinct
    task: str  # what it was trained for
    members: list[Checkpoint]


def load_runs(roots: Sequence[str] | None, top_k: int, task: str) -> list[Run]:
    """The runs to use (where none is named the newest that knows the task), the k best checkpoints
    of each fold as members; their names begin with the run's where there are several. Raises
    UserError for a run named twice and for one without checkpoints.
    """
    if not roots:
        paths = [members.newest_run(task, "--root")[0]]
    else:
        paths = [run_directory.find_run_dir(root) for root in roots]
    runs: dict[str, Run] = {}
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"--root {path}: named twice; name each run once")
        plain = printable(path.resolve().name)
        numbered = [plain, *(f"{plain}-{k}" for k in range(2, len(paths) + 1))]
        name = next(candidate for candidate in numbered if candidate not in runs)
        of_run = members.load_members(path, top_k)
        if len(paths) > 1:
            of_run = [dataclasses.replace(m, name=f"{name}/{m.name}") for m in of_run]
        runs[name] = Run(path, name, of_run[0].info.task, of_run)
    return list(runs.values())


def runs_title(runs: Sequence[Run]) -> str:
    """What a prediction's folder is named after."""
    first = runs[0].path.resolve().name
    return f"{first}-and-{len(runs) - 1}-more" if len(runs) > 1 else first


def mixture_lines(runs: Sequence[Run], task: str) -> list[str]:
    """The out-of-fold scores of the runs' mean and of each alone, with intervals, or why there are
    none. A run's predictions are those of its oof.csv; runs of mask, gender, ageg are multiplied.
    """
    no_score = "out of fold: the mixture has no score: "
    lines: list[str] = []
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("", *PARTS)}
    first: OutOfFold | None = None
    for run in runs:
        oof = out_of_fold.read_oof(run.path, run.task)
        if oof is None:
            return [f"{no_score}{run.name} has no {out_of_fold.OOF_FILE}; finish its training"]
        first = first or oof
        if not oof.is_paired_with(first):
            unlike = f"{run.name} has other folds, photographs or labels than {runs[0].name}"
            return [f"{no_score}{unlike} (same people, --cv and --split-seed share the folds)"]
        part = members.known_part(run.members[0].info, task)
        predictions = ensemble.convert_task(oof.predictions, run.task, part or task)
        if predictions is None:
            return [f"{no_score}the {out_of_fold.OOF_FILE} of {run.name} does not hold {task}"]
        lines.append(f"  {run.name}: {out_of_fold.score_line(part or task, oof.rows, predictions)}")
        arrays[part].append(predictions)
    mixed = arrays.pop("")
    if len({len(of_part) for of_part in arrays.values()}) > 1:
        return [f"{no_score}runs of {', '.join(PARTS)} are not equally many"]
    for three in zip(*arrays.values(), strict=True):
        mixed.append(ensemble.multiply_parts(dict(zip(PARTS, three, strict=True))))
    assert first is not None  # there is a run
    lines.append(f"  mixture: {out_of_fold.score_line(task, first.rows, np.mean(mixed, axis=0))}")
    return [f"out of fold, {out_of_fold.count_people(first.rows)}, one epoch of each fold:", *lines]
