#!/usr/bin/env python3
"""What keeping a run's state costs: seconds to write state.pt, of the time between two writes.

    python -m benchmarks.state_cost                                                       a minute

A network as train.py has it (VanillaEfficientNet on --backbone, Adam after one step on random
pixels, so that the optimizer's state is there) is written by fold_state.save_fold_state, flush to
the disk included, --rounds times, into a folder below the current one. Inside an epoch that happens
every training.fold.SAVE_INTERVAL_SECONDS at most; training waits for it. Printed: the median and
the slowest.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness  # isort: skip  (before torch, whose threads it sets up)

import torch

import model
import optim
from training import fold as training_fold
from training import fold_state


def make_state(backbone: str, image_size: int) -> dict[str, Any]:
    """The state of a network and of Adam after a step."""
    network = model.build("VanillaEfficientNet", "main", backbone, image_size)
    optimizer = optim.make_optimizer("adam", model.parameter_groups(network, 1.0), 1e-3, 0.0)
    network(torch.rand(2, 3, image_size, image_size))["main"].sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return fold_state.training_state_dict(network, optimizer, scaler)


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=9)
    parser.add_argument("--backbone", default="efficientnet-b3", help="backbone of the network")
    parser.add_argument(
        "--image-size", type=int, default=64, help="of the step; the state's size is the same"
    )
    args = parser.parse_args(argv)
    print(harness.describe_machine())
    training = make_state(args.backbone, args.image_size)
    seconds = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        for _ in range(args.rounds):
            start = time.perf_counter()
            fold_state.save_fold_state(Path(name), fold_state.FoldState(0), training)
            seconds.append(time.perf_counter() - start)
        mib = (Path(name) / fold_state.STATE_FILE).stat().st_size / 2**20
    each, slowest = statistics.median(seconds), max(seconds)
    between = training_fold.SAVE_INTERVAL_SECONDS
    print(
        f"state of {args.backbone}: {mib:.0f} MiB, {each:.2f} s a write (slowest {slowest:.2f} "
        "s): "
        f"{each / between:.2%} of {between:.0f} s (slowest {slowest / between:.2%})"
    )
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
