"""Small things every room needs: errors for the user, warnings that count, seeds, the device, atomic files."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Read when torch loads. By default a thread that waits for the others spins for milliseconds, and where anything else runs,
# the loader's processes or other people's, it takes the processor from those that it waits for: a step of 0.8 s takes 6 s.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class UserError(Exception):
    """Bad input: ends the program with exit code 2 and this one line on stderr (file or option, what is wrong, what to do)."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker's exception arrives wrapped in its traceback; the user's line is what follows the type.
        super().__init__(message.rsplit("UserError: ", 1)[-1].strip())


def run_script(main: Callable[[list[str] | None], int], name: str) -> int:
    """Call a script's `main` and turn a UserError into one line on stderr and exit code 2."""
    try:
        return main(None)
    except UserError as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


_warned: set[str] = set()


def warn(message: str) -> None:
    """One line on stderr for something the program went on in spite of; the same line only once."""
    if message not in _warned:
        _warned.add(message)
        print(f"warning: {' '.join(message.split())}", file=sys.stderr, flush=True)


def warn_counted(names: list[str], message: str) -> None:
    """One warning for many cases of one kind: how many, what, and the first by name. Silent for none."""
    if names:
        warn(f"{message}: {len(names)} (the first: {names[0]!r})")


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """`items` behind a tqdm bar with an estimate where stderr is a terminal; as they are elsewhere."""
    if not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, desc=label, total=total, leave=False, dynamic_ncols=True)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any parts that print alike everywhere: the same on every machine, in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and put it back after.

    torchvision's transforms draw from that one global generator; without the way back, dropout would
    depend on how many photographs the main process happened to read. Other devices are left alone.
    """
    import torch

    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derive_seed(*parts))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def choose_device(name: str) -> torch.device:
    """`auto` -> CUDA, else MPS, else CPU. Raises UserError for a device this machine does not have."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({first}); try --device cpu or auto") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step, where it would give them back and have them cleared again.

    Otherwise the system's clearing of pages is a third of a training step of EfficientNet-b3. Peak memory grows by a tenth.
    """
    mmap_max, trim_threshold = -4, -1  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def set_threads(threads: int | None) -> int:
    """Set torch's threads (default: the processors this process may use) and return their number."""
    import torch

    count = threads or usable_processors()
    torch.set_num_threads(count)
    return count


def usable_processors() -> int:
    """Processors this process may run on (a container or a batch system may allow fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; at the end flush it to the disk and rename it, or remove it on an error.

    A reader sees the old file or the whole new one, never a half.
    """
    if "b" not in mode:
        options = {"encoding": "utf-8", "newline": "", **options}
    handle, name = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files; results are for sharing
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def timestamp() -> str:
    """Local time for a folder's name: 20210407-153012."""
    return time.strftime("%Y%m%d-%H%M%S")


def new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `parent/name-2`, `-3` ... where that exists; never a folder that was there."""
    for attempt in range(1, 1000):
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot make this folder ({error.strerror}); name another with --save-path") from None
    raise UserError(f"{parent / name}: 999 folders of this name exist already; clear some away")
