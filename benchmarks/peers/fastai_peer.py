#!/usr/bin/env python3
"""fastai on the same people: python benchmarks/peers/fastai_peer.py DATA OUT.npz [--seed 1]
[--epochs 6]

As fastai's own tutorials go about it: a DataBlock with Resize for each photograph (twice the
network's size, cropped to a square:
in training anywhere, else in the middle) and aug_transforms for the batch; the network cut into
body and fastai's usual head; fine_tune, that is one epoch of the head with the body frozen and then
--epochs of all with rates that grow towards the head; the last epoch is taken; tta, that is the
plain view with a quarter of the weight and four augmented ones. Every option is left at fastai's
default unless named here; the loss is cross entropy, --smoothing is its
LabelSmoothingCrossEntropyFlat.

Because of the frozen epoch it sees every photograph once more than a run of so many --epochs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peer
import torch
from torch import Tensor, nn

import model as models
import utils

FEATURES = 1280  # of EfficientNet-lite0 before its classifier


class Body(nn.Module):
    """The project's network without its classifier: images -> feature maps [batch, FEATURES,
    height, width].
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        network: Any = models.efficientnet_lite0(peer.BACKBONE, image_size)
        models.load_weights(
            network, models.efficientnet_lite0_weights(peer.BACKBONE), peer.BACKBONE
        )
        network._fc = nn.Identity()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(images)
        return maps


def loaders(args: argparse.Namespace, data: peer.Data) -> Any:
    """fastai's DataLoaders over both sides of the split."""
    from fastai.vision import all as fastai

    table = pd.concat([data.train, data.held_out], ignore_index=True)[["path", peer.TASK]]
    block = fastai.DataBlock(
        blocks=(
            fastai.ImageBlock,
            fastai.CategoryBlock(vocab=list(range(peer.CLASSES)), sort=False),
        ),
        get_x=fastai.ColReader("path"),
        get_y=fastai.ColReader(peer.TASK),
        splitter=fastai.IndexSplitter(range(len(data.train), len(table))),
        item_tfms=fastai.Resize(args.presize or 2 * args.image_size, method=args.resize_method),
        batch_tfms=[
            *fastai.aug_transforms(size=args.image_size),
            fastai.Normalize.from_stats(*fastai.imagenet_stats),
        ],
    )
    return block.dataloaders(table, bs=args.batch_size, num_workers=0, device=torch.device("cpu"))


def learner(args: argparse.Namespace, dls: Any) -> Any:
    """fastai's Learner, its body and head in two groups, so that fine_tune freezes the body."""
    from fastai.vision import all as fastai

    head = fastai.create_head(FEATURES, peer.CLASSES)
    fastai.apply_init(head, nn.init.kaiming_normal_)
    loss = (
        fastai.LabelSmoothingCrossEntropyFlat(eps=args.smoothing)
        if args.smoothing
        else fastai.CrossEntropyLossFlat()
    )
    return fastai.Learner(
        dls,
        nn.Sequential(Body(args.image_size), head),
        loss_func=loss,
        splitter=fastai.default_split,
        metrics=fastai.F1Score(average="macro"),
    )


def side(args: argparse.Namespace, data: peer.Data) -> peer.Result:
    """Train by fine_tune and answer by tta."""
    import fastai
    from fastai.vision import all as vision

    vision.set_seed(args.seed, reproducible=True)
    dls = loaders(args, data)
    learn = learner(args, dls)
    start = peer.cpu_seconds()
    with learn.no_bar():
        learn.fine_tune(args.epochs, base_lr=args.base_lr)
        trained = peer.cpu_seconds()
        held_out = float(learn.recorder.values[-1][-1])
        answers = dls.test_dl([Path(path) for path in data.paths])
        probabilities: np.ndarray = (learn.tta if args.tta else learn.get_preds)(dl=answers)[
            0
        ].numpy()
    return peer.Result(
        probabilities,
        held_out,
        trained - start,
        peer.cpu_seconds() - trained,
        f"fastai {fastai.__version__}",
    )


def main(argv: list[str] | None = None) -> int:
    parser = peer.options(__doc__)
    parser.add_argument(
        "--base-lr", type=float, default=2e-3, help="of fine_tune (default: fastai's)"
    )
    parser.add_argument("--smoothing", type=float, default=0.0, help="label smoothing")
    parser.add_argument(
        "--presize",
        type=int,
        help="side of each photograph before the batch is augmented (default: twice)",
    )
    parser.add_argument(
        "--resize-method",
        choices=("crop", "squish", "pad"),
        default="crop",
        help="how Resize makes a square",
    )
    parser.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="--no-tta: the plain view alone",
    )
    return peer.play(parser.parse_args(argv), side)


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
