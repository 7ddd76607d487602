"""Settings of the three scripts, and which options go together. Free of torch, for --help."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import registries
from labels import TASKS, can_predict, depends_on_age_filter, head_spec
from registries import BACKBONES, BACKENDS, LOSSES, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS
from runtime.errors import UserError
from runtime.options import Choice, Preset, Range, Settings, flag, option

VERSION = "0.9.0"

STRONG = {"cv": 5, "model_type": "Factorised", "transform_type": "facerandom"}
STRONG |= {"loss_type": "crossentropyloss", "lr": 0.001}
PRESETS: dict[str, Preset] = {
    "original": Preset({"cv": 5, "transform_type": "tta", "lr": 0.001}, "the competition entry"),
    "strong": Preset(STRONG, "the best on the faces of docs/results.md"),
}
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LOGGERS = ("tensorboard", "wandb")  # of training/loggers.py
METHODS = ("softvoting", "hardvoting")
NEWEST = "newest"  # --resume without a name
AUTO = "auto"  # --transform-type: the form that the checkpoint's own validation used

REMOVED_OPTIONS = {  # option of earlier versions: why it was removed
    "--prior-shift": "what it changed in macro F1 lay between -0.085 and +0.09",
    "--decision": "the rule for macro F1 gained +0.003 out of fold (-0.007 to +0.013)",
    "--weights": "no gain of fitted weights over the validation F1 is on record",
}


# --- values of options

COUNT, NOT_NEGATIVE, POSITIVE = Range(int, 1), Range(float, 0), Range(float, 0, above=True)


def parse_fold_numbers(text: str) -> tuple[int, ...]:
    """`3,0` -> (0, 3)."""
    if not re.fullmatch(r"\d{1,7}(,\d{1,7})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: expected whole numbers, like 0,3")
    return tuple(sorted({int(number) for number in text.split(",")}))


def parse_schedule(text: str) -> str:
    """A schedule's name; or `cosine:10`, restarting every 10 epochs."""
    name, colon, cycle = text.casefold().partition(":")
    if colon and name in SCHEDULES and SCHEDULES[name].cycles:
        return f"{name}:{POSITIVE(cycle):g}"
    return Choice(SCHEDULES)(text)


def parse_weights(text: str) -> str:
    """`imagenet` and `none` in any case; a path unchanged."""
    return text.casefold() if text.casefold() in ("imagenet", "none") else text


BACKBONES_BY_FAMILY = "; ".join(
    ", ".join(names)
    for _, names in itertools.groupby(BACKBONES, lambda name: BACKBONES[name].family)
)

# --- settings

PRESET, DATA, MODEL, TRAINING = "preset", "data", "model", "training"  # groups of options
FOLDS, VOTING, MACHINE = "folds and checkpoints", "views and votes", "machine"
BOXES_HELP = "face boxes (file,left,top,right,bottom) of any detector, for facecrop and facerandom"
BOXES_DEFAULT = "found in the pixels"


@dataclass(frozen=True)
class MachineSettings(Settings):
    """Where and how fast; nothing here changes results beyond rounding."""

    groups: ClassVar = (PRESET, DATA, MODEL, TRAINING, FOLDS, VOTING, MACHINE)
    removed: ClassVar = REMOVED_OPTIONS
    spellings: ClassVar = {"--tensorboard": ("--log", "tensorboard")}
    version: ClassVar = VERSION

    device: str = option(MACHINE, "auto, cpu, cuda, cuda:1, mps ...", "auto", metavar="NAME")
    workers: int | None = option(
        MACHINE, "processes that load images", None, Range(int, 0, 1024), "by the processors"
    )
    threads: int | None = option(
        MACHINE, "torch's threads", None, Range(int, 1, 1024), "the processors"
    )
    precision: str = option(
        MACHINE, "number format; auto: bf16 or fp16 on GPUs, else fp32", "auto", Choice(PRECISIONS)
    )


@dataclass(frozen=True)
class DataSettings(Settings):
    """What is learned from which images, and how they are split."""

    task: str = option(DATA, "what to predict", "main", Choice(TASKS))
    train_root: str = option(DATA, "folder of labelled images", "./input/data/train", metavar="DIR")
    valid_root: str | None = option(
        DATA, "folder that validates a single split; with --cv scored at the end", metavar="DIR"
    )
    age_filter: int | None = option(
        DATA, "count this age and older as '60 and over' in training", None, Range(int, 30, 60)
    )
    label_fixes: str | None = option(
        DATA, "corrected labels (path,column,value or image,mask); folds stay", metavar="CSV"
    )
    transform_type: str = option(DATA, "crops and augmentation", "random", Choice(TRANSFORMS))
    boxes: str | None = option(DATA, BOXES_HELP, shown=BOXES_DEFAULT, metavar="CSV")
    skip_bad_images: bool = option(DATA, "train without unreadable images", False)
    oversample: str = option(
        DATA,
        "fill up rarer classes; repeat: with their images again; mixup: with blends of two people",
        "none",
        Choice(("none", "repeat", "mixup")),
    )
    image_size: int = option(DATA, "side of the input in pixels", 224, Range(int, 16, 2048))
    cache: str = option(
        DATA, "ram: keep decoded middle squares in memory", "none", Choice(("none", "ram"))
    )
    cv: int = option(
        FOLDS, "number of folds; 1: a single split, one of ten folds held out", 1, COUNT
    )
    split_seed: int = option(FOLDS, "seed of the split into folds", 42, Range(int, 0, 2**32 - 1))


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The network and its first weights."""

    model_type: str = option(
        MODEL, "network (also: THANet, MultiClassTHANet)", "VanillaEfficientNet", Choice(MODELS)
    )
    backbone: str | None = option(
        MODEL, f"one of {BACKBONES_BY_FAMILY}", shown="the model's own", metavar="NAME"
    )
    pretrained: str = option(
        MODEL, "backbone's weights", "imagenet", parse_weights, metavar="{imagenet,none,PATH}"
    )
    load_state_dict: str | None = option(MODEL, "start from this checkpoint", metavar="PATH")


@dataclass(frozen=True)
class OptimSettings(Settings):
    """How the network is trained."""

    epochs: int = option(TRAINING, "number of epochs", 30, COUNT)
    batch_size: int = option(TRAINING, "images per step", 32, Range(int, 2))
    optim_type: str = option(TRAINING, "optimizer", "adam", Choice(OPTIMIZERS))
    loss_type: str | None = option(
        TRAINING, "loss", None, Choice(LOSSES), "labelsmoothingloss; smoothl1loss for age"
    )
    lr: float | None = option(
        TRAINING,
        "learning rate (0.005 wrecks pretrained weights under Adam)",
        None,
        POSITIVE,
        "0.001 for adam and adamp on pretrained weights, else 0.005",
    )
    lr_scheduler: str = option(
        TRAINING,
        "learning rate schedule; E: epochs of a cosine cycle",
        "cosine",
        parse_schedule,
        metavar=Choice([n + f",{n}:E" * s.cycles for n, s in SCHEDULES.items()]).metavar,
    )
    warmup_epochs: float = option(TRAINING, "epochs of linear warm-up", 0.0, NOT_NEGATIVE)
    backbone_lr_scale: float = option(
        TRAINING, "learning rate of the backbone as a fraction of --lr", 1.0, NOT_NEGATIVE
    )
    freeze: int = option(TRAINING, "first epochs with a frozen backbone", 0, Range(int, 0))
    weight_decay: float | None = option(
        TRAINING, "weight decay", None, NOT_NEGATIVE, "0.01 for adamp, else 0"
    )
    clip_grad: float | None = option(TRAINING, "maximum gradient norm", None, POSITIVE, "off")
    seed: int = option(
        TRAINING, "seed of every random draw except the split", 42, Range(int, 0, 2**63 - 1)
    )
    compile: bool = option(MACHINE, "use torch.compile (takes minutes at the start)", False)

    @property
    def cycle_epochs(self) -> float | None:
        """Length of the cosine cycle; None: the whole run."""
        _, _, cycle = self.lr_scheduler.partition(":")
        return float(cycle) if cycle else None


@dataclass(frozen=True)
class OutputSettings(Settings):
    """Which folds a command trains, and what is kept where."""

    save_path: str = option(FOLDS, "parent of the run's folder", "./saved_models", metavar="DIR")
    run_name: str | None = option(
        FOLDS, "suffix of the run's folder; completes a run that exists", metavar="NAME"
    )
    resume: str | None = option(
        FOLDS, "resume the newest unfinished run, or NAME", metavar="NAME", nargs="?", const=NEWEST
    )
    folds: tuple[int, ...] | None = option(
        FOLDS, "train only these folds, like 0,3", None, parse_fold_numbers, "all", metavar="N,N"
    )
    save_top: int = option(FOLDS, "checkpoints kept per fold, by validation macro F1", 3, COUNT)
    jobs: int | None = option(
        MACHINE, "folds trained side by side", None, COUNT, "by processors, memory; 1 on a GPU"
    )
    log: str | None = option(FOLDS, "also log to this package", None, Choice(LOGGERS))
    dry_run: bool = option(MACHINE, "run one batch, estimate time and disk space, stop", False)
    quiet: bool = option(MACHINE, "suppress progress output", False)


@dataclass(frozen=True)
class TrainSettings(OutputSettings, OptimSettings, ModelSettings, DataSettings, MachineSettings):
    """Options of train.py. `completed()` fills the defaults that depend on other options."""

    presets: ClassVar = {"recipe": PRESETS}

    recipe: str | None = option(
        PRESET,
        "several options under one name (also: seed); explicit options override it. "
        + "; ".join(f"{name}, {preset.help}: {preset}" for name, preset in PRESETS.items()),
        None,
        Choice(PRESETS, {"seed": "original"}),
    )

    @property
    def heads(self) -> tuple[str, ...]:
        return registries.trained_heads(self.model_type, self.task)

    @property
    def regression(self) -> bool:
        """Whether --loss-type is that of a regression."""
        return any(head_spec(head).regression for head in self.heads)

    @property
    def from_scratch(self) -> bool:
        return self.pretrained == "none" and self.load_state_dict is None

    @property
    def default_lr(self) -> float:
        optimizer = OPTIMIZERS[self.optim_type]
        return optimizer.lr_scratch if self.from_scratch else optimizer.lr_pretrained

    @property
    def preset(self) -> Preset:
        return PRESETS[self.recipe] if self.recipe else Preset({})

    def completed(self) -> TrainSettings:
        """Settings with all defaults filled. Raises UserError where options do not go together."""
        loss = "smoothl1loss" if self.regression else "labelsmoothingloss"
        decay = OPTIMIZERS[self.optim_type].weight_decay
        filled = replace(
            self,
            backbone=registries.backbone_name(self.backbone or MODELS[self.model_type].backbone),
            loss_type=self.loss_type or loss,
            lr=self.default_lr if self.lr is None else self.lr,
            weight_decay=decay if self.weight_decay is None else self.weight_decay,
        )
        check_boxes(self.boxes, self.transform_type)
        for message in training_conflicts(filled):
            raise UserError(self.blame_preset(message))
        return filled

    def blame_preset(self, message: str) -> str:
        """The message; where it names a value that --recipe set, with that as the cause."""
        blamed = {
            name: value
            for name, value in self.preset.options.items()
            if isinstance(value, str) and value == getattr(self, name) and value in message
        }
        if not blamed:
            return message
        cause = f"{message.partition('; ')[0]}, and --recipe {self.recipe} sets {Preset(blamed)}"
        return f"{cause}; leave --recipe out, or give another {' and '.join(map(flag, blamed))}"

    def explain_preset(self) -> str:
        """The options that --recipe stands for, with the values that the run takes."""
        values = {name: getattr(self, name) for name in self.preset.options}
        return f"recipe {self.recipe}: {Preset(values)}"

    def explain_lr(self) -> str:
        """Why the learning rate is not the usual 0.005; empty where it is, or where it was given.
        Of settings that are not completed yet.
        """
        if self.lr is not None or self.default_lr == 0.005:
            return ""
        start = "from scratch" if self.from_scratch else "on pretrained weights; 0.005 wrecks them"
        return f"learning rate {self.default_lr:g} (the default of {self.optim_type} {start})"


def training_conflicts(s: TrainSettings) -> Iterator[str]:
    """Messages on options that do not go together, each with a remedy."""
    yield from model_conflicts(s)
    if s.age_filter is not None and not any(map(depends_on_age_filter, s.heads)):
        yield f"--age-filter {s.age_filter}: --task {s.task} has no age groups; leave it out"
    if s.warmup_epochs >= s.epochs:
        yield f"--warmup-epochs {s.warmup_epochs:g}: must be fewer than --epochs {s.epochs}"
    if s.cycle_epochs is not None and s.cycle_epochs + s.warmup_epochs > s.epochs:
        cycle = f"--lr-scheduler {s.lr_scheduler}: a cycle longer than"
        yield f"{cycle} --epochs {s.epochs}; make it shorter"
    if s.freeze >= s.epochs:
        yield f"--freeze {s.freeze}: must be fewer than --epochs {s.epochs}"
    if (s.jobs or 1) > 1 and s.cv == 1:
        yield f"--jobs {s.jobs}: trains folds side by side; use --cv, or leave it out"
    if s.folds is not None:
        folds = f"--folds {','.join(map(str, s.folds))}"
        if s.folds[-1] >= s.cv:
            yield f"{folds}: count from 0 to {s.cv - 1}"
        if s.run_name is None:
            yield f"{folds}: name the run that they share with --run-name"
    if s.resume is not None and s.run_name is not None:
        yield f"--resume: --run-name {s.run_name} resumes that run already; leave one of them out"
    if s.log:
        check_installed("--log", s.log)


def model_conflicts(s: TrainSettings) -> Iterator[str]:
    """Messages on a task, loss, backbone or weights that do not fit."""
    model, backbone = MODELS[s.model_type], registries.backbone_entry(s.backbone or "")
    able = [n for n in MODELS if can_predict(registries.trained_heads(n, s.task), s.task)]
    if s.model_type not in able:
        fits = " or ".join(able)
        yield f"--task {s.task}: {s.model_type} has no head for it; use --model-type {fits}"
    losses = [name for name, entry in LOSSES.items() if entry.regression == s.regression]
    if s.loss_type not in losses:
        task = f"--task {s.task} of {s.model_type}"
        yield f"--loss-type {s.loss_type}: does not fit {task}; use {', '.join(losses)}"
    if model.families and backbone.family not in model.families:
        fits = ", ".join(name for name, b in BACKBONES.items() if b.family in model.families)
        yield f"--backbone {s.backbone}: does not fit {s.model_type}; use one of {fits}"
    if s.load_state_dict is not None and s.pretrained not in ("imagenet", "none"):
        yield f"--pretrained {s.pretrained}: --load-state-dict brings all weights; leave one out"


def check_boxes(boxes: str | None, transform: str) -> None:
    """Raise UserError for --boxes with a transform that does not crop to the face."""
    face_crops = [name for name, entry in TRANSFORMS.items() if entry.of_face]
    if boxes is not None and transform not in (*face_crops, AUTO):
        reader = f"--transform-type {' and '.join(face_crops)}"
        raise UserError(f"--boxes {boxes}: only {reader} read them; add one, or leave it out")


def check_installed(name: str, package: str) -> None:
    """Raise UserError where an optional package, the value of an option, is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{name} {package}: not installed; pip install {package}, or leave it out")


def check_views(transform: str, views: int) -> None:
    """Raise UserError where several views would all be the same."""
    entry = TRANSFORMS[transform]
    if views > 1 and not entry.random_view:
        other = f"--transform-type {entry.random_form}, or " if entry.random_form else ""
        alike = f"--tta {views}: transform {transform} shows every view alike"
        raise UserError(f"{alike}; use {other}--tta 1")


@dataclass(frozen=True)
class PredictSettings(MachineSettings):
    """What both submit scripts share."""

    task: str = option(DATA, "what to predict", "main", Choice(TASKS))
    data_root: str | None = option(
        DATA,
        "evaluation folder, its folder of images, or a photograph",
        shown="./input/data/images, else ./input/data/eval/images",
        metavar="DIR",
    )
    save_path: str = option(DATA, "parent of the output folder", "./prediction", metavar="DIR")
    boxes: str | None = option(DATA, BOXES_HELP, shown=BOXES_DEFAULT, metavar="CSV")
    skip_bad_images: bool = option(DATA, "give unreadable images the most frequent class", False)
    answers: str | None = option(
        DATA, "true 18-class labels (ImageID,ans) for any --task; age: ImageID,age", metavar="CSV"
    )
    batch_size: int = option(MACHINE, "images per forward pass", 32, COUNT)
    backend: str = option(MACHINE, "what runs the networks", "torch", Choice(BACKENDS))


@dataclass(frozen=True)
class SingularSettings(PredictSettings):
    """Options of submit_singular.py."""

    model_type: str | None = option(MODEL, "the checkpoint's network", None, Choice(MODELS), "any")
    load_state_dict: str | None = option(
        MODEL, "checkpoint", shown="best of the newest run that predicts the task", metavar="PATH"
    )
    transform_type: str = option(
        DATA, "crop; auto: as in validation", "base", Choice(TRANSFORMS, more=(AUTO,))
    )

    def completed(self) -> SingularSettings:
        """These settings. Raises UserError where options do not go together."""
        check_boxes(self.boxes, self.transform_type)
        return self


@dataclass(frozen=True)
class EnsembleSettings(PredictSettings):
    """Options of submit_ensemble.py."""

    root: tuple[str, ...] | None = option(
        MODEL,
        "runs that vote together, or folders with one; those of mask, gender, ageg make up main",
        shown="the newest run under ./saved_models that predicts the task",
        metavar="DIR",
        nargs="+",
        action="extend",
    )
    from_probs: str | None = option(
        VOTING, "vote again on the probs.npz of this earlier prediction", metavar="DIR"
    )
    transform_type: str | None = option(
        DATA,
        "crop; auto, or the option without a value: as in each checkpoint's validation",
        None,
        Choice(TRANSFORMS, more=(AUTO,)),
        "base; tta where --tta is above 1",
        nargs="?",
        const=AUTO,
    )
    top_k: int | None = option(VOTING, "best checkpoints OF EACH FOLD that vote", None, COUNT, "3")
    tta: int | None = option(VOTING, "views (crops) of each image", None, Range(int, 1, 1000), "1")
    method: str = option(
        VOTING,
        "softvoting: means of the probabilities; hardvoting: the majority (also soft, hard)",
        "softvoting",
        Choice(METHODS, {"soft": "softvoting", "hard": "hardvoting"}),
    )

    def completed(self) -> EnsembleSettings:
        """Settings with all defaults filled. Raises UserError where options do not go together."""
        if self.from_probs is not None:
            options = ("root", "transform_type", "tta", "data_root", "boxes", "skip_bad_images")
            for name in (*options, "backend"):
                if getattr(self, name) != getattr(EnsembleSettings, name):
                    raise UserError(
                        f"{flag(name)}: --from-probs votes on stored probabilities; leave it out"
                    )
            return self
        tta = self.tta or 1
        transform = self.transform_type or ("tta" if tta > 1 else "base")
        if transform != AUTO:
            check_views(transform, tta)
        check_boxes(self.boxes, transform)
        return replace(self, tta=tta, transform_type=transform, top_k=self.top_k or 3)
