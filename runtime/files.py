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
from runtime.errors import CliError, RunError, UserError, path_error

MAX_NPZ_BYTES = 1 << 33  # unpacked
# unpacked size over file size: probabilities hardly shrink, a zip bomb's zeros do a thousandfold
MAX_UNPACKED_RATIO = 100
# of operations that a file system does not know
UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP)


def csv_cell(text: str) -> str:
    """A name for a CSV; an apostrophe keeps a spreadsheet from running it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def read_file(path: str | Path, max_bytes: int = 1 << 30) -> bytes:
    """The bytes of a regular file. Raises OSError for a larger one or anything else, and does not
    wait for a pipe.
    """

    def open_nonblocking(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", buffering=0, opener=open_nonblocking) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no regular file")
        if status.st_size > max_bytes:
            raise OSError(f"{status.st_size:,} bytes, at most {max_bytes:,} are read")
        return file.readall()


def refuse_irregular(path: str | Path) -> None:
    """Raise OSError for a pipe or a device, which a library would wait for or read without end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("no regular file")


def check_writable(folder: str, option: str) -> None:
    """Raise UserError where nothing can be written in a folder that exists or would be made."""
    parents = (Path(folder), *Path(folder).absolute().parents)
    nearest = next(path for path in parents if os.path.lexists(path))
    if nearest.is_symlink() and not nearest.exists():
        raise UserError(f"{option} {folder}: {nearest} is a link to nothing; name another folder")
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {nearest} cannot be written to; name another folder")


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip file's directory lists. Raises ValueError where readers could find different ones:
    Python reads the one before the end record, torch the one that this record points at.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 98))
        tail = file.read().rjust(98, b"\0")
    zip64_end, locator, end_record = tail[:56], tail[56:76], tail[76:]
    length, start = struct.unpack("<2L", end_record[12:20])
    directory_end = size - 22
    valid = end_record[:4] == b"PK\5\6" and end_record[20:] == b"\0\0"
    if locator[:4] == b"PK\6\7":
        length, start = struct.unpack("<2Q", zip64_end[40:56])
        directory_end = size - 98
        points_here = struct.unpack("<Q", locator[8:16])[0] == directory_end
        valid = valid and zip64_end[:4] == b"PK\6\6" and points_here
    if not valid or start + length != directory_end:
        problem = "cut off, or put together from several"
        raise ValueError(f"its directory is not where a zip file's is: {problem}")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("its directory lists a name twice")
    return members


def load_npz(path: Path, remedy: str) -> dict[str, np.ndarray] | None:
    """All arrays of an .npz, nothing unpickled; None where none exists. Raises UserError for
    anything else, RunError where the machine failed.
    """
    import numpy as np

    try:
        refuse_irregular(path)
        size = sum(member.file_size for member in zip_members(path))
        max_bytes = min(MAX_NPZ_BYTES, max(MAX_UNPACKED_RATIO * path.stat().st_size, 1 << 24))
        if size > max_bytes:
            raise ValueError(f"{size:,} bytes unpacked, at most {max_bytes:,} are read")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
            if array.dtype.kind == "U":  # numpy takes any number for a character
                native = array.astype(array.dtype.newbyteorder("="))
                codes = np.frombuffer(native.tobytes(), np.uint32)
                if codes.size and codes.max() > sys.maxunicode:
                    raise ValueError(f"{name} is no text")
        return arrays
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes make zipfile and numpy raise nearly every kind
        raise path_error(path, error, remedy, "read") from None


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; at the end flush it to the disk and rename it, or remove
    it on an error. A reader sees the old file or the whole new one. Raises RunError.
    """
    if "b" not in mode:  # a path in the text may be no valid Unicode
        options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "", **options}
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".writing-{socket.gethostname()}-{os.getpid()}-", dir=path.parent
        )
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            with ignore_unsupported():
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        with ignore_unsupported():
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        cause: BaseException | None = error  # torch.save wraps what the system says
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise RunError(
            f"{path}: cannot be written ({cause.strerror or cause}); make room or mend that, then "
            f"{errors.retry_remedy}"
        ) from None


@contextlib.contextmanager
def ignore_unsupported() -> Iterator[None]:
    """Go on where the file system does not know the operation; other failures count."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise


def remove_stale_writes(folder: Path, of_living: bool = False) -> None:
    """Delete what killed processes of this machine were writing in a folder. `of_living`: of all
    processes and machines, since the folder is locked and none of them is writing.
    """
    own_prefix = f".writing-{socket.gethostname()}-"
    for path in folder.glob(".writing-*"):
        pid = path.name.removeprefix(own_prefix).partition("-")[0]
        ours = path.name.startswith(own_prefix) and pid.isdigit()
        if of_living or (ours and not _is_running(int(pid))):
            with contextlib.suppress(PermissionError):  # open in a living process on Windows
                path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether a process lives. False on Windows: the signal would end it, and open files cannot be
    deleted anyway.
    """
    if sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: only then does a rename survive a power cut."""
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
    """Make a folder, and those above it, where it does not exist. Raises UserError or RunError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise folder_error(path, error) from None


def create_new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `parent/name-2`, `-3` ... where that exists. Raises UserError or
    RunError.
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
    raise UserError(f"{parent / name}: 999 folders of this name exist; remove some")


def folder_error(path: Path, error: OSError) -> CliError:
    """The error of a folder that cannot be made, with what stands in its way."""
    remedy = "name another with --save-path"
    for nearest in (path, *path.absolute().parents):
        if os.path.islink(nearest) and not os.path.exists(nearest):
            return UserError(f"{path}: cannot be made ({nearest} is a link to nothing); {remedy}")
        if os.path.exists(nearest):
            break
    return path_error(path, error, remedy, "made")
