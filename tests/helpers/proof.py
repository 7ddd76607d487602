"""Nothing lost, proven: every crash point, two commands at once, kills, failing calls,
damage, memory.

    python -m tests.helpers.proof [--minutes 60] [--part NAME ...]        or: make proof

Prints a line per minute and one per difference. Stops after --minutes; the next call goes on with
what is not done, unless the code has changed. Exit code 1 where something differs, 3 where
something is left to do.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import crash_points, fault_runs

ROOT = Path(__file__).resolve().parents[2]
PARTS = {  # name -> the module whose all_cases(folder) gives them
    "crash points": "tests.helpers.crash_points",
    "two at once": "tests.helpers.interleavings",
    "kills": "tests.helpers.kills",
    "failing calls": "tests.helpers.failing_calls",
    "damage": "tests.helpers.damage",
    "memory": "tests.helpers.flat_memory",
}
LINE_SECONDS = 60.0


def code_digest() -> str:
    """Of the product and of the proof: what was done holds for this code only."""
    folders = ("data", "training", "inference", "reporting", "runtime", "tests/helpers")
    files = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).glob("*.*"))]
    parts = [path.read_bytes() for path in sorted(files) if path.is_file()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


class Log:
    """What is done: {part: {case: (states, difference)}}, in a file that grows by lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, dict[str, dict[str, tuple[int, str]]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            part, case, states, difference = json.loads(line)
            self.done.setdefault(part, {})[case] = (states, difference)

    def add(self, part: str, case: str, states: int, difference: str) -> None:
        self.done.setdefault(part, {})[case] = (states, difference)
        with open(self.path, "a") as file:
            file.write(json.dumps([part, case, states, difference]) + "\n")

    def summary(self, part: str) -> str:
        outcomes = self.done.get(part, {}).values()
        states, differ = sum(n for n, _ in outcomes), sum(bool(text) for _, text in outcomes)
        return f"{part}: {len(outcomes)} cases, {states} states, {differ} differences"


def run_case(case: crash_points.Case) -> tuple[int, str]:
    """(states, difference) of a case; an error is a difference."""
    try:
        return case[1]()
    except Exception as error:
        return 1, f"{type(error).__name__}: {error}"


def run_part(part: str, folder: Path, log: Log, until: float) -> bool:
    """Run the cases of a part that are not done; whether all are done at the end."""
    cases: Iterator[crash_points.Case] = importlib.import_module(PARTS[part]).all_cases(folder)
    last_line = time.monotonic()
    for name, run in cases:
        if name in log.done.get(part, {}):
            continue
        if time.monotonic() > until:
            return False
        states, difference = run_case((name, run))
        log.add(part, name, states, difference)
        if difference:
            print(f"DIFFERENCE {name}: {difference}", flush=True)
        if time.monotonic() - last_line > LINE_SECONDS:
            last_line = time.monotonic()
            print(f"... {log.summary(part)}", flush=True)
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--folder", default=str(ROOT / "proof"), help="where it notes what is done")
    args = parser.parse_args(argv)
    log = Log(Path(args.folder) / f"done-{code_digest()}.jsonl")
    start = time.monotonic()
    fault_runs.prepare(save_seconds=60.0)
    complete = True
    for part in args.part:
        with crash_points.scratch() as name:
            complete &= run_part(part, Path(name), log, start + 60 * args.minutes)
        print(f"{log.summary(part)}, {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    if any(difference for cases in log.done.values() for _, difference in cases.values()):
        return 1
    if not complete:
        print("not complete: the same command goes on")
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
