"""Files: written whole or not at all, read with bounds, folders made without overwriting."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
from runtime import errors
from runtime.errors import RunError, UserError, path_error

TEMPORARY_PREFIX = ".writing-"
STALE_WRITE_SECONDS = 3600.0
ANOTHER_FOLDER = "name another with --save-path"
MAX_NPZ_BYTES = 1 << 33  # unpacked
# unpacked size over file size: probabilities hardly shrink, a zip bomb's zeros do a thousandfold
MAX_UNPACKED_RATIO = 100
# of operations that a file system does not know
UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP)


def read_file(path: str | Path, max_bytes: int = 1 << 30) -> bytes:
    """The bytes of a regular file, no pipe or device. Raises OSError, also for a larger one."""

    no_wait = getattr(os, "O_NONBLOCK", 0)  # for a pipe's writer
    with open(path, "rb", 0, opener=lambda name, flags: os.open(name, flags | no_wait)) as file:
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


def check_writable(folder: str | Path) -> None:
    """Raise UserError where nothing can be written in a folder that exists or would be made."""
    parents = (Path(folder), *Path(folder).absolute().parents)
    nearest = next(path for path in parents if os.path.lexists(path))
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return
    is_link = nearest.is_symlink() and not nearest.exists()
    problem = f"{nearest} is {'a link to nothing' if is_link else 'not a writable folder'}"
    raise UserError(f"{folder}: cannot be used ({problem}); {ANOTHER_FOLDER}")


def create_folder(path: Path) -> None:
    """Make a folder, and those above it, where it does not exist. Raises UserError or RunError."""
    check_writable(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            fsync_folder(folder.parent)
    except OSError as error:
        raise path_error(path, error, ANOTHER_FOLDER, "made") from None


def create_new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `parent/name-2`, `-3` ... where that exists. Raises CliError."""
    create_folder(parent)
    for attempt in range(1, 1000):
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            fsync_folder(parent)
            return path
    raise UserError(f"{parent / name}: 999 folders of this name exist; remove some")


def check_output_file(path: Path, option: str) -> None:
    """Raise UserError where a file cannot be written: it is a folder, or its folder is missing."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{option} {path}: is a folder, or in a missing one; name another file")
    check_writable(str(path.parent))


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip file's directory lists. Raises ValueError where readers could find different ones:
    Python reads the one before the end record, torch the one that this record points at.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 98))
        tail = file.read().rjust(98, b"\0")
    zip64_end, locator, end_record = tail[:56], tail[56:76], tail[76:]
    count, length, start = struct.unpack("<H2L", end_record[10:20])
    directory_end = size - 22
    valid = end_record[:4] == b"PK\5\6" and end_record[20:] == b"\0\0"
    if locator[:4] == b"PK\6\7":
        count, length, start = struct.unpack("<3Q", zip64_end[32:56])
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
    # miniz, torch's reader of zip files, leaves what it takes for a folder unread
    if len(members) != count or any(m.external_attr & 0x10 and m.file_size for m in members):
        raise ValueError("its directory does not fit its content")
    return members


def check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise ValueError where a zip file's content does not match its CRC-32s: torch never looks at
    them, numpy only where an array fills its file. Some are written without (all are 0).
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip() if any(member.CRC for member in members) else None
    if damaged is not None:
        raise ValueError(f"{damaged} in it does not match its checksum")


def load_npz(path: Path, remedy: str) -> dict[str, np.ndarray] | None:
    """All arrays of an .npz, nothing unpickled; None where none exists. Raises CliError."""
    import numpy as np

    try:
        refuse_irregular(path)
        members = zip_members(path)
        size = sum(member.file_size for member in members)
        max_bytes = min(MAX_NPZ_BYTES, max(MAX_UNPACKED_RATIO * path.stat().st_size, 1 << 24))
        if size > max_bytes:
            raise ValueError(f"{size:,} bytes unpacked, at most {max_bytes:,} are read")
        check_members(path, members)
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
            if array.dtype.kind == "U":  # numpy takes any number for a character
                native = array.astype(array.dtype.newbyteorder("="))
                if np.frombuffer(native.tobytes(), np.uint32).max(initial=0) > sys.maxunicode:
                    raise ValueError(f"{name} is no text")
        return arrays
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes make zipfile and numpy raise nearly every kind
        raise path_error(path, error, remedy, "read") from None


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; at the end flush it to the disk and rename it, or remove
    it on an error. A reader sees the old file or the whole new one. Raises RunError.
    """
    # a path in the text may be no valid Unicode
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    temporary = path.with_name(
        f"{TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    )
    try:
        with open(temporary, mode, **({} if "b" in mode else text)) as file:
            yield file
            file.flush()
            fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = errors.system_cause(error)
        if not isinstance(cause, OSError):
            raise
        raise RunError(
            f"{path}: cannot be written ({cause.strerror or cause}); make room or mend that, then "
            f"{errors.retry_remedy}"
        ) from None


def fsync(handle: int) -> None:
    """Flush a file or folder to the disk, where the file system knows that operation."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: only then do new, renamed and removed ones last."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems cannot open a folder
        return
    try:
        fsync(handle)
    finally:
        os.close(handle)


def remove_stale_writes(folder: Path, is_locked: bool = False) -> None:
    """Delete what killed processes were writing in a folder: of ended processes of this machine,
    and what is an hour old; all in a folder that is locked, since no other process writes there.
    """
    own = f"{TEMPORARY_PREFIX}{socket.gethostname()}-"
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        pid = path.name.removeprefix(own).partition("-")[0]
        has_ended = path.name.startswith(own) and pid.isdigit() and not is_running(int(pid))
        # the latter: open in a living process on Windows
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if is_locked or has_ended or time.time() - path.stat().st_mtime > STALE_WRITE_SECONDS:
                path.unlink()


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; on Windows, where asking would end it, always."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
