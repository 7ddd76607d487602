#!/usr/bin/env python3
"""Compare training runs by their out-of-fold predictions.

    python -m tools.compare_runs
    python -m tools.compare_runs saved_models --against kfold-ensemble-VanillaEfficientNet

Without --against: all runs, the newest first, with macro F1 and its 95 % interval, macro F1 of
mask, gender and age group, the time from start to end (of runs that were not resumed) and the
settings that differ; then the pairs of runs whose mean probabilities score best.

With --against: the difference of each run from that one, paired over people, with its 95 %
interval; the share of photographs that both predict differently; macro F1 of the mean of their
probabilities. Only runs with the same photographs, labels and folds can be paired.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
import ensemble
import metrics
import out_of_fold
import run_directory
from data.csv_tables import write_csv
from labels import PARTS, TASKS
from out_of_fold import OutOfFold
from runtime.cli import duration, exit_when_reader_is_gone, run_script
from runtime.errors import UserError, printable
from runtime.files import check_output_file
from runtime.options import Parser, flag

MAX_PAIRS = 5  # that are listed
MAX_CELL_CHARACTERS = 60  # on the terminal
FORMATS = {  # of columns, on the terminal
    **dict.fromkeys(("macro F1", "mean's F1"), "{:.4f}"),
    **dict.fromkeys(("95 % low", "95 % high", *PARTS), "{:.3f}"),
}
DIFFERENCE_FORMATS = {
    **FORMATS,
    **dict.fromkeys(("95 % low", "95 % high"), "{:+.3f}"),
    "difference": "{:+.4f}",
    "disagree": "{:.1%}",
}


@dataclass(frozen=True)
class FinishedRun:
    """A run's out-of-fold predictions, sorted by file."""

    name: str
    task: str
    oof: OutOfFold

    @property
    def folds(self) -> int:
        return int(self.oof.rows["fold"].nunique())

    @functools.cached_property
    def macro_f1(self) -> float:
        return out_of_fold.score_rows(self.task, *self.oof).macro_f1

    @functools.cached_property
    def classes(self) -> np.ndarray:
        """The predicted classes [images]."""
        return metrics.to_classes(self.task, ensemble.decide(self.task, self.oof.predictions))

    @functools.cached_property
    def draws(self) -> np.ndarray:
        """Macro F1 [draws] by bootstrap over people; of paired runs, each draw of the same ones."""
        rows, predicted = self.oof.rows, ensemble.decide(self.task, self.oof.predictions)
        truth, people = rows[self.task].to_numpy(), rows["person"].to_numpy()
        return metrics.macro_f1(metrics.bootstrap(self.task, predicted, truth, people))

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of macro F1's 95 % interval."""
        return metrics.out_of_fold_interval(self.macro_f1, self.draws, self.folds)

    def is_paired_with(self, other: FinishedRun) -> bool:
        return self.task == other.task and self.oof.is_paired_with(other.oof)


@dataclass(frozen=True)
class ComparedRun:
    """A run in any state."""

    path: Path
    task: str
    settings: dict[str, Any]  # without the task
    seconds: float | None  # from start to end, where known
    finished: FinishedRun | None = None
    problem: str = ""  # why it has no out-of-fold predictions

    @property
    def name(self) -> str:
        return printable(self.path.name)


def load_run(path: Path) -> ComparedRun:
    """Read a run; a missing or damaged oof.csv becomes its `problem`."""
    content = run_directory.read_run_json(path)
    settings = run_directory.result_settings(content.get("settings", {}))
    task = printable(settings.pop("task", "main"))
    run = ComparedRun(path, task, settings, training_seconds(content))
    if task not in TASKS:
        return dataclasses.replace(run, problem="its task is unknown")
    try:
        oof = out_of_fold.read_oof(path, task)
    except UserError as error:
        return dataclasses.replace(run, problem=str(error))
    if oof is None:
        return dataclasses.replace(run, problem=f"no {out_of_fold.OOF_FILE} (not finished)")
    return dataclasses.replace(run, finished=FinishedRun(run.name, task, oof))


def training_seconds(run_json: dict[str, Any]) -> float | None:
    """From a run's start to its end; None without an end, or where a resumed run had a pause."""
    try:
        start, end = (datetime.fromisoformat(run_json[key]) for key in ("started", "finished"))
        return None if run_json.get("resumed") else (end - start).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def differing_settings(runs: Sequence[ComparedRun]) -> list[str]:
    """Names of the settings in which the runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({str(run.settings.get(name)) for run in runs}) > 1]


def table_of_runs(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """A row per run: scores with intervals, parts, time, the settings that differ, a note."""
    settings, rows = differing_settings(runs), []
    columns = ("macro F1", "95 % low", "95 % high", *PARTS, "time")
    for run in runs:
        row: dict[str, Any] = {"run": run.name, "task": run.task, **dict.fromkeys(columns, np.nan)}
        if (own := run.finished) is not None:
            row["macro F1"], (row["95 % low"], row["95 % high"]) = own.macro_f1, own.interval
            for part in PARTS:
                predictions = ensemble.convert_task(own.oof.predictions, run.task, part)
                if predictions is not None:
                    row[part] = out_of_fold.score_rows(part, own.oof.rows, predictions).macro_f1
        if run.seconds is not None:
            row["time"] = duration(run.seconds)
        for name in settings:
            value = run.settings.get(name, np.nan)
            is_plain = isinstance(value, (str, int, float))
            row[printable(flag(name))] = value if is_plain else str(value)
        rows.append(row | {"note": run.problem})
    return pd.DataFrame(rows)


def table_against(reference: FinishedRun, runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """A row per run: the paired difference in macro F1 with its interval, the share of photographs
    that are predicted differently, macro F1 of the mean of both, a note.
    """
    columns = ("macro F1", "difference", "95 % low", "95 % high", "disagree", "mean's F1")
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.name, **dict.fromkeys(columns, np.nan)}
        row["note"] = run.problem
        if (other := run.finished) is not None:
            row["macro F1"] = other.macro_f1
            if not reference.is_paired_with(other):
                row["note"] = not_paired(reference, other)
            else:
                row["difference"] = change = other.macro_f1 - reference.macro_f1
                row["95 % low"], row["95 % high"] = metrics.out_of_fold_interval(
                    change, other.draws - reference.draws, reference.folds, lowest=-1.0
                )
                row["disagree"] = disagreement(reference, other)
                row["mean's F1"] = mean_f1(reference, other)
        rows.append(row)
    return pd.DataFrame(rows)


def not_paired(reference: FinishedRun, other: FinishedRun) -> str:
    """Why two runs cannot be compared photograph by photograph."""
    if other.task != reference.task:
        return f"not paired: trained for {other.task}"
    return "not paired: other folds, photographs or labels (same --cv and --split-seed share folds)"


def disagreement(first: FinishedRun, second: FinishedRun) -> float:
    """The share of photographs that two paired runs predict differently."""
    return float((first.classes != second.classes).mean())


def mean_f1(first: FinishedRun, second: FinishedRun) -> float:
    """Macro F1 of the mean of two paired runs' predictions."""
    mean = (first.oof.predictions + second.oof.predictions) / 2
    return out_of_fold.score_rows(first.task, first.oof.rows, mean).macro_f1


def best_pairs(runs: Sequence[ComparedRun]) -> list[str]:
    """Lines on the pairs of runs whose mean scores best."""
    finished = [run.finished for run in runs if run.finished is not None]
    scored = []
    for pair in itertools.combinations(finished, 2):
        if pair[0].is_paired_with(pair[1]):
            scored.append((mean_f1(*pair), *pair))
    lines = []
    for f1, first, second in sorted(scored, key=lambda entry: -entry[0])[:MAX_PAIRS]:
        gain = f1 - max(first.macro_f1, second.macro_f1)
        lines.append(
            f"  {first.name} + {second.name}: macro F1 {f1:.4f} ({gain:+.4f} from the better one), "
            f"{disagreement(first, second):.1%} predicted differently"
        )
    return ["pairs whose mean probabilities score best, out of fold:", *lines] if lines else []


def find_reference(runs: Sequence[ComparedRun], name: str) -> tuple[ComparedRun, FinishedRun]:
    """The run that --against names: its folder, its name, or the end of it. Raises UserError."""
    prefix = run_directory.RUN_DIR_PREFIX
    named = [run for run in runs if run.path.resolve() == Path(name).resolve()]
    named = named or [run for run in runs if run.path.name in (name, prefix + name)]
    named = named or [run for run in runs if run.path.name.endswith(f"_{name}")]
    if len(named) != 1:
        problem = f"{', '.join(run.name for run in named)} end so" if named else "no such run"
        raise UserError(f"--against {name}: {problem}; name one run's folder in full")
    if named[0].finished is None:
        raise UserError(f"--against {name}: {named[0].problem}; name a finished run")
    return named[0], named[0].finished


def print_table(table: pd.DataFrame, formats: dict[str, str]) -> None:
    """The table, in blocks of columns where a terminal is narrow, then its notes."""
    shown = table.set_index("run").rename_axis(None).drop(columns="note").astype(object)
    for name in shown:
        form = formats.get(str(name), "{}").format
        cells = [form(value) if pd.notna(value) else "-" for value in shown[name]]
        shown[name] = [printable(cell) for cell in cells]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(shown.to_string(line_width=width, max_colwidth=MAX_CELL_CHARACTERS))
    for name, note in zip(table["run"], table["note"], strict=True):
        if note:
            print(f"{name}: {printable(note)}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="compare_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("root", nargs="?", default="saved_models", help="folder of runs")
    parser.add_argument("--against", metavar="RUN", help="the run to take differences from")
    parser.add_argument("--csv", metavar="PATH", help="also write the table there, figures in full")
    args = parser.parse_args(argv)
    exit_when_reader_is_gone()
    root, prefix = Path(args.root), run_directory.RUN_DIR_PREFIX
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the folder of your runs")
    if args.csv:
        check_output_file(Path(args.csv), "--csv")
    folders = [path for path in root.glob(f"{prefix}*") if path.is_dir()]
    if not folders:
        raise UserError(f"{root}: no {prefix}* folder in it; train first, or name another folder")
    runs = [load_run(path) for path in run_directory.newest_first(folders)]
    if args.against is None:
        table = table_of_runs(runs)
        print_table(table, FORMATS)
        print(*best_pairs(runs), sep="\n")
    else:
        run, reference = find_reference(runs, args.against)
        others = [other for other in runs if other is not run]
        if not others:
            raise UserError(f"--against {args.against}: no other run in {root}; train one")
        table = table_against(reference, others)
        low, high = reference.interval
        f1 = f"macro F1 {reference.macro_f1:.4f} (95 %: {low:.3f} to {high:.3f})"
        print(f"against {run.name}, {f1}")
        print_table(table, DIFFERENCE_FORMATS)
    if args.csv:
        write_csv(Path(args.csv), table)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "compare_runs"))
