#!/usr/bin/env python3
"""timm on the same people: python benchmarks/peers/timm_peer.py DATA OUT.npz [--seed 1] [--epochs
6]

timm's package holds its factories but not its training script, so they are wired here in the order
in which that script has them; options have its names. Model tf_efficientnet_lite0 with 18 outputs:
the ImageNet weights of the project's package are this network's, in the same order of layers under
other names; after loading, both networks give the same features. Photographs go through
create_loader: in training a random window (--scale), mirroring, RandAugment (--aa) and random
erasing (--reprob), or
--mixup; in evaluation the short side at image size / --crop-pct, the middle cut out, pixels brought
to the mean and deviation that timm tells of this model. AdamW, a cosine with warm-up that moves at
every step (--sched-on-updates there), label smoothing, on request an average of the weights
(--model-ema).

Defaults are for fine-tuning; the script's own (SGD, rate 0.05 and so on) are for 300 epochs of
ImageNet. The epoch with the best accuracy on the held-out people is taken, as the script's
model_best is. One view answers, as in timm's inference.py.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peer
import torch
from torch import nn

import model as models
import utils

NAME = "tf_efficientnet_lite0"
CPU = torch.device("cpu")


class Reader:
    """What timm's ImageDataset reads from: (open file, class)."""

    def __init__(self, paths: Sequence[str], classes: Sequence[int]) -> None:
        self.paths, self.classes = list(paths), [int(number) for number in classes]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return open(self.paths[index], "rb"), self.classes[index]


def network(args: argparse.Namespace) -> Any:
    """timm's network with the package's ImageNet weights and a classifier that starts afresh."""
    import timm

    made = timm.create_model(NAME, pretrained=False, num_classes=peer.CLASSES, drop_rate=args.drop)
    own, weights = made.state_dict(), models.efficientnet_lite0_weights(peer.BACKBONE)
    taken = {
        name: value
        for name, value in zip(own, weights.values(), strict=True)
        if not name.startswith("classifier.")
    }
    for name, value in taken.items():
        if value.shape != own[name].shape:
            raise utils.UserError(
                f"{NAME}: {name} is {list(own[name].shape)} for {list(value.shape)}; use timm 1.0"
            )
    made.load_state_dict(taken | {name: value for name, value in own.items() if name not in taken})
    return made


def loader(
    args: argparse.Namespace,
    told: dict[str, Any],
    paths: Sequence[str],
    classes: Sequence[int],
    training: bool,
) -> Any:
    """timm's loader with its transforms; `told` is what timm tells of the model's input."""
    from timm import data as timm_data

    form = (
        {
            "scale": args.scale,
            "auto_augment": args.aa or None,
            "re_prob": args.reprob,
            "re_mode": "pixel",
            "color_jitter": args.color_jitter,
            "interpolation": "random",
        }
        if training
        else {"crop_pct": told["crop_pct"], "interpolation": told["interpolation"]}
    )
    photos = timm_data.ImageDataset("", reader=Reader(paths, classes))
    return timm_data.create_loader(
        photos,
        input_size=told["input_size"],
        batch_size=args.batch_size,
        is_training=training,
        mean=told["mean"],
        std=told["std"],
        num_workers=0,
        device=CPU,
        **form,
    )


def answer(net: nn.Module, batches: Any) -> np.ndarray:
    """Probabilities [images, classes]."""
    net.eval()
    with torch.inference_mode():
        return torch.cat([net(images).softmax(1) for images, _ in batches]).numpy()


def train(
    args: argparse.Namespace, net: nn.Module, batches: Any, held_out: Any, truth: np.ndarray
) -> tuple[nn.Module, float]:
    """(the network of the best epoch, its macro F1 on the held-out people)."""
    from timm import optim as timm_optim
    from timm.data import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    optimizer = timm_optim.create_optimizer_v2(
        net, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=0.9
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=1e-5,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )
    average = (
        ModelEmaV3(net, decay=args.model_ema_decay, use_warmup=True) if args.model_ema else None
    )
    mixup = (
        Mixup(mixup_alpha=args.mixup, label_smoothing=args.smoothing, num_classes=peer.CLASSES)
        if args.mixup
        else None
    )
    loss_of: nn.Module = (
        SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(args.smoothing)
    )
    best, best_accuracy, score, step = net, -1.0, 0.0, 0
    for epoch in range(args.epochs):
        net.train()
        total = 0.0
        for images, classes in batches:
            if mixup is not None:
                images, classes = mixup(images, classes)
            loss = loss_of(net(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.item()
            if average is not None:
                average.update(net, step=step)
            schedule.step_update(num_updates=step)
        schedule.step(epoch + 1)
        judged = net if average is None else average.module
        probabilities = answer(judged, held_out)
        accuracy, macro_f1 = (
            float(np.mean(probabilities.argmax(1) == truth)),
            peer.macro_f1(truth, probabilities),
        )
        print(
            f"epoch {epoch + 1}: loss {total / max(len(batches), 1):.4f}  accuracy {accuracy:.4f} "
            f" macro F1 {macro_f1:.4f}",
            flush=True,
        )
        if accuracy > best_accuracy:
            best, best_accuracy, score = copy.deepcopy(judged), accuracy, macro_f1
    return best, score


def side(args: argparse.Namespace, data: peer.Data) -> peer.Result:
    """Train and answer in one view."""
    import timm
    from timm.data import resolve_data_config
    from timm.utils import random_seed

    random_seed(args.seed)
    net = network(args)
    told = resolve_data_config({"img_size": args.image_size, "crop_pct": args.crop_pct}, model=net)
    held, truth = data.held_out, data.held_out[peer.TASK].to_numpy()
    batches = loader(args, told, data.train["path"].tolist(), data.train[peer.TASK].tolist(), True)
    start = peer.cpu_seconds()
    best, score = train(
        args, net, batches, loader(args, told, held["path"].tolist(), truth.tolist(), False), truth
    )
    trained = peer.cpu_seconds()
    probabilities = answer(best, loader(args, told, data.paths, [0] * len(data.paths), False))
    return peer.Result(
        probabilities,
        score,
        trained - start,
        peer.cpu_seconds() - trained,
        f"timm {timm.__version__}",
    )


def main(argv: list[str] | None = None) -> int:
    parser = peer.options(__doc__)
    parser.add_argument("--opt", default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument(
        "--aa",
        default="rand-m9-mstd0.5",
        help="RandAugment's policy; '' for none; its inc1 form asks Pillow for 0 bits",
    )
    parser.add_argument("--color-jitter", type=float, default=0.4, help="used where --aa is ''")
    parser.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=[0.08, 1.0],
        help="part of the photograph that a window takes",
    )
    parser.add_argument("--reprob", type=float, default=0.25, help="of random erasing")
    parser.add_argument("--mixup", type=float, default=0.0, help="alpha; 0 for none")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--drop", type=float, default=0.2, help="dropout before the classifier")
    parser.add_argument("--model-ema", action="store_true")
    parser.add_argument(
        "--model-ema-decay", type=float, default=0.9998, help="its upper end; it warms up"
    )
    parser.add_argument("--crop-pct", type=float, default=0.875, help="in evaluation")
    return peer.play(parser.parse_args(argv), side)


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
