#!/usr/bin/env python3
"""Voting again: seconds of submit_ensemble.py --from-probs on a large stored prediction.

    python benchmarks/revote.py                                                20 members x 12,600
    photographs x 18 classes

The probabilities are drawn at random and written as submit_ensemble.py does; every vote is a
process of its own, from start to exit, in turns with `python -c pass`. Each writes the votes, every
member's own answers and probs.npz again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timing

import config
import ensemble
import submission
import utils


def write_probs(folder: Path, members: int, views: int, images: int) -> None:
    """A stored prediction of so many members."""
    folder.mkdir()
    drawn = (
        np.random.default_rng(0).gamma(
            0.3, size=(members, views, images, config.TASKS["main"].outputs)
        )
        + 1e-9
    )
    array = (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)
    names = [f"fold{m % 5:02d}/Fold{m % 5:02d}_member{m}.pth" for m in range(members)]
    submission.save(
        folder,
        ensemble.Probabilities(
            "main",
            array,
            names,
            [m % 5 for m in range(members)],
            [0.5 + m / 1000 for m in range(members)],
            [f"{number:040x}.jpg" for number in range(images)],
        ),
    )


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__, rounds=5)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--images", type=int, default=12600)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "stored"
        write_probs(folder, args.members, args.views, args.images)

        def vote(*words: str) -> timing.Side:
            def side() -> int:
                subprocess.run(
                    [sys.executable, *words], cwd=timing.PROJECT, check=True, capture_output=True
                )
                return 1

            return side

        again = ("submit_ensemble.py", "--from-probs", str(folder), "--save-path", name, "--method")
        sides = {
            "python -c pass": vote("-c", "pass"),
            "soft": vote(*again, "soft"),
            "hard": vote(*again, "hard"),
        }
        seconds = timing.alternate(sides, args.rounds)
    print(f"{args.members} members x {args.views} views x {args.images} photographs (aim: 2 s):")
    for side, each in seconds.items():
        print(
            f"  {side:<16} {each:6.2f} s   {each / seconds['python -c pass']:.1f} x python -c pass"
        )
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
