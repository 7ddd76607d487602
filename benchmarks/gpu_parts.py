"""What every part of benchmarks/gpu.py gets, and how its processes are started."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from runtime import errors, loading

# Parts are forked before anything touches the GPU: they need not import torch again.
FORK = multiprocessing.get_context("fork")
PART_SECONDS = 500  # a part that takes longer is ended


@dataclass(frozen=True)
class PartContext:
    """What a part gets."""

    args: argparse.Namespace
    results: dict[str, dict[str, Any]]  # the figures of the parts before it
    connection: Connection

    def add(self, name: str, value: Any, line: str = "") -> None:
        """Keep a figure, and print a line about it."""
        if line:
            print(f"  {line}", flush=True)
        self.connection.send((name, value))

    def with_args(self, **changes: Any) -> argparse.Namespace:
        """The command's arguments with changes."""
        return argparse.Namespace(**{**vars(self.args), **changes})


Part = Callable[[PartContext], None]


def work(part: Part, context: PartContext) -> None:
    """A part, in a process of its own; its failure is a figure too."""
    try:
        part(context)
    except BaseException as error:
        context.add("traceback", traceback.format_exc())
        kind = "" if isinstance(error, errors.CliError) else f"{type(error).__name__}: "
        context.add("error", kind + errors.reason(error))
    loading.kill_workers()


def run_part(part: Part, args: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    """The figures of a part, its `seconds`, and its `error` where it failed."""
    receiver, sender = FORK.Pipe(duplex=False)
    sys.stdout.flush()
    process = FORK.Process(target=work, args=(part, PartContext(args, results, sender)))
    start = time.monotonic()
    process.start()
    sender.close()
    figures: dict[str, Any] = {}
    try:
        while receiver.poll(max(0.0, start + PART_SECONDS - time.monotonic())):
            figures.update([receiver.recv()])
        figures["error"] = f"took longer than {PART_SECONDS} s"
    except EOFError:
        process.join()
        if process.exitcode:
            figures["error"] = f"its process ended with {process.exitcode}"
    finally:
        process.kill()
    return figures | {"seconds": round(time.monotonic() - start, 1)}
