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
from datetime import timedelta
from typing import Any, TypeVar

from runtime import errors
from runtime.errors import (
    CliError,
    DistInfo,
    RunError,
    Stopped,
    dist_info_from_environment,
    path_error,
    printable,
    reason,
)

T = TypeVar("T")
PROGRESS_LINE_SECONDS = 60.0  # between two lines of progress, where no bar can be drawn
CLEAR_LINE = "\r\x1b[K"  # of a terminal
quiet = False  # set by --quiet: no progress output


class LastingStream(io.TextIOWrapper):
    """stdout or stderr that never ends a run: what cannot be written (a pipe without a reader, a
    lost terminal, a full disk) is dropped, what cannot be encoded is spelled out.
    """

    exit_without_reader = False
    clears_lines = False  # on a terminal another process draws a bar where a line begins
    _at_line_start = True

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if self.exit_without_reader:
                self.exit_without_reader = False
                raise SystemExit(0) from None
        except (OSError, ValueError):  # the latter: closed
            pass

    def write(self, text: str, /) -> int:
        with self._dropping():
            if self.clears_lines and self._at_line_start and self.isatty():
                super().write(CLEAR_LINE)
            self._at_line_start = text.endswith("\n")
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            super().flush()


def wrap_streams() -> None:
    """Make stdout and stderr LastingStreams; closed ones lead to the null device."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened would take the number, and a library's output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        plain = getattr(sys, name)
        if plain is None:
            setattr(sys, name, LastingStream(open(os.devnull, "wb"), "utf-8"))  # noqa: SIM115
        elif plain is getattr(sys, f"__{name}__"):  # not a stream that a test put in its place
            stream = LastingStream(plain.buffer, plain.encoding, "backslashreplace")
            stream.reconfigure(line_buffering=plain.line_buffering or plain.write_through)
            setattr(sys, name, stream)


def print_over_bars() -> None:
    """Let this process's lines on a terminal replace the bar that another one draws there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LastingStream):
            stream.clears_lines = True


def exit_when_reader_is_gone() -> None:
    """End the program quietly once nobody reads its stdout: for a command that only prints."""
    if isinstance(sys.stdout, LastingStream):
        sys.stdout.exit_without_reader = True


def _raise_terminated(number: int, frame: object) -> None:
    raise Stopped(number, "stopped: SIGTERM; start it again")


def run_script(main: Callable[[list[str] | None], int], name: str) -> int:
    """Call a script's `main`; turn errors into one line on stderr and an exit code: 2 bad input, 1
    a failure of the machine, 130 and 143 stopped by SIGINT and SIGTERM.
    """
    wrap_streams()
    signal.signal(signal.SIGTERM, _raise_terminated)
    info = DistInfo()
    try:
        info = dist_info_from_environment()  # refuse bad variables before anything else
        return main(None)
    except (CliError, OSError, MemoryError) as error:
        failure = error if isinstance(error, CliError) else system_error(error)
        message, code = f"error: {failure}", failure.code
    except Stopped as error:
        message, code = str(error), 128 + error.number
    except KeyboardInterrupt:
        message, code = "interrupted", 128 + signal.SIGINT
    finally:
        sys.stdout.flush()
    process = f" (process {info.rank})" if info.rank else ""
    print(f"{name}{process}: {printable(message)}", file=sys.stderr, flush=True)
    return code


def system_error(error: OSError | MemoryError) -> CliError:
    """The error of a refusal by the system that nothing else explains."""
    if isinstance(error, OSError) and error.filename:
        return path_error(error.filename, error, "name another, or check its permissions", "used")
    problem = "the memory is full" if isinstance(error, MemoryError) else reason(error)
    return RunError(f"{problem}; mend that, then {errors.retry_remedy}")


@contextlib.contextmanager
def handle_stop_signals(handler: Any) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM go to this handler (in the main thread only)."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignal:
    """A handler that only notes the first SIGINT or SIGTERM, in `number`, for the work to stop when
    it can; the second interrupts.
    """

    number = 0

    def __call__(self, number: int, frame: object) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """`items` behind a tqdm bar where stderr is a terminal, else with a plain line a minute; of
    several processes on a machine the first shows it.
    """
    if quiet or dist_info_from_environment().local_rank:
        return items
    if not sys.stderr.isatty():
        return _progress_lines(items, label, total)
    from tqdm import tqdm

    return tqdm(items, desc=label, total=total, leave=False, dynamic_ncols=True)


def _progress_lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    """`items`; now and then a line on stderr: how many are done, how long the rest will take."""
    total = total or (len(items) if isinstance(items, Sized) else None)
    start = last_line = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last_line >= PROGRESS_LINE_SECONDS:
            left = duration((now - start) / done * (total - done)) if total else ""
            rest = f" of {total}, about {left} left" if total else ""
            print(f"{label}: {done}{rest}", file=sys.stderr, flush=True)
            last_line = now
        yield item


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    return str(timedelta(seconds=round(seconds)))


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
