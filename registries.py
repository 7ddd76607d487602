"""Registries of models, backbones, losses, optimizers, schedules, transforms. Free of torch.

A `target` is "module:attribute", imported when it is first used.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass

from runtime.errors import UserError


@dataclass(frozen=True)
class Model:
    """A network, built as target(backbone, heads); heads: {task: outputs}, all on one backbone."""

    target: str
    backbone: str
    families: tuple[str, ...] = ()  # backbone families that fit; empty: any
    heads: tuple[str, ...] = ()  # tasks trained at once; empty: only --task
    alias: str = ""


@dataclass(frozen=True)
class Backbone:
    """A 1000-way network. target(name, padding_size) -> module; weights(name) -> its state dict."""

    target: str
    weights: str
    family: str


@dataclass(frozen=True)
class Loss:
    """target() -> module: (outputs [batch, classes], labels [batch]) -> the batch's mean."""

    target: str
    regression: bool = False  # outputs [batch, 1]


@dataclass(frozen=True)
class Optimizer:
    """target(parameter groups, lr, weight_decay), with its defaults for these two."""

    target: str
    lr_pretrained: float
    lr_scratch: float
    weight_decay: float


@dataclass(frozen=True)
class Schedule:
    """target(step after the warm-up, steps of a cycle) -> factor of the learning rate."""

    target: str
    cycles: bool  # whether NAME:E, with a cycle of E epochs, is another one


MIDDLE, FACE = "the middle 224 pixels", "the face"  # fields of view


@dataclass(frozen=True)
class Transform:
    """target(image_size) -> augmentation.Forms. `sees`: field of view in validation and at test."""

    target: str
    sees: str
    random_view: bool  # whether test views differ from each other
    random_form: str = ""  # where they do not: the transform for several views

    @property
    def of_face(self) -> bool:
        """Whether it crops to the face, whose place --boxes may give."""
        return self.sees == FACE


FOUR_HEADS = ("mask", "ageg", "gender", "main")  # of the THANets; MultiLabelTHANet lacks the last
MODELS: dict[str, Model] = {
    "VanillaEfficientNet": Model(
        "model:VanillaEfficientNet", "efficientnet-b3", ("efficientnet", "timm")
    ),
    "VanillaResNet": Model("model:VanillaResNet", "resnet50", ("resnet", "timm")),
    "MultiClassTHANet_MK1": Model(
        "model:MultiClassTHANet", "efficientnet-b3", heads=FOUR_HEADS, alias="MultiClassTHANet"
    ),
    "MultiLabelTHANet": Model("model:MultiLabelTHANet", "efficientnet-b0", heads=FOUR_HEADS[:3]),
    "THANet_MK1": Model("model:THANet", "efficientnet-b3", heads=FOUR_HEADS, alias="THANet"),
    "Factorised": Model("model:Factorised", "efficientnet-b3", heads=("mask", "gender", "year")),
}
EFFICIENTNET = Backbone("backbones:efficientnet", "backbones:efficientnet_weights", "efficientnet")
RESNET = Backbone("backbones:resnet", "backbones:resnet_weights", "resnet")
BACKBONES: dict[str, Backbone] = {
    **{f"efficientnet-b{i}": EFFICIENTNET for i in range(8)},
    "efficientnet-lite0": Backbone(
        "backbones:efficientnet_lite0", "backbones:efficientnet_lite0_weights", "efficientnet"
    ),
    **{f"resnet{n}": RESNET for n in (18, 34, 50, 101, 152)},
    "faceres": Backbone("backbones:faceres", "backbones:faceres_weights", "faceres"),
    "timm:NAME": Backbone("backbones:timm_backbone", "backbones:timm_weights", "timm"),
}
LOSSES: dict[str, Loss] = {
    "labelsmoothingloss": Loss("loss:LabelSmoothingLoss"),
    "focalloss": Loss("loss:FocalLoss"),
    "crossentropyloss": Loss("torch.nn:CrossEntropyLoss"),
    "mseloss": Loss("loss:MSELoss", regression=True),
    "smoothl1loss": Loss("loss:SmoothL1Loss", regression=True),
}
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer("optim:adam", 0.001, 0.005, 0.0),
    "adamp": Optimizer("optim:adamp", 0.001, 0.005, 0.01),
    "sgd": Optimizer("optim:sgd", 0.005, 0.005, 0.0),
    "momentum": Optimizer("optim:momentum", 0.005, 0.005, 0.0),
}
TRANSFORMS: dict[str, Transform] = {
    "base": Transform("augmentation:base", MIDDLE, False, "tta"),
    "random": Transform("augmentation:random", MIDDLE, False, "tta"),
    "tta": Transform("augmentation:tta", "the middle 384 pixels", True),
    "facecrop": Transform("augmentation:facecrop", FACE, False, "facerandom"),
    "facerandom": Transform("augmentation:facerandom", FACE, True),
}
SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule("optim:cosine_annealing", cycles=True),
    "none": Schedule("optim:constant", cycles=False),
}
BACKENDS: dict[str, str] = {  # target(network, images) -> what predicts in its place
    "torch": "model:fold_batchnorms",
    "openvino": "inference.openvino_backend:convert",
}
TIMM = "timm:"  # before the names of timm's backbones


import_target = pkgutil.resolve_name  # of "module:attribute"


def backbone_name(text: str) -> str:
    """A backbone's name in the registry's case; timm's own names keep theirs."""
    if text.casefold().startswith(TIMM):
        return TIMM + text[len(TIMM) :]
    return {name.casefold(): name for name in BACKBONES}.get(text.casefold(), text)


def backbone_entry(name: str) -> Backbone:
    """The registry's entry. Raises UserError for an unknown name."""
    if name in BACKBONES:
        return BACKBONES[name]
    if not name.startswith(TIMM):
        raise UserError(f"--backbone {name}: unknown; choose from {', '.join(BACKBONES)}")
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name[len(TIMM) :]):  # no hub address, no path
        raise UserError(
            f"--backbone {name[:60]}: {TIMM} takes a timm model's name: letters, digits, _ and ."
        )
    return BACKBONES["timm:NAME"]


def trained_heads(model: str, task: str) -> tuple[str, ...]:
    """The tasks that a model trains at once: its own heads, or `task`."""
    return MODELS[model].heads or (task,)
