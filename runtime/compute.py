"""Where and how a network runs: device, number format, share of the batches."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.errors import DistInfo, UserError, plural

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and how the network runs."""

    device: torch.device
    precision: str  # fp32, bf16 or fp16
    workers: int
    batch_size: int
    rank: int = 0  # of the processes that share every batch
    world: int = 1

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """torch's mixed precision, where one is asked for."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST_DTYPES[self.precision])

    def to_device(self, values: Tensor) -> Tensor:
        """A loader's tensor where the network runs. On a GPU a stream of its own copies it beside
        the last step's kernels; from memory that is not pinned the copy is waited for.
        """
        stream = copy_stream(self.device)
        if stream is None:
            return values.to(self.device)
        with torch.cuda.stream(stream):
            moved = values.to(self.device, non_blocking=values.is_pinned())
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(stream)
        # or its memory could be the next copy's while kernels still read it
        moved.record_stream(computing)
        return moved


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream of copies to a GPU; None for other devices."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def choose_precision(asked: str, device: torch.device) -> str:
    """`auto`: bf16 on a GPU whose processor has it, else fp16 there; fp32 elsewhere."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def select_gpu(device: torch.device, dist: DistInfo) -> torch.device:
    """The GPU of this process, made torch's current one. Raises UserError for a shared one."""
    if dist.world > 1:
        count = torch.cuda.device_count()
        if device.index is not None:
            problem = f"--device {device}: {dist.world} processes take a GPU each"
            raise UserError(f"{problem}; use --device cuda")
        if dist.local_world > count:
            problem = f"--nproc-per-node {dist.local_world}: more processes than the"
            remedy = f"start at most {count}, or use --device cpu"
            raise UserError(f"{problem} {plural(count, 'GPU')} here; {remedy}")
        device = torch.device("cuda", dist.local_rank)
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # every batch but the last of an epoch has one shape
    return device
