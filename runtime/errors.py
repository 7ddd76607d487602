"""Errors that end a program with one line, warnings that count, and which process prints them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

retry_remedy = "start it again"  # after a failure; each script sets it as it reads its options
MAX_ERROR_CHARACTERS = 2000
MAX_ERROR_END_CHARACTERS = 300  # kept of a longer one: what to do
MISSING_FILE_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}  # or not regular
MISSING_FILE_ERRNOS |= {errno.ENAMETOOLONG, errno.ENXIO}
REFUSED_PATH_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EINVAL}


class CliError(Exception):
    """Ends a program with one line on stderr and the exit code `code`."""

    code = 1

    def __init__(self, message: str) -> None:
        # a DataLoader worker's exception arrives wrapped in its traceback, which ends in type: line
        own = message.rpartition(f"\n{type(self).__module__}.{type(self).__name__}: ")[2].strip()
        line = printable(" ".join(own.splitlines()))
        if len(line) > MAX_ERROR_CHARACTERS:
            start = line[: MAX_ERROR_CHARACTERS - MAX_ERROR_END_CHARACTERS]
            line = f"{start} ... {line[-MAX_ERROR_END_CHARACTERS:]}"
        super().__init__(line)


class UserError(CliError):
    """Bad input, exit code 2: which file or option, what is wrong, what to do."""

    code = 2


class RunError(CliError):
    """A failure outside the program (a full disk, a killed worker), exit code 1."""


class Stopped(KeyboardInterrupt):
    """The program was stopped by a signal (SIGINT, SIGTERM); the message says how to go on."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True)
class DistInfo:
    """This process among all of the run. One alone is rank 0 of a world of 1."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0


def dist_info_from_environment() -> DistInfo:
    """This process among those that torchrun started. Alone where a variable is missing or
    WORLD_SIZE is 1: some platforms set a RANK. Raises UserError for values torchrun never sets.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [os.environ.get(name, "") for name in names]
    if not all(values):
        return DistInfo()
    numbers = [int(text) if re.fullmatch("[0-9]{1,9}", text) else -1 for text in values]
    rank, world, local_rank, local_world = numbers
    if world == 1:
        return DistInfo()
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
        shown = ", ".join(f"{name}={text[:40]}" for name, text in zip(names, values, strict=True))
        remedy = "start with torchrun, or unset RANK and WORLD_SIZE"
        raise UserError(f"environment variables {shown}: do not fit each other; {remedy}")
    return DistInfo(*numbers)


def is_rank_zero() -> bool:
    """Whether this process prints what all of torchrun's processes know."""
    return dist_info_from_environment().is_rank0


def printable(text: object) -> str:
    """Text that cannot steer a terminal: what is not printable (control characters, direction
    marks) is spelled out, as `\\x1b`. Names of files are not to be trusted.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def reason(error: BaseException) -> str:
    """What an exception says, in a few words of one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(text).split()))[:200]


def system_cause(error: BaseException | None) -> OSError | MemoryError | None:
    """What the system refused, also where a library wrapped it in an error of its own; None for an
    error of another kind. numpy's MemoryError is another: a damaged header asks for any size.
    """
    while error is not None and not isinstance(error, OSError) and type(error) is not MemoryError:
        error = error.__cause__ or error.__context__
    return error


def path_error(path: str | Path, error: Exception, remedy: str, action: str = "opened") -> CliError:
    """The error of a path: a RunError where the machine failed (drive, network, limits), else a
    UserError with the remedy. action: what the system refused.
    """
    cause = system_cause(error)
    if cause is None:
        return UserError(f"{path}: damaged ({reason(error)}); {remedy}")
    problem = f"{path}: cannot be {action} ({reason(cause)})"
    user_errnos = (None, *REFUSED_PATH_ERRNOS, *MISSING_FILE_ERRNOS)
    if isinstance(cause, OSError) and cause.errno in user_errnos:
        return UserError(f"{problem}; {remedy}")
    return RunError(f"{problem}; the machine failed, not the file: mend that, then {retry_remedy}")


def short_repr(value: object) -> str:
    """A value from a file, for a message: short text and numbers as they are, all else by its type,
    since a list may be endless, deeper than Python prints, or hold itself.
    """
    if isinstance(value, str) and len(value) > 60:
        return f"a text of {len(value):,} characters"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


_warned: set[str] = set()


def warn(message: str) -> None:
    """Print a warning on stderr; the same line only once."""
    if message not in _warned:
        _warned.add(message)
        print(f"warning: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


def plural(count: int, one: str, many: str = "") -> str:
    """`1 view`, `2 views`, `3 people`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def warn_counted(names: list[str], message: str) -> None:
    """One warning for many cases, by the first process: what, how many, the first by name."""
    if names and is_rank_zero():
        warn(f"{message}: {len(names)} (the first: {names[0]!r})")


@contextlib.contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Turn a failure of what no result needs (a report, a chart, a logger) into a warning."""
    try:
        yield
    except Exception as error:
        warn(f"{what}: cannot be written ({reason(error)}); the results are complete without it")
