#!/usr/bin/env python3
"""Loading: photographs a second and core of every transform, against decoding alone and
torchvision's v1 pipeline.

    python benchmarks/loading_speed.py input/data/train

One process, one thread; the files lie in the system's cache after a first pass over them. Sides, in
turns over the same photographs (spread over the folder):

- decode: Image.open(...).convert("RGB") of the whole photograph and nothing else (the limit where
  nothing can be left out);
- v1: the same, then CenterCrop(384), RandomResizedCrop, RandAugment(2, 9), ToTensor, Normalize of
  torchvision.transforms;
  valid: CenterCrop(384), Resize in place of the random steps;
- each --transform-type: dataset.Photos' item, in its training and its validation form, ready for
  collation (uint8; the
  normalisation is done on the device by engine.Compute.to_network); those that --cache ram takes
  with its decoded squares too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import timing
import torch
from PIL import Image
from torchvision import transforms

import augmentation
import config
import dataset
import tables
import utils


def v1(size: int, training: bool) -> Callable[[str], object]:
    """A photograph's path -> its normalised tensor, as a tutorial does it."""
    random = [transforms.RandomResizedCrop(size), transforms.RandAugment(2, 9)]
    steps = transforms.Compose(
        [
            transforms.CenterCrop(384),
            *(random if training else [transforms.Resize((size, size))]),
            transforms.ToTensor(),
            transforms.Normalize(augmentation.IMAGENET_MEAN, augmentation.IMAGENET_DEVIATION),
        ]
    )
    return lambda path: steps(Image.open(path).convert("RGB"))


def over(paths: list[str], load: Callable[[str], object]) -> timing.Side:
    """A side that loads every photograph once."""

    def side() -> int:
        for path in paths:
            load(path)
        return len(paths)

    return side


def items(photos: dataset.Photos) -> timing.Side:
    """A side that reads every photograph of the dataset once, each time with other draws."""
    epoch = 0

    def side() -> int:
        nonlocal epoch
        epoch += 1
        for i in range(len(photos)):
            photos[(epoch, i, 0)]
        return len(photos)

    return side


def against_v1(seconds: dict[str, float], how: str) -> str:
    """How many times as fast as v1 each transform type is, in training and validation."""
    return "   ".join(
        f"{name} {seconds['v1 train'] / seconds[f'{name} train{how}']:.2f} "
        f"{seconds['v1 valid'] / seconds[f'{name} valid{how}']:.2f}"
        for name in config.TRANSFORMS
        if f"{name} train{how}" in seconds
    )


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__, rounds=5)
    parser.add_argument("root", help="training root (train.csv and images/)")
    parser.add_argument("--image-size", type=int, nargs="+", default=[224, 96])
    parser.add_argument("--images", type=int, default=150, help="photographs of a turn")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = tables.read_train(args.root)["path"].tolist()
    paths = found[:: max(1, len(found) // args.images)][: args.images]
    for size in args.image_size:
        sides: dict[str, timing.Side] = {
            "decode": over(paths, lambda path: Image.open(path).convert("RGB"))
        }
        for training in (True, False):
            word = "train" if training else "valid"
            sides[f"v1 {word}"] = over(paths, v1(size, training))
            for name in config.TRANSFORMS:
                forms = augmentation.forms(name, size)
                view = augmentation.View(forms.train if training else forms.valid, ("benchmark",))
                sides[f"{name} {word}"] = items(dataset.Photos(paths, paths, [view]))
                if isinstance(view.form, augmentation.Crop):
                    cached = dataset.Photos(
                        paths, paths, [view], squares=dataset.Squares(len(paths))
                    )
                    sides[f"{name} {word}, cached"] = items(cached)
                    sides[f"{name} {word}, cached"]()
        sides["decode"]()
        seconds = timing.alternate(sides, args.rounds)
        timing.show(
            f"{len(paths)} photographs to {size} px on one core:", seconds, "images", "decode"
        )
        print(
            f"  times as fast as v1, training and validation: {against_v1(seconds, '')}   (aim: "
            "1.5 for tta in training)"
        )
        print(
            "  the same with --cache ram, from the second epoch on: "
            f"{against_v1(seconds, ', cached')}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
