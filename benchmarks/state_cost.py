"""What keeping a run's state costs: seconds to write state.pt, as a part of the time between two
writes.

A learner as train.py has it (VanillaEfficientNet on --backbone, Adam after one step on random
pixels, so that the optimizer's state is there) is written by `checkpoint.write_state`, flush to the
disk included, --rounds times. Inside an epoch that happens every training.SAVE_SECONDS at most;
training waits for it. Printed: the median and the slowest.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import timing
import torch

import checkpoint
import engine
import model
import optim
import training


def learner(backbone: str, image_size: int) -> engine.Learner:
    """A network and Adam's state after a step."""
    network = model.build("VanillaEfficientNet", "main", backbone, image_size)
    optimizer = optim.make_optimizer("adam", model.parameter_groups(network, 1.0), 1e-3, 0.0)
    network(torch.rand(2, 3, image_size, image_size))["main"].sum().backward()
    optimizer.step()
    return engine.Learner(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), network)


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__, rounds=9)
    parser.add_argument("--backbone", default="efficientnet-b3", help="backbone of the learner")
    parser.add_argument(
        "--image-size",
        type=int,
        default=64,
        help="of the one step; the state's size does not hang on it",
    )
    args = parser.parse_args(argv)
    made, state, taken = learner(args.backbone, args.image_size), checkpoint.FoldState(0), []
    with tempfile.TemporaryDirectory(dir=".") as name:
        for _ in range(args.rounds):
            start = time.perf_counter()
            checkpoint.write_state(Path(name), state, made.state())
            taken.append(time.perf_counter() - start)
        size = (Path(name) / checkpoint.STATE).stat().st_size / 2**20
    each, worst = statistics.median(taken), max(taken)
    every = training.SAVE_SECONDS
    print(
        f"state of {args.backbone}: {size:.0f} MiB, {each:.2f} s a write (slowest {worst:.2f} s): "
        f"{each / every:.2%} of {every:.0f} s (slowest {worst / every:.2%})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
