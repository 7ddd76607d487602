"""Devices, threads, and how much of the machine this process may use."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
SHARED_MEMORY = Path("/dev/shm")  # through which Linux hands tensors from process to process
MORE_SHARED_MEMORY = "--workers 0, or a larger /dev/shm (docker run --shm-size=2g, or --ipc=host)"


def peak_memory() -> float:
    """The most bytes that this process has used so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(root: Path = Path("/")) -> float:
    """Bytes of memory that this process can still get; root: of the system's files."""
    machine = read_system_file(root / "proc/meminfo")
    if not machine:  # no Linux
        return 0.0
    available = parse_number_after("MemAvailable:", machine) * 1024
    return min([available, *map(free_group_memory, control_groups("memory", root))])


def free_group_memory(group: Path) -> float:
    """Bytes that a control group's limit leaves, cached files counting as free."""
    for limit_file, used_file, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = (read_system_file(group / name).strip() for name in (limit_file, used_file))
        if limit.isdigit() and used.isdigit():  # else max
            cache = parse_number_after(cached, read_system_file(group / "memory.stat"))
            return max(0.0, float(limit) - float(used) + cache)
    return math.inf


def parse_number_after(name: str, text: str) -> float:
    """The number that follows a name at the start of a line; 0 where there is none."""
    match = re.search(rf"^{name}\s+(\d+)", text, re.MULTILINE)
    return float(match[1]) if match else 0.0


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
    """`auto` -> CUDA, else MPS, else CPU. Raises UserError for a device that does not work."""
    import torch

    if name == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else mps
    try:
        device = torch.device(name)
        if device.type not in DEVICE_TYPES:
            raise RuntimeError(f"neither of {', '.join(DEVICE_TYPES)}")
        torch.ones(1, device=device).add_(1).item()  # this torch may lack kernels for the GPU
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, OverflowError) as error:
        problem = str(error).strip().splitlines()[0]
        remedy = "try --device cpu, or a torch made for it"
        raise UserError(f"--device {name}: not usable here ({problem}); {remedy}") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step. Otherwise the system's clearing of pages
    is a third of a training step of EfficientNet-b3. Peak memory grows by a tenth.
    """
    mmap_max, trim_threshold = -4, -1  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def release_freed_memory() -> None:
    """Give large freed blocks back to the system. A process that is forked afterwards does not keep
    its own copy of them, once this one writes over them.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def usable_processors(root: Path = Path("/")) -> int:
    """Processors that this process may use; root: of the system's files."""
    has_affinity = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    for group in control_groups("cpu", root):
        names = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")  # of version 2; of version 1
        limit = [word for name in names for word in read_system_file(group / name).split()]
        if len(limit) == 2 and all(word.isdigit() for word in limit):  # else max or -1
            quota, period = map(int, limit)
            count = min(count, math.ceil(quota / max(1, period)))
    return max(1, count)


def has_bfloat16(root: Path = Path("/")) -> bool:
    """Whether this processor computes in bfloat16; root: of the system's files."""
    flags = read_system_file(root / "proc/cpuinfo").partition("flags")[2].partition("\n")[0]
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


def control_groups(controller: str, root: Path) -> list[Path]:
    """Where this process's control group and those above it may lie, in both versions."""
    folders: list[Path] = []
    for line in read_system_file(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # a container may see its host's path: the limit is then that of the mount itself
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in (controllers, controller) if controllers else ("", "unified"):
            top = root / "sys/fs/cgroup" / mount
            folders += [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return folders


def read_system_file(path: Path) -> str:
    """The text of a small system file; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
