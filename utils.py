"""Small things every room needs: errors for the user, warnings that count, seeds, the device,
atomic files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import os
import re
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")
MAX_NPZ_BYTES = 1 << 33  # unpacked, of an .npz
PROGRESS_LINE_SECONDS = (
    60.0  # between two lines on how far something long has come, where no bar can be drawn
)
quiet = False  # set by --quiet: neither bars nor such lines
# what to do once a failure is mended; set by each script as it reads its options
retry_remedy = "start it again"
MAX_ERROR_CHARACTERS = 2000  # of an error; its end says what to do
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
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
# says a file system that lacks it
UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP)
# its size; probabilities hardly shrink when they are packed, a zip bomb's zeros do a thousandfold
MAX_UNPACKED_RATIO = 100

# Read when torch loads. By default a thread that waits for the others spins for milliseconds, and
# where anything else runs, the loader's processes or other people's, it takes the processor from
# those that it waits for: a step of 0.8 s takes 6 s.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


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


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing has to be kept first."""


def _terminated(number: int, frame: object) -> None:
    raise Terminated


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
            name, f"error: {error.strerror or error}; mend that, then {retry_remedy}", 1
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


def csv_cell(text: str) -> str:
    """A name for a CSV that people open: one that a spreadsheet would run as a formula gets an
    apostrophe before it.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def read_file(path: str | Path, most: int = 1 << 30) -> bytes:
    """The bytes of a regular file of at most `most` bytes. Raises OSError for anything else, a pipe
    without waiting for it.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", buffering=0, opener=without_waiting) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError("no regular file")
        if about.st_size > most:
            raise OSError(f"{about.st_size:,} bytes, at most {most:,} are read")
        return file.readall()


def refuse_irregular(path: str | Path) -> None:
    """Raise OSError for a pipe or a device: opened by a library, it would be waited for, or never
    end.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("no regular file")


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


def check_writable(folder: str, option: str) -> None:
    """Raise UserError where nothing can be written below a folder that is there or still to be
    made.
    """
    there = next(p for p in (Path(folder), *Path(folder).absolute().parents) if os.path.lexists(p))
    if there.is_symlink() and not there.exists():
        raise UserError(f"{option} {folder}: {there} is a link to nothing; name another folder")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {there} cannot be written to; name another folder")


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


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip file's directory lists. Raises ValueError where readers could take different ones
    for it: Python's reads what lies before the end record, torch's what that record points at.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 98))
        tail = file.read().rjust(98, b"\0")
    record, locator, last = tail[:56], tail[56:76], tail[76:]  # the first two where it is a zip64
    length, start = struct.unpack("<2L", last[12:20])
    end, whole = size - 22, last[:4] == b"PK\5\6" and last[20:] == b"\0\0"
    if locator[:4] == b"PK\6\7":
        length, start = struct.unpack("<2Q", record[40:56])
        end = size - 98
        whole = whole and record[:4] == b"PK\6\6" and struct.unpack("<Q", locator[8:16])[0] == end
    if not whole or start + length != end:
        raise ValueError(
            "its directory is not where a zip file's is: cut off, or put together from several"
        )
    with zipfile.ZipFile(path) as parts:
        members = parts.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("its directory lists a name twice")
    return members


def load_npz(path: Path, remedy: str) -> dict[str, np.ndarray] | None:
    """All arrays of an .npz, nothing unpickled; None where there is none. Raises UserError for
    anything else.
    """
    import numpy as np

    try:
        refuse_irregular(path)
        size = sum(part.file_size for part in zip_members(path))
        most = min(MAX_NPZ_BYTES, max(MAX_UNPACKED_RATIO * path.stat().st_size, 1 << 24))
        if size > most:
            raise ValueError(f"{size:,} bytes unpacked, at most {most:,} are read")
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        for name, array in found.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
            if (
                array.dtype.kind == "U"
            ):  # numpy would make strings of numbers that are no characters
                codes = np.frombuffer(
                    array.astype(array.dtype.newbyteorder("=")).tobytes(), np.uint32
                )
                if codes.size and codes.max() > 0x10FFFF:
                    raise ValueError(f"{name} is no text")
        return found
    except FileNotFoundError:
        return None
    except (
        Exception
    ) as error:  # over damaged bytes zipfile and numpy raise nearly every kind there is
        raise read_error(path, error, f"{path}: damaged ({reason(error)}); {remedy}") from None


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


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any parts that print alike everywhere: the same on every machine, in every
    process.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and put it back after.

    torchvision's transforms draw from that one global generator; without the way back, dropout
    would depend on how many photographs the main process happened to read. Other devices are left
    alone.
    """
    import torch

    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derive_seed(*parts))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


@contextlib.contextmanager
def without_variable(name: str) -> Iterator[None]:
    """The block without an environment variable."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def choose_device(name: str) -> torch.device:
    """`auto` -> CUDA, else MPS, else CPU. Raises UserError for a device that is not there."""
    import torch

    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        if device.type not in DEVICE_TYPES:
            raise RuntimeError(f"neither of {', '.join(DEVICE_TYPES)}")
        torch.ones(1, device=device).add_(
            1
        ).item()  # a GPU may be there that this torch has no kernels for
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, OverflowError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {name}: not usable here ({first}); try --device cpu, or a torch made for it"
        ) from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step, where it would give them back and have
    them cleared again.

    Otherwise the system's clearing of pages is a third of a training step of EfficientNet-b3. Peak
    memory grows by a tenth.
    """
    mmap_max, trim_threshold = -4, -1  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def set_threads(threads: int | None) -> int:
    """Set torch's threads (default: the processors this process may use); returns their number."""
    import torch

    count = threads or usable_processors()
    torch.set_num_threads(count)
    return count


def usable_processors(root: Path = Path("/")) -> int:
    """Processors this process may use (a container or a batch system may allow fewer than there
    are); root: of the files.
    """
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    for group in control_groups("cpu", root):
        names = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")  # of version 2; of version 1
        limit = [word for name in names for word in read_system_file(group / name).split()]
        if len(limit) == 2 and all(word.isdigit() for word in limit):  # else max or -1
            quota, period = map(int, limit)
            count = min(count, -(-quota // max(1, period)))
    return max(1, count)


def control_groups(controller: str, root: Path) -> list[Path]:
    """The folders of this process's control group and of those above it, as Linux lays them out for
    a controller in both versions; some of them may not be there.
    """
    folders: list[Path] = []
    for line in read_system_file(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # a container may see the path of the system around it: the limit is then that of the mount
        # itself
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in (controllers, controller) if controllers else ("", "unified"):
            top = root / "sys/fs/cgroup" / mount
            folders += [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return folders


def read_system_file(path: Path) -> str:
    """What one of the system's small files says; nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; at the end flush it to the disk and rename it, or remove
    it on an error.

    A reader sees the old file or the whole new one, never a half.
    """
    if "b" not in mode:
        # a path may be no text
        options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "", **options}
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".writing-{socket.gethostname()}-{os.getpid()}-", dir=path.parent
        )
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); mend that, then {retry_remedy}"
        ) from None
    try:
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            with ignore_unsupported():
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        with ignore_unsupported():
            os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files; results are for sharing
        os.replace(name, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        # torch.save wraps what the system said, and its archive writer raises once more when it is
        # closed
        full = next((e for e in _causes(error) if isinstance(e, OSError)), None)
        if full is not None:
            why = f"{full.strerror or full}"
            raise RunError(
                f"{path}: cannot be written ({why}); make room or mend that, then {retry_remedy}"
            ) from None
        raise


@contextlib.contextmanager
def ignore_unsupported() -> Iterator[None]:
    """Go on where the file system does not know the operation (another system's drive, a
    network's); other failures count.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def remove_stale_writes(folder: Path, of_living: bool = False) -> None:
    """Delete what killed processes of this machine were writing in a folder; those of living ones
    and of other machines only where `of_living`: the folder is locked, so none of them is writing.
    """
    mine = f".writing-{socket.gethostname()}-"
    for path in folder.glob(".writing-*"):
        pid = path.name.removeprefix(mine).partition("-")[0]
        if of_living or (
            path.name.startswith(mine) and pid.isdigit() and not _is_running(int(pid))
        ):
            with contextlib.suppress(PermissionError):  # on Windows: it is open in a living process
                path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether a process lives; on Windows, where asking by a signal would end it, False: there open
    files cannot be deleted.
    """
    if sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def fsync_folder(folder: Path) -> None:
    """Have a folder's own entries written to the disk: a rename is only safe from a power cut after
    that.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems cannot open a folder
        return
    try:
        with ignore_unsupported():
            os.fsync(handle)
    finally:
        os.close(handle)


def timestamp() -> str:
    """Local time for a folder's name: 20210407-153012."""
    return time.strftime("%Y%m%d-%H%M%S")


def create_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is not there yet. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise folder_error(path, error) from None


def create_new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `parent/name-2`, `-3` ... where that exists; never a folder that was
    there.
    """
    create_folder(parent)
    for attempt in range(1, 1000):
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise folder_error(path, error) from None
    raise UserError(f"{parent / name}: 999 folders of this name exist already; clear some away")


def folder_error(path: Path, error: OSError) -> CliError:
    """The error that a folder cannot be made, with what stands in its way."""
    if is_machine_error(error):
        return path_error(path, error, "", "made")
    nearest = next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), path)
    dangling = nearest.is_symlink() and not nearest.exists()
    why = f"{nearest} is a link to nothing" if dangling else reason(error)
    return UserError(f"{path}: cannot make this folder ({why}); name another with --save-path")
