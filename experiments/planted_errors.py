#!/usr/bin/env python3
"""How many planted label errors come first? python -m experiments.planted_errors RUN TRAIN_ROOT

RUN is a finished `train.py --task main --cv K` run on TRAIN_ROOT; the last epoch's out-of-fold
probabilities are read. For each seed the gender of 5 % of the people and the incorrect_mask and
normal files of 5 % are swapped, and as many suspects as were planted are taken from the top of each
ranking: people for gender, files for masks. The score is the part of them that was planted.
cleanlab (where it can be imported; else its measures, by their definitions) ranks the same table:
people by the mean of their photographs' probabilities, files by their own.

The cheap version, as above: labels are swapped in the table only, after a training on clean labels.
The full version trains on the planted labels, which costs a cross-validation per seed:

    python -m experiments.planted_errors RUN TRAIN_ROOT --write DIR        # DIR/planted-0.csv ...
    python train.py --cv 5 --task main --label-fixes DIR/planted-0.csv ... # once for each seed
    python -m experiments.planted_errors --oof OOF.csv --planted DIR/planted-0.csv

OOF.csv: file, person, mask, gender, age, ageg, p0 ... p17, with the labels that were trained on.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import run_directory
from benchmarks import harness
from data import csv_tables, label_fixes, tables
from labels import GENDERS, MASKS
from reporting import label_issues
from training import fold_state

PART = 0.05
COLUMNS = [f"p{number}" for number in range(18)]
UNITS = {"gender": "person", "mask": "file"}
METHODS = ("ours", "self_confidence", "normalized_margin")
Fix = tuple[str, str, str]  # person or file, column, value: a row of --label-fixes


def read_run(run_dir: Path, train_root: Path) -> pd.DataFrame:
    """The root's table with the last epoch's out-of-fold probabilities of the run's folds."""
    parts = []
    for folder in run_directory.fold_dirs(run_dir):
        stored = fold_state.load_validation(folder, "main")
        if stored is not None:
            files, epochs = stored[:2]
            parts.append(pd.DataFrame(epochs[-1], columns=COLUMNS).assign(file=files))
    return tables.read_train(train_root).merge(pd.concat(parts), on="file")


def plant(table: pd.DataFrame, seed: int) -> list[Fix]:
    """Wrong labels: genders of 5 % of the people, swapped masks of 5 %."""
    draw = np.random.RandomState(seed)
    people = table.drop_duplicates("person").set_index("person")["gender"]
    count = round(PART * len(people))
    fixes = [
        (str(person), "gender", GENDERS[1 - people[person]])
        for person in draw.choice(people.index, count, replace=False)
    ]
    for person in draw.choice(people.index, count, replace=False):
        for row in table[(table["person"] == person) & (table["mask"] > 0)].itertuples():
            fixes.append((str(row.file), "mask", MASKS[3 - int(row.mask)]))
    return fixes


def write_fixes(path: Path, fixes: list[Fix]) -> None:
    """Write a --label-fixes file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "column", "value"), *fixes])


def our_ranking(table: pd.DataFrame, kind: str) -> list[str]:
    """People for gender, files for masks, the most suspect first."""
    issues = label_issues.find_label_issues(table, table[COLUMNS].to_numpy())
    return issues.loc[issues["kind"] == kind, UNITS[kind]].tolist()


def label_quality(labels: np.ndarray, probabilities: np.ndarray, method: str) -> np.ndarray:
    """cleanlab's measure [units] of labels [units] and probabilities [units, classes]."""
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        own = probabilities[np.arange(len(labels)), labels]
        if method == "self_confidence":
            return own
        rest = probabilities.copy()
        rest[np.arange(len(labels)), labels] = -1
        return (own - rest.max(1) + 1) / 2
    scores: np.ndarray = get_label_quality_scores(labels, probabilities, method=method)
    return scores


def cleanlab_ranking(table: pd.DataFrame, kind: str, method: str) -> list[str]:
    """cleanlab's ranking of the same people or files."""
    joint = table[COLUMNS].to_numpy().reshape(-1, 3, 2, 3)  # mask, gender, age group
    marginal = joint.sum((1, 3)) if kind == "gender" else joint.sum((2, 3))
    units = pd.DataFrame(marginal).groupby(table[UNITS[kind]].to_numpy()).mean()
    labels = table.drop_duplicates(UNITS[kind]).set_index(UNITS[kind])[kind].loc[units.index]
    quality = label_quality(labels.to_numpy(), units.to_numpy(), method)
    return units.index[np.argsort(quality, kind="stable")].tolist()


def precisions(table: pd.DataFrame, fixes: list[Fix]) -> dict[str, list[float]]:
    """Precision at the planted count per method: gender, mask, both together."""
    result: dict[str, list[float]] = {}
    for method in METHODS:
        hits, total = [], []
        for kind in UNITS:
            planted = {name for name, column, _ in fixes if column == kind}
            ours = method == "ours"
            ranking = our_ranking(table, kind) if ours else cleanlab_ranking(table, kind, method)
            hits.append(len(set(ranking[: len(planted)]) & planted))
            total.append(len(planted))
        result[method] = [hits[0] / total[0], hits[1] / total[1], sum(hits) / sum(total)]
    return result


def main(argv: list[str] | None = None) -> int:
    """Print precision at the planted count: gender, mask, both; each seed, and the mean."""
    parser = harness.make_parser(__doc__)
    add = parser.add_argument
    add("run_dir", nargs="?", type=Path, metavar="RUN")
    add("train_root", nargs="?", type=Path, metavar="TRAIN_ROOT")
    add("--seeds", type=int, default=3)
    add("--write", type=Path, help="write the wrong labels there and stop")
    add("--oof", nargs="+", type=Path, default=[], help="tables of runs trained on planted labels")
    add("--planted", nargs="+", type=Path, default=[], help="their labels, in the same order")
    args = parser.parse_args(argv)
    if not args.oof and args.train_root is None:
        parser.error("name RUN and TRAIN_ROOT, or --oof and --planted")
    results = []
    for oof, plan in zip(args.oof, args.planted, strict=True):
        rows = csv_tables.read_csv(plan, ("path", "column", "value"))
        fixes = list(rows[["path", "column", "value"]].itertuples(index=False, name=None))
        results.append(precisions(pd.read_csv(oof, dtype={"person": str}), fixes))
    if not args.oof:
        table = read_run(args.run_dir, args.train_root)
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(args.seeds):
                fixes = plant(table, seed)
                path = (args.write or Path(folder)) / f"planted-{seed}.csv"
                write_fixes(path, fixes)
                if not args.write:
                    results.append(precisions(label_fixes.apply_fixes(table, path)[0], fixes))
    for method in METHODS if results else ():
        values = np.array([result[method] for result in results])
        each = "  ".join("/".join(f"{value:.2f}" for value in row) for row in values)
        gender, mask, both = values.mean(0)
        print(f"{method:>18}: gender {gender:.3f}  mask {mask:.3f}  both {both:.3f}  ({each})")
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
