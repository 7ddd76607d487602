"""Every crash point of a run and of a submission: from each state that a power cut may leave, the
same command must come to what the unbroken one gave.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import run_directory
import submit_ensemble
import train
from runtime import errors
from runtime.files import TEMPORARY_PREFIX
from tests.helpers import fault_runs, support
from tests.helpers.recorder import Disk, Recorder, Tree, crash_states, read_tree, write_tree
from training import fold as training_fold

# a name, and a function that gives (how many states or kills, how one of them differs or "")
Case = tuple[str, Callable[[], tuple[int, str]]]
# two of each gender, all of one age group: what one fold learns holds for the other
PEOPLE = [support.PEOPLE[k] for k in (0, 3, 7, 8)]
MEMORY = Path("/dev/shm")  # where files cost no waiting for a drive
# with this seed the second epoch is the better one and displaces the first's checkpoint
RUN = (
    "--cv",
    "2",
    "--epochs",
    "2",
    "--save-top",
    "1",
    "--batch-size",
    "8",
    "--jobs",
    "1",
    "--seed",
    "1",
)
PROGRESS = re.compile(r"fold (\d+): (?:complete already|goes on after (\d+) epochs? and (\d+))")


def one(difference: Callable[..., str], *arguments: Any) -> tuple[int, str]:
    """A case of one state."""
    return 1, difference(*arguments)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a while."""
    return tempfile.TemporaryDirectory(prefix="proof-", dir=MEMORY if MEMORY.is_dir() else None)


def run_quietly(main: Callable[[list[str]], int], words: list[str]) -> str:
    """Run a command in this process; returns its stdout. Raises what it raises, and RuntimeError
    where its exit code is not 0.
    """
    errors._warned.clear()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main(words)
    if code:
        raise RuntimeError(f"exit code {code}: {out.getvalue()[-500:]}")
    return out.getvalue()


class Recording:
    """The operations of a command on a folder, and what the folder held before. Raises RuntimeError
    where they do not give the folder as it is afterwards: the recorder has missed something.
    """

    def __init__(self, root: Path, main: Callable[[list[str]], int], words: list[str]) -> None:
        root.mkdir(exist_ok=True)
        self.start = read_tree(root)
        with pytest.MonkeyPatch.context() as patch, Recorder(root) as recorder:
            note_progress(patch, recorder.mark)
            patch.setattr(training_fold, "SAVE_INTERVAL_SECONDS", 0.0)  # state after every step
            run_quietly(main, words)
        self.operations = recorder.operations
        disk = Disk(self.start)
        self.complete = {path: [content] for path, content in self.start.items()}
        for number, operation in enumerate(self.operations):
            disk.apply(operation, number)
            path, tree = operation.value or operation.path, disk.whole()
            if operation.kind in ("rename", "mkdir") and path in tree:
                self.complete.setdefault(path, []).append(tree[path])
        if disk.whole() != read_tree(root):
            raise RuntimeError(f"{root} is not what its operations give")

    def states(self) -> Iterator[tuple[str, Tree, list[Any]]]:
        return crash_states(self.start, self.operations)

    def half_written(self, tree: Tree) -> list[str]:
        """Final names of files that were never renamed to them with that content."""
        return [
            path
            for path, content in tree.items()
            if not Path(path).name.startswith(TEMPORARY_PREFIX)
            and content not in self.complete.get(path, ())
        ]


def note_progress(patch: pytest.MonkeyPatch, mark: Callable[[object], None]) -> None:
    """Mark (fold, epoch, step) when a fold's state has been saved."""
    plain = training_fold.FoldTrainer.save_state

    def save_state(trainer: training_fold.FoldTrainer) -> None:
        plain(trainer)
        mark((trainer.number, trainer.state.epoch, trainer.state.step))

    patch.setattr(training_fold.FoldTrainer, "save_state", save_state)


class Training:
    """A run of two folds, and the same commands again from whatever a crash has left."""

    def __init__(self, root: Path, *more: str) -> None:
        """root: to train on; more: options."""
        self.root, self.more = root, more

    def record(self, folder: Path) -> Recording:
        """The unbroken run."""
        recording = Recording(folder, train.main, self.words(folder))
        self.expected = fault_runs.result(folder / "saved")
        return recording

    def words(self, folder: Path) -> list[str]:
        return [
            "--train-root",
            str(self.root),
            "--save-path",
            str(folder / "saved"),
            *RUN,
            *support.FAST,
            *self.more,
        ]

    def go_on(self, folder: Path) -> str:
        """Do what a user does after a crash; returns what the command said: nothing where the run
        was finished.
        """
        words, runs = self.words(folder), list((folder / "saved").glob("*/run.json"))
        if not runs or "--run-name" in self.more:  # then the same command goes on
            return run_quietly(train.main, words)
        if "finished" in run_directory.read_run_json(runs[0].parent):
            with pytest.raises(errors.UserError, match="no unfinished run"):
                run_quietly(train.main, [*words, "--resume"])
            return ""
        return run_quietly(train.main, [*words, "--resume"])

    def difference(self, recording: Recording, tree: Tree, marks: list[Any]) -> str:
        """How the run that goes on from a state differs from the unbroken one; empty where it does
        not.
        """
        if half := recording.half_written(tree):
            return f"half-written: {half}"
        with scratch() as name:
            folder = Path(name) / "run"
            write_tree(tree, folder)
            said = self.go_on(folder)
            result = fault_runs.result(folder / "saved")
        different = [k for k in result | self.expected if result.get(k) != self.expected.get(k)]
        if different:
            return f"differs in {different}"
        went_on = {
            int(fold): (int(epoch or 10**6), int(step or 0))
            for fold, epoch, step in PROGRESS.findall(said)
        }
        lost = [mark for mark in marks if said and went_on.get(mark[0], (0, 0)) < mark[1:]]
        return f"lost what was saved: {lost[-1]}, went on at {went_on}" if lost else ""

    def cases(self, title: str, recording: Recording) -> Iterator[Case]:
        for name, tree, marks in recording.states():
            yield f"{title}, {name}", partial(one, self.difference, recording, tree, marks)

    def record_resumed(self, recording: Recording, folder: Path) -> Recording:
        """A --resume of the run, from a state with a checkpoint that it is about to displace."""
        states = [tree for name, tree, _ in recording.states() if name.endswith(", all")]
        write_tree(next(t for t in states if sum(p.endswith(".pth") for p in t) == 2), folder)
        return Recording(folder, train.main, [*self.words(folder), "--resume"])


class Submission:
    """A prediction by an ensemble, and the same command again from whatever a crash has left."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.root = support.make_eval(folder / "eval", 5)
        self.recording = Recording(
            folder / "whole", submit_ensemble.main, self.words(folder / "whole")
        )
        (path,) = (folder / "whole").glob("*/*/submission.csv")
        self.expected = path.read_bytes()

    def words(self, folder: Path) -> list[str]:
        return [
            "--root",
            str(self.run_dir),
            "--data-root",
            str(self.root),
            "--save-path",
            str(folder / "prediction"),
            *support.FAST[4:],
        ]

    def difference(self, tree: Tree) -> str:
        """How the submission that is made beside a state differs; empty where it does not."""
        if half := self.recording.half_written(tree):
            return f"half-written: {half}"
        with scratch() as name:
            write_tree(tree, Path(name) / "run")
            return self.again(Path(name) / "run")

    def again(self, folder: Path) -> str:
        """How a submission beside what is in a folder differs, and one from what is stored there;
        empty where they do not.
        """
        before = read_tree(folder)
        run_quietly(submit_ensemble.main, self.words(folder))
        after = read_tree(folder)
        if before != {path: after.get(path, b"missing") for path in before}:
            return "what was there was changed"
        (own,) = [p for p in after.keys() - before.keys() if p.endswith("/submission.csv")]
        if after[own] != self.expected:
            return "submission.csv differs"
        for path in folder.glob("prediction/*/probs.npz"):
            words = ["--from-probs", str(path.parent), "--save-path", f"{folder}/again"]
            run_quietly(submit_ensemble.main, words)
            (vote,) = Path(folder, "again").glob("*/submission.csv")
            if vote.read_bytes() != self.expected:
                return "submission.csv of the stored probabilities differs"
            shutil.rmtree(folder / "again")
        return ""

    def cases(self) -> Iterator[Case]:
        for name, tree, _ in self.recording.states():
            yield f"submission, {name}", partial(one, self.difference, tree)


def all_cases(folder: Path) -> Iterator[Case]:
    """Every crash point of a training, of its resumption, and of a submission."""
    root = support.make_train(folder / "train", PEOPLE, junk=False)
    training, named = Training(root), Training(root, "--run-name", "x")
    recording = training.record(folder / "whole")
    yield from training.cases("training", recording)
    resumed = training.record_resumed(recording, folder / "resumed")
    yield from training.cases("resumed training", resumed)
    yield from named.cases("named training", named.record(folder / "named"))
    (run_dir,) = (folder / "whole" / "saved").iterdir()
    yield from Submission(folder / "submission", run_dir).cases()
