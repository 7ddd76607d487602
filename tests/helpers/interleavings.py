"""Two commands at once: every interleaving of their operations on the disk with two switches.

Each runs in a process of its own and waits before each operation, and before it asks for a lock,
for its turn. The first does i operations, then the second j, then the first goes on to its end,
then the second. A process that would wait for the other's lock gives its turn back.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import train
from tests.helpers import fault_runs, support
from tests.helpers.crash_points import PEOPLE, Case, Recording, run_quietly, scratch
from tests.helpers.recorder import Operation, Recorder, Tree, write_tree
from training import fold as training_fold

FORK = multiprocessing.get_context("fork")
RUN = ("--epochs", "1", "--save-top", "1", "--batch-size", "16", "--jobs", "1", *support.FAST)


def steered(root: Path, words: list[str], turns: Connection) -> None:
    """A training process that announces what it is about to do, and waits for its turn."""

    def announce(kind: str, path: str = "") -> None:
        turns.send((kind, path))
        turns.recv()

    def before(number: int, operation: Operation) -> None:
        if operation.kind != "sync":  # which another process cannot see
            announce(operation.kind, operation.path)

    flock, fit = fcntl.flock, training_fold.FoldTrainer.fit

    def flock_in_turn(handle: int, operation: int) -> None:
        announce("lock")
        while True:
            try:
                return flock(handle, operation)
            except BlockingIOError:
                announce("blocked")

    def fit_in_turn(trainer: training_fold.FoldTrainer, *rest: Any) -> None:
        announce("trains", str(trainer.number))
        fit(trainer, *rest)
        announce("trained", str(trainer.number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock_in_turn)
        patch.setattr(training_fold.FoldTrainer, "fit", fit_in_turn)
        try:
            announce("start")
            with Recorder(root, before):
                run_quietly(train.main, words)
            turns.send(("end", ""))
        except BaseException as error:
            turns.send(("end", f"{type(error).__name__}: {error}"))
    os._exit(0)


class Process:
    """A steered process; `at` is what it is about to do."""

    def __init__(self, root: Path, words: list[str]) -> None:
        self.turns, other = FORK.Pipe()
        self.process = FORK.Process(target=steered, args=(root, words, other))
        self.process.start()
        other.close()
        self.trains: set[str] = set()  # folds
        self.trained: list[str] = []
        self.at = self.turns.recv()

    def step(self) -> bool:
        """Do what it is about to do, up to the next; whether there is a next that can be done."""
        self.turns.send(None)
        if not self.turns.poll(support.LIMIT):
            raise RuntimeError(f"hangs after {self.at}")
        self.at = self.turns.recv()
        kind, path = self.at
        if kind == "trains":
            self.trains.add(path)
        elif kind == "trained":
            self.trains.discard(path)
            self.trained.append(path)
        return kind not in ("blocked", "end")

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.turns.close()


class Pair:
    """Two commands on one folder."""

    def __init__(
        self,
        folder: Path,
        train_root: Path,
        common: tuple[str, ...],
        first: tuple[str, ...],
        second: tuple[str, ...],
        start: Tree | None = None,
    ) -> None:
        """common, first, second: options of both and of each; start: what is there before."""
        self.train_root, self.common, self.own = train_root, common, (first, second)
        self.start = start or {}
        folder.mkdir()
        for own in dict.fromkeys(self.own):
            run_quietly(train.main, self.words(folder, own))
        self.expected = fault_runs.result(folder / "saved")
        self.folds = sorted(str(int(p.name[4:])) for p in folder.glob("saved/*/fold??"))

    def words(self, folder: Path, own: tuple[str, ...]) -> list[str]:
        place = ("--train-root", str(self.train_root), "--save-path", str(folder / "saved"))
        return [*place, *RUN, *self.common, *own]

    def run(self, i: int, j: int) -> tuple[bool, str]:
        """(whether the second did j operations, how the result differs) where it does them after
        the first did i.
        """
        with scratch() as name, contextlib.ExitStack() as stack:
            folder = Path(name) / "run"
            write_tree(self.start, folder)
            both = []
            for own in self.own:
                both.append(Process(folder, self.words(folder, own)))
                stack.callback(both[-1].close)
            first, second = both
            for process, count in ((first, i), (second, j)):
                done = 0
                while done < count and process.step():
                    done += 1
                    if first.trains & second.trains:
                        return True, f"both train fold {first.trains & second.trains}"
            reached = done == j
            for process in (first, second, first, second):
                while process.at[0] != "end" and process.step():
                    if first.trains & second.trains:
                        return reached, f"both train fold {first.trains & second.trains}"
            ended = [process.at for process in both]
            if ended != [("end", "")] * 2:
                return reached, f"they ended with {ended}"
            if sorted(first.trained + second.trained) != self.folds:
                return reached, f"trained folds {first.trained} and {second.trained}"
            result = fault_runs.result(folder / "saved")
            different = [k for k in result | self.expected if result.get(k) != self.expected.get(k)]
            return reached, f"differs in {different}" if different else ""

    def run_all(self, i: int) -> tuple[int, str]:
        """All numbers of operations of the second after i of the first: (how many, how one
        differs).
        """
        for j in range(10**6):
            reached, difference = self.run(i, j)
            if difference or not reached:
                return j + 1, difference and f"{j} operations of the second: {difference}"
        return 0, ""

    def operations(self) -> int:
        """How many turns the first takes alone."""
        with scratch() as name:
            folder = Path(name) / "run"
            write_tree(self.start, folder)
            process = Process(folder, self.words(folder, self.own[0]))
            count = 1
            while process.step():
                count += 1
            process.close()
        return count


def make_pairs(folder: Path) -> dict[str, Pair]:
    """{what two commands do: they}."""
    root = support.make_train(folder / "two", PEOPLE, junk=False)
    name = ("--run-name", "x")
    same = Pair(folder / "same", root, name, (), ())
    folds = ("--cv", "2", *name)
    apart = Pair(folder / "apart", root, folds, ("--folds", "0"), ("--folds", "1"))
    recording = Recording(folder / "whole", train.main, same.words(folder / "whole", ()))
    states = [tree for _, tree, marks in recording.states() if len(marks) == 1]
    resumed = Pair(folder / "resumed", root, name, (), (), states[0])
    return {"a new run": same, "two folds of a new run": apart, "a run to resume": resumed}


def all_cases(folder: Path) -> Iterator[Case]:
    """A case for each number of operations of the first, in each pair."""
    for title, pair in make_pairs(folder).items():
        for i in range(pair.operations()):
            yield f"two at once, {title}, {i} of the first", partial(pair.run_all, i)
