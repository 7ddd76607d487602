#!/usr/bin/env python3
"""Ensembles: engine.predict of 5 folds x 2 checkpoints x TTA 2 against its 20 bare forwards and
against 20 plain passes.

    python benchmarks/ensemble_speed.py input/data/train                       b3 at 224 px, about 4
    minutes

Sides, taking turns in one run, in passes of a photograph through a network (a photograph counts
members x views):

- real: engine.predict with the views that augmentation.view_plan gives for `tta`: files in,
  probabilities out. The start
  of its reading processes counts; building the networks does not.
- limit: the same networks' forwards on resident tensors: channels last, native SiLU, inference
  mode, same batch.
- plain: one decoding pass per member and view: a DataLoader without workers, torchvision's v1
  transforms, normalised on
  the CPU, efficientnet_pytorch with its defaults (memory-efficient swish, contiguous, float32),
  no_grad; in a process of its own. Every pass costs the same, so only --plain-passes of the 20 are
  timed in a turn.

Weights are random: they do not change the speed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import timing
import torch
from efficientnet_pytorch import VALID_MODELS, EfficientNet
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import augmentation
import config
import dataset
import engine
import loading
import model as models
import tables
import utils


class Files(Dataset[Tensor]):
    """Photographs as a tutorial reads them."""

    def __init__(self, paths: list[str], size: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.CenterCrop(384),
                transforms.RandomResizedCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(augmentation.IMAGENET_MEAN, augmentation.IMAGENET_DEVIATION),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        seen: Tensor = self.transform(Image.open(self.paths[i]).convert("RGB"))
        return seen


def bare(
    networks: list[nn.Module], size: int, views: int, images: int, compute: engine.Compute
) -> timing.Side:
    """Forwards alone, on tensors that lie on the device."""
    count = min(compute.batch_size, images)
    batch = torch.randn(count, 3, size, size, device=compute.device).to(
        memory_format=torch.channels_last
    )

    @torch.inference_mode()
    def side() -> int:
        for network in networks:
            network.eval()
        for start in range(0, images, count):
            for network in networks:
                for _ in range(views):
                    with compute.autocast():
                        network(batch[: images - start])
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        return images * views * len(networks)

    return side


def plain(args: argparse.Namespace, paths: list[str]) -> timing.Side:
    """A decoding pass for each member and view."""
    backbone, size, device = args.backbone, args.image_size, torch.device(args.device)
    torch.set_num_threads(args.threads)
    if backbone in VALID_MODELS:
        network: Any = EfficientNet.from_name(backbone, num_classes=18)
    else:
        network = config.resolve(config.backbone_entry(backbone).target)(backbone, size)
    network.to(device)

    @torch.no_grad()
    def side() -> int:
        network.eval()
        for _ in range(args.plain_passes):
            for images in DataLoader(Files(paths, size), batch_size=args.batch_size, num_workers=0):
                network(images.to(device)).softmax(1).cpu().numpy()
        return args.plain_passes * len(paths)

    return side


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__, rounds=3)
    timing.machine_options(parser)
    parser.add_argument("root", help="training root whose photographs are answered")
    parser.add_argument("--backbone", default="efficientnet-b3")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--plain-passes", type=int, default=5)
    parser.add_argument(
        "--plain",
        action="store_true",
        help="serve as the plain side (the benchmark starts this itself)",
    )
    args = parser.parse_args(argv)
    found = tables.read_train(args.root)["path"].tolist()
    paths = (found[:: max(1, len(found) // args.images)] * args.images)[: args.images]
    if args.plain:
        timing.serve(plain(args, paths))
        return 0
    device = utils.choose_device(args.device)
    utils.set_threads(args.threads)
    precision = engine.choose_precision(args.precision, device)
    compute = engine.Compute(
        device, precision, loading.choose_workers(args.workers, device), args.batch_size
    )
    names = [f"member {m}" for m in range(args.members)]
    networks = [
        models.place(
            models.build("VanillaEfficientNet", "main", args.backbone, args.image_size), device
        )
        for _ in names
    ]
    views, plan = augmentation.view_plan(
        [(name, "tta", args.image_size) for name in names], args.views, False
    )
    photos = dataset.Photos([str(i) for i in range(len(paths))], paths, views)

    def real() -> int:
        engine.predict(networks, plan, photos, ["main"], compute)
        return len(paths) * len(views)

    words = {
        "backbone": args.backbone,
        "image-size": args.image_size,
        "batch-size": args.batch_size,
        "images": args.images,
        "plain-passes": args.plain_passes,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    elsewhere = timing.Elsewhere([__file__, args.root, *options, "--plain"])
    sides: dict[str, timing.Side] = {
        "real": real,
        "limit": bare(networks, args.image_size, args.views, len(paths), compute),
        "plain": elsewhere,
    }
    bare(networks[:1], args.image_size, 1, len(paths), compute)()
    elsewhere()
    seconds = timing.alternate(sides, args.rounds)
    elsewhere.close()
    timing.show(
        f"{len(names)} x {args.backbone} at {args.image_size} px, {args.views} views, {precision} "
        f"on {device}, "
        f"{torch.get_num_threads()} threads, {compute.workers} workers:",
        seconds,
        "passes",
        "limit",
    )
    print(
        f"  real / limit, in time {seconds['real'] / seconds['limit']:.3f}   faster than plain "
        f"{seconds['plain'] / seconds['real']:.2f} times   {1 / seconds['real'] / len(views):.2f} "
        "photographs/s   "
        "(aims for 10 x b3 at 224 px, 2 views: 1.1 and 2.5)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
