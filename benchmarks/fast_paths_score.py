"""Do the fast paths cost any score? python benchmarks/fast_paths_score.py TRAIN_ROOT DIR [--seeds
3]

TRAIN_ROOT: some 200 people. One fold of five is trained (EfficientNet-lite0 at 96 px) with the real
command, for each seed in three ways:

- fast: as it is: channels last, fused Adam, crops cut and resized in one step;
- plain: contiguous memory, Adam tensor by tensor, and torchvision's CenterCrop, RandomResizedCrop
  and RandAugment;
- bf16: as it is, with --precision bf16.

Compared is the mean over the last two epochs of the macro F1 on the held-out people, which no
choice of an epoch flatters, against the spread of the seeds. DIR keeps a line per run in
results.csv; runs that are there are not made again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import timing  # noqa: F401  (finds the project)
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import augmentation
import engine
import model as models
import optim
import train
import utils

SIDES = ("fast", "plain", "bf16")
LAST = 2  # epochs whose mean counts


def slow_down() -> None:
    """Put what a tutorial has in the place of the fast paths."""
    fast = engine.Compute.to_network

    def contiguous(compute: engine.Compute, pixels: Tensor) -> Tensor:
        return fast(compute, pixels).contiguous()

    def place(network: nn.Module, device: torch.device) -> nn.Module:
        return network.to(device)

    def adam(groups: optim.Groups, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            groups, lr=lr, weight_decay=weight_decay, foreach=False, fused=False
        )

    def random(size: int) -> augmentation.Forms:
        crop = v2.Compose(
            [v2.CenterCrop(augmentation.WIDE), v2.RandomResizedCrop(size), v2.RandAugment(2, 9)]
        )
        narrow = v2.Compose([v2.CenterCrop(augmentation.NARROW), v2.Resize(size)])
        return augmentation.Forms(
            lambda photo, _: crop(photo),
            lambda photo, _: narrow(photo),
            lambda photo, _: narrow(photo),
        )

    engine.Compute.to_network = contiguous  # type: ignore[method-assign,assignment]
    models.place, optim.adam, augmentation.random = place, adam, random


def one_run(args: argparse.Namespace, seed: int, side: str) -> float:
    """Train in a process of its own; the macro F1 of its last epochs."""
    folder = args.folder / f"{side}{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    words = [
        __file__,
        args.root,
        str(folder),
        "--side",
        side,
        "--seed",
        str(seed),
        "--epochs",
        str(args.epochs),
        "--image-size",
        str(args.image_size),
        "--threads",
        str(args.threads),
    ]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    (history,) = folder.glob("*/fold00/history.csv")
    found = float(pd.read_csv(history)["macro_f1"].tail(LAST).mean())
    shutil.rmtree(folder)
    return found


def trained(args: argparse.Namespace) -> int:
    """What a process of its own does: one side's training."""
    if args.side == "plain":
        slow_down()
    return train.main(
        [
            "--train-root",
            args.root,
            "--save-path",
            str(args.folder),
            "--cv",
            "5",
            "--folds",
            "0",
            "--run-name",
            "x",
            "--quiet",
            "--backbone",
            "efficientnet-lite0",
            "--image-size",
            str(args.image_size),
            "--epochs",
            str(args.epochs),
            "--seed",
            str(args.seed),
            "--device",
            "cpu",
            "--threads",
            str(args.threads),
            "--workers",
            "1",
            "--precision",
            "bf16" if args.side == "bf16" else "fp32",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="TRAIN_ROOT")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--side", choices=SIDES, help="train this side alone (the benchmark starts this itself)"
    )
    parser.add_argument("--seed", type=int, default=1, help="for --side")
    args = parser.parse_args(argv)
    if args.side:
        return trained(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    results = args.folder / "results.csv"
    there = (
        set(pd.read_csv(results)[["seed", "side"]].itertuples(index=False, name=None))
        if results.is_file()
        else set()
    )
    for seed in range(1, args.seeds + 1):
        for side in SIDES:
            if (seed, side) not in there:
                row = pd.DataFrame(
                    [{"seed": seed, "side": side, "macro_f1": one_run(args, seed, side)}]
                )
                row.to_csv(results, mode="a", header=not results.is_file(), index=False)
                print(row.to_string(index=False, header=False), flush=True)
    table = pd.read_csv(results).pivot_table(index="seed", columns="side", values="macro_f1")[
        list(SIDES)
    ]
    print(table.round(4).to_string())
    for side in SIDES:
        print(
            f"{side:<6} macro F1 {table[side].mean():.4f}, deviation of the seeds "
            f"{table[side].std():.4f}, less fast "
            f"{(table[side] - table['fast']).mean():+.4f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
