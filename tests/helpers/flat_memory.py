"""Memory over 200 epochs, which stays flat, and from 2,000 to 20,000 photographs, which grows by
a small thumbnail for each, in the search for copies, and a row of the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import memory
from tests.helpers import support
from tests.helpers.crash_points import Case

MAX_RATIO = 1.1  # of many epochs to few
MAX_KIB_PER_PHOTOGRAPH = 16.0
EPOCHS = (20, 200)
PHOTOGRAPHS = (2_000, 20_000)
TINY = "from tests.helpers import fault_runs; fault_runs.prepare(60.0)"


def peak(words: list[str]) -> float:
    """MiB at the most of a process that trains the tiny network."""
    return memory.peak("train", [*words, *support.FAST], TINY)


def over_epochs(root: Path, folder: Path) -> tuple[int, str]:
    """A single split for few epochs and for many."""
    words = ["--train-root", str(root)]
    each = [
        peak([*words, "--save-path", str(folder / f"epochs{n}"), "--epochs", str(n)])
        for n in EPOCHS
    ]
    print(f"memory, {EPOCHS} epochs: {each[0]:.0f} and {each[1]:.0f} MiB", flush=True)
    difference = f"grows from {each[0]:.0f} to {each[1]:.0f} MiB"
    return 1, difference * (each[1] > MAX_RATIO * each[0])


def over_photographs(root: Path, folder: Path) -> tuple[int, str]:
    """An epoch over few photographs and over many."""
    sources = sorted(map(str, (root / "images").glob("*/*")))
    each = []
    for count in PHOTOGRAPHS:
        memory.link_train(folder / f"photographs{count}", sources, count)
        words = ["--train-root", str(folder / f"photographs{count}"), "--epochs", "1"]
        each.append(peak([*words, "--save-path", str(folder / f"saved{count}")]))
    print(f"memory, {PHOTOGRAPHS} photographs: {each[0]:.0f} and {each[1]:.0f} MiB", flush=True)
    grown = (each[1] - each[0]) * 1024 / (PHOTOGRAPHS[1] - PHOTOGRAPHS[0])
    return 1, f"grows by {grown:.1f} KiB a photograph" * (grown > MAX_KIB_PER_PHOTOGRAPH)


def all_cases(folder: Path) -> Iterator[Case]:
    """Training only: benchmarks/memory.py measures predictions and larger networks."""
    root = support.make_train(folder / "few", support.PEOPLE[:4], junk=False)
    yield "memory over epochs", lambda: over_epochs(root, folder)
    yield "memory over photographs", lambda: over_photographs(root, folder)
