"""Ideas on trial, as entries of the project's registries: `register` adds them to this process
alone.

What wins in ablation.py moves into the project's own rooms; what does not is removed from here, its
row in the table stays.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import checkpoint
import config
import dataset
import engine
import training
from utils import derive_seed

DECAY = 0.99  # of the moving average of the weights: about the last hundred steps


def register() -> None:
    """Make every candidate a choice of the command line, here."""
    config.MODELS["Parts"] = config.Model(
        "model:Factorised",
        "efficientnet-b3",
        heads=("mask", "ageg", "gender"),
        help="three linear heads on one backbone",
    )
    config.LOSSES["smoothing0.1"] = config.Loss(
        "candidate_parts:smoothing1", False, "half of the label smoothing"
    )
    config.LOSSES["softf1"] = config.Loss(
        "candidate_parts:SoftF1", False, "and one minus the batch's soft macro F1"
    )
    config.OPTIMIZERS["adamw"] = config.Optimizer(
        "candidate_parts:adamw", 0.001, 0.005, 0.05, "AdamW"
    )
    for name, text in (
        ("face_flip", "the face, moved and mirrored"),
        ("face_resized", "as facerandom, without RandAugment"),
        ("face_erased", "as facerandom, and a part of it erased"),
        ("tta_flip", "as tta, and mirrored"),
    ):
        sees = "the middle 384 pixels" if name == "tta_flip" else config.FACE
        config.TRANSFORMS[name] = config.Transform(f"candidate_parts:{name}", sees, True, text)


def play(trick: str, epochs: int, image_size: int) -> None:
    """Change what is no registry's entry, in this process alone."""
    if trick == "average":
        moving_average(epochs)
    elif trick == "grow":
        growing(epochs, image_size * 2 // 3)
    elif trick == "halves":
        half_and_half()


def moving_average(epochs: int) -> None:
    """Let training end with an exponential moving average of the weights (and BatchNorm's
    statistics), here.
    """
    plain: Any = engine.train_epoch
    kept: dict[int, Any] = {}

    def averaging(learner: Any, recipe: Any, loader: Any, *rest: Any) -> Any:
        *others, after_step = rest
        if id(learner) not in kept:
            kept[id(learner)] = torch.optim.swa_utils.AveragedModel(
                learner.model,
                multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY),
                use_buffers=True,
            )
        average = kept[id(learner)]

        def then(step: int) -> None:
            average.update_parameters(learner.model)
            after_step(step)

        told = plain(learner, recipe, loader, *others, then)
        if loader.batch_sampler.epoch + 1 == epochs:
            learner.model.load_state_dict(average.module.state_dict())
        return told

    engine.train_epoch = averaging  # type: ignore[assignment]


def average_checkpoints(folder: Path) -> None:
    """Put the mean of a fold's kept weights in the place of its best checkpoint."""
    members = checkpoint.ranked_members(folder)
    states = [found.weights for found, _ in members]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(t.dtype)
        for name, t in states[0].items()
    }
    best, info = members[0]
    checkpoint.write(best.path, mean, info)


def growing(epochs: int, side: int) -> None:
    """Let the first half of the epochs see images of fewer pixels, here."""
    plain = engine.train_epoch

    @dataclass(frozen=True)
    class Smaller(engine.Compute):
        def to_network(self, pixels: torch.Tensor) -> torch.Tensor:
            images = super().to_network(pixels)
            return functional.interpolate(
                images, size=(side, side), mode="bilinear", antialias=True
            )

    def smaller(
        learner: Any, recipe: Any, loader: Any, labels: Any, task: str, compute: Any, *rest: Any
    ) -> Any:
        if loader.batch_sampler.epoch < epochs // 2:
            compute = Smaller(**dataclasses.asdict(compute))
        return plain(learner, recipe, loader, labels, task, compute, *rest)

    engine.train_epoch = smaller  # type: ignore[assignment]


def half_and_half() -> None:
    """Let every second training photograph be half of another person's of the same class, here."""
    plain = dataset.Photos.__getitem__

    def oversample(study: Any, number: int, rows: list[int]) -> tuple[list[int], dataset.Blending]:
        s = study.settings
        return rows, dataset.blending(study.table, rows, ("main",), ("halves", s.seed, number))

    def item(
        self: dataset.Photos, key: tuple[int, int, int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        epoch, i, copy = key
        index, seen = plain(self, key)
        able = self.blending.partners.get(i, ()) if self.blending else ()
        drawn = (
            derive_seed("halves", *self.blending.seed, epoch, self.names[i]) if self.blending else 0
        )
        if drawn % 2 and len(able):
            other = plain(self, (epoch, int(able[drawn // 2 % len(able)]), copy))[1]
            half = seen[0].shape[1] // 2
            seen = [
                torch.cat((a[:, :half], b[:, half:]), 1) for a, b in zip(seen, other, strict=True)
            ]
        return index, seen

    training.oversample = oversample
    dataset.Photos.__getitem__ = item  # type: ignore[method-assign]
