"""Label tables, registries, settings and argument parsers. Free of torch, so that `--help` and
refusals are quick.

A new task, model, backbone, loss, optimizer or transform is one entry in its registry here: the
command line, the help, the checks and the tests pick it up. A `target` is "module:attribute",
imported when it is first used.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

from labels import TASKS, head_spec
from runtime import errors
from runtime.errors import UserError

# --- registries


@dataclass(frozen=True)
class Model:
    """A network. Its target is built as target(backbone, heads), heads: {task: outputs}, all
    sharing one backbone.
    """

    target: str
    backbone: str
    families: tuple[str, ...] = ()  # backbone families that fit; empty: any
    heads: tuple[str, ...] = ()  # tasks trained at once; empty: the one task that is asked for
    alias: str = ""
    help: str = ""


@dataclass(frozen=True)
class Backbone:
    """Source of a 1000-way network. build: target(name, padding_size) -> module; weights:
    target(name) -> its state dict.
    """

    target: str
    weights: str
    family: str


@dataclass(frozen=True)
class Loss:
    target: str
    regression: bool
    help: str


@dataclass(frozen=True)
class Optimizer:
    """target(parameter groups, lr, weight_decay); its default rates on ImageNet weights and from
    scratch.
    """

    target: str
    lr_pretrained: float
    lr_scratch: float
    weight_decay: float
    help: str


FACE = "the face"


@dataclass(frozen=True)
class Transform:
    """target(image_size) -> augmentation.Forms. `sees`: the field of view of its validation form
    and of its test views.
    """

    target: str
    sees: str
    random_view: bool  # whether every test view is another one
    help: str
    random_form: str = ""  # where they are all alike: the transform to take for several views

    @property
    def of_face(self) -> bool:
        """Whether it cuts the face out, which --boxes can tell the place of."""
        return self.sees == FACE


@dataclass(frozen=True)
class Preset:
    """Settings of train.py under one name, {field: value}; an option that is given itself goes
    before.
    """

    options: Mapping[str, Any]
    help: str

    def __str__(self) -> str:
        return " ".join(
            f"--{name.replace('_', '-')} {value}" for name, value in self.options.items()
        )


MODELS: dict[str, Model] = {
    "VanillaEfficientNet": Model(
        "model:VanillaEfficientNet",
        "efficientnet-b3",
        ("efficientnet", "timm"),
        help="EfficientNet and a linear head",
    ),
    "VanillaResNet": Model(
        "model:VanillaResNet", "resnet50", ("resnet", "timm"), help="ResNet and a linear head"
    ),
    "MultiClassTHANet_MK1": Model(
        "model:MultiClassTHANet",
        "efficientnet-b3",
        heads=("mask", "ageg", "gender", "main"),
        alias="MultiClassTHANet",
        help="self-attention over three states, their outputs joined into the 18 classes",
    ),
    "MultiLabelTHANet": Model(
        "model:MultiLabelTHANet",
        "efficientnet-b0",
        heads=("mask", "ageg", "gender"),
        help="self-attention over three states, three label sets",
    ),
    "THANet_MK1": Model(
        "model:THANet",
        "efficientnet-b3",
        heads=("mask", "ageg", "gender", "main"),
        alias="THANet",
        help="four linear heads on one backbone",
    ),
    "Factorised": Model(
        "model:Factorised",
        "efficientnet-b3",
        heads=("mask", "gender", "year"),
        help="mask, gender and a distribution over the years of age, whose product answers main",
    ),
}

BACKBONES: dict[str, Backbone] = {
    **{
        f"efficientnet-b{i}": Backbone(
            "backbones:efficientnet", "backbones:efficientnet_weights", "efficientnet"
        )
        for i in range(8)
    },
    "efficientnet-lite0": Backbone(
        "backbones:efficientnet_lite0", "backbones:efficientnet_lite0_weights", "efficientnet"
    ),
    **{
        f"resnet{n}": Backbone("backbones:resnet", "backbones:resnet_weights", "resnet")
        for n in (18, 34, 50, 101, 152)
    },
    "timm:NAME": Backbone("backbones:timm_backbone", "backbones:timm_weights", "timm"),
}

LOSSES: dict[str, Loss] = {
    "labelsmoothingloss": Loss(
        "loss:LabelSmoothingLoss", False, "smoothing 0.2 spread over the other classes"
    ),
    "focalloss": Loss("loss:FocalLoss", False, "gamma 5"),
    "crossentropyloss": Loss("loss:CrossEntropyLoss", False, "plain cross entropy"),
    "mseloss": Loss("loss:MSELoss", True, "squared error, for age"),
    "smoothl1loss": Loss("loss:SmoothL1Loss", True, "Huber's error, for age"),
}

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer("optim:adam", 0.001, 0.005, 0.0, "Adam"),
    "adamp": Optimizer("optim:adamp", 0.001, 0.005, 0.01, "AdamP of the adamp package"),
    "sgd": Optimizer("optim:sgd", 0.005, 0.005, 0.0, "plain SGD"),
    "momentum": Optimizer("optim:momentum", 0.005, 0.005, 0.0, "SGD with momentum 0.9"),
}

TRANSFORMS: dict[str, Transform] = {
    "base": Transform(
        "augmentation:base",
        "the middle 224 pixels",
        False,
        "resized and cropped, no other change",
        "tta",
    ),
    "random": Transform(
        "augmentation:random", "the middle 224 pixels", False, "random crops and RandAugment", "tta"
    ),
    "tta": Transform(
        "augmentation:tta",
        "the middle 384 pixels",
        True,
        "as random; each test view is another crop",
    ),
    "facecrop": Transform(
        "augmentation:facecrop",
        FACE,
        False,
        "crop to the face, in training and at test",
        "facerandom",
    ),
    "facerandom": Transform(
        "augmentation:facerandom", FACE, True, "as facecrop, scaled and mirrored, and RandAugment"
    ),
}

PRESETS: dict[str, Preset] = {
    "seed": Preset(
        {"cv": 5, "transform_type": "tta", "lr": 0.001},
        "the winning line of the recipe that this toolkit grew from",
    ),
    "strong": Preset(
        {
            "cv": 5,
            "model_type": "Factorised",
            "transform_type": "facerandom",
            "loss_type": "crossentropyloss",
            "lr": 0.001,
        },
        "what won on the README's faces",
    ),
}

OVERSAMPLING = {
    "none": "photographs as they are",
    "repeat": "photographs of rarer classes come again, augmented anew",
    "mixup": "a rarer class is filled up with blends of two people of that class",
}
SCHEDULES = {"cosine": "annealed to 0, restarting after each cycle", "none": "constant"}
PRECISIONS = {
    "auto": "bf16 on a GPU that has it, else fp16 there, fp32 on a CPU",
    "fp32": "32 bit",
    "bf16": "bfloat16 autocast",
    "fp16": "float16 autocast with a gradient scaler",
}
CACHES = {
    "none": "photographs are decoded in every epoch",
    "ram": "decoded middle squares are kept in memory",
}
METHODS = {"softvoting": "three means of the probabilities", "hardvoting": "majority of the votes"}
METHOD_ALIASES = {"soft": "softvoting", "hard": "hardvoting"}
TIMM = "timm:"  # before the names of timm's backbones
NEWEST = "newest"  # --resume without a name
AUTO = "auto"  # --transform-type: the form that the checkpoint's own validation used
MAX_VIEWS = 1000  # of --tta

REMOVED_OPTIONS = {  # option of earlier versions: why it is gone
    "--prior-shift": "what it changed in macro F1 lay between -0.085 and +0.09",
    "--decision": "the rule for macro F1 gained +0.003 out of fold (-0.007 to +0.013)",
    "--weights": (
        "no gain of fitted weights over the validation F1, which weights the mean, is on record"
    ),
}


def import_target(target: str) -> Any:
    """Import "module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def backbone_name(text: str) -> str:
    """A backbone's name as the registry has it, from any case; timm's own names are left as they
    are.
    """
    if text.casefold().startswith(TIMM):
        return TIMM + text[len(TIMM) :]
    return {name.casefold(): name for name in BACKBONES}.get(text.casefold(), text)


def backbone_entry(name: str) -> Backbone:
    """The registry's entry. Raises UserError for a name it does not have."""
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith(TIMM):
        if not re.fullmatch(
            r"[A-Za-z0-9_.]+", name[len(TIMM) :]
        ):  # a hub's address or a path is none
            raise UserError(
                f"--backbone {name[:60]}: after {TIMM} comes the name of a timm model: letters, "
                "digits, _ and . only"
            )
        return BACKBONES["timm:NAME"]
    raise UserError(f"--backbone {name}: unknown; choose from {', '.join(BACKBONES)}")


def random_form_of(transform: str, views: int) -> str:
    """The transform to take for so many views: itself, or for several of a fixed one the one with
    random views.
    """
    return TRANSFORMS[transform].random_form or transform if views > 1 else transform


def check_views(transform: str, views: int) -> None:
    """Raise UserError where so many views by a transform would all be the same."""
    entry = TRANSFORMS[transform]
    if views > 1 and not entry.random_view:
        remedy = (
            f"use --transform-type {entry.random_form}, or --tta 1"
            if entry.random_form
            else "use --tta 1"
        )
        raise UserError(f"--tta {views}: transform {transform} shows every view alike; {remedy}")


def trained_heads(model: str, task: str) -> tuple[str, ...]:
    """The tasks a model trains at once: its own heads, or the one asked for."""
    return MODELS[model].heads or (task,)


# --- options and parsers


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included unless `above` (then low itself is out)."""

    kind: type
    low: float
    high: float = (
        1e6  # more than anybody needs of anything, and few enough to count and to name files by
    )
    above: bool = False

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is no {'whole ' if self.kind is int else ''}number"
            ) from None
        if not self.low <= value <= self.high or (self.above and value == self.low):
            bounds = (
                f"{'above' if self.above else 'at least'} {plain_number(self.low)} and at most "
                f"{plain_number(self.high)}"
            )
            raise argparse.ArgumentTypeError(f"{text[:40]} is out of range: it must be {bounds}")
        return value


def plain_number(number: float) -> str:
    """A bound as people write it: 0.5, 1,000,000."""
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


@dataclass(frozen=True, eq=False)
class Choice:
    """One name of a registry, or one more, in any case; an alias (of the entry, or given) stands
    for its name.
    """

    registry: Mapping[str, Any]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All names, those registered since this module was read too."""
        return [*self.registry, *self.more]

    def __call__(self, text: str) -> str:
        known = {name.casefold(): name for name in self.names} | {
            a.casefold(): n for a, n in self.aliases.items()
        }
        entries = {getattr(entry, "alias", ""): name for name, entry in self.registry.items()}
        known |= {alias.casefold(): name for alias, name in entries.items() if alias}
        if text.casefold() not in known:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not one of {', '.join(self.names)}")
        return known[text.casefold()]


def parse_fold_numbers(text: str) -> tuple[int, ...]:
    """`0,3` -> (0, 3)."""
    if not re.fullmatch(r"\d{1,7}(,\d{1,7})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r}: expected whole numbers with commas between, like 0,3"
        )
    return tuple(sorted({int(part) for part in text.split(",")}))


def parse_schedule(text: str) -> str:
    """`cosine`, `none`, or `cosine:10`: restarting every 10 epochs."""
    name, colon, cycle = text.casefold().partition(":")
    if colon and name == "cosine":
        return f"cosine:{Range(float, 0, 1e6, above=True)(cycle):g}"
    return Choice(SCHEDULES)(text)


def parse_weights_source(text: str) -> str:
    """`imagenet` and `none` in any case; a path as it is."""
    return text.casefold() if text.casefold() in ("imagenet", "none") else text


def option(
    group: str,
    help: str,
    default: Any = None,
    kind: Callable[[str], Any] = str,
    shown: str | None = None,
    metavar: str | None = None,
    const: Any = None,
    several: bool = False,
) -> Any:
    """A settings field that is also a command-line option. `shown`: how the help words the default;
    `const`: the value of the option given without one; `several`: it takes one value or more, as a
    tuple.
    """
    meta = {
        "group": group,
        "help": help,
        "kind": kind,
        "shown": shown,
        "metavar": metavar,
        "const": const,
        "several": several,
    }
    return dataclasses.field(default=default, metadata=meta)


DATA, MODEL, TRAINING, FOLDS, MACHINE, VOTING = (
    "data",
    "model",
    "training",
    "folds and checkpoints",
    "machine",
    "views and votes",
)
BESIDE = ""  # what few need: told below the groups of --help


@dataclass(frozen=True)
class MachineSettings:
    """Where and how fast; nothing here changes what is computed beyond rounding."""

    retry_remedy: ClassVar[str] = (
        "start it again"  # the remedy once what stopped the command is mended
    )

    device: str = option(MACHINE, "auto, cpu, cuda, cuda:1, mps ...", "auto", metavar="NAME")
    workers: int | None = option(
        MACHINE, "processes that read photographs", None, Range(int, 0, 1024), "by the processors"
    )
    threads: int | None = option(
        MACHINE, "torch's threads", None, Range(int, 1, 1024), "the processors"
    )
    precision: str = option(MACHINE, "arithmetic of the network", "auto", Choice(PRECISIONS))


@dataclass(frozen=True)
class TrainSettings(MachineSettings):
    """Everything `train.py` is asked for; `completed()` fills what depends on other options."""

    retry_remedy: ClassVar[str] = "go on with --resume"

    task: str = option(DATA, "what to learn", "main", Choice(TASKS))
    train_root: str = option(
        DATA, "folder of labelled photographs", "./input/data/train", metavar="DIR"
    )
    valid_root: str | None = option(
        DATA,
        "another such folder: validates a single split; with --cv above 1 scored once, by the "
        "final ensemble",
        metavar="DIR",
    )
    age_filter: int | None = option(
        DATA,
        "count people of this age and more as '60 and over' in the training labels",
        None,
        Range(int, 30, 60),
        metavar="AGE",
    )
    label_fixes: str | None = option(
        DATA,
        "corrections of labels: path,column,value (gender, age; or mask of a photograph) or "
        "image,mask; the folds stay",
        metavar="CSV",
    )
    transform_type: str = option(DATA, "crops and augmentation", "random", Choice(TRANSFORMS))
    boxes: str | None = option(
        DATA,
        "the faces' places (file,left,top,right,bottom) for facecrop and facerandom, from any "
        "detector",
        None,
        shown="found in the pixels",
        metavar="CSV",
    )
    skip_bad_images: bool = option(DATA, "train without the photographs that cannot be read", False)
    oversample: str = option(
        DATA, "bring every class up to the largest", "none", Choice(OVERSAMPLING)
    )
    image_size: int = option(
        DATA, "side in pixels of what the network sees", 224, Range(int, 16, 2048)
    )
    model_type: str = option(
        MODEL, "network (THANet, MultiClassTHANet: the _MK1)", "VanillaEfficientNet", Choice(MODELS)
    )
    backbone: str | None = option(
        MODEL,
        f"1000-way network below the head ({', '.join(BACKBONES)})",
        None,
        str,
        "the model's own",
        "NAME",
    )
    pretrained: str = option(
        MODEL,
        "where the backbone's weights come from: imagenet, none, or a state dict's PATH",
        "imagenet",
        parse_weights_source,
        metavar="SOURCE",
    )
    load_state_dict: str | None = option(MODEL, "train on from this checkpoint", metavar="PATH")
    epochs: int = option(TRAINING, "passes over the training people", 30, Range(int, 1))
    batch_size: int = option(TRAINING, "photographs in a step", 32, Range(int, 2))
    optim_type: str = option(TRAINING, "optimizer", "adam", Choice(OPTIMIZERS))
    loss_type: str | None = option(
        TRAINING, "loss", None, Choice(LOSSES), "labelsmoothingloss; smoothl1loss for age"
    )
    lr: float | None = option(
        TRAINING,
        "learning rate (0.005 wrecks pretrained weights under Adam)",
        None,
        Range(float, 0, above=True),
        "0.001 for adam and adamp on pretrained weights, else 0.005",
    )
    lr_scheduler: str = option(
        TRAINING,
        "learning rate over time; cosine:E restarts every E epochs",
        "cosine",
        parse_schedule,
        metavar="{cosine,cosine:E,none}",
    )
    warmup_epochs: float = option(TRAINING, "epochs of linear warm-up", 0.0, Range(float, 0))
    backbone_lr_scale: float = option(
        TRAINING, "the backbone's learning rate as a part of --lr", 1.0, Range(float, 0)
    )
    freeze: int = option(
        TRAINING, "epochs at the start in which the backbone stays as it is", 0, Range(int, 0)
    )
    weight_decay: float | None = option(
        TRAINING, "weight decay", None, Range(float, 0), "0.01 for adamp, else 0"
    )
    clip_grad: float | None = option(
        TRAINING, "largest norm of the gradient", None, Range(float, 0, above=True), "no clipping"
    )
    seed: int = option(
        TRAINING, "seed of every random draw but the split", 42, Range(int, 0, 2**63 - 1)
    )
    cv: int = option(
        FOLDS, "folds; 1 = a single split, one of ten folds held out", 1, Range(int, 1)
    )
    split_seed: int = option(FOLDS, "seed of the split into folds", 42, Range(int, 0, 2**32 - 1))
    save_path: str = option(
        FOLDS, "where the tree of checkpoints goes", "./saved_models", metavar="DIR"
    )
    run_name: str | None = option(
        FOLDS,
        "suffix of the tree's name; naming a run that is there completes it",
        None,
        shown="none, or the time",
        metavar="NAME",
    )
    resume: str | None = option(
        FOLDS,
        "go on with the newest unfinished run of this command, or with the one named",
        None,
        shown="a new run",
        metavar="NAME",
        const=NEWEST,
    )
    folds: tuple[int, ...] | None = option(
        FOLDS,
        "train only these of the --cv folds, like 0,3; runs of one --run-name share a tree",
        None,
        parse_fold_numbers,
        "all",
        "N,N",
    )
    save_top: int = option(
        FOLDS, "checkpoints kept per fold, by validation macro F1", 3, Range(int, 1)
    )
    compile: bool = option(
        MACHINE, "let torch.compile make the training step faster (minutes at the start)", False
    )
    dry_run: bool = option(
        MACHINE, "read, split, run one batch, estimate time and disk, and stop", False
    )
    quiet: bool = option(MACHINE, "neither bars nor a line per epoch", False)
    recipe: str | None = option(
        BESIDE,
        "settings by one name, which options given besides override: "
        + "; ".join(f"{name} ({recipe.help}) is {recipe}" for name, recipe in PRESETS.items()),
        None,
        Choice(PRESETS),
    )
    cache: str = option(
        BESIDE,
        "keep the photographs' decoded middle squares in memory: none, ram",
        "none",
        Choice(CACHES),
    )
    tensorboard: bool = option(
        BESIDE,
        "write each fold's history for TensorBoard, too; takes the package tensorboard",
        False,
    )

    @property
    def heads(self) -> tuple[str, ...]:
        return trained_heads(self.model_type, self.task)

    @property
    def cycle_epochs(self) -> float | None:
        """Length of cosine's cycle; None: the whole run."""
        _, _, cycle = self.lr_scheduler.partition(":")
        return float(cycle) if cycle else None

    def completed(self) -> TrainSettings:
        """Fill the defaults that hang on other options, and refuse what does not go together
        (UserError).
        """
        optimizer = OPTIMIZERS[self.optim_type]
        from_weights = self.pretrained != "none" or self.load_state_dict is not None
        filled = dataclasses.replace(
            self,
            backbone=backbone_name(self.backbone or MODELS[self.model_type].backbone),
            loss_type=self.loss_type
            or ("smoothl1loss" if TASKS[self.task].regression else "labelsmoothingloss"),
            lr=self.lr
            if self.lr is not None
            else optimizer.lr_pretrained
            if from_weights
            else optimizer.lr_scratch,
            weight_decay=optimizer.weight_decay if self.weight_decay is None else self.weight_decay,
        )
        try:
            check_training(filled)
        except UserError as error:
            raise self.blame_recipe(error) from None
        return filled

    def blame_recipe(self, error: UserError) -> UserError:
        """The error in the user's words: where what it names was set by --recipe, with that and how
        to override it.
        """
        options = PRESETS[self.recipe].options if self.recipe else {}
        named = {
            n: v
            for n, v in options.items()
            if isinstance(v, str) and getattr(self, n) == v and v in str(error)
        }
        if not named:
            return error
        wrong, others = (
            str(error).partition("; ")[0],
            " and ".join(f"--{name.replace('_', '-')}" for name in named),
        )
        return UserError(
            f"{wrong}, and --recipe {self.recipe} sets {Preset(named, '')}; leave --recipe out, "
            "or give another "
            f"{others}"
        )

    @property
    def recipe_line(self) -> str:
        """The options that a recipe stands for, with the values that the run takes: those given
        besides go before.
        """
        options = (
            {name: getattr(self, name) for name in PRESETS[self.recipe].options}
            if self.recipe
            else {}
        )
        return f"recipe {self.recipe}: {Preset(options, '')}"

    def explain_lr(self, given: float | None) -> str:
        """Which learning rate the run takes, and why."""
        if given is not None:
            by_recipe = self.recipe is not None and PRESETS[self.recipe].options.get("lr") == given
            return f"learning rate {given:g} ({f'--recipe {self.recipe}' if by_recipe else '--lr'})"
        completed = self.completed()
        start = (
            "from scratch"
            if self.pretrained == "none" and not self.load_state_dict
            else "on pretrained weights"
        )
        wrecked = completed.lr != 0.005 and start == "on pretrained weights"
        why = ": 0.005 wrecks them under this optimizer" if wrecked else ""
        return f"learning rate {completed.lr:g} (the default of {self.optim_type} {start}{why})"


def check_boxes(boxes: str | None, *transforms: str) -> None:
    """Boxes are read by the face crop alone."""
    of_face = [name for name, entry in TRANSFORMS.items() if entry.of_face]
    if boxes is not None and not {*of_face, AUTO} & set(transforms):
        raise UserError(
            f"--boxes {boxes}: only --transform-type {' and '.join(of_face)} read them; add one, "
            "or leave it out"
        )


def check_training(s: TrainSettings) -> None:
    """Refuse settings that do not go together, naming the option and the remedy."""
    task, loss, model = TASKS[s.task], LOSSES[s.loss_type or ""], MODELS[s.model_type]
    if model.heads and s.task not in model.heads and (task.regression or not task.from_main):
        able = [name for name, entry in MODELS.items() if not entry.heads]
        raise UserError(
            f"--task {s.task}: {s.model_type} has no head for it; use --model-type "
            f"{' or '.join(able)}"
        )
    if task.regression != loss.regression:
        fits = [name for name, entry in LOSSES.items() if entry.regression == task.regression]
        raise UserError(
            f"--loss-type {s.loss_type}: does not fit --task {s.task}; use {', '.join(fits)}"
        )
    entry = backbone_entry(s.backbone or "")
    if model.families and entry.family not in model.families:
        fits = [name for name, b in BACKBONES.items() if b.family in model.families]
        raise UserError(
            f"--backbone {s.backbone}: does not fit {s.model_type}; use one of {', '.join(fits)}"
        )
    grouped = [
        h
        for h in s.heads
        if not (spec := head_spec(h)).regression and spec.label(0, 0, 59) != spec.label(0, 0, 60)
    ]
    if s.age_filter is not None and not grouped:
        raise UserError(
            f"--age-filter {s.age_filter}: --task {s.task} has no age groups to filter; leave it "
            "out"
        )
    if s.cycle_epochs is not None and s.cycle_epochs + s.warmup_epochs > s.epochs:
        raise UserError(
            f"--lr-scheduler {s.lr_scheduler}: a cycle longer than --epochs {s.epochs}; make it "
            "shorter"
        )
    if s.folds is not None and (s.folds[-1] >= s.cv or s.run_name is None):
        remedy = (
            f"count from 0 to {s.cv - 1}"
            if s.folds[-1] >= s.cv
            else "name the tree that they share with --run-name"
        )
        raise UserError(f"--folds {','.join(map(str, s.folds))}: {remedy}")
    if s.resume is not None and s.run_name is not None:
        raise UserError(
            f"--resume: --run-name {s.run_name} goes on with that run already; leave one of them "
            "out"
        )
    if s.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard: the package tensorboard is not there; pip install tensorboard, or "
            "leave it out"
        )
    if s.freeze >= s.epochs:
        raise UserError(
            f"--freeze {s.freeze}: must be fewer than --epochs {s.epochs}, or the backbone never "
            "learns"
        )
    if s.load_state_dict is not None and s.pretrained not in ("imagenet", "none"):
        raise UserError(
            f"--pretrained {s.pretrained}: --load-state-dict brings all weights; leave one of "
            "them out"
        )
    check_boxes(s.boxes, s.transform_type)
    if s.warmup_epochs >= s.epochs:
        raise UserError(
            f"--warmup-epochs {s.warmup_epochs:g}: must be fewer than --epochs {s.epochs}"
        )


@dataclass(frozen=True)
class PredictSettings(MachineSettings):
    """What both submit scripts share."""

    task: str = option(DATA, "what to answer", "main", Choice(TASKS))
    data_root: str | None = option(
        DATA,
        "evaluation folder, or its folder of images",
        None,
        shown="./input/data/images, else ./input/data/eval/images",
        metavar="DIR",
    )
    save_path: str = option(
        DATA, "where the folder of predictions goes", "./prediction", metavar="DIR"
    )
    boxes: str | None = option(
        DATA,
        "the faces' places (file,left,top,right,bottom) for facecrop and facerandom, from any "
        "detector",
        None,
        shown="found in the pixels",
        metavar="CSV",
    )
    skip_bad_images: bool = option(
        DATA, "answer photographs that cannot be read with the most frequent class", False
    )
    answers: str | None = option(
        DATA,
        "true answers (ImageID,ans; one of the 18 classes, whatever --task), to score against",
        metavar="CSV",
    )
    batch_size: int = option(MACHINE, "photographs in a forward pass", 32, Range(int, 1))


@dataclass(frozen=True)
class SingularSettings(PredictSettings):
    """Everything `submit_singular.py` is asked for."""

    model_type: str | None = option(
        MODEL, "network of the checkpoint to look for", None, Choice(MODELS), "whatever the run has"
    )
    load_state_dict: str | None = option(
        MODEL,
        "checkpoint",
        None,
        shown="the best of the newest tree under ./saved_models that answers the task",
        metavar="PATH",
    )
    transform_type: str = option(
        DATA,
        "crop; auto: as the checkpoint's validation saw it",
        "base",
        Choice(TRANSFORMS, more=(AUTO,)),
    )

    def completed(self) -> SingularSettings:
        """Refuse what does not go together (UserError)."""
        check_boxes(self.boxes, self.transform_type)
        return self


@dataclass(frozen=True)
class EnsembleSettings(PredictSettings):
    """Everything `submit_ensemble.py` is asked for."""

    root: tuple[str, ...] | None = option(
        MODEL,
        "trees of checkpoints that vote together, or folders that hold one; those of mask, gender "
        "and ageg multiply into "
        "main",
        None,
        shown="the newest kfold-ensemble-* under ./saved_models that answers the task",
        metavar="DIR",
        several=True,
    )
    from_probs: str | None = option(
        VOTING,
        "folder of an earlier prediction: vote again on its probs.npz, without a forward pass",
        metavar="DIR",
    )
    transform_type: str | None = option(
        DATA,
        "crop; auto, or nothing after the option: as each checkpoint's validation saw it",
        None,
        Choice(TRANSFORMS, more=(AUTO,)),
        "base; tta where --tta is above 1",
        const=AUTO,
    )
    top_k: int | None = option(
        VOTING, "best checkpoints OF EACH FOLD that vote", None, Range(int, 1), "3"
    )
    tta: int | None = option(
        VOTING, "views of each photograph, each another crop", None, Range(int, 1, MAX_VIEWS), "1"
    )
    method: str = option(
        VOTING, "how to vote (soft, hard)", "softvoting", Choice(METHODS, METHOD_ALIASES)
    )

    def completed(self) -> EnsembleSettings:
        """Fill what hangs on other options, and refuse what does not go together (UserError)."""
        if self.from_probs is not None:
            for given, name in (
                (self.root, "root"),
                (self.transform_type, "transform-type"),
                (self.tta, "tta"),
                (self.data_root, "data-root"),
                (self.boxes, "boxes"),
                (self.skip_bad_images or None, "skip-bad-images"),
            ):
                if given is not None:
                    raise UserError(
                        f"--{name}: --from-probs votes on stored probabilities; leave --{name} out"
                    )
            return self
        tta = self.tta or 1
        transform = self.transform_type or ("tta" if tta > 1 else "base")
        if transform != AUTO:
            check_views(transform, tta)
        check_boxes(self.boxes, transform)
        return dataclasses.replace(self, tta=tta, transform_type=transform, top_k=self.top_k or 3)


S = TypeVar("S", bound=MachineSettings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def build_parser(
    settings: type[MachineSettings], prog: str, description: str
) -> argparse.ArgumentParser:
    """The parser of a settings class: an option per field, in groups, each with its choices and
    default.
    """
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    beside = [field for field in dataclasses.fields(settings) if field.metadata["group"] == BESIDE]
    parser.epilog = "; ".join(f"also --{field.name}: {field.metadata['help']}" for field in beside)
    groups: dict[str, Any] = {}
    for field in sorted(dataclasses.fields(settings), key=lambda f: f.metadata["group"] == MACHINE):
        meta = field.metadata
        group = groups.setdefault(meta["group"], None) or parser.add_argument_group(meta["group"])
        groups[meta["group"]] = group
        flag = "--" + field.name.replace("_", "-")
        if field.default is False:
            text = argparse.SUPPRESS if field in beside else f"{meta['help']} (default: off)"
            group.add_argument(flag, action="store_true", help=text)
            continue
        kind = meta["kind"]
        metavar = meta["metavar"]
        if isinstance(kind, Choice):
            metavar = "{" + ",".join(kind.names) + "}"
        elif metavar is None:
            metavar = "N" if isinstance(kind, Range) and kind.kind is int else "X"
        shown = meta["shown"] or ("none" if field.default is None else f"{field.default}")
        extra = {"nargs": "?", "const": meta["const"]} if meta["const"] is not None else {}
        if meta["several"]:  # given twice, it takes both: the first is not to be lost in silence
            extra = {"nargs": "+", "action": "extend"}
        text = (
            argparse.SUPPRESS
            if field in beside
            else f"{meta['help']} (default: {shown})".replace("%", "%%")
        )
        group.add_argument(
            flag, type=kind, default=field.default, metavar=metavar, help=text, **extra
        )
    return parser


def parse(settings: type[S], argv: Sequence[str] | None, prog: str, description: str) -> S:
    """Command line -> settings as asked for (call `completed()` on them). Underscores in option
    names are hyphens.

    Raises UserError for an unknown option, a shortened one, one that was removed, or a value out of
    range.
    """
    errors.retry_remedy = settings.retry_remedy
    words = [with_hyphens(word) for word in (sys.argv[1:] if argv is None else argv)]
    for name in (word.partition("=")[0] for word in words):
        if name in REMOVED_OPTIONS:
            raise UserError(f"{name}: was removed, because {REMOVED_OPTIONS[name]}; leave it out")
    os.environ.setdefault("COLUMNS", "120")
    parser = build_parser(settings, prog, description)
    known, unknown = parser.parse_known_args(words)
    given = vars(known)
    if unknown:
        raise UserError(
            f"unrecognized arguments: {' '.join(unknown)}{suggest_option(unknown, parser)} (see "
            "--help)"
        )
    if given.get("recipe"):
        parser.set_defaults(**PRESETS[given["recipe"]].options)
        given = vars(parser.parse_args(words))
    for name, value in given.items():
        if "" in (value if isinstance(value, list) else [value]):
            raise UserError(
                f"--{name.replace('_', '-')}: is empty; give it a value, or leave it out"
            )
    several: dict[str, Any] = {
        name: tuple(value) for name, value in given.items() if isinstance(value, list)
    }
    return settings(**given | several)


def suggest_option(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """`; did you mean --epochs?` for the first unknown option that begins an option or is like one;
    else nothing.
    """
    options = list(parser._option_string_actions)
    for name in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        close = [
            option for option in options if option.startswith(name)
        ] or difflib.get_close_matches(name[:40], options, 1)
        if close:
            return f"; did you mean {' or '.join(close[:3])}?"
    return ""


def with_hyphens(word: str) -> str:
    """`--model_type=X` -> `--model-type=X`; values are left alone."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def options_table(settings: type[MachineSettings], prog: str) -> str:
    """The options of a script as a Markdown table, for the README."""
    rows = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for action in build_parser(settings, prog, "")._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        meaning, _, default = (action.help or "").replace("%%", "%").partition(" (default: ")
        if action.help == argparse.SUPPRESS:
            field = settings.__dataclass_fields__[action.dest]
            meaning, default = (
                field.metadata["help"],
                "off" if field.default is False else str(field.default or "none"),
            )
        values = "" if action.nargs == 0 else str(action.metavar).strip("{}").replace(",", ", ")
        values += " ..." if action.nargs == "+" else ""
        rows.append(
            f"| `{action.option_strings[0]}` | {values} | {default.removesuffix(')')} | {meaning} |"
        )
    return "\n".join(rows)
