"""Is the headline score true? python benchmarks/score_truth.py DIR [--seeds 10]

For each seed, people are drawn (sample_data.py), a small model is trained on them with the real
command, and its single fold models answer evaluation people whom nothing has seen. The headline
out-of-fold macro F1 with its 95 % interval (report.json) is compared with the truth: the mean macro
F1 of the fold models, alone, on eval/answers.csv. Both kinds of people are drawn alike. The
evaluation people are drawn once for all seeds, and are several times as many as the training
people: the interval allows for the luck of the people who were held out, not for that of those who
tell the truth.

DIR keeps a line per seed in results.csv; seeds that are there are not run again, so an interrupted
benchmark goes on.
Several seeds run side by side, each in one thread.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).resolve().parents[1]
MODEL = (
    "--cv",
    "3",
    "--epochs",
    "5",
    "--batch-size",
    "16",
    "--backbone",
    "efficientnet-lite0",
    "--image-size",
    "64",
    "--transform-type",
    "facecrop",
    "--save-top",
    "1",
)
MACHINE = ("--device", "cpu", "--threads", "1", "--workers", "0")
JUDGES = 1000  # seed of the evaluation people
LOCK = threading.Lock()


def call(*words: str) -> str:
    """Run one of the project's commands; what it printed. Raises CalledProcessError."""
    done = subprocess.run(
        [sys.executable, *words], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def one_seed(seed: int, folder: Path, people: int, judges: Path) -> dict[str, float]:
    """Draw, train and score; the headline with its interval, and the truth on the evaluation people
    `judges`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    call(
        "sample_data.py",
        "--out",
        str(folder / "data"),
        "--people",
        str(people),
        "--eval-people",
        "0",
        "--seed",
        str(seed),
    )
    call(
        "train.py",
        "--train-root",
        str(folder / "data/train"),
        "--save-path",
        str(folder / "models"),
        "--quiet",
        "--seed",
        str(seed),
        *MODEL,
        *MACHINE,
    )
    told = call(
        "submit_ensemble.py",
        "--root",
        str(folder / "models"),
        "--data-root",
        str(judges),
        "--save-path",
        str(folder / "prediction"),
        "--top-k",
        "1",
        "--transform-type",
        "auto",
        "--answers",
        str(judges / "answers.csv"),
        *MACHINE,
    )
    (report,) = folder.glob("models/*/report.json")
    headline = json.loads(report.read_text())["headline"]["macro_f1"]
    alone = re.search(r"mean macro F1 of the \d+ members alone: ([\d.]+)", told)
    if alone is None:
        raise RuntimeError(f"submit_ensemble.py told no score of its members:\n{told}")
    shutil.rmtree(folder)
    return {
        "seed": seed,
        "headline": headline["value"],
        "low": headline["low"],
        "high": headline["high"],
        "truth": float(alone[1]),
    }


def main() -> int:
    """Run the seeds that are missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--eval-people", type=int, default=800)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results = args.folder / "results.csv"
    counts = ("--people", "1", "--eval-people", str(args.eval_people), "--seed", str(JUDGES))
    call(
        "sample_data.py", "--out", str(args.folder / "judges"), *counts
    )  # which leaves a complete folder as it is
    there = set(pd.read_csv(results)["seed"]) if results.is_file() else set()

    def run(seed: int) -> None:
        row = pd.DataFrame(
            [
                one_seed(
                    seed, args.folder / f"seed{seed}", args.people, args.folder / "judges" / "eval"
                )
            ]
        )
        with LOCK:
            row.to_csv(results, mode="a", header=not results.is_file(), index=False)
            print(row.to_string(index=False, header=False), flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, [seed for seed in range(1, args.seeds + 1) if seed not in there]))
    table = pd.read_csv(results).sort_values("seed")
    table = table.assign(
        difference=table["headline"] - table["truth"], width=table["high"] - table["low"]
    )
    table["covered"] = (table["low"] <= table["truth"]) & (table["truth"] <= table["high"])
    print(table.round(4).to_string(index=False))
    print(
        f"{len(table)} seeds: headline minus truth {table['difference'].mean():+.4f} on average "
        "(deviation "
        f"{table['difference'].std():.4f}), width {table['width'].mean():.4f}, covered "
        f"{table['covered'].sum()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
