#!/usr/bin/env python3
"""Training: photographs a second of the real loop, of the network's own limit, and of a plain loop.

    python benchmarks/training_speed.py input/data/train                       both networks below,
    about 4 minutes python benchmarks/training_speed.py input/data/train --device cuda --batches 100
    --batch-size 256

Sides, taking turns in one run (after a first turn or step that does not count):

- real: engine.train_epoch over loading.loader as train.py sets them up (training.prepare_fold),
  over --batches batches of
  files. Every turn is an epoch of its own, so that filling the pipeline counts in full, though a
  real epoch is far longer.
- limit: forward, loss, backward, step on one batch that lies on the device, channels last, native
  SiLU, fused Adam; on
  a GPU also with torch.compile and as a CUDA graph, in the real loop's precision; the fastest of
  them is the limit.
- plain: as a tutorial has it: efficientnet_pytorch with its defaults (memory-efficient swish),
  float32, contiguous,
  torchvision's v1 transforms on Pillow images, a DataLoader without workers, loss.item() and
  scikit-learn's scores at every step, Adam as it comes, in a process of its own (whose threads wait
  as the project's do, which flatters it where the machine has other work). EfficientNet-lite0 is
  not in that library: the project's network, contiguous.
- cached: the real loop with --cache ram, whose first turn (which does not count) decodes the
  photographs; below 224 px, where
  decoding weighs.

Printed as well: the part of the real loop's time that it waits for its next batch, and how long
18,900 photographs x 30 epochs x 5 folds take at the measured rates (a fold trains on 15,120
photographs and validates on 3,780, an epoch).
Weights are random: they do not change the speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timing
import torch
from efficientnet_pytorch import VALID_MODELS, EfficientNet
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import augmentation
import config
import dataset
import engine
import loading
import loss
import model as models
import optim
import prepare
import tables
import training
import utils

CASES = {"efficientnet-b3": (224, 3), "efficientnet-lite0": (96, 24)}  # image size, batches a turn
FOLDS, EPOCHS, TRAINED, HELD_OUT = 5, 30, 15120, 3780


class Waiting:
    """A loader that keeps the seconds spent waiting for its batches."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.batch_sampler, self.dataset = loader, loader.batch_sampler, loader.dataset
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class Real:
    """The project's own training loop, a turn an epoch."""

    def __init__(self, study: prepare.Study, batches: int) -> None:
        self.compute = study.compute
        self.fold = training.prepare_fold(study, 0)
        size = study.settings.batch_size
        wanted = self.fold.batches.indices
        indices = (wanted * (batches * size // len(wanted) + 1))[: batches * size]
        self.batches = dataset.Batches(indices, size, ("benchmark",), least=2)
        self.loader = Waiting(
            loading.loader(
                self.fold.training, self.batches, self.compute.workers, self.compute.device
            )
        )
        self.task, self.seconds = study.settings.task, 0.0

    def __call__(self) -> int:
        start = time.perf_counter()
        engine.train_epoch(
            self.fold.learner,
            self.fold.recipe,
            self.loader,
            self.fold.labels,
            self.task,
            self.compute,
            0,
        )
        self.batches.epoch += 1
        self.seconds += time.perf_counter() - start
        return len(self.batches.indices)


def network_of(backbone: str, size: int, compute: engine.Compute) -> nn.Module:
    """The network that the real loop trains."""
    made = models.build("VanillaEfficientNet", "main", backbone, size)
    return models.place(made, compute.device).train()


def bare_step(backbone: str, size: int, compute: engine.Compute, kind: str) -> Callable[[], None]:
    """One training step on a resident batch: eager, compiled or as a CUDA graph."""
    network, device = network_of(backbone, size, compute), compute.device
    optimizer = optim.make_optimizer("adam", models.parameter_groups(network, 1.0), 0.001, 0.0)
    if kind == "graph":
        for group in optimizer.param_groups:
            group["capturable"] = True
    forward: Callable[[Tensor], dict[str, Tensor]] = (
        models.compiled(network) if kind == "compiled" else network
    )
    criterion = loss.make_loss("labelsmoothingloss")
    images = torch.randn(compute.batch_size, 3, size, size, device=device).to(
        memory_format=torch.channels_last
    )
    labels = torch.arange(compute.batch_size, device=device) % 18

    def step() -> None:
        with compute.autocast():
            outputs = forward(images)["main"]
        optimizer.zero_grad(set_to_none=True)
        criterion(outputs.float(), labels).backward()
        optimizer.step()

    if kind != "graph":
        return step
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def repeated(step: Callable[[], None], batches: int, compute: engine.Compute) -> timing.Side:
    """A side of so many steps, until the device has done them."""

    def side() -> int:
        for _ in range(batches):
            step()
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        return batches * compute.batch_size

    return side


class Files(Dataset[tuple[Tensor, int]]):
    """Photographs as a tutorial reads them."""

    def __init__(self, paths: list[str], labels: list[int], size: int) -> None:
        self.paths, self.labels = paths, labels
        self.transform = transforms.Compose(
            [
                transforms.CenterCrop(384),
                transforms.RandomResizedCrop(size),
                transforms.RandAugment(2, 9),
                transforms.ToTensor(),
                transforms.Normalize(augmentation.IMAGENET_MEAN, augmentation.IMAGENET_DEVIATION),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[i]).convert("RGB")), self.labels[i]


def plain(args: argparse.Namespace) -> timing.Side:
    """The loop of a tutorial."""
    backbone, device, batch = args.backbone, torch.device(args.device), args.batch_size
    torch.set_num_threads(args.threads)
    table = tables.read_train(args.root)
    count = min(args.batches * batch, len(table))
    photos = Files(table["path"].tolist()[:count], table["main"].tolist()[:count], args.image_size)
    if backbone in VALID_MODELS:
        network: Any = EfficientNet.from_name(backbone, num_classes=18)
    else:
        network = config.resolve(config.backbone_entry(backbone).target)(backbone, args.image_size)
    network.to(device)
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


def validating(real: Real) -> timing.Side:
    """Validation as the real loop does it, over a turn's photographs."""

    def side() -> int:
        indices = real.batches.indices
        engine.predict(
            [real.fold.learner.model], [[0]], real.fold.validation, ["main"], real.compute, indices
        )
        return len(indices)

    return side


def measure(args: argparse.Namespace, backbone: str, size: int, batches: int) -> None:
    """One network: all sides in turn, and what follows from them."""
    settings = config.TrainSettings(
        train_root=args.root,
        backbone=backbone,
        image_size=size,
        batch_size=args.batch_size,
        pretrained="none",
        cv=FOLDS,
        transform_type=args.transform_type,
        device=args.device,
        precision=args.precision,
        workers=args.workers,
        threads=args.threads,
        compile=args.compile,
    ).completed()
    study, _ = prepare.set_up(settings)
    compute = study.compute
    real = Real(study, batches)
    sides: dict[str, timing.Side] = {"real": real}
    kinds = ("eager", "compiled", "graph") if compute.device.type == "cuda" else ("eager",)
    steps = {kind: bare_step(backbone, size, compute, kind) for kind in kinds}
    sides |= {
        f"bare step, {kind}": repeated(step, batches, compute) for kind, step in steps.items()
    }
    words = {
        "backbone": backbone,
        "image-size": size,
        "batch-size": args.batch_size,
        "batches": max(1, batches // 3),
        "device": str(compute.device),
        "threads": torch.get_num_threads(),
    }
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    elsewhere = sides["plain"] = timing.Elsewhere([__file__, args.root, *options, "--plain"])
    crops = isinstance(
        augmentation.forms(args.transform_type, size).train, augmentation.Crop
    )  # what --cache ram takes
    if crops and size < augmentation.NARROW:
        sides["cached"] = Real(
            dataclasses.replace(study, squares=dataset.Squares(len(study.table))), batches
        )
    for step in steps.values():
        step()
    for name in ("real", "plain", "cached"):
        if name in sides:
            sides[name]()  # its workers start here
    real.seconds = real.loader.seconds = 0.0
    seconds = timing.alternate(sides, args.rounds)
    elsewhere.close()
    best = min(
        (name for name in seconds if name.startswith("bare")), key=lambda name: seconds[name]
    )
    timing.show(
        f"{backbone} at {size} px, batch {args.batch_size}, {compute.precision} on "
        f"{compute.device}, "
        f"{torch.get_num_threads()} threads, {compute.workers} workers:",
        seconds,
        "images",
        best,
    )
    print(
        f"  real / limit {seconds[best] / seconds['real']:.3f}   real / plain "
        f"{seconds['plain'] / seconds['real']:.2f}   "
        "(aims: 0.95 and 2.4 for b3 at 224 px, 0.90 of the limit for lite0 at 96)"
    )
    if "cached" in seconds:
        print(f"  --cache ram gains {100 * (seconds['real'] / seconds['cached'] - 1):.1f} %")
    print(
        f"  waiting for batches: {100 * real.loader.seconds / real.seconds:.1f} % of the real "
        "loop's time"
    )
    valid = timing.alternate({"valid": validating(real)}, 1)["valid"]
    for name, trained in (("real", seconds["real"]), ("plain", seconds["plain"])):
        whole = FOLDS * EPOCHS * (TRAINED * trained + HELD_OUT * valid)
        print(
            f"  18,900 photographs x {EPOCHS} epochs x {FOLDS} folds, {name} training: "
            f"{whole / 3600:.2f} hours"
        )


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__, rounds=3)
    timing.machine_options(parser)
    parser.add_argument("root", help="training root (train.csv and images/)")
    parser.add_argument(
        "--backbone", help="this network alone (default: b3 at 224 px and lite0 at 96)"
    )
    parser.add_argument("--image-size", type=int, default=224, help="for --backbone")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--batches", type=int, help="batches of a turn (default: 3 for b3 and 24 for lite0)"
    )
    parser.add_argument("--transform-type", default="random")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the real loop's network, as train.py --compile does",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="serve as the plain side (the benchmark starts this itself)",
    )
    args = parser.parse_args(argv)
    if args.plain:
        timing.serve(plain(args))
        return 0
    cases = {args.backbone: (args.image_size, 3)} if args.backbone else CASES
    for backbone, (size, batches) in cases.items():
        measure(args, backbone, size, args.batches or batches)
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
