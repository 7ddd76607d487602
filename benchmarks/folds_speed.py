#!/usr/bin/env python3
"""Folds side by side: train.py --cv with 1, 2 ... --jobs, and how it grows with the processors.

    python -m benchmarks.folds_speed input/data/train                lite0 at 96 px, about 6 minutes
    python -m benchmarks.folds_speed input/data/train --backbone efficientnet-b3 --image-size 224 \\
        --people 10

Sides, taking turns in one run, each a whole command (its start, all folds, the scores, the report)
on the first --people people, with all threads that the machine has:

- N jobs: train.py --cv 5 --jobs N, for N of 1, 2, 4 ... up to the processors or the folds;
- other: the same command of another checkout, where --other names one, with what it chooses.
"""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness
from runtime.devices import usable_processors


def smaller_root(root: Path, people: int, folder: Path) -> Path:
    """A training root with the first people of another, its photographs linked."""
    with open(root / "train.csv", newline="") as file:
        header, *rows = csv.reader(file)
    (folder / "images").mkdir(parents=True)
    chosen = rows[:people]
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *chosen])
    for row in chosen:
        name = row[header.index("path")]
        (folder / "images" / name).symlink_to((root / "images" / name).resolve())
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=7)
    parser.add_argument("root", help="training root")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--other", help="another checkout of the project")
    args = parser.parse_args(argv)
    print(harness.describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = smaller_root(Path(args.root), args.people, folder / "train")
        options = {"train-root": root, "save-path": folder / "saved", "cv": args.folds}
        options |= {"epochs": args.epochs, "backbone": args.backbone, "device": "cpu"}
        options |= {"image-size": args.image_size, "pretrained": "none"}
        words = [*harness.as_options(options), "--quiet"]

        def command(script: Path, *more: str) -> harness.Side:
            def side() -> int:
                shutil.rmtree(folder / "saved", ignore_errors=True)
                harness.run_python([str(script), *words, *more])
                return args.people * len(harness.SHOTS) * args.folds * args.epochs

            return side

        script = harness.PROJECT / "train.py"
        most, jobs = min(usable_processors(), args.folds), 1
        sides: dict[str, harness.Side] = {}
        while jobs < 2 * most:
            sides[f"{min(jobs, most)} jobs"] = command(script, "--jobs", str(min(jobs, most)))
            jobs *= 2
        if args.other:
            sides["other"] = command(Path(args.other).absolute() / "train.py")
        seconds = harness.median_seconds(sides, args.rounds)
    title = f"{args.folds} folds of {args.backbone} at {args.image_size} px, whole commands:"
    harness.print_rates(title, seconds, "photographs", "1 jobs")
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
