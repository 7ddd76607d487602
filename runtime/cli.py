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
    RunError,
    Stopped,
    UserError,
    dist_info_from_environment,
    path_error,
    printable,
)

T = TypeVar("T")
PROGRESS_LINE_SECONDS = 60.0  # between two lines of progress, where no bar can be drawn
quiet = False  # set by --quiet: no progress output


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing has to be kept first."""


def _terminated(number: int, frame: object) -> None:
    raise Terminated


class LastingStream:
    """stdout or stderr that never ends a run: what cannot be written (a closed stream, a pipe
    without a reader, a lost terminal, a full disk) is dropped.
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
        """Flush; what cannot be flushed goes to the null device, or the interpreter would complain
        at its end.
        """
        try:
            self.stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)


def wrap_streams() -> None:
    """Make stdout and stderr LastingStreams that spell out what they cannot encode; closed ones
    lead to the null device.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened would take the number, and a library's output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(stream, LastingStream):
            continue
        if isinstance(stream, io.TextIOWrapper):  # its encoding may not spell a path
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, LastingStream(stream))


def exit_when_reader_is_gone() -> None:
    """End the program quietly once nobody reads its stdout: for a command that only prints."""
    if isinstance(sys.stdout, LastingStream):
        sys.stdout.ends_with_reader = True


def run_script(main: Callable[[list[str] | None], int], name: str) -> int:
    """Call a script's `main`; turn errors into one line on stderr and an exit code: 2 bad input, 1
    a failure of the machine, 130 and 143 stopped by SIGINT and SIGTERM.
    """
    wrap_streams()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        dist_info_from_environment()  # refuse bad variables before anything else
        return main(None)
    except (CliError, Stopped, KeyboardInterrupt, OSError) as error:
        message, code = describe_end(error)
        rank = 0
        with contextlib.suppress(UserError):
            rank = dist_info_from_environment().rank
        process = f" (process {rank})" if rank else ""
        line = printable(" ".join(message.split()))
        print(f"{name}{process}: {line}", file=sys.stderr, flush=True)
        return code
    finally:
        for stream in (sys.stdout, sys.stderr):
            cast("LastingStream", stream).finish()


def describe_end(error: BaseException) -> tuple[str, int]:
    """(the line to print, the exit code) for what ended a script."""
    if isinstance(error, OSError):
        if error.filename:
            path, remedy = str(error.filename)[:500], "name another, or check its permissions"
            error = path_error(path, error, remedy, "used")
        else:
            problem = error.strerror or str(error)
            error = RunError(f"{problem}; mend that, then {errors.retry_remedy}")
    if isinstance(error, CliError):
        return f"error: {error}", error.code
    if isinstance(error, Stopped):
        return str(error), 128 + error.number
    if isinstance(error, Terminated):
        return "stopped: SIGTERM; start it again", 128 + signal.SIGTERM
    return "interrupted", 128 + signal.SIGINT


@contextlib.contextmanager
def stop_signals(handler: Any) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM go to this handler (in the main thread only)."""
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous = {int(n): signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignal:
    """Within the block the first SIGINT or SIGTERM is only noted, in `number`, for the work to stop
    when it can; the second interrupts.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handling = stop_signals(self._note)

    def __enter__(self) -> StopSignal:
        self._handling.__enter__()
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """`items` behind a tqdm bar where stderr is a terminal, else with a plain line a minute."""
    if quiet:
        return items
    if not sys.stderr.isatty():
        return _progress_lines(items, label, total)
    from tqdm import tqdm

    return tqdm(items, desc=label, total=total, leave=False, dynamic_ncols=True)


def _progress_lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    """`items`; now and then a line on stderr: how many are done, how long the rest will take."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    start = last_line = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last_line >= PROGRESS_LINE_SECONDS:
            line = f"{label}: {done}"
            if total:
                left = duration((now - start) / done * (total - done))
                line += f" of {total}, about {left} left"
            print(line, file=sys.stderr, flush=True)
            last_line = now
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
