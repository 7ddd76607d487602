#!/usr/bin/env python3
"""Start-up: seconds until --help of every command, and until a refusal that needs no data, device
or checkpoint.

    python benchmarks/startup.py                                               about a minute

Each command is a process of its own, in turns with `python -c pass`, whose time is what Python
itself takes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import timing

import utils

HELP = ("train.py", "submit_singular.py", "submit_ensemble.py", "sample_data.py")
REFUSED = (
    "train.py --task age --model-type THANet",
    "train.py --epochs 0",
    "train.py --no-such-option",
    "submit_singular.py --transform-type none",
    "submit_ensemble.py --tta 2 --transform-type base",
    "submit_ensemble.py --from-probs . --tta 2",
)


def started(words: list[str], expected: int) -> timing.Side:
    """A process that must end with this exit code."""

    def side() -> int:
        ended = subprocess.run(
            [sys.executable, *words], cwd=timing.PROJECT, capture_output=True, text=True
        )
        if ended.returncode != expected:
            raise utils.UserError(
                f"{' '.join(words)}: ended with {ended.returncode}: {ended.stderr.strip()[-200:]}"
            )
        return 1

    return side


def main(argv: list[str] | None = None) -> int:
    args = timing.options(__doc__, rounds=11).parse_args(argv)
    sides = {"python -c pass": started(["-c", "pass"], 0)}
    sides |= {f"{script} --help": started([script, "--help"], 0) for script in HELP}
    sides |= {line: started(line.split(), 2) for line in REFUSED}
    seconds = timing.alternate(sides, args.rounds)
    for name, each in seconds.items():
        print(
            f"{name:<56} {each:6.3f} s   {each / seconds['python -c pass']:5.1f} x python -c pass"
        )
    print("(aim: 0.5 s)")
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
