#!/usr/bin/env python3
"""Loading: photographs a second and core of every transform, against decoding and torchvision's v1.

    python -m benchmarks.loading_speed input/data/train

One process, one thread; the files lie in the system's cache after a first pass over them. Sides,
in turns over the same photographs (spread over the folder):

- decode: Image.open(...).convert("RGB") of the whole photograph and nothing else (the limit where
  nothing can be left out);
- v1: the same, then CenterCrop(384), RandomResizedCrop, RandAugment(2, 9), ToTensor, Normalize of
  torchvision.transforms; valid: CenterCrop(384), Resize in place of the random steps;
- each --transform-type: an item of the dataset, in its training and its validation form, ready for
  collation (uint8; it is normalised on the device); those that --cache ram takes with its decoded
  squares too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness  # isort: skip  (before torch, whose threads it sets up)

import torch
from torchvision import transforms

import augmentation
import dataset
import registries
from benchmarks import plain
from data import tables


def every(paths: list[str], load: Callable[[str], object]) -> harness.Side:
    """A side that loads every photograph once."""

    def side() -> int:
        for path in paths:
            load(path)
        return len(paths)

    return side


def items(photos: dataset.ImageDataset) -> harness.Side:
    """A side that reads every item of the dataset once, with other random draws each time."""
    epoch = 0

    def side() -> int:
        nonlocal epoch
        epoch += 1
        for i in range(len(photos)):
            photos[(epoch, i, 0)]
        return len(photos)

    return side


def make_sides(paths: list[str], size: int) -> dict[str, harness.Side]:
    """All sides at one image size; those that are cached have had their first turn."""
    sides: dict[str, harness.Side] = {"decode": every(paths, plain.read)}
    resize = plain.pipeline(transforms.Resize((size, size)))
    for word, steps in (("train", plain.training_pipeline(size)), ("valid", resize)):
        sides[f"v1 {word}"] = every(paths, lambda path, steps=steps: steps(plain.read(path)))  # type: ignore[misc]
        for name in registries.TRANSFORMS:
            form = getattr(augmentation.forms(name, size), word)
            view = augmentation.View(form, ("benchmark",))
            sides[f"{name} {word}"] = items(dataset.ImageDataset(paths, paths, [view]))
            if isinstance(form, augmentation.Crop):
                squares = dataset.CropCache(len(paths))
                cached = items(dataset.ImageDataset(paths, paths, [view], squares=squares))
                cached()
                sides[f"{name} {word}, cached"] = cached
    return sides


def compare_with_v1(seconds: dict[str, float], suffix: str) -> str:
    """How many times as fast as v1 each transform type is, in training and validation."""
    return "   ".join(
        f"{name} {seconds['v1 train'] / seconds[f'{name} train{suffix}']:.2f} "
        f"{seconds['v1 valid'] / seconds[f'{name} valid{suffix}']:.2f}"
        for name in registries.TRANSFORMS
        if f"{name} train{suffix}" in seconds
    )


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=5)
    parser.add_argument("root", help="training root (train.csv and images/)")
    parser.add_argument("--image-size", type=int, nargs="+", default=[224, 96])
    parser.add_argument("--images", type=int, default=150, help="photographs of a turn")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(harness.describe_machine())
    paths = harness.spread(tables.read_train(args.root)["path"].tolist(), args.images)
    for size in args.image_size:
        sides = make_sides(paths, size)
        sides["decode"]()
        seconds = harness.median_seconds(sides, args.rounds)
        title = f"{len(paths)} photographs to {size} px on one core:"
        harness.print_rates(title, seconds, "images", "decode")
        print(
            f"  times as fast as v1, training and validation: {compare_with_v1(seconds, '')}"
            "   (aim: 1.5 for tta in training)"
        )
        cached = compare_with_v1(seconds, ", cached")
        print(f"  the same with --cache ram, from the second epoch on: {cached}")
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
