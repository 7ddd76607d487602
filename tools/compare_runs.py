#!/usr/bin/env python3
"""Compare training runs by their out-of-fold predictions: a table of all runs, the newest first, or
paired differences against one of them.

    python -m tools.compare_runs
    python -m tools.compare_runs saved_models --against kfold-ensemble-VanillaEfficientNet
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ensemble
import metrics
import out_of_fold
import run_directory
from data.csv_tables import write_csv
from labels import PARTS
from out_of_fold import OutOfFold
from runtime.cli import duration, run_script
from runtime.errors import UserError, printable

DIFFERENCE = "difference from"
SHARED_ROWS = ["file", "person", "fold", *out_of_fold.LABEL_COLUMNS]


@dataclass(frozen=True)
class ComparedRun:
    """A run with its out-of-fold predictions, sorted by file; `problem` says why it has none."""

    path: Path
    task: str
    settings: dict[str, Any]
    oof: OutOfFold | None = None
    problem: str = ""
    seconds: float | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return printable(self.path.name)


def load_run(path: Path) -> ComparedRun:
    """A run of any state: one without a readable oof.csv has a problem in its place."""
    content = run_directory.read_run_json(path)
    settings = run_directory.result_settings(content.get("settings", {}))
    ends = [file.stat().st_mtime for file in path.glob("fold*/history.csv")]
    seconds = max(ends) - run_directory.start_time(path) if ends and content else None
    run = ComparedRun(path, str(settings.get("task", "main")), settings, seconds=seconds)
    try:
        oof = out_of_fold.read_oof(path, run.task)
    except UserError as error:
        return dataclasses.replace(run, problem=str(error))
    if oof is None:
        return dataclasses.replace(run, problem=f"no {out_of_fold.OOF_FILE} (not finished)")
    order = oof.rows["file"].argsort(kind="stable").to_numpy()
    rows = oof.rows.iloc[order].reset_index(drop=True)
    return dataclasses.replace(run, oof=OutOfFold(rows, oof.predictions[order]))


def differing_settings(runs: Sequence[ComparedRun]) -> list[str]:
    """Names of the settings in which the runs differ, but those that only name files."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name
        for name in names
        if len({str(run.settings.get(name)) for run in runs}) > 1 and name != "save_path"
    ]


def interval(task: str, oof: OutOfFold) -> tuple[float, float, float]:
    """(macro F1, the ends of its 95 % interval by bootstrap over people)."""
    rows, folds = oof.rows, oof.rows["fold"].nunique()
    value = out_of_fold.score_rows(task, rows, oof.predictions).macro_f1
    low, high = metrics.out_of_fold_interval(value, draws_of_f1(task, oof), folds)
    return value, low, high


def draws_of_f1(task: str, oof: OutOfFold) -> np.ndarray:
    """Macro F1 [draws] by bootstrap over people: pairwise comparable among runs of equal rows."""
    predicted = ensemble.decide(task, oof.predictions)
    people, labels = oof.rows["person"].to_numpy(), oof.rows[task].to_numpy()
    return metrics.macro_f1s(metrics.bootstrap(task, predicted, labels, people))


def table_of_runs(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """A row per run: scores with intervals, parts, time, the settings that differ."""
    settings, rows = differing_settings(runs), []
    for run in runs:
        row: dict[str, object] = {"run": run.name, "task": run.task, "macro F1": "-", "95 %": "-"}
        row |= dict.fromkeys(PARTS, "-")
        if run.oof is not None:
            value, low, high = interval(run.task, run.oof)
            row |= {"macro F1": f"{value:.4f}", "95 %": f"{low:.3f} to {high:.3f}"}
            for part in PARTS if run.task == "main" else ():
                own = ensemble.marginalize_main(run.oof.predictions, part)
                row[part] = f"{out_of_fold.score_rows(part, run.oof.rows, own).macro_f1:.3f}"
        row["time"] = "-" if run.seconds is None else duration(run.seconds)
        row |= {f"--{n.replace('_', '-')}": run.settings.get(n, "-") for n in settings}
        rows.append(row)
    return pd.DataFrame(rows)


def table_against(reference: ComparedRun, runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """A row per other run: the paired difference in macro F1 with its interval, the share of other
    predictions, the score of the mean of both.
    """
    assert reference.oof is not None
    task, rows = reference.task, reference.oof.rows
    folds = rows["fold"].nunique()
    draws = draws_of_f1(task, reference.oof)
    score = out_of_fold.score_rows(task, rows, reference.oof.predictions).macro_f1
    own = ensemble.decide(task, reference.oof.predictions)
    table = []
    for run in runs:
        row: dict[str, object] = {"run": run.name}
        row |= dict.fromkeys((f"{DIFFERENCE} {reference.name}", "95 %", "disagree", "mix"), "-")
        row["note"] = why_not_paired(reference, run)
        if not row["note"] and run.oof is not None:
            other = out_of_fold.score_rows(task, rows, run.oof.predictions).macro_f1
            # both ends may be negative, so the interval of a score does not serve
            change = draws_of_f1(task, run.oof) - draws
            wider = np.sqrt(1 + (folds / (folds - 1) if folds > 1 else 1 / 9))
            low, high = (
                other - score + wider * (end - (other - score)) for end in metrics.interval(change)
            )
            mixed = (reference.oof.predictions + run.oof.predictions) / 2
            mixed_f1 = out_of_fold.score_rows(task, rows, mixed).macro_f1
            unequal = (ensemble.decide(task, run.oof.predictions) != own).mean()
            row |= {
                f"{DIFFERENCE} {reference.name}": f"{other - score:+.4f}",
                "95 %": f"{low:+.3f} to {high:+.3f}",
                "disagree": f"{unequal:.1%}",
                "mix": f"{mixed_f1:.4f}",
            }
        table.append(row)
    return pd.DataFrame(table)


def why_not_paired(first: ComparedRun, second: ComparedRun) -> str:
    """Why two runs cannot be compared photograph by photograph; empty where they can."""
    if second.oof is None:
        return second.problem
    if first.task != second.task:
        return f"trained for {second.task}"
    assert first.oof is not None
    if not second.oof.rows[SHARED_ROWS].equals(first.oof.rows[SHARED_ROWS]):
        return "other folds, photographs or labels (same --cv and --split-seed share the folds)"
    return ""


def best_pairs(runs: Sequence[ComparedRun], most: int = 5) -> list[str]:
    """The pairs of runs whose mean scores best, out of fold."""
    scored = []
    finished = [(run, run.oof) for run in runs if run.oof is not None]
    for (first, own), (second, other) in itertools.combinations(finished, 2):
        if not why_not_paired(first, second):
            task, mixed = first.task, (own.predictions + other.predictions) / 2
            f1 = out_of_fold.score_rows(task, own.rows, mixed).macro_f1
            pair = [ensemble.decide(task, oof.predictions) for oof in (own, other)]
            unequal = (pair[0] != pair[1]).mean()
            names = f"{first.name} + {second.name}"
            scored.append((f1, f"  {names}: macro F1 {f1:.4f}, they disagree on {unequal:.1%}"))
    lines = [line for _, line in sorted(scored, reverse=True)[:most]]
    return ["pairs that vote well together, out of fold:", *lines] if lines else []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="compare_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("root", nargs="?", default="saved_models", help="folder of runs")
    parser.add_argument("--against", metavar="RUN", help="paired differences from this run")
    parser.add_argument("--csv", metavar="PATH", help="write the table there, too")
    args = parser.parse_args(argv)
    root = Path(args.root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the folder of your runs")
    prefix = run_directory.RUN_DIR_PREFIX
    folders = [path for path in root.glob(f"{prefix}*") if path.is_dir()]
    if not folders:
        raise UserError(f"{root}: no {prefix}* folder in it; train first, or name another folder")
    runs = [load_run(path) for path in run_directory.newest_first(folders)]
    if args.against is None:
        table, notes = table_of_runs(runs), best_pairs(runs)
        notes = [f"{run.name}: {run.problem}" for run in runs if run.problem] + notes
    else:
        named = [run for run in runs if run.path.name in (args.against, prefix + args.against)]
        named = named or [run for run in runs if run.path.name.endswith(f"_{args.against}")]
        if len(named) != 1 or named[0].oof is None:
            why = named[0].problem if named else f"no such run in {root}"
            raise UserError(f"--against {args.against}: {why}; name a finished run's folder")
        table, notes = table_against(named[0], [run for run in runs if run is not named[0]]), []
    print(table.to_string(index=False) if len(table) else "no other run")
    print(*notes, sep="\n")
    if args.csv:
        write_csv(Path(args.csv), table)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "compare_runs"))
