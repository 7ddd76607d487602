"""Files: written whole or not at all, read with bounds, folders made without overwriting."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
from runtime import errors
from runtime.errors import (
    CliError,
    RunError,
    UserError,
    is_machine_error,
    path_error,
    read_error,
    reason,
)

MAX_NPZ_BYTES = 1 << 33  # unpacked, of an .npz
# says a file system that lacks it
UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP)
# its size; probabilities hardly shrink when they are packed, a zip bomb's zeros do a thousandfold
MAX_UNPACKED_RATIO = 100


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


def check_writable(folder: str, option: str) -> None:
    """Raise UserError where nothing can be written below a folder that is there or still to be
    made.
    """
    there = next(p for p in (Path(folder), *Path(folder).absolute().parents) if os.path.lexists(p))
    if there.is_symlink() and not there.exists():
        raise UserError(f"{option} {folder}: {there} is a link to nothing; name another folder")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {there} cannot be written to; name another folder")


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
            f"{path}: cannot be written ({error.strerror}); mend that, then {errors.retry_remedy}"
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
                f"{path}: cannot be written ({why}); make room or mend that, then "
                f"{errors.retry_remedy}"
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
