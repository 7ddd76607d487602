"""What surrounds a run: streams that close, file systems that refuse, variables left behind,
reports that fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoint
import run_directory
import submit_singular
import train
from reporting import html
from runtime import distributed
from runtime.cli import run_script
from runtime.errors import DistInfo, RunError, UserError, is_rank_zero, warn_counted
from runtime.files import atomic_write, create_folder, remove_stale_writes
from tests.helpers import support
from training import fold_state, loggers

ROOT = Path(__file__).resolve().parents[2]


def run_code(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, in the project's folder."""
    words = [sys.executable, "-c", code]
    return subprocess.run(
        words,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=support.LIMIT,
        check=False,
        **options,
    )


def train_words(root: Path, saved: Path, *more: str) -> list[str]:
    """A run of two folds of one epoch."""
    return [
        "--train-root",
        str(root),
        "--save-path",
        str(saved),
        "--cv",
        "2",
        "--epochs",
        "1",
        *support.FAST,
        *more,
    ]


def submit_words(tree: Path, eval_root: Path, out: Path) -> list[str]:
    """A submission of one checkpoint."""
    best = checkpoint.load_ranked(tree / "fold00")[0].path
    return [
        "--load-state-dict",
        str(best),
        "--data-root",
        str(eval_root),
        "--save-path",
        str(out),
        "--transform-type",
        "auto",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "0",
    ]


# --- (16.9) reports, pictures, loggers


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "no such backend", "tkagg"]
)
def test_charts_need_no_backend(backend: str) -> None:
    """(16.9) A notebook's MPLBACKEND names a package that need not be installed; the variable stays
    as it was.
    """
    code = (
        "import os, inference.pictures; from reporting import plots; print(plots.render_svg("
        "lambda ax: ax.plot([1, 2]), 'a line')[:4], os.environ['MPLBACKEND'])"
    )
    done = run_code(code, env={**os.environ, "MPLBACKEND": backend})
    assert (done.returncode, done.stdout) == (0, f"<svg {backend}\n"), done.stderr


def broken(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def faulty(*_: object) -> Any:
    raise KeyError("a fault of the report's own")


def test_a_report_that_fails_is_one_warning_and_the_run_is_complete(
    train_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.9) So is TensorBoard's."""
    monkeypatch.setattr(html, "render_page", broken)
    monkeypatch.setitem(loggers.LOGGERS, "tensorboard", broken)
    assert train.main(train_words(train_root, tmp_path, "--tensorboard")) == 0
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line
    ]
    assert len(warnings) == 2
    assert "--log tensorboard: cannot be written (No space left on device)" in warnings[0]
    assert "report of " in warnings[1]
    (tree,) = tmp_path.iterdir()
    assert "finished" in run_directory.read_run_json(tree)
    assert (tree / "oof.csv").is_file()
    assert not (tree / "report.html").exists()


def test_a_report_that_fails_leaves_a_submission_whole(
    tree: Path,
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.9)"""
    monkeypatch.setattr(html, "render_page", faulty)
    assert submit_singular.main(submit_words(tree, eval_root, tmp_path)) == 0
    captured = capsys.readouterr()
    assert sum("cannot be written" in line for line in captured.err.splitlines()) == 1
    assert next(tmp_path.glob("*/submission.csv")).is_file()


# --- (16.13) file systems that refuse


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP])
@pytest.mark.parametrize("name", ["chmod", "fsync"])
def test_where_chmod_and_fsync_are_not_supported_files_are_written_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """(16.13)"""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, refuse)
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_drive_that_fails_to_flush_is_still_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: int
) -> None:
    """(16.13) For a file, the first call, and for the folder that it lies in, the second."""
    plain, calls = os.fsync, iter(range(1, 10))

    def fail(handle: int) -> None:
        if next(calls) == call:
            raise OSError(number, os.strerror(number))
        plain(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(RunError, match=rf"a\.txt: cannot be written \({os.strerror(number)}\)"),
        atomic_write(tmp_path / "a.txt", "w") as file,
    ):
        file.write("lost")


# --- (16.17) streams that end


def shell(line: str, *words: str, **streams: Any) -> tuple[int, str]:
    """(exit code, all that was printed) of a line of the shell in which $RUN is Python with these
    words.
    """
    done = subprocess.run(
        ["sh", "-c", line.replace("$RUN", 'exec "$0" "$@"'), sys.executable, *words],
        cwd=ROOT,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        text=True,
        timeout=support.LIMIT,
        check=False,
    )
    return done.returncode, (done.stdout or "") + (done.stderr or "")


@contextlib.contextmanager
def no_reader() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def script_of(body: str) -> str:
    """A script whose main is `body`, indented."""
    return (
        "import os, sys\nfrom runtime import cli, errors\ndef "
        f"main(_):\n{body}\nsys.exit(cli.run_script(main, 'x.py'))"
    )


PRINTING = """
    for i in cli.progress(range(3), 'x'):
        print('line', i, 'x' * 5000, flush=True)
        errors.warn(f'something {i}')
    print('kept in the buffer')
"""


@pytest.mark.parametrize(
    "closed",
    ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"],
)
def test_a_stream_that_is_closed_or_full_ends_nothing(tmp_path: Path, closed: str) -> None:
    """(16.17) Nor does what is printed there land in a file that got the closed stream's number."""
    file = tmp_path / "file"
    body = (
        f"{PRINTING}\n    with open({str(file)!r}, 'w') as f:\n        os.system('echo noise; "
        "echo noise >&2')\n    return 7"
    )
    code, told = shell(f"$RUN {closed}", "-c", script_of(body))
    assert code == 7, told
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    assert file.read_text() == ""


def test_a_reader_that_is_gone_ends_nothing_and_makes_no_noise() -> None:
    """(16.17) The exit code is the run's own."""
    with no_reader() as gone:
        code, told = shell("$RUN", "-c", script_of(f"{PRINTING}    return 7"), stdout=gone)
    assert code == 7
    assert told == "".join(f"warning: something {i}\n" for i in range(3))


def test_a_reader_that_is_gone_ends_a_command_whose_output_is_its_purpose(tmp_path: Path) -> None:
    """(16.17) At the line that nobody reads, quietly: --dry-run does not come to its folder that is
    not there.
    """
    for words in (
        ["--help"],
        ["--dry-run", "--train-root", str(tmp_path / "none"), "--backbone", "efficientnet-b0"],
    ):
        with no_reader() as gone:
            assert shell("$RUN", "train.py", *words, stdout=gone) == (0, "")
    assert shell("$RUN", "train.py", *words)[0] == 2


@contextlib.contextmanager
def on_a_terminal(body: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """(a script with a terminal of its own on stdout and stderr, the terminal's other end)."""
    master, slave = os.openpty()
    words = [sys.executable, "-c", script_of(body)]
    child = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=slave, stderr=slave)
    os.close(slave)
    yield child, master
    child.kill()
    child.wait()


def test_a_terminal_that_is_gone_does_not_stop_a_progress_bar() -> None:
    """(16.17) Every write gives EIO from then on."""
    body = """
    print(sys.stderr.isatty(), flush=True)
    for i in cli.progress(range(4), 'x'):
        sys.stdin.readline()
        print(i, flush=True)
    return 7
"""
    with on_a_terminal(body) as (child, master):
        assert os.read(master, 4) == b"True"
        os.close(master)
        child.communicate(b"\n" * 4, timeout=support.LIMIT)
        assert child.returncode == 7


def test_lines_replace_the_bar_that_another_process_draws() -> None:
    body = """
    cli.print_over_bars()
    os.write(2, b'bar 50%')
    print('fold 1', 'epoch 2', flush=True)
    print('next', flush=True)
    return 7
"""
    with on_a_terminal(body) as (child, master):
        child.wait(support.LIMIT)
        shown = os.read(master, 100)
    assert shown == b"bar 50%\r\x1b[Kfold 1 epoch 2\r\n\r\x1b[Knext\r\n"


def test_a_run_without_streams_is_complete(train_root: Path, tmp_path: Path) -> None:
    """(16.17) No reader of stdout, stderr closed, a process that reads photographs."""
    with no_reader() as gone:
        words = train_words(train_root, tmp_path, "--workers", "1")
        assert shell(
            "$RUN 2>&-", str(ROOT / "tests/helpers/run_tiny.py"), "train.py", *words, stdout=gone
        ) == (0, "")
    (tree,) = tmp_path.iterdir()
    assert "finished" in run_directory.read_run_json(tree)


# --- (16.19) variables of other launchers

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set these of torchrun's variables, and no others."""

    def launch(**values: str) -> None:
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"RANK": "3", "WORLD_SIZE": "4"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {**TORCHRUN, "LOCAL_RANK": ""},
        {"RANK": "x", "WORLD_SIZE": "y"},
    ],
)
def test_a_rank_that_a_platform_left_silences_nothing(
    launched: Callable[..., None], capsys: pytest.CaptureFixture[str], left: dict[str, str]
) -> None:
    """(16.19) A process is one of several for its warnings exactly where it is for its work."""
    launched(**left)
    with distributed.distributed() as info:
        assert info == DistInfo()
    assert is_rank_zero()
    warn_counted(["a.jpg"], "photographs left out")
    assert (
        run_script(lambda _: submit_singular.main(["--batch-size", "0"]), "submit_singular.py") == 2
    )
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "warning: photographs left out: 1 (the first: 'a.jpg')"
    assert told[1].startswith("submit_singular.py: error: ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"RANK": "one"}, "RANK=one, .*: do not fit each other; start with torchrun, or unset"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2, .*: do not fit each other"),
        ({"LOCAL_WORLD_SIZE": "9" * 5000}, "LOCAL_WORLD_SIZE=9999"),
    ],
)
def test_variables_that_torchrun_never_sets_are_refused_in_a_line(
    launched: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    told: str,
) -> None:
    """(16.19)"""
    launched(**{**TORCHRUN, **change})
    with pytest.raises(UserError, match=told), distributed.distributed():
        pass
    assert run_script(train.main, "train.py") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: environment variable")
    assert len(line) < 400


def test_the_second_process_is_named_and_leaves_warnings_to_the_first(
    launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """(16.19)"""
    launched(**TORCHRUN)
    assert not is_rank_zero()
    warn_counted(["a.jpg"], "photographs left out")
    assert run_script(lambda _: submit_singular.main(["--batch-size", "0"]), "x.py") == 2
    assert capsys.readouterr().err.startswith("x.py (process 1): error: ")


# --- (16.22) other systems


def test_free_disk_is_read_where_there_is_no_statvfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.22)"""
    free = run_directory.free_disk_bytes(tmp_path / "still" / "to be made")
    assert free > 0
    monkeypatch.setattr(os, "statvfs", None)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("Usage", (), {"free": 5, "path": path})()
    )
    assert run_directory.free_disk_bytes(tmp_path / "still" / "to be made") == 5


def test_what_an_ended_process_was_writing_is_deleted_at_once(tmp_path: Path) -> None:
    """Of this machine: a run that goes on leaves the files of one that was never killed."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    for name in (f"{host}-{ended.pid}-x", f"{host}-{os.getpid()}-x", f"other-{ended.pid}-x"):
        (tmp_path / f".writing-{name}").write_text("")
    remove_stale_writes(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".writing-{host}-{os.getpid()}-x", f".writing-other-{ended.pid}-x"}


def test_what_another_machine_was_writing_is_deleted_an_hour_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.22) No process is asked by a signal: on Windows os.kill(pid, 0) would end it. There an
    open file cannot be deleted, and stays.
    """
    for name in ("open", "left", "fresh"):
        (tmp_path / f".writing-{name}").write_text("")
        if name != "fresh":
            os.utime(tmp_path / f".writing-{name}", (0, 0))
    plain = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith("open"):
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        plain(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: pytest.fail("ended it"))
        patch.setattr(Path, "unlink", unlink)
        remove_stale_writes(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".writing-open", ".writing-fresh"}
        remove_stale_writes(tmp_path, is_locked=True)
        assert {path.name for path in tmp_path.iterdir()} == {".writing-open"}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_drive_that_fails_makes_no_file_damaged(
    tree: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.2, its siblings) Weights, validation.npz and run.json: exit code 1, and no advice to
    remove them.
    """
    path = run_directory.fold_checkpoints(tree / "fold00")[0]

    def failing(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        for read in (
            lambda: checkpoint.load_checkpoint(path),
            lambda: fold_state.load_validation(tree / "fold00", "main"),
            lambda: run_directory.read_run_json(tree),
        ):
            with pytest.raises(RunError, match="cannot be read .*the machine failed, not the file"):
                read()
    monkeypatch.setattr(Path, "mkdir", failing)
    with pytest.raises(RunError, match="cannot be made"):
        create_folder(tree / "x")
