"""What the benchmarks share: sides timed in alternating rounds, and their photographs.

Only ratios of sides timed in one run are worth anything on a machine that does other things too. So
the sides take turns (A, B, C, A, B, C ...), and what is compared are the medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
import utils  # noqa: E402  (before torch, whose threads it sets up)

Side = Callable[
    [], int
]  # does a turn's work and returns how many units (photographs, passes ...) it was


def alternate(sides: Mapping[str, Side], rounds: int) -> dict[str, float]:
    """Seconds per unit of each side: the median over rounds in which every side has one turn."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            units = side()
            taken[name].append((time.perf_counter() - start) / units)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


class Elsewhere:
    """A side in a process of its own, which waits while the others have their turns: what the
    project does to its own process (memory that is kept) must not help the sides it is compared
    with. The process runs `serve`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.child = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> int:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            command = " ".join(map(str, self.child.args))  # type: ignore[arg-type]
            raise utils.UserError(f"{command}: ended with {self.child.wait()}")
        return int(line)

    def close(self) -> None:
        """End the process. Asked for in words: reading processes that were started since hold its
        stdin open too.
        """
        self.child.communicate("stop\n")


def serve(side: Side) -> None:
    """Have a turn for every `go` on stdin, answering with its units."""
    for line in sys.stdin:
        if line != "go\n":
            return
        print(side(), flush=True)


def show(title: str, seconds: Mapping[str, float], unit: str, limit: str) -> None:
    """A line per side: units a second, and how many times as fast as the side named `limit`."""
    print(title)
    for name, each in seconds.items():
        print(f"  {name:<44} {1 / each:>9.1f} {unit}/s   {seconds[limit] / each:>6.3f} x {limit}")
    sys.stdout.flush()


def options(description: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=(description or "").partition("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side")
    return parser


def machine_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the networks run."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda ...")
    parser.add_argument("--precision", default="auto", help="fp32, bf16, fp16 or auto")
    parser.add_argument(
        "--workers", type=int, help="reading processes (default: as train.py chooses)"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: the processors)")
