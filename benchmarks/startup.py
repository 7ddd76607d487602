#!/usr/bin/env python3
"""Start-up: seconds until --help of every command, until a refusal, until the first step.

    python -m benchmarks.startup                                                      about a minute
    python -m benchmarks.startup --train-root input/data/train         about two minutes for 18,900

Each command is a process of its own, in turns with `python -c pass`, whose time is what Python
itself takes. The refusals need no data, device or checkpoint.

With --train-root, instead: train.py on EfficientNet-lite0 at 96 px, from the start of its process
to the end of the optimizer's first step, which ends it. The first start is that with an empty
--save-path, the second one the same command again. The files are in the disk's cache: all are read
once beforehand. The peak of resident memory is that of the process itself, without those that read
batches.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
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
# prints when the first step was done, and the peak of memory in KiB
FIRST_STEP = """
import resource, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
import train
from runtime import cli

def end(*_):
    print(time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    sys.exit(0)

register_optimizer_step_post_hook(end)
sys.exit(cli.run_script(train.main, "train.py"))
"""
NETWORK = "--backbone efficientnet-lite0 --pretrained imagenet --image-size 96 --epochs 1"


def start_training(train_root: Path, save_path: str) -> tuple[float, float]:
    """Seconds until the first step, and the peak of memory in MiB."""
    paths = ["--train-root", str(train_root), "--save-path", save_path]
    start = time.time()
    printed = harness.run_python(["-c", FIRST_STEP, *paths, *NETWORK.split()])
    stopped, peak = map(float, printed.splitlines()[-1].split())
    return stopped - start, peak / 1024


def measure_starts(train_root: Path, rounds: int) -> None:
    """Print medians of first and second starts."""
    for path in train_root.rglob("*"):
        if path.is_file():
            path.read_bytes()
    figures: dict[str, list[tuple[float, float]]] = {"first": [], "second": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as save_path:
            for side in figures.values():
                side.append(start_training(train_root, save_path))
    for name, side in figures.items():
        seconds, peaks = (list(values) for values in zip(*side, strict=True))
        print(
            f"{name:<6} start, to the first step: {statistics.median(seconds):6.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f}), peak {statistics.median(peaks):.0f} MiB"
        )


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=11)
    parser.add_argument("--train-root", type=Path, help="measure train.py on it (3 rounds at most)")
    args = parser.parse_args(argv)
    print(harness.describe_machine())
    if args.train_root:
        measure_starts(args.train_root.absolute(), min(args.rounds, 3))
        return 0
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
