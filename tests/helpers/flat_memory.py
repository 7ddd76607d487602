"""Memory that stays flat: over 200 epochs, and from 2,000 to 20,000 photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import memory
from tests.helpers import support
from tests.helpers.crash_points import Case

MAX_RATIO = 1.1
EPOCHS = (20, 200)
PHOTOGRAPHS = (2_000, 20_000)
TINY = "from tests.helpers import fault_runs; fault_runs.prepare(60.0)"


def peak(words: list[str]) -> float:
    """MiB at the most of a process that trains the tiny network."""
    return memory.peak("train", [*words, *support.FAST], TINY)


def compared(name: str, peaks: list[float]) -> tuple[int, str]:
    """(1, how the peak grows; empty where it does not)."""
    print(f"memory, {name}: {peaks[0]:.0f} and {peaks[1]:.0f} MiB", flush=True)
    return 1, f"grows from {peaks[0]:.0f} to {peaks[1]:.0f} MiB" * (peaks[1] > MAX_RATIO * peaks[0])


def over_epochs(root: Path, folder: Path) -> tuple[int, str]:
    """A single split for few epochs and for many."""
    words = ["--train-root", str(root)]
    each = [
        peak([*words, "--save-path", str(folder / f"epochs{n}"), "--epochs", str(n)])
        for n in EPOCHS
    ]
    return compared(f"{EPOCHS[0]} and {EPOCHS[1]} epochs", each)


def over_photographs(root: Path, folder: Path) -> tuple[int, str]:
    """An epoch over few photographs and over many."""
    sources = sorted(map(str, (root / "images").glob("*/*")))
    each = []
    for count in PHOTOGRAPHS:
        memory.link_train(folder / f"photographs{count}", sources, count)
        words = ["--train-root", str(folder / f"photographs{count}"), "--epochs", "1"]
        each.append(peak([*words, "--save-path", str(folder / f"saved{count}")]))
    return compared(f"{PHOTOGRAPHS[0]} and {PHOTOGRAPHS[1]} photographs", each)


def all_cases(folder: Path) -> Iterator[Case]:
    """Training only: benchmarks/memory.py measures predictions and larger networks."""
    root = support.make_train(folder / "few", support.PEOPLE[:4], junk=False)
    yield "memory over epochs", lambda: over_epochs(root, folder)
    yield "memory over photographs", lambda: over_photographs(root, folder)
