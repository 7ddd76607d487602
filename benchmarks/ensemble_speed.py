#!/usr/bin/env python3
"""Ensembles: prediction of 5 folds x 2 checkpoints x TTA 2 against its bare and its plain passes.

    python -m benchmarks.ensemble_speed input/data/train              b3 at 224 px, about 4 minutes

Sides, taking turns in one run, in passes of a photograph through a network (a photograph counts
members x views):

- real: engine.predict with the views that augmentation.plan_views gives for `tta`: files in,
  probabilities out. The start of its reading processes counts; building the networks and their
  faster copies does not.
- openvino fp32, openvino bf16: the same by --backend openvino, on a CPU where it is installed.
- limit: the same networks' own forwards, without copies, on resident tensors: channels last,
  native SiLU, inference mode, same batch.
- plain: one decoding pass per member and view (plain.py): a DataLoader without workers,
  torchvision's v1 transforms, normalised on the CPU, efficientnet_pytorch with its defaults,
  no_grad; in a process of its own. Every pass costs the same, so only --plain-passes of the 20 are
  timed in a turn.

Weights are random: they do not change the speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness  # isort: skip  (before torch, whose threads it sets up)

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

import augmentation
import dataset
import engine
from benchmarks import plain, product
from data import tables
from runtime import loading


def bare(
    networks: list[nn.Module], size: int, views: int, images: int, compute: engine.Compute
) -> harness.Side:
    """Forwards alone, on tensors that lie on the device."""
    count = min(compute.batch_size, images)
    batch = torch.randn(count, 3, size, size, device=compute.device)
    batch = batch.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def side() -> int:
        for network in networks:
            network.eval()
        for start in range(0, images, count):
            for network in networks:
                for _ in range(views):
                    with compute.autocast():
                        network(batch[: images - start])
        product.synchronize(compute.device)
        return images * views * len(networks)

    return side


def plain_side(args: argparse.Namespace, paths: list[str]) -> harness.Side:
    """A decoding pass for each member and view."""
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    network = plain.make_network(args.backbone, args.image_size, device)
    transform = plain.pipeline(transforms.RandomResizedCrop(args.image_size))
    photos = plain.PlainDataset(paths, [0] * len(paths), transform)

    @torch.no_grad()
    def side() -> int:
        network.eval()
        for _ in range(args.plain_passes):
            for images, _ in DataLoader(photos, batch_size=args.batch_size, num_workers=0):
                network(images.to(device)).softmax(1).cpu().numpy()
        return args.plain_passes * len(paths)

    return side


def start_plain(args: argparse.Namespace, device: torch.device) -> harness.ChildSide:
    """The plain side's process."""
    names = ("backbone", "image_size", "batch_size", "images", "plain_passes")
    options = {name.replace("_", "-"): getattr(args, name) for name in names}
    options |= {"device": str(device), "threads": torch.get_num_threads()}
    words = ["-m", "benchmarks.ensemble_speed", str(Path(args.root).absolute())]
    return harness.ChildSide([*words, *harness.as_options(options), "--plain"])


def measure(args: argparse.Namespace, paths: list[str]) -> dict[str, float]:
    """Seconds per pass of each side, which are printed."""
    size, compute = args.image_size, product.choose_compute(args, args.batch_size)
    names = [f"member {m}" for m in range(args.members)]
    networks = [product.make_network(args.backbone, size, compute) for _ in names]
    forms = [(name, "tta", size) for name in names]
    views, plan = augmentation.plan_views(forms, args.views, False)
    workers = loading.workers_that_fit_shared_memory(
        compute.workers, args.batch_size, size, len(views)
    )
    compute = dataclasses.replace(compute, workers=workers)
    ways = {"real": ("torch", compute)}
    if compute.device.type == "cpu" and importlib.util.find_spec("openvino"):
        for precision in ("fp32", "bf16"):
            other = dataclasses.replace(compute, precision=precision)
            ways[f"openvino {precision}"] = ("openvino", other)
    photos = dataset.ImageDataset([str(i) for i in range(len(paths))], paths, views)
    child = start_plain(args, compute.device)
    sides: dict[str, harness.Side] = {
        name: product.prediction(networks, plan, photos, own, backend)
        for name, (backend, own) in ways.items()
    }
    for side in sides.values():
        side()  # makes the copies
    sides |= {"limit": bare(networks, size, args.views, len(paths), compute), "plain": child}
    bare(networks[:1], size, 1, len(paths), compute)()
    child()
    seconds = harness.median_seconds(sides, args.rounds)
    child.close()
    title = (
        f"{len(names)} x {args.backbone} at {size} px, {args.views} views, {compute.precision} on "
        f"{compute.device}, {torch.get_num_threads()} threads, {compute.workers} workers:"
    )
    harness.print_rates(title, seconds, "passes", "limit")
    print(
        f"  real / limit, in time {seconds['real'] / seconds['limit']:.3f}   "
        f"faster than plain {seconds['plain'] / seconds['real']:.2f} times   "
        f"{1 / seconds['real'] / len(names) / args.views:.2f} photographs/s   "
        "(aims for 10 x b3 at 224 px, 2 views, against limit: 1.4 times as fast, by "
        "openvino 2.2 in float32 and 4 in bfloat16)",
        flush=True,
    )
    return seconds


def own_photos(args: argparse.Namespace) -> list[str]:
    """So many of the root's photographs, again and again where it has fewer."""
    own = harness.spread(tables.read_train(args.root)["path"].tolist(), args.images)
    return harness.cycle(own, args.images)


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=3)
    harness.add_machine_options(parser)
    parser.add_argument("root", help="training root whose photographs are answered")
    parser.add_argument("--backbone", default="efficientnet-b3")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--plain-passes", type=int, default=5)
    harness.add_plain_option(parser)
    args = parser.parse_args(argv)
    paths = own_photos(args)
    if args.plain:
        harness.serve(plain_side(args, paths))
        return 0
    print(harness.describe_machine(args.device))
    measure(args, paths)
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
