"""What the benchmarks share: alternating turns, child processes, common arguments, made-up people.

Only ratios of sides timed in one run are worth anything on a machine that does other things too.
So the sides take turns (A, B, C, A, B, C ...), and the medians over the rounds are compared.

Child processes run in the project's root, so paths that they get have to be absolute.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from runtime.cli import run_script
from runtime.devices import usable_processors
from runtime.errors import UserError

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[1]
SHOTS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")
# A side does one turn's work and returns how many units (photographs, passes ...) that was.
Side = Callable[[], int]


def median_seconds(sides: Mapping[str, Side], rounds: int) -> dict[str, float]:
    """Seconds per unit of each side: the median over rounds in which every side has one turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            units = side()
            seconds[name].append((time.perf_counter() - start) / units)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_rates(title: str, seconds: Mapping[str, float], unit: str, limit: str) -> None:
    """Print a line per side: units a second, and how many times as fast as the side `limit`."""
    print(title)
    for name, each in seconds.items():
        ratio = seconds[limit] / each
        print(f"  {name:<44} {1 / each:>9.1f} {unit}/s   {ratio:>6.3f} x {limit}")
    sys.stdout.flush()


def run_python(words: Sequence[str], expected_code: int = 0) -> str:
    """Run `python WORDS` in the project's root and return its stdout.

    Raises UserError with the end of its stderr where it ends with another exit code.
    """
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode != expected_code:
        name = words[1] if words[0] in ("-c", "-m") else " ".join(words)
        reason = f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        raise UserError(f"{name[:200]}: {reason}")
    return done.stdout


def python_side(words: Sequence[str], expected_code: int = 0) -> Side:
    """A side that is one process, from start to exit."""

    def side() -> int:
        run_python(words, expected_code)
        return 1

    return side


class ChildSide:
    """A side in a process of its own, which waits while the others have their turns.

    What the project does to its own process (memory that is kept) must not help the sides that it
    is compared with. The process is `python WORDS` and runs `serve`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{' '.join(self.words)}: ended with {self.process.wait()}")
        return int(line)

    def close(self) -> None:
        """End the process by a word: loader workers started since hold its stdin open too."""
        self.process.communicate("stop\n")


def serve(side: Side) -> None:
    """Run one turn for every `go` on stdin and answer with its units; until another word."""
    for line in sys.stdin:
        if line != "go\n":
            return
        print(side(), flush=True)


def as_options(values: Mapping[str, object]) -> list[str]:
    """{"image-size": 96} -> ["--image-size", "96"]."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def make_parser(description: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser whose help starts with the docstring's first line; with --rounds where given."""
    parser = argparse.ArgumentParser(
        description=(description or "").partition("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side")
    return parser


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the networks run."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda ...")
    parser.add_argument("--precision", default="auto", help="fp32, bf16, fp16 or auto")
    parser.add_argument(
        "--workers", type=int, help="reading processes (default: as train.py chooses)"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: the processors)")


def add_plain_option(parser: argparse.ArgumentParser) -> None:
    """The option by which a benchmark starts its plain side as a child process."""
    text = "serve as the plain side (the benchmark starts this itself)"
    parser.add_argument("--plain", action="store_true", help=text)


def describe_machine(device: str = "cpu") -> str:
    """A line that says what the figures were measured on."""
    parts = [f"{usable_processors()} of {os.cpu_count()} processors ({platform.machine()})"]
    if device.startswith("cuda"):
        import torch

        parts.append(torch.cuda.get_device_name(device))
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision")]
    return ", ".join([*parts, f"Python {platform.python_version()}", *versions])


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread over all."""
    return list(items[:: max(1, len(items) // count)][:count])


def cycle(items: Sequence[T], count: int) -> list[T]:
    """`count` items, from the start again where there are fewer."""
    return (list(items) * (count // len(items) + 1))[:count]


def made_up_people(count: int) -> list[tuple[str, str, int]]:
    """(path, gender, age) of people who do not exist."""
    drawn = [(("male", "female")[k % 2], 18 + k // 2 % 43) for k in range(count)]
    return [(f"{k:06d}_{g}_Asian_{age}", g, age) for k, (g, age) in enumerate(drawn)]


def run_main(main: Callable[[list[str] | None], int], file: str) -> NoReturn:
    """End the process with a script's exit code, as the product's scripts do."""
    sys.exit(run_script(main, Path(file).name))
