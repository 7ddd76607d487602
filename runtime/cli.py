"""What every script shares: exit codes, streams that may break, signals, progress."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar, cast

from runtime import errors
from runtime.errors import (
    CliError,
    Stopped,
    UserError,
    dist_info_from_environment,
    path_error,
    printable,
)

T = TypeVar("T")
PROGRESS_LINE_SECONDS = 60.0  # between two lines of progress, where no bar can be drawn
quiet = False  # set by --quiet: neither bars nor such lines


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing has to be kept first."""


def _terminated(number: int, frame: object) -> None:
    raise Terminated


class LastingStream:
    """stdout or stderr of a program that outlives whoever reads it: what cannot be written is
    dropped.

    A closed stream, a pipe without a reader, a terminal that is gone, a full disk under a log: none
    of them ends a run.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.ends_with_reader = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if self.ends_with_reader:
                raise SystemExit(0) from None
        except (OSError, ValueError):  # the latter: closed
            pass

    def write(self, text: str) -> int:
        with self._dropping():
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._dropping():
            self.stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self.stream.isatty()
        return False

    def finish(self) -> None:
        """Flush what can be; what cannot goes nowhere, or the interpreter would complain of it
        while it ends.
        """
        try:
            self.stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


def wrap_streams() -> None:
    """Make stdout and stderr LastingStreams that spell out what they cannot encode; closed ones
    lead nowhere.
    """
    for number in range(3):
        try:
            os.fstat(number)
        # else the next file to be opened takes the number, and what a library prints lands in it
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a path may be more than the terminal's encoding can spell
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream if isinstance(stream, LastingStream) else LastingStream(stream))


def exit_when_reader_is_gone() -> None:
    """End the program quietly once nobody reads its stdout: for a command whose output is its
    purpose.
    """
    if isinstance(sys.stdout, LastingStream):
        sys.stdout.ends_with_reader = True


def run_script(main: Callable[[list[str] | None], int], name: str) -> int:
    """Call a script's `main` and turn what can go wrong outside it into one line on stderr and an
    exit code:

    2 bad input, 1 a failure of the machine, 130 and 143 stopped by SIGINT and SIGTERM. A line that
    cannot be printed is none.
    """
    wrap_streams()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        dist_info_from_environment()  # refused at once, if it is to be refused
        return main(None)
    except CliError as error:
        return _print_line(name, f"error: {error}", error.code)
    except Stopped as stopped:
        return _print_line(name, str(stopped), 128 + stopped.number)
    except Terminated:
        return _print_line(
            name, "stopped: the system asked for it (SIGTERM); start it again", 128 + signal.SIGTERM
        )
    except KeyboardInterrupt:
        return _print_line(name, "interrupted", 130)
    except OSError as error:
        if error.filename:
            ended = path_error(
                str(error.filename)[:500], error, "name another, or check its permissions", "used"
            )
            return _print_line(name, f"error: {ended}", ended.code)
        return _print_line(
            name, f"error: {error.strerror or error}; mend that, then {errors.retry_remedy}", 1
        )
    finally:
        for stream in (sys.stdout, sys.stderr):
            cast("LastingStream", stream).finish()


def _print_line(name: str, message: str, code: int) -> int:
    rank = 0
    with contextlib.suppress(UserError):
        rank = dist_info_from_environment().rank
    line = printable(" ".join(message.split()))
    print(f"{name}{f' (process {rank})' if rank else ''}: {line}", file=sys.stderr, flush=True)
    return code


class StopSignal:
    """Within the block SIGINT and SIGTERM are only noted, in `number`; whoever works looks at it
    when it can stop.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.number:  # asked twice: at once
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """`items` behind a tqdm bar with an estimate where stderr is a terminal; elsewhere with a plain
    line a minute.
    """
    if quiet:
        return items
    if not sys.stderr.isatty():
        return _progress_lines(items, label, total)
    from tqdm import tqdm

    return tqdm(items, desc=label, total=total, leave=False, dynamic_ncols=True)


def _progress_lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    """`items`, and on stderr now and then how many are done and how long the rest will take."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    start = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - told >= PROGRESS_LINE_SECONDS and done:
            of = (
                f" of {total}, about {duration((now - start) / done * (total - done))} left"
                if total
                else ""
            )
            print(f"{label}: {done}{of}", file=sys.stderr, flush=True)
            told = now
        yield item


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class RemainingTime:
    """How long the rest of a run will take, from the epochs so far."""

    def __init__(self, epochs: int) -> None:
        self.left, self.done, self.start = epochs, 0, time.monotonic()

    def epoch_over(self) -> str:
        """Count an epoch; the time left as h:mm:ss."""
        self.done, self.left = self.done + 1, self.left - 1
        return duration((time.monotonic() - self.start) / self.done * self.left)

    def skip(self, epochs: int) -> None:
        """Leave out epochs that will not be trained."""
        self.left -= epochs
