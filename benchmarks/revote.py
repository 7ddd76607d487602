#!/usr/bin/env python3
"""Voting again: seconds of submit_ensemble.py --from-probs on a large stored prediction.

    python -m benchmarks.revote                         20 members x 12,600 photographs x 18 classes

The probabilities are drawn at random and written as submit_ensemble.py does; every vote is a
process of its own, from start to exit, in turns with `python -c pass`. Each writes the votes, every
member's own predictions and probs.npz again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
import ensemble
from benchmarks import harness
from inference import submission

CLASSES = 18


def write_probs(folder: Path, members: int, views: int, images: int) -> None:
    """A stored prediction of so many members."""
    folder.mkdir()
    shape = (members, views, images, CLASSES)
    drawn = np.random.default_rng(0).gamma(0.3, size=shape) + 1e-9
    probabilities = ensemble.Probabilities(
        "main",
        (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32),
        [f"fold{m % 5:02d}/Fold{m % 5:02d}_member{m}.pth" for m in range(members)],
        [m % 5 for m in range(members)],
        [0.5 + m / 1000 for m in range(members)],
        [f"{number:040x}.jpg" for number in range(images)],
    )
    submission.save_probabilities(folder, probabilities)


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=5)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--images", type=int, default=12600)
    args = parser.parse_args(argv)
    print(harness.describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "stored"
        write_probs(folder, args.members, args.views, args.images)
        vote = ["submit_ensemble.py", "--from-probs", str(folder), "--save-path", name, "--method"]
        sides = {"python -c pass": harness.python_side(["-c", "pass"])}
        sides |= {method: harness.python_side([*vote, method]) for method in ("soft", "hard")}
        seconds = harness.median_seconds(sides, args.rounds)
    print(f"{args.members} members x {args.views} views x {args.images} photographs (aim: 2 s):")
    for side, each in seconds.items():
        ratio = each / seconds["python -c pass"]
        print(f"  {side:<16} {each:6.2f} s   {ratio:.1f} x python -c pass")
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
