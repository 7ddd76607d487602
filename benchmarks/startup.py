#!/usr/bin/env python3
"""Start-up: seconds until --help of every command, and until a refusal.

    python -m benchmarks.startup                                                      about a minute

Each command is a process of its own, in turns with `python -c pass`, whose time is what Python
itself takes. The refusals need no data, device or checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness

HELP = ("train.py", "submit_singular.py", "submit_ensemble.py", "-m tools.sample_data")
REFUSED = (
    "train.py --task age --model-type THANet",
    "train.py --epochs 0",
    "train.py --no-such-option",
    "submit_singular.py --transform-type none",
    "submit_ensemble.py --tta 2 --transform-type base",
    "submit_ensemble.py --from-probs . --tta 2",
)


def main(argv: list[str] | None = None) -> int:
    args = harness.make_parser(__doc__, rounds=11).parse_args(argv)
    print(harness.describe_machine())
    sides = {"python -c pass": harness.python_side(["-c", "pass"])}
    sides |= {
        f"{script} --help": harness.python_side([*script.split(), "--help"]) for script in HELP
    }
    sides |= {line: harness.python_side(line.split(), expected_code=2) for line in REFUSED}
    seconds = harness.median_seconds(sides, args.rounds)
    for name, each in seconds.items():
        ratio = each / seconds["python -c pass"]
        print(f"{name:<56} {each:6.3f} s   {ratio:5.1f} x python -c pass")
    print("(aim: 0.5 s)")
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
