"""How many planted label errors come first: python benchmarks/planted_errors.py TREE TRAIN_ROOT

TREE is a finished `train.py --task main --cv K` run on TRAIN_ROOT; its headline epochs do not
matter here, the last one's out-of-fold probabilities are read. For each seed the gender of 5 % of
the people and the incorrect_mask and normal files of 5 % are swapped, and the planted count of
suspects is drawn from the top of each ranking: people for gender, files for masks. The score is the
part of them that was planted. cleanlab (where it can be imported; else its self-confidence, by its
definition) ranks the same table: people by the mean of their photographs' probabilities, files by
their own.

The cheap version, as above: labels are swapped in the table only, after a training on clean labels.
The full version trains on the planted labels, which costs a cross-validation per seed:

    python benchmarks/planted_errors.py TREE TRAIN_ROOT --write DIR        # planted-0.csv ...:
    --label-fixes of wrong labels python train.py --cv 5 --task main --label-fixes DIR/planted-0.csv
    ... # once for each seed python benchmarks/planted_errors.py --oof OOF.csv --planted
    DIR/planted-0.csv

OOF.csv: file, person, mask, gender, age, ageg, p0 ... p17, with the labels that were trained on.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoint
import config
import suspects
import tables

PART = 0.05
COLUMNS = [f"p{number}" for number in range(18)]


def read_tree(tree: Path, train_root: Path) -> pd.DataFrame:
    """The table of a root with the last epoch's out-of-fold probabilities of its trees' folds."""
    parts = []
    for folder in checkpoint.fold_folders(tree):
        found = checkpoint.read_validation(folder, "main")
        if found is not None:
            parts.append(pd.DataFrame(found[1][-1], columns=COLUMNS).assign(file=found[0]))
    return tables.read_train(train_root).merge(pd.concat(parts), on="file")


def plant(table: pd.DataFrame, seed: int) -> list[tuple[str, str, str]]:
    """Fixes (path, column, value) that make labels wrong: genders of 5 % of the people, swapped
    files of 5 %.
    """
    draw = np.random.RandomState(seed)
    people = table.drop_duplicates("person").set_index("person")["gender"]
    count = round(PART * len(people))
    fixes = [
        (str(p), "gender", config.GENDERS[1 - people[p]])
        for p in draw.choice(people.index, count, replace=False)
    ]
    for person in draw.choice(people.index, count, replace=False):
        for row in table[(table["person"] == person) & (table["mask"] > 0)].itertuples():
            fixes.append((str(row.file), "mask", config.MASKS[3 - int(row.mask)]))
    return fixes


def write_plan(path: Path, fixes: list[tuple[str, str, str]]) -> None:
    """A plan as a --label-fixes file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "column", "value"), *fixes])


def ours(table: pd.DataFrame, kind: str) -> list[str]:
    """Our ranking: people for gender, files for masks."""
    found = suspects.label_suspects(table, table[COLUMNS].to_numpy())
    return found.loc[found["kind"] == kind, "person" if kind == "gender" else "file"].tolist()


def quality(labels: np.ndarray, probabilities: np.ndarray, method: str) -> np.ndarray:
    """cleanlab's label quality: low for suspects."""
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


def cleanlabs(table: pd.DataFrame, kind: str, method: str) -> list[str]:
    """cleanlab's ranking of the same people or files."""
    joint = table[COLUMNS].to_numpy().reshape(-1, 3, 2, 3)
    marginal = joint.sum((1, 3)) if kind == "gender" else joint.sum((2, 3))
    unit = "person" if kind == "gender" else "file"
    units = pd.DataFrame(marginal).groupby(table[unit].to_numpy()).mean()
    labels = table.drop_duplicates(unit).set_index(unit)[kind].loc[units.index]
    order = np.argsort(quality(labels.to_numpy(), units.to_numpy(), method), kind="stable")
    return units.index[order].tolist()


def hits(ranking: list[str], planted: list[str]) -> int:
    """How many of the first len(planted) were planted."""
    return len(set(ranking[: len(planted)]) & set(planted))


def judge(table: pd.DataFrame, fixes: list[tuple[str, str, str]]) -> dict[str, list[float]]:
    """Precision at the planted count per method: gender, mask, both together."""
    result: dict[str, list[float]] = {}
    for method in ("ours", "self_confidence", "normalized_margin"):
        found, total = [], []
        for kind in ("gender", "mask"):
            planted = [name for name, column, _ in fixes if column == kind]
            found.append(
                hits(
                    ours(table, kind) if method == "ours" else cleanlabs(table, kind, method),
                    planted,
                )
            )
            total.append(len(planted))
        result[method] = [found[0] / total[0], found[1] / total[1], sum(found) / sum(total)]
    return result


def main(argv: list[str] | None = None) -> int:
    """Print precision at the planted count: gender, mask, both; each seed, and the mean."""
    parser = argparse.ArgumentParser(description="Rank planted label errors.", allow_abbrev=False)
    parser.add_argument("tree", nargs="?", type=Path)
    parser.add_argument("train_root", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="write the plans there and stop")
    parser.add_argument(
        "--oof", nargs="+", type=Path, default=[], help="tables of runs trained on planted labels"
    )
    parser.add_argument(
        "--planted", nargs="+", type=Path, default=[], help="their plans, in the same order"
    )
    args = parser.parse_args(argv)
    results = []
    for oof, plan in zip(args.oof, args.planted, strict=True):
        rows = tables.read_csv(plan, ("path", "column", "value"))
        fixes = list(rows[["path", "column", "value"]].itertuples(index=False, name=None))
        results.append(judge(pd.read_csv(oof, dtype={"person": str}), fixes))
    if not args.oof:
        table = read_tree(args.tree, args.train_root)
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(args.seeds):
                fixes, path = (
                    plant(table, seed),
                    (args.write or Path(folder)) / f"planted-{seed}.csv",
                )
                write_plan(path, fixes)
                if not args.write:
                    results.append(judge(suspects.apply_fixes(table, path)[0], fixes))
    for method in results[0] if results else ():
        rows = np.array([result[method] for result in results])
        each = "  ".join("/".join(f"{value:.2f}" for value in row) for row in rows)
        gender, mask, both = rows.mean(0)
        print(f"{method:>18}: gender {gender:.3f}  mask {mask:.3f}  both {both:.3f}  ({each})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
