#!/usr/bin/env python3
"""fastai on the same people: python -m experiments.fastai_peer DATA OUT.npz [--seed 1] [--epochs 6]

As fastai's own tutorials go about it: a DataBlock with Resize for each photograph (twice the
network's size, cropped to a square: in training anywhere, else in the middle) and aug_transforms
for the batch; the network cut into body and fastai's usual head; fine_tune, that is one epoch of
the head with the body frozen and then --epochs of all with rates that grow towards the head; the
last epoch is taken; tta, that is the plain view with a quarter of the weight and four augmented
ones. Every option is left at fastai's default unless named here; the loss is cross entropy,
--smoothing is its LabelSmoothingCrossEntropyFlat.

Because of the frozen epoch it sees every photograph once more than a run of so many --epochs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import backbones
import model
from benchmarks import harness
from experiments import peers

FEATURES = 1280  # of EfficientNet-lite0 before its classifier


class Body(nn.Module):
    """The project's network without its classifier.

    Images -> feature maps [batch, FEATURES, height, width].
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        network: Any = backbones.efficientnet_lite0(peers.BACKBONE, image_size)
        weights = backbones.efficientnet_lite0_weights(peers.BACKBONE)
        model.load_weights(network, weights, peers.BACKBONE)
        network._fc = nn.Identity()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(images)
        return maps


def make_loaders(args: argparse.Namespace, data: peers.Data) -> Any:
    """fastai's DataLoaders over both sides of the split."""
    from fastai.vision import all as fastai

    table = pd.concat([data.train, data.held_out], ignore_index=True)[["path", peers.TASK]]
    normalize = fastai.Normalize.from_stats(*fastai.imagenet_stats)
    block = fastai.DataBlock(
        blocks=(
            fastai.ImageBlock,
            fastai.CategoryBlock(vocab=list(range(peers.CLASSES)), sort=False),
        ),
        get_x=fastai.ColReader("path"),
        get_y=fastai.ColReader(peers.TASK),
        splitter=fastai.IndexSplitter(range(len(data.train), len(table))),
        item_tfms=fastai.Resize(args.presize or 2 * args.image_size, method=args.resize_method),
        batch_tfms=[*fastai.aug_transforms(size=args.image_size), normalize],
    )
    cpu = torch.device("cpu")
    return block.dataloaders(table, bs=args.batch_size, num_workers=0, device=cpu)


def make_learner(args: argparse.Namespace, loaders: Any) -> Any:
    """fastai's Learner, its body and head in two groups, so that fine_tune freezes the body."""
    from fastai.vision import all as fastai

    head = fastai.create_head(FEATURES, peers.CLASSES)
    fastai.apply_init(head, nn.init.kaiming_normal_)
    loss = fastai.CrossEntropyLossFlat()
    if args.smoothing:
        loss = fastai.LabelSmoothingCrossEntropyFlat(eps=args.smoothing)
    return fastai.Learner(
        loaders,
        nn.Sequential(Body(args.image_size), head),
        loss_func=loss,
        splitter=fastai.default_split,
        metrics=fastai.F1Score(average="macro"),
    )


def train_and_answer(args: argparse.Namespace, data: peers.Data) -> peers.Result:
    """Train by fine_tune and answer by tta."""
    import fastai
    from fastai.vision import all as vision

    vision.set_seed(args.seed, reproducible=True)
    loaders = make_loaders(args, data)
    learner = make_learner(args, loaders)
    start = peers.cpu_seconds()
    with learner.no_bar():
        learner.fine_tune(args.epochs, base_lr=args.base_lr)
        trained = peers.cpu_seconds()
        held_out = float(learner.recorder.values[-1][-1])
        photos = loaders.test_dl([Path(path) for path in data.paths])
        predict = learner.tta if args.tta else learner.get_preds
        probabilities: np.ndarray = predict(dl=photos)[0].numpy()
    answered = peers.cpu_seconds()
    package = f"fastai {fastai.__version__}"
    return peers.Result(probabilities, held_out, trained - start, answered - trained, package)


def main(argv: list[str] | None = None) -> int:
    parser = peers.make_parser(__doc__)
    add = parser.add_argument
    add("--base-lr", type=float, default=2e-3, help="of fine_tune (default: fastai's)")
    add("--smoothing", type=float, default=0.0, help="label smoothing")
    text = "side of each photograph before the batch is augmented (default: twice)"
    add("--presize", type=int, help=text)
    methods = ("crop", "squish", "pad")
    add("--resize-method", choices=methods, default="crop", help="how Resize makes a square")
    both = argparse.BooleanOptionalAction
    add("--tta", action=both, default=True, help="--no-tta: the plain view alone")
    return peers.run(parser.parse_args(argv), train_and_answer)


if __name__ == "__main__":
    harness.run_main(main, __file__)
