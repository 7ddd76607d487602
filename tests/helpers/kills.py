"""Kills at recorded operations: processes that end with SIGKILL before one of them, and the same
command again.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import run_directory
import submit_ensemble
import train
from tests.helpers import fault_runs, support
from tests.helpers.crash_points import PEOPLE, Case, Submission, Training, run_quietly, scratch
from tests.helpers.recorder import Operation, Recorder
from training import fold as training_fold

FORK = multiprocessing.get_context("fork")
KILLS = 3  # of a round: of the run, and of what goes on from there
MAX_OPERATIONS = 70  # before a kill: the kills of a round fall all over a run of 120 to 180
ROUNDS = 90  # of each kind of training


class Command:
    """A command's processes, one of which is killed before an operation on the disk."""

    def __init__(self, main: Callable[[list[str]], int], world: int = 1) -> None:
        """world: processes that share a fold, started as torchrun does."""
        self.main, self.world = main, world
        self.kills = FORK.Value("i", 0)
        self.peers: Any = FORK.Array("i", world)  # their ids

    def run(self, root: Path, words: list[str], when: int = -1, victim: int = 0) -> list[int]:
        """The exit codes of its processes, of which `victim` is killed before operation `when`:
        0 the first, 1 another. The operations are those of the first where they share a fold, and
        the victim's own where it has a fold of its own (--jobs). Raises RuntimeError where the
        others hang.
        """
        port = support.free_port()
        processes = [
            FORK.Process(target=self.work, args=(root, words, when, victim, rank, port))
            for rank in range(self.world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(support.LIMIT)
        if hanging := [process for process in processes if process.is_alive()]:
            for process in hanging:
                process.kill()
            raise RuntimeError("hangs after a kill")
        return [process.exitcode or 0 for process in processes]

    def work(
        self, root: Path, words: list[str], when: int, victim: int, rank: int, port: int
    ) -> None:
        """One of the processes."""
        self.peers[rank] = first = os.getpid()
        if self.world > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
            names |= {"WORLD_SIZE": self.world, "LOCAL_WORLD_SIZE": self.world, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()})

        def before(number: int, operation: Operation) -> None:
            own = os.getpid()
            target = self.peers[victim] if self.world > 1 else own
            if number == when and (self.world > 1 or (own != first) == bool(victim)):
                self.kills.value += 1
                os.kill(target, signal.SIGKILL)

        training_fold.SAVE_INTERVAL_SECONDS = 0.0  # the state is kept after every step
        code = 1
        try:
            with Recorder(root, before):
                run_quietly(self.main, words)
            code = 0
        except BaseException as error:
            if when < 0:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)


def next_words(words: list[str], folder: Path) -> list[str] | None:
    """The command that goes on after a kill; None where the run is finished."""
    runs = [path.parent for path in folder.glob("saved/*/run.json")]
    if runs and "finished" in run_directory.read_run_json(runs[0]):
        return None
    return [*words, "--resume"] if runs else words


def train_round(
    training: Training, command: Command, expected: dict[str, object], seed: str
) -> tuple[int, str]:
    """Train, kill, go on, kill ...: (kills, how the result differs)."""
    draw = random.Random(seed)
    several = command.world > 1 or "2" in training.more
    command.kills.value = 0
    with scratch() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        words = training.words(folder)
        for _ in range(KILLS):
            more = next_words(words, folder)
            if more is not None:
                when, victim = draw.randrange(MAX_OPERATIONS), draw.randrange(1 + several)
                command.run(folder, more, when, victim)
        more = next_words(words, folder)
        codes = command.run(folder, more) if more is not None else []
        kills = command.kills.value
        if any(codes):
            return kills, f"exit codes {codes}"
        result = fault_runs.result(folder / "saved")
    different = [k for k in result | expected if result.get(k) != expected.get(k)]
    return kills, f"differs in {different}" if different else ""


def submit_round(submission: Submission, when: int) -> tuple[int, str]:
    """Kill a submission before its operation `when`, and submit again: (kills, how it differs)."""
    command = Command(submit_ensemble.main)
    with scratch() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        command.run(folder, submission.words(folder), when)
        return command.kills.value, submission.again(folder)


def all_cases(folder: Path) -> Iterator[Case]:
    """Rounds of kills of each kind; submissions at each of their operations."""
    root = support.make_train(folder / "train3", PEOPLE, junk=False)
    alone, jobs, shared = Training(root), Training(root, "--jobs", "2"), Training(root, "--cv", "1")
    alone.record(folder / "alone")
    pair = Command(train.main, 2)
    (folder / "shared").mkdir()
    if any(pair.run(folder / "shared", shared.words(folder / "shared"))):
        raise RuntimeError("two processes of one fold do not train")
    expected = fault_runs.result(folder / "shared" / "saved")
    one = Command(train.main)
    for seed in range(ROUNDS):
        name = f"kills, one process, {seed}"
        yield name, partial(train_round, alone, one, alone.expected, name)
        name = f"kills, --jobs 2, {seed}"
        yield name, partial(train_round, jobs, one, alone.expected, name)
        name = f"kills, two processes of one fold, {seed}"
        yield name, partial(train_round, shared, pair, expected, name)
    (run_dir,) = (folder / "alone" / "saved").iterdir()
    submission = Submission(folder / "submission", run_dir)
    for when in range(len(submission.recording.operations)):
        yield f"kills, submission, {when}", partial(submit_round, submission, when)
