#!/usr/bin/env python3
"""Is the headline score true? python -m experiments.score_truth DIR [--seeds 10]

For each seed, people are drawn (tools.sample_data), a small model is trained on them with the
real command, and its single fold models answer evaluation people whom nothing has seen. The
headline out-of-fold macro F1 with its 95 % interval (report.json) is compared with the truth: the
mean macro F1 of the fold models, alone, on eval/answers.csv. Both kinds of people are drawn alike.
The evaluation people are drawn once for all seeds, and are several times as many as the training
people: the interval allows for the luck of the people who were held out, not for that of those who
give the truth.

DIR keeps a line per seed in results.csv; seeds that are there are not run again, so an interrupted
experiment goes on. Several seeds run side by side, each in one thread.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from benchmarks import harness

MODEL = {"backbone": "efficientnet-lite0", "transform-type": "facecrop", "batch-size": 16, "cv": 3}
MACHINE = harness.as_options({"device": "cpu", "threads": 1, "workers": 0})
EVAL_SEED = 1000  # of the evaluation people
LOCK = threading.Lock()


def draw_people(folder: Path, people: int, eval_people: int, seed: int) -> None:
    """Draw a data root; a complete one is left as it is."""
    counts = {"people": people, "eval-people": eval_people, "seed": seed}
    harness.run_python(
        ["-m", "tools.sample_data", "--out", str(folder), *harness.as_options(counts)]
    )


def score_seed(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Draw, train and score: the headline with its interval, and the truth."""
    folder, evaluation = args.folder / f"seed{seed}", args.folder / "judges" / "eval"
    shutil.rmtree(folder, ignore_errors=True)
    draw_people(folder / "data", args.people, 0, seed)
    words = ["--train-root", str(folder / "data/train"), "--save-path", str(folder / "models")]
    words += ["--quiet", "--save-top", "1", "--seed", str(seed), *MACHINE]
    size = {"epochs": args.epochs, "image-size": args.image_size}
    words += harness.as_options({**MODEL, **size})
    harness.run_python(["train.py", *words])
    words = ["--root", str(folder / "models"), "--data-root", str(evaluation), "--top-k", "1"]
    words += ["--save-path", str(folder / "prediction"), "--transform-type", "auto"]
    words += ["--answers", str(evaluation / "answers.csv"), *MACHINE]
    output = harness.run_python(["submit_ensemble.py", *words])
    (report,) = folder.glob("models/*/report.json")
    headline = json.loads(report.read_text())["headline"]["macro_f1"]
    alone = re.search(r"mean macro F1 of the \d+ members alone: ([\d.]+)", output)
    if alone is None:
        raise RuntimeError(f"submit_ensemble.py printed no score of its members:\n{output}")
    shutil.rmtree(folder)
    interval = {name: headline[name] for name in ("low", "high")}
    return {"seed": seed, "headline": headline["value"], **interval, "truth": float(alone[1])}


def main(argv: list[str] | None = None) -> int:
    """Run the seeds that are missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--eval-people", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args(argv)
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True, exist_ok=True)
    results = args.folder / "results.csv"
    draw_people(args.folder / "judges", 1, args.eval_people, EVAL_SEED)
    finished = set(pd.read_csv(results)["seed"]) if results.is_file() else set()

    def run(seed: int) -> None:
        row = pd.DataFrame([score_seed(args, seed)])
        with LOCK:
            row.to_csv(results, mode="a", header=not results.is_file(), index=False)
            print(row.to_string(index=False, header=False), flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, [seed for seed in range(1, args.seeds + 1) if seed not in finished]))
    table = pd.read_csv(results).sort_values("seed")
    difference, width = table["headline"] - table["truth"], table["high"] - table["low"]
    covered = (table["low"] <= table["truth"]) & (table["truth"] <= table["high"])
    table = table.assign(difference=difference, width=width, covered=covered)
    print(table.round(4).to_string(index=False))
    print(
        f"{len(table)} seeds: headline minus truth {difference.mean():+.4f} on average (deviation "
        f"{difference.std():.4f}), width {width.mean():.4f}, covered {covered.sum()}"
    )
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
