"""Several processes as torchrun starts them: who this one is, and the little that they tell each
other.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from runtime.cli import StopSignal
from runtime.devices import MORE_SHARED_MEMORY, SHARED_MEMORY, free_memory, peak_memory
from runtime.errors import (
    CliError,
    DistInfo,
    RunError,
    Stopped,
    UserError,
    dist_info_from_environment,
    reason,
)

T = TypeVar("T")
JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to come together
# after that a process may wait for another's whole epoch, or longer
COLLECTIVE_TIMEOUT = timedelta(days=7)


def init_distributed() -> DistInfo:
    """Who torchrun says this process is; it joins the others. Call `leave` at the end."""
    who = dist_info_from_environment()
    if who.world == 1:
        return who
    if torch.cuda.is_available() and who.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(who.local_rank)
    if not dist.is_initialized():
        join_group(who.world)
    return who


def join_group(world: int) -> None:
    """Come together with the other processes. Raises RunError where some of them do not come."""
    try:
        with default_signals():
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
            f"MASTER_ADDR ({address}), "
            f"MASTER_PORT ({port}) and that all {world} processes (WORLD_SIZE) were started"
        ) from None


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM end the program at once: Python's own handlers would wait
    for the end of one long call into the system.
    """
    numbers = (
        (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
        else ()
    )
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def distributed() -> Iterator[DistInfo]:
    """This process among all that torchrun started; at the end it parts from the others."""
    who = init_distributed()
    try:
        yield who
    finally:
        leave_group(who)


def on_all_ranks(who: DistInfo, work: Callable[[], T]) -> T:
    """What `work` gives here, once it is done in all processes.

    Where it is refused in some, the first of them raises that, and the others end with its exit
    code in silence.
    """
    if who.world == 1:
        return work()
    value: T | None = None
    error: CliError | OSError | None = None
    try:
        value = work()
    except (CliError, OSError) as refused:
        error = refused
    codes = [0] * who.world
    dist.all_gather_object(codes, 0 if error is None else getattr(error, "code", 1))
    failed = [rank for rank, code in enumerate(codes) if code]
    if error is not None and who.rank == failed[0]:
        raise error
    if failed:
        raise SystemExit(codes[failed[0]])
    return cast("T", value)


def broadcast_from_rank0(who: DistInfo, work: Callable[[], T]) -> T:
    """What `work`, done by the first process alone, gives: in all of them. Refused there, all end
    (see `on_all_ranks`).
    """
    box = [on_all_ranks(who, work if who.first else lambda: cast("T", None))]
    if who.world > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Let all processes have the first one's BatchNorm statistics."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|Cannot allocate memory"
)
LOST_WORKER = re.compile(r"DataLoader worker \(pid|Too many open files|shared memory|</torch_")
LOST_RANK = re.compile(r"gloo|NCCL|Connection (reset|closed)|TCPStore|Broken pipe")


@contextlib.contextmanager
def explain_failures(
    batch_size: int, remedy: str = "", go_on: str = "; start it again"
) -> Iterator[None]:
    """Turn a full memory, a missing compiler and killed processes into one line. Raises RunError,
    or UserError for --compile.

    remedy: what a smaller --batch-size takes; go_on: what to do after a process was killed.
    """
    try:
        with explain_lost_processes(StopSignal(), go_on):
            yield
    except (MemoryError, RuntimeError) as error:
        if is_compile_error(error):
            raise UserError(
                f"--compile: the network cannot be compiled here ({reason(error)}); leave "
                "--compile out"
            ) from None
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        raise RunError(out_of_memory(batch_size, error) + remedy) from None


@contextlib.contextmanager
def explain_lost_processes(stop: StopSignal, go_on: str = "") -> Iterator[None]:
    """Turn a killed process, one that reads photographs or another of torchrun's, into one line
    that ends in `go_on`. Raises RunError, or Stopped where `stop` noted a signal.
    """
    try:
        yield
    except (
        RuntimeError,
        OSError,
        EOFError,
    ) as error:  # a ConnectionError, EOFError: killed while it handed a batch over
        in_worker = str(error).startswith("Caught ")  # then it comes with the worker's traceback
        if isinstance(error, OSError) and not in_worker and not isinstance(error, ConnectionError):
            raise
        parted = (
            isinstance(error, RuntimeError)
            and dist.is_initialized()
            and LOST_RANK.search(str(error))
        )
        if isinstance(error, RuntimeError) and (
            OUT_OF_MEMORY.search(str(error)) or not (parted or LOST_WORKER.search(str(error)))
        ):
            raise
        if stop.number:
            raise Stopped(stop.number, f"stopped{go_on}") from None
        if parted:
            raise RunError(
                f"another process of this run ended; its message tells why{go_on}"
            ) from None
        last = [type(error).__name__, *str(error).strip().splitlines()][-1]
        if isinstance(error, OSError) and in_worker:
            raise RunError(
                f"a process that reads photographs failed ({last}); mend that{go_on}"
            ) from None
        raise RunError(
            f"a process that reads photographs was lost ({last}); often the memory or "
            f"{SHARED_MEMORY} is full, or "
            "too few files may be open (ulimit -n): use fewer --workers, "
            f"{MORE_SHARED_MEMORY}{go_on}"
        ) from None


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile itself failed: no compiler, or something it cannot translate."""
    compiling = sys.modules.get("torch._dynamo.exc")  # not imported for this: it takes seconds
    return (
        compiling is not None
        and isinstance(error, compiling.TorchDynamoException)
        and not OUT_OF_MEMORY.search(str(error))
    )


def out_of_memory(batch_size: int, error: Exception) -> str:
    """What the user needs to know when the GPU's or the machine's memory is full."""
    kind, peak, free = "", 0.0, 0.0
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        kind, peak, free = (
            "GPU's ",
            float(torch.cuda.max_memory_allocated()),
            float(torch.cuda.mem_get_info()[0]),
        )
    else:
        peak, free = peak_memory(), free_memory()
    return (
        f"--batch-size {batch_size}: the {kind}memory is full (peak {peak / 2**30:.1f} GiB here, "
        f"{free / 2**30:.1f} GiB "
        "free now); use a smaller one"
    )


def leave_group(who: DistInfo) -> None:
    """Part from the others."""
    if who.world > 1 and dist.is_initialized():
        time.sleep(
            0.1
            # a thread of torch 2.6 may still hold a tensor of the last exchange, and would be
            # waited for in vain
        )
        dist.destroy_process_group()
