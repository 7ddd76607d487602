#!/usr/bin/env python3
"""Training: photographs a second of the real loop, of the network's own limit, and of a plain loop.

    python -m benchmarks.training_speed input/data/train       both networks below, about 4 minutes

On a GPU: benchmarks/gpu.py.

Sides, taking turns in one run (after a first turn or step that does not count):

- real: engine.train_one_epoch over the loader as train.py sets them up, over --batches batches of
  files. Every turn is an epoch of its own, so that filling the pipeline counts in full, though a
  real epoch is far longer.
- limit: forward, loss, backward, step on one batch that is there already, channels last, native
  SiLU, fused Adam.
- plain: as a tutorial has it (plain.py): efficientnet_pytorch with its defaults, torchvision's v1
  transforms on Pillow images, a DataLoader without workers, loss.item() and scikit-learn's scores
  at every step, Adam as it comes, in a process of its own (whose threads wait as the project's do,
  which flatters it where the machine has other work).
- cached: the real loop with --cache ram, whose first turn (which does not count) decodes the
  photographs; below 224 px, where decoding weighs.

Printed as well: the part of the real loop's time that it waits for its next batch, and how long
18,900 photographs x 30 epochs x 5 folds take at the measured rates (a fold trains on 15,120
photographs and validates on 3,780, an epoch). Weights are random: they do not change the speed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness  # isort: skip  (before torch, whose threads it sets up)

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader

import model
import optim
from benchmarks import plain, product
from data import tables

CASES = {"efficientnet-b3": (224, 3), "efficientnet-lite0": (96, 24)}  # image size, batches a turn
FOLDS, EPOCHS, TRAINED, HELD_OUT = product.FOLDS, 30, 15120, 3780
CACHED_BELOW = 224  # pixels of the image: above, the network takes far longer than decoding


def plain_side(args: argparse.Namespace) -> harness.Side:
    """The loop of a tutorial."""
    device, batch = torch.device(args.device), args.batch_size
    torch.set_num_threads(args.threads)
    rows = tables.read_train(args.root).head(args.batches * batch)
    transform = plain.training_pipeline(args.image_size)
    photos = plain.PlainDataset(rows["path"].tolist(), rows["main"].tolist(), transform)
    network = plain.make_network(args.backbone, args.image_size, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()

    def side() -> int:
        network.train()
        total = 0.0
        for images, labels in DataLoader(photos, batch_size=batch, shuffle=True, num_workers=0):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = network(images)
            mean = criterion(outputs, labels)
            mean.backward()
            optimizer.step()
            total += mean.item()
            truth, predicted = labels.cpu().numpy(), outputs.argmax(1).cpu().numpy()
            f1_score(truth, predicted, average="macro", zero_division=0)
            accuracy_score(truth, predicted)
        return len(photos)

    return side


def start_plain(
    args: argparse.Namespace, backbone: str, size: int, batches: int, device: torch.device
) -> harness.ChildSide:
    """The plain side's process, for a third of the real loop's batches."""
    options = {
        "backbone": backbone,
        "image-size": size,
        "batch-size": args.batch_size,
        "batches": max(1, batches // 3),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    words = ["-m", "benchmarks.training_speed", str(Path(args.root).absolute())]
    return harness.ChildSide([*words, *harness.as_options(options), "--plain"])


def measure(args: argparse.Namespace, backbone: str, size: int, batches: int) -> None:
    """One network: all sides in turn, and what follows from them."""
    options = {
        "backbone": backbone,
        "image_size": size,
        "batch_size": args.batch_size,
        "transform_type": args.transform_type,
        "compile": args.compile,
    }
    trainer = product.make_trainer(args, **options)
    compute = trainer.context.compute
    count = batches * args.batch_size
    real = product.own_training(trainer, count)
    network = product.make_network(backbone, size, compute).train()
    optimizer = optim.make_optimizer("adam", model.parameter_groups(network, 1.0), 0.001, 0.0)
    step = product.bare_step(network, optimizer, size, compute)
    sides: dict[str, harness.Side] = {
        "real": real,
        "limit": product.repeat_step(step, batches, compute),
    }
    child = sides["plain"] = start_plain(args, backbone, size, batches, compute.device)
    if size < CACHED_BELOW and not args.transform_type.startswith("face"):
        cached = product.make_trainer(args, **options, cache="ram")
        sides["cached"] = product.own_training(cached, count)
    step()
    for name in ("real", "plain", "cached"):
        if name in sides:
            sides[name]()  # its workers start here
    real.reset()
    seconds = harness.median_seconds(sides, args.rounds)
    child.close()
    title = (
        f"{backbone} at {size} px, batch {args.batch_size}, {compute.precision} on "
        f"{compute.device}, {torch.get_num_threads()} threads, {compute.workers} workers:"
    )
    harness.print_rates(title, seconds, "images", "limit")
    print(
        f"  real / limit {seconds['limit'] / seconds['real']:.3f}   "
        f"real / plain {seconds['plain'] / seconds['real']:.2f}   "
        "(aims: 0.95 and 2.4 for b3 at 224 px, 0.90 of the limit for lite0 at 96)"
    )
    if "cached" in seconds:
        print(f"  --cache ram gains {100 * (seconds['real'] / seconds['cached'] - 1):.1f} %")
    waiting = 100 * real.waiting_seconds / real.seconds
    print(f"  waiting for batches: {waiting:.1f} % of the real loop's time")
    validation = product.prediction(
        [trainer.network], [[0]], product.subset(trainer.valid_set, real.batches.indices), compute
    )
    valid = harness.median_seconds({"valid": validation}, 1)["valid"]
    for name in ("real", "plain"):
        hours = FOLDS * EPOCHS * (TRAINED * seconds[name] + HELD_OUT * valid) / 3600
        work = f"18,900 photographs x {EPOCHS} epochs x {FOLDS} folds"
        print(f"  {work}, {name} training: {hours:.2f} hours")


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=3)
    harness.add_machine_options(parser)
    parser.add_argument("root", help="training root (train.csv and images/)")
    parser.add_argument(
        "--backbone", help="this network alone (default: b3 at 224 px, lite0 at 96)"
    )
    parser.add_argument("--image-size", type=int, default=224, help="for --backbone")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--batches", type=int, help="batches of a turn (default: 3 for b3 and 24 for lite0)"
    )
    parser.add_argument("--transform-type", default="random")
    parser.add_argument(
        "--compile", action="store_true", help="compile the real loop's network, as train.py does"
    )
    harness.add_plain_option(parser)
    args = parser.parse_args(argv)
    if args.plain:
        harness.serve(plain_side(args))
        return 0
    print(harness.describe_machine(args.device))
    cases = {args.backbone: (args.image_size, 3)} if args.backbone else CASES
    for backbone, (size, batches) in cases.items():
        measure(args, backbone, size, args.batches or batches)
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
