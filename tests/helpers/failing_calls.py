"""Fail each place in the product that asks the system for a file, once for each of five errors:
the run must end as the contract says, lose nothing that was written before, and go on to the
result of the unbroken run.

    python -m tests.helpers.failing_calls [--sample 100] [--seed 0] [--only EIO]

A place is a line of the product that makes a call of the system (also through a library), together
with the innermost line outside runtime/ that led there. Each scene (a training, its resumption, a
submission, another vote on its probabilities) is run once to list the places that it reaches, and
then once for every place and error, which the first call made there meets. Errors that a
call cannot give are left out (NEVER).
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import fcntl
import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import registries
import run_directory
import submit_ensemble
import train
from reporting import html, plots
from runtime import errors
from runtime.cli import run_script
from tests.helpers import support
from training import cross_validation
from training import fold as training_fold

ROOT = Path(__file__).resolve().parents[2]
NOT_PRODUCT = ("tests", "benchmarks", "experiments", "docs")
OS_CALLS = (
    *("open", "fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir"),
    *("listdir", "scandir", "stat", "lstat", "fstat", "statvfs"),
)
FAILURES = ("ENOSPC", "EIO", "EMFILE", "EACCES", "MemoryError")
# errors that the system does not give for a call, or that reach it as those of another call
NEVER = {
    **dict.fromkeys(("stat", "lstat", "fstat", "statvfs"), ("ENOSPC", "EMFILE", "MemoryError")),
    **dict.fromkeys(("unlink", "remove", "rmdir"), ("ENOSPC", "EMFILE", "MemoryError")),
    **dict.fromkeys(("replace", "rename", "mkdir"), ("EMFILE", "MemoryError")),
    **dict.fromkeys(("listdir", "scandir"), ("ENOSPC",)),
    "read": ("ENOSPC", "EMFILE", "EACCES"),
    "write": ("EMFILE", "EACCES"),
    "fsync": ("EMFILE", "EACCES", "MemoryError"),
    "flock": ("ENOSPC", "EMFILE", "EACCES", "MemoryError"),
}
# the call, its line, the innermost line outside runtime/
Place = tuple[str, str, str]


def failure_of(name: str, path: str) -> BaseException:
    """What a call that fails so raises."""
    if name == "MemoryError":
        return MemoryError()
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), path)


def product_lines() -> tuple[str, str]:
    """(the innermost line of the product that is running, the innermost outside runtime/)."""
    frame, innermost = sys._getframe(1), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(f"{ROOT}/"):
            path = name[len(str(ROOT)) + 1 :]
            room = path.partition("/")[0]
            if room not in NOT_PRODUCT and not room.startswith("."):
                line = f"{path}:{frame.f_lineno}"
                innermost = innermost or line
                if room != "runtime":
                    return innermost, line
        frame = frame.f_back  # type: ignore[assignment]
    return innermost, ""


@dataclass
class System:
    """Stands between the product and the system: lists the places, and fails one of them."""

    fail_at: Place | None = None
    failure: str = "EIO"
    at_failure: Callable[[], object] = lambda: None
    places: dict[Place, str] = field(default_factory=dict)  # and the first path there
    has_failed: bool = False

    def call(self, name: str, path: object) -> None:
        """Note a call, or raise the failure where it is its turn."""
        innermost, outer = product_lines()
        if not innermost:
            return
        text = os.fsdecode(path) if path else ""  # type: ignore[arg-type]
        if "/lib/python" in text or "/share/locale/" in text:
            return  # a library's own files
        place = (name, innermost, outer)
        self.places.setdefault(place, text)
        if place == self.fail_at and not self.has_failed:
            self.has_failed = True
            self.at_failure()
            raise failure_of(self.failure, text)

    def wrap(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **named: Any) -> Any:
            path = args[0] if args and isinstance(args[0], (str, bytes, os.PathLike)) else ""
            self.call(name, path)
            return None if name == "fsync" else plain(*args, **named)

        return called

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block calls come here first."""
        with contextlib.ExitStack() as stack:
            for name in OS_CALLS:
                wrapped = self.wrap(name, getattr(os, name))
                stack.enter_context(mock.patch.object(os, name, wrapped))
            flock = self.wrap("flock", fcntl.flock)
            stack.enter_context(mock.patch.object(fcntl, "flock", flock))
            opened = self.open(io.open)
            for module in (builtins, io):
                stack.enter_context(mock.patch.object(module, "open", opened))
            yield

    def open(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """`open`, whose files' reads and writes are calls too."""
        system = self

        class Raw(io.FileIO):
            def readinto(self, buffer: Any) -> Any:
                system.call("read", self.name)
                return super().readinto(buffer)

            def readall(self) -> bytes:
                system.call("read", self.name)
                return super().readall()

            def write(self, data: Any) -> Any:
                system.call("write", self.name)
                return super().write(data)

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if isinstance(file, int) or "U" in mode:
                return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
            system.call("open", file)
            raw = Raw(os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            kind: Any = io.BufferedWriter if raw.writable() else io.BufferedReader
            buffered = io.BufferedRandom(raw) if "+" in mode else kind(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline)

        return opened


@dataclass
class Ended:
    """How a command ended."""

    code: int | None  # None: with a traceback
    lines: list[str]  # on stderr

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.lines if line.startswith("warning: ")]


@dataclass
class Scene:
    """A command, what is there before it, and what shall be there after it."""

    script: Any
    prepare: Callable[[Path], object]  # fills a new folder
    words: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]  # what the message says to do next; empty: nothing is left
    result: Callable[[Path], dict[str, object]]
    expected: dict[str, object] = field(default_factory=dict)
    warned: int = 0  # by the run without a failure
    places: dict[Place, str] = field(default_factory=dict)


def run(script: Any, words: list[str], system: System | None = None) -> Ended:
    """Run a command in this process."""
    errors._warned.clear()
    system = system or System()
    stderr = io.StringIO()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(stderr),
        contextlib.suppress(Exception),
    ):
        name = f"{script.__name__}.py"
        with system.watched():
            code: int | None = None
            code = run_script(lambda _: script.main(words), name)
        return Ended(code, stderr.getvalue().splitlines())
    return Ended(None, stderr.getvalue().splitlines())


def content(folder: Path) -> dict[str, str]:
    """{file: digest of its bytes}, but for what was being written."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".writing-")
    }


def trained(saved: Path) -> dict[str, object]:
    """What a run leaves that may not hang on how often it was stopped."""
    (run_dir,) = [path.parent for path in saved.glob("*/run.json")]
    parts = content(run_dir)
    timed = ("run.json", "report.json", "report.html", "history.csv")
    kept = {name: digest for name, digest in parts.items() if not name.endswith(timed)}
    return {"files": sorted(parts), **kept}


def problems(scene: Scene, place: Place, failure: str, folder: Path) -> list[str]:
    """What is not as it should be where one place fails."""
    scene.prepare(folder)
    before: dict[str, str] = {}
    system = System(place, failure, lambda: before.update(content(folder)))
    ended = run(scene.script, scene.words(folder), system)
    if not system.has_failed:
        return ["not reached"]
    found = []
    after = content(folder)
    last = ended.lines[-1] if ended.lines else ""
    others = [line for line in ended.lines if line not in ended.warnings and line != last]
    if ended.code is None:
        return ["a traceback"]
    if ended.code == 0:
        if len(ended.warnings) > scene.warned + 1:
            found.append(f"{len(ended.warnings) - scene.warned} warnings")
    else:
        if ended.code not in ((1, 2) if failure == "EACCES" else (1,)):
            found.append(f"exit code {ended.code}")
        cause = "memory" if failure == "MemoryError" else os.strerror(getattr(errno, failure))
        if others or len(ended.warnings) > scene.warned:
            found.append(f"{len(ended.lines)} lines")
        if ": error: " not in last or cause.lower() not in last.lower() or "; " not in last:
            found.append("no cause or remedy")
        was_begun = any(name.endswith("run.json") for name in before)
        if after != before and (was_begun or after):
            changed = {*before.items()} ^ {*after.items()}
            found.append(f"changed after the failure: {sorted({name for name, _ in changed})}")
        words = scene.again(folder)
        ended_again = run(scene.script, words) if words else Ended(0, [])
        if ended_again.code != 0:
            found.append(f"again: {ended_again.code} {ended_again.lines[-1:]}")
    try:
        result = scene.result(folder)
    except Exception as error:
        result = {"files": repr(error)}
    if ended.code == 0 and len(ended.warnings) > scene.warned:  # what a warning says is missing
        result["files"] = scene.expected["files"]
    if not found and result != scene.expected:
        keys = result.keys() | scene.expected.keys()
        differing = [k for k in keys if result.get(k) != scene.expected.get(k)]
        found.append(f"another result: {sorted(differing)[:3]}")
    return [f"{problem} <- {ended.lines[-1:]}" for problem in found]


# --- the scenes


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Within the block runs use the tiny backbone, keep their state after every step, draw no
    charts and take one thread.
    """
    threads = torch.get_num_threads()
    gallery = mock.Mock(return_value=html.Gallery("", []))
    with (
        mock.patch.dict(registries.BACKBONES, {"tiny": support.TINY}),
        mock.patch.object(training_fold, "SAVE_INTERVAL_SECONDS", 0.0),
        mock.patch.object(plots, "render_svg", return_value="<svg></svg>"),
        mock.patch.object(cross_validation, "show_views", gallery),
        mock.patch.object(cross_validation, "show_heat_maps", gallery),
    ):
        yield
    torch.set_num_threads(threads)


def scenes(folder: Path) -> dict[str, Scene]:
    """All scenes. Each is run twice without a failure: what a library reads only once in a process
    is no place then. Places of an earlier scene are left out.
    """
    root = support.make_train(folder / "train", support.PEOPLE[:2], junk=False)
    eval_root = support.make_eval(folder / "eval", 3, answers=False)
    options = ["--cv", "2", "--epochs", "2", "--save-top", "1", "--batch-size", "4"]
    options += ["--jobs", "1", *support.FAST]

    def words(saved: Path) -> list[str]:
        return ["--train-root", str(root), "--save-path", str(saved), *options]

    def again(saved: Path) -> list[str]:
        begun = list(saved.glob("*/run.json"))
        if not begun:
            return words(saved)
        finished = "finished" in run_directory.read_run_json(begun[0].parent)
        return [] if finished else [*words(saved), "--resume"]

    def stop(saved: Path) -> None:
        """A run whose second fold is in its second epoch."""
        plain, steps = training_fold.FoldTrainer.save_state, []

        def save_state(self: Any) -> None:
            plain(self)
            steps.append(self.state.step)
            if self.number == 1 and self.state.epoch == 1 and self.state.step:
                raise RuntimeError("stopped")

        with mock.patch.object(training_fold.FoldTrainer, "save_state", save_state):
            assert run(train, words(saved)).code is None

    def predict(saved: Path) -> list[str]:
        return [
            *("--root", str(folder / "whole"), "--data-root", str(eval_root)),
            *("--save-path", str(saved), "--device", "cpu", "--threads", "1", "--workers", "0"),
        ]

    def predicted(saved: Path) -> dict[str, object]:
        """The newest prediction's files; pages and times in them may differ."""
        newest = max(saved.iterdir())
        parts = content(newest)
        files = sorted(parts)
        kept = {name: digest for name, digest in parts.items() if name.endswith((".csv", ".npz"))}
        return {"files": files, **kept}

    def vote(saved: Path) -> list[str]:
        (earlier,) = (folder / "predicted").iterdir()
        return ["--from-probs", str(earlier), "--save-path", str(saved)]

    def nothing(saved: Path) -> None:
        saved.mkdir()

    stopped = folder / "stopped"
    stop(stopped)
    assert run(train, words(folder / "whole")).code == 0
    assert run(submit_ensemble, predict(folder / "predicted")).code == 0
    found = {
        "resume": Scene(
            train,
            lambda saved: shutil.copytree(stopped, saved),
            lambda saved: [*words(saved), "--resume"],
            again,
            trained,
        ),
        "training": Scene(train, nothing, words, again, trained),
        "submission": Scene(submit_ensemble, nothing, predict, predict, predicted),
        "vote": Scene(submit_ensemble, nothing, vote, vote, predicted),
    }
    seen: set[Place] = set()
    for name, scene in found.items():
        whole = folder / f"{name} without a failure"
        scene.prepare(whole)
        system = System()
        ended = run(scene.script, scene.words(whole), system)
        assert ended.code == 0, ended.lines
        scene.expected, scene.warned = scene.result(whole), len(ended.warnings)
        scene.places = {p: path for p, path in system.places.items() if p not in seen}
        seen |= scene.places.keys()
    return found


def all_cases(folder: Path) -> Iterator[tuple[str, Callable[[], tuple[int, str]]]]:
    """(name, run) of each place and error; run gives (1, what is not as it should be)."""
    with small():
        for title, scene in scenes(folder).items():
            for place in scene.places:
                for failure in FAILURES:
                    if failure not in NEVER.get(place[0], ()):
                        name = f"{title}: {failure} at {' '.join(place)}"
                        yield name, partial(run_case, scene, place, failure, folder / "case")


def run_case(scene: Scene, place: Place, failure: str, folder: Path) -> tuple[int, str]:
    wrong = problems(scene, place, failure, folder)
    shutil.rmtree(folder)
    return 1, "; ".join(wrong)


def main(argv: list[str] | None = None) -> int:
    """Print what is not as it should be, and the counts; 1 where anything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, help="of all places and errors; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a part of the cases' names, as `resume: EIO at unlink`")
    args = parser.parse_args(argv)
    differences = 0
    with tempfile.TemporaryDirectory() as name:
        cases = [case for case in all_cases(Path(name)) if (args.only or "") in case[0]]
        if args.sample is not None:
            cases = random.Random(args.seed).sample(cases, args.sample)
        with small():
            for case, run in cases:
                wrong = run()[1]
                differences += bool(wrong)
                if wrong:
                    print(f"{case}: {wrong}", flush=True)
    print(f"{len(cases)} runs, {differences} not as they should be")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
