#!/usr/bin/env python3
"""timm on the same people: python -m experiments.timm_peer DATA OUT.npz [--seed 1] [--epochs 6]

timm's package holds its factories but not its training script, so they are wired here in the order
in which that script has them; options have its names. Model tf_efficientnet_lite0 with 18 outputs:
the ImageNet weights of the project's package are this network's, in the same order of layers under
other names; after loading, both networks give the same features. Photographs go through
create_loader: in training a random window (--scale), mirroring, RandAugment (--aa) and random
erasing (--reprob), or --mixup; in evaluation the short side at image size / --crop-pct, the middle
cut out, pixels brought to the mean and deviation that timm has for this model. AdamW, a cosine with
warm-up that moves at every step (--sched-on-updates there), label smoothing, on request an average
of the weights (--model-ema).

Defaults are for fine-tuning; the script's own (SGD, rate 0.05 and so on) are for 300 epochs of
ImageNet. The epoch with the best accuracy on the held-out people is taken, as the script's
model_best is. One view answers, as in timm's inference.py.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import backbones
from benchmarks import harness
from experiments import peers
from runtime.errors import UserError

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


def make_network(args: argparse.Namespace) -> Any:
    """timm's network with the package's ImageNet weights and a classifier that starts afresh."""
    import timm

    options = {"num_classes": peers.CLASSES, "drop_rate": args.drop}
    network = timm.create_model(NAME, pretrained=False, **options)
    own, weights = network.state_dict(), backbones.efficientnet_lite0_weights(peers.BACKBONE)
    for name, value in zip(list(own), weights.values(), strict=True):
        if name.startswith("classifier."):
            continue
        if value.shape != own[name].shape:
            shapes = f"{name} is {list(own[name].shape)} for {list(value.shape)}"
            raise UserError(f"{NAME}: {shapes}; use timm 1.0")
        own[name] = value
    network.load_state_dict(own)
    return network


def make_loader(
    args: argparse.Namespace,
    data_config: dict[str, Any],
    paths: Sequence[str],
    classes: Sequence[int],
    training: bool,
) -> Any:
    """timm's loader with its transforms; data_config: what timm has for the model's input."""
    from timm import data as timm_data

    transform = {name: data_config[name] for name in ("crop_pct", "interpolation")}
    if training:
        transform = {
            "scale": args.scale,
            "auto_augment": args.aa or None,
            "re_prob": args.reprob,
            "re_mode": "pixel",
            "color_jitter": args.color_jitter,
            "interpolation": "random",
        }
    return timm_data.create_loader(
        timm_data.ImageDataset("", reader=Reader(paths, classes)),
        input_size=data_config["input_size"],
        batch_size=args.batch_size,
        is_training=training,
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=0,
        device=CPU,
        **transform,
    )


def answer(network: nn.Module, loader: Any) -> np.ndarray:
    """Probabilities [images, classes]."""
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(images).softmax(1) for images, _ in loader]).numpy()


def train(
    args: argparse.Namespace, network: nn.Module, loader: Any, held_out: Any, truth: np.ndarray
) -> tuple[nn.Module, float]:
    """(the network of the best epoch, its macro F1 on the held-out people)."""
    from timm import optim as timm_optim
    from timm.data import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    optimizer = timm_optim.create_optimizer_v2(
        network, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=0.9
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=1e-5,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    average = mixup = None
    if args.model_ema:
        average = ModelEmaV3(network, decay=args.model_ema_decay, use_warmup=True)
    criterion: nn.Module = LabelSmoothingCrossEntropy(args.smoothing)
    if args.mixup:
        smoothing, classes = args.smoothing, peers.CLASSES
        mixup = Mixup(mixup_alpha=args.mixup, label_smoothing=smoothing, num_classes=classes)
        criterion = SoftTargetCrossEntropy()
    best, best_accuracy, best_f1, step = network, -1.0, 0.0, 0
    for epoch in range(args.epochs):
        network.train()
        total = 0.0
        for images, labels in loader:
            if mixup is not None:
                images, labels = mixup(images, labels)
            loss = criterion(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.item()
            if average is not None:
                average.update(network, step=step)
            schedule.step_update(num_updates=step)
        schedule.step(epoch + 1)
        current = network if average is None else average.module
        probabilities = answer(current, held_out)
        accuracy = float(np.mean(probabilities.argmax(1) == truth))
        macro_f1 = peers.macro_f1(truth, probabilities)
        print(
            f"epoch {epoch + 1}: loss {total / max(len(loader), 1):.4f}  "
            f"accuracy {accuracy:.4f}  macro F1 {macro_f1:.4f}",
            flush=True,
        )
        if accuracy > best_accuracy:
            best, best_accuracy, best_f1 = copy.deepcopy(current), accuracy, macro_f1
    return best, best_f1


def train_and_answer(args: argparse.Namespace, data: peers.Data) -> peers.Result:
    """Train and answer in one view."""
    import timm
    from timm.data import resolve_data_config
    from timm.utils import random_seed

    random_seed(args.seed)
    network = make_network(args)
    size = {"img_size": args.image_size, "crop_pct": args.crop_pct}
    data_config = resolve_data_config(size, model=network)

    def loader(paths: list[str], classes: list[int], training: bool = False) -> Any:
        return make_loader(args, data_config, paths, classes, training)

    labels, truth = data.train[peers.TASK].tolist(), data.held_out[peers.TASK].to_numpy()
    batches = loader(data.train["path"].tolist(), labels, training=True)
    start = peers.cpu_seconds()
    held_out = loader(data.held_out["path"].tolist(), truth.tolist())
    best, macro_f1 = train(args, network, batches, held_out, truth)
    trained = peers.cpu_seconds()
    probabilities = answer(best, loader(data.paths, [0] * len(data.paths)))
    answered = peers.cpu_seconds()
    package = f"timm {timm.__version__}"
    return peers.Result(probabilities, macro_f1, trained - start, answered - trained, package)


def main(argv: list[str] | None = None) -> int:
    parser = peers.make_parser(__doc__)
    add = parser.add_argument
    add("--opt", default="adamw")
    add("--lr", type=float, default=1e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--warmup-epochs", type=int, default=1)
    text = "RandAugment's policy; '' for none; its inc1 form asks Pillow for 0 bits"
    add("--aa", default="rand-m9-mstd0.5", help=text)
    add("--color-jitter", type=float, default=0.4, help="used where --aa is ''")
    text = "part of the photograph that a window takes"
    add("--scale", type=float, nargs=2, default=[0.08, 1.0], help=text)
    add("--reprob", type=float, default=0.25, help="of random erasing")
    add("--mixup", type=float, default=0.0, help="alpha; 0 for none")
    add("--smoothing", type=float, default=0.1)
    add("--drop", type=float, default=0.2, help="dropout before the classifier")
    add("--model-ema", action="store_true")
    add("--model-ema-decay", type=float, default=0.9998, help="its upper end; it warms up")
    add("--crop-pct", type=float, default=0.875, help="in evaluation")
    return peers.run(parser.parse_args(argv), train_and_answer)


if __name__ == "__main__":
    harness.run_main(main, __file__)
