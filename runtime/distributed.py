"""Several processes, as torchrun starts them: joining, waiting for each other, lost ones."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from runtime import errors
from runtime.cli import handle_stop_signals
from runtime.devices import MORE_SHARED_MEMORY, SHARED_MEMORY, free_memory, peak_memory
from runtime.errors import (
    CliError,
    DistInfo,
    RunError,
    UserError,
    dist_info_from_environment,
    reason,
)

T = TypeVar("T")
JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to come together
COLLECTIVE_TIMEOUT = timedelta(days=7)  # one process may wait for another's whole epoch
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|Cannot allocate memory"
)
LOST_WORKER = re.compile(r"DataLoader worker \(pid|Too many open files|shared memory|</torch_")
LOST_RANK = re.compile(r"gloo|NCCL|Connection (reset|closed)|TCPStore|Broken pipe")


def join_group(world: int) -> None:
    """Wait for the other processes. Raises RunError where some of them do not come."""
    try:
        # the default ends the program at once; Python's handlers wait for the system call to end
        with handle_stop_signals(signal.SIG_DFL):
            store, rank, world = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
            store.set(f"came/{rank}", "")
            store.wait([f"came/{number}" for number in range(world)], JOIN_TIMEOUT)
            store.set_timeout(COLLECTIVE_TIMEOUT)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT
            )
    except (RuntimeError, ValueError) as error:
        address, port = (os.environ.get(name, "not set") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise RunError(
            f"the processes of this run did not come together ({reason(error)}); check "
            f"MASTER_ADDR ({address}), MASTER_PORT ({port}) and that all {world} processes "
            "(WORLD_SIZE) were started"
        ) from None


@contextlib.contextmanager
def distributed() -> Iterator[DistInfo]:
    """This process among those that torchrun started, which it joins, and leaves at the end."""
    info = dist_info_from_environment()
    if info.world == 1:
        yield info
        return
    if torch.cuda.is_available() and info.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(info.local_rank)
    join_group(info.world)
    try:
        yield info
    finally:
        time.sleep(0.1)  # a thread of torch 2.6 may still hold the last exchange's tensor
        dist.destroy_process_group()


def on_all_ranks(info: DistInfo, work: Callable[[], T]) -> T:
    """The result of `work` here, once it is done in all processes. Where it fails in some, the
    first of them raises that, and the others exit silently with its code.
    """
    if info.world == 1:
        return work()
    value: T | None = None
    error: CliError | OSError | None = None
    try:
        value = work()
    except (CliError, OSError) as refused:
        error = refused
    codes = [0] * info.world
    dist.all_gather_object(codes, 0 if error is None else getattr(error, "code", 1))
    failed = [rank for rank, code in enumerate(codes) if code]
    if error is not None and info.rank == failed[0]:
        raise error
    if failed:
        raise SystemExit(codes[failed[0]])
    return cast("T", value)


def broadcast_from_rank0(info: DistInfo, work: Callable[[], T]) -> T:
    """As `on_all_ranks`, but the first process alone does the work, for all of them."""
    box = [on_all_ranks(info, work if info.is_rank0 else lambda: cast("T", None))]
    if info.world > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the first one's BatchNorm statistics."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


@contextlib.contextmanager
def explain_failures(batch_size: int, remedy: str = "") -> Iterator[None]:
    """Turn a full memory, a missing compiler and lost processes, a loader's or another of
    torchrun's, into one line. Raises RunError, or UserError for --compile.

    remedy: what a smaller --batch-size takes.
    """
    try:
        yield
    # ConnectionError, EOFError: a worker was killed while it handed a batch over
    except (MemoryError, RuntimeError, OSError, EOFError) as error:
        explained = explain_failure(error, batch_size, remedy)
        if explained is None:
            raise
        raise explained from None


def explain_failure(error: Exception, batch_size: int, remedy: str) -> CliError | None:
    """What `explain_failures` raises; None for a failure that it cannot explain."""
    text = str(error)
    in_worker = text.startswith("Caught ")  # it comes with the worker's traceback
    last_line = [type(error).__name__, *text.strip().splitlines()][-1]
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        problem = f"a process that reads photographs failed ({last_line}); mend that, then"
        return RunError(f"{problem} {errors.retry_remedy}") if in_worker else None
    if isinstance(error, (MemoryError, RuntimeError)):
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
            return RunError(out_of_memory(batch_size, error) + remedy)
        dynamo = sys.modules.get("torch._dynamo.exc")  # importing it takes seconds
        if dynamo is not None and isinstance(error, dynamo.TorchDynamoException):
            problem = f"--compile: the network cannot be compiled here ({reason(error)})"
            return UserError(f"{problem}; leave --compile out")
        if dist.is_initialized() and LOST_RANK.search(text):
            return lost_process()
        if not LOST_WORKER.search(text):
            return None
    return RunError(
        f"a process that reads photographs was lost ({last_line}); often the memory or "
        f"{SHARED_MEMORY} is full, or too few files may be open (ulimit -n): use fewer --workers, "
        f"{MORE_SHARED_MEMORY}; {errors.retry_remedy}"
    )


def lost_process() -> RunError:
    """The error where another process of the run ended too early."""
    problem = "another process of this run ended; its message tells why"
    return RunError(f"{problem}; {errors.retry_remedy}")


def out_of_memory(batch_size: int, error: Exception) -> str:
    """The message where the GPU's or the machine's memory is full."""
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        memory = "GPU's memory"
        peak, free = float(torch.cuda.max_memory_allocated()), float(torch.cuda.mem_get_info()[0])
    else:
        memory, peak, free = "memory", peak_memory(), free_memory()
    return (
        f"--batch-size {batch_size}: the {memory} is full (peak {peak / 2**30:.1f} GiB here, "
        f"{free / 2**30:.1f} GiB free now); use a smaller one"
    )
