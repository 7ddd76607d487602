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

# what to do once a failure is mended; set by each script as it reads its options
retry_remedy = "start it again"
MAX_ERROR_CHARACTERS = 2000  # of an error; its end says what to do
# missing, or no regular one
MISSING_FILE_ERRNOS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,
)
# of a path that may not be had so
REFUSED_PATH_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EINVAL)


class CliError(Exception):
    """What ends a program with one line on stderr and the exit code `code`."""

    code = 1

    def __init__(self, message: str) -> None:
        # A DataLoader worker's exception arrives wrapped in its traceback; the user's line is what
        # follows the type.
        own = message.rpartition(f"\n{type(self).__module__}.{type(self).__name__}: ")[2].strip()
        line = printable(" ".join(own.splitlines()))
        super().__init__(
            line
            if len(line) <= MAX_ERROR_CHARACTERS
            else (f"{line[: MAX_ERROR_CHARACTERS - 300]} ... {line[-300:]}")
        )


class UserError(CliError):
    """Bad input: ends the program with exit code 2 and this one line on stderr (file or option,
    what is wrong, what to do).
    """

    code = 2


class RunError(CliError):
    """Something outside the program's power went wrong (a full disk, a killed worker): one line on
    stderr, exit code 1.
    """


class Stopped(Exception):
    """The user or the system asked the program to stop (SIGINT, SIGTERM); the message says how to
    go on.
    """

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
    def first(self) -> bool:
        return self.rank == 0


def dist_info_from_environment() -> DistInfo:
    """This process among those that torchrun started; alone where one of its variables is missing
    or WORLD_SIZE is 1, as where a platform has left a RANK of its own. Raises UserError for values
    that torchrun never sets.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: os.environ.get(name, "") for name in names}
    if not all(values.values()):
        return DistInfo()
    remedy = "start with torchrun, or unset RANK and WORLD_SIZE"
    for name, value in values.items():
        if not re.fullmatch("[0-9]{1,9}", value):
            raise UserError(
                f"environment variable {name}={value[:40]}: is no whole number; {remedy}"
            )
    all_of_them = DistInfo(*(int(values[name]) for name in names))
    if all_of_them.world == 1:
        return DistInfo()
    if not (
        all_of_them.rank < all_of_them.world
        and all_of_them.local_rank < all_of_them.local_world <= all_of_them.world
    ):
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        raise UserError(f"environment variables {shown}: do not fit each other; {remedy}")
    return all_of_them


def is_rank_zero() -> bool:
    """Whether this is the first of the processes that torchrun started: it prints what all of them
    know.
    """
    return dist_info_from_environment().first


def printable(text: object) -> str:
    """Text as a terminal may have it: names of files and folders are others' work, so whatever
    could steer a terminal (control characters, escape sequences, direction marks) or is no text at
    all is spelled out, as `\\x1b`.
    """
    plain = str(text)
    return (
        plain
        if plain.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)
    )


def reason(error: BaseException) -> str:
    """What an exception says, in a few words of one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(said).split()))[:200]


def path_error(path: str | Path, error: OSError, remedy: str, done: str = "opened") -> CliError:
    """What ends the program where the system refused a path that the user named: a UserError with
    the remedy where it is missing, forbidden or of another kind, a RunError where the machine
    failed (the drive, the network, a limit).

    done: what could not be done with it.
    """
    if not is_machine_error(error):
        return UserError(f"{path}: cannot be {done} ({reason(error)}); {remedy}")
    return RunError(
        f"{path}: cannot be {done} ({reason(error)}); the machine failed, not the file: mend "
        f"that, then {retry_remedy}"
    )


def is_machine_error(error: BaseException) -> bool:
    """Whether the system says of the machine (its drive, network, limits), not of the file, that it
    cannot be used.
    """
    return isinstance(error, OSError) and error.errno not in (
        None,
        *REFUSED_PATH_ERRNOS,
        *MISSING_FILE_ERRNOS,
    )


def read_error(path: Path, error: Exception, message: str) -> CliError:
    """What ends the program where reading a file raised an error: a RunError where the machine
    failed, else a UserError with this message.
    """
    if isinstance(error, OSError) and is_machine_error(error):
        return path_error(path, error, "", "read")
    return UserError(message)


def short_repr(value: object) -> str:
    """A value that came from a file, for a message: short text and numbers as they are, all else by
    its type, since a list may be endless, deeper than Python prints, or hold itself.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"a text of {len(value):,} characters"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return (
        repr(value) if isinstance(value, (int, float, type(None))) else f"a {type(value).__name__}"
    )


_warned: set[str] = set()


def warn(message: str) -> None:
    """One line on stderr for something the program went on in spite of; the same line only once."""
    if message not in _warned:
        _warned.add(message)
        print(f"warning: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


def plural(count: int, one: str, many: str = "") -> str:
    """`1 view`, `2 views`, `3 people`: a number and the word that goes with it."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def warn_counted(names: list[str], message: str) -> None:
    """One warning for many cases of one kind: how many, what, and the first by name. Silent for
    none, and in all processes of torchrun's but the first: they read the same table.
    """
    if names and is_rank_zero():
        warn(f"{message}: {len(names)} (the first: {names[0]!r})")


@contextlib.contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Make one warning of whatever goes wrong with something that no result hangs on: a report, a
    picture, a logger.
    """
    try:
        yield
    except Exception as error:
        warn(f"{what}: cannot be written ({reason(error)}); the results are complete without it")
