"""Ideas on trial, as entries of the project's registries: `register` adds them to this process.

What wins in ablation.py moves into the project's own files. What does not win is removed from here;
its row in the results stays.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import augmentation
import labels
import loss
import registries
from data.faces import Box, find_face

HERE = "experiments.candidates"
YEAR_LOSSES = {  # Factorised_NAME: the loss of its years of age
    "raw_shares": "RawShares",
    "smooth_years": "SmoothedYears",
    "wide_years": "WideYears",
}


def register() -> None:
    """Make every candidate a choice of the command line, in this process."""
    registries.LOSSES["smoothing0.1"] = registries.Loss(f"{HERE}:half_smoothing")
    for name in ("face_erased", "face_jittered"):
        registries.TRANSFORMS[name] = registries.Transform(f"{HERE}:{name}", registries.FACE, True)
    year, factorised = labels.INNER_HEADS["year"], registries.MODELS["Factorised"]
    for name, target in YEAR_LOSSES.items():
        head = f"year_{name}"
        labels.INNER_HEADS[head] = dataclasses.replace(year, loss=f"{HERE}:{target}")
        registries.MODELS[f"Factorised_{name}"] = dataclasses.replace(
            factorised, heads=("mask", "gender", head)
        )


# --- losses


def half_smoothing() -> nn.Module:
    """Half of the default label smoothing; none is crossentropyloss."""
    return loss.LabelSmoothingLoss(0.1)


class RawShares(loss.YearsLoss):
    """Outputs shifted by each year's own share: no smoothing lends to 60 what 58 is rich in."""

    def __init__(self, shares: Tensor) -> None:
        super().__init__(shares)
        self.log_shares = shares.clamp_min(self.MIN_SHARE).log()


class SmoothedYears(loss.YearsLoss):
    """A tenth of the target spread over all years: label smoothing of the years alone."""

    SMOOTHING = 0.1

    def soft_target(self, years: Tensor, bins: int) -> Tensor:
        return super().soft_target(years, bins) * (1 - self.SMOOTHING) + self.SMOOTHING / bins


class WideYears(loss.YearsLoss):
    """A target of twice the deviation; the shares are smoothed by as much."""

    DEVIATION_YEARS = 4.0


# --- transforms


def _facerandom(size: int) -> list[v2.Transform]:
    """The product's steps in training: a part of the square, mirroring, RandAugment."""
    train = augmentation.facerandom(size).train
    assert isinstance(train, augmentation.FaceSteps)
    assert isinstance(train.crop, v2.Compose)
    return list(train.crop.transforms)


def face_erased(size: int) -> augmentation.Forms:
    """facerandom with a rectangle erased in every second image (Zhong 2020, arXiv:1708.04896)."""
    erase = v2.RandomErasing(0.5, scale=(0.02, 0.2), value=0)
    steps = [*_facerandom(size), v2.PILToTensor(), erase, v2.ToPILImage()]
    train = augmentation.FaceSteps(size, v2.Compose(steps))
    return dataclasses.replace(augmentation.facerandom(size), train=train)


class JitteredFaceSteps(augmentation.FaceSteps):
    """FaceSteps whose box is moved and scaled at random, as a finder errs on other photographs."""

    # standard deviations of the finder in the pixels on street portraits, as crop_noise.py prints
    # them: of the centre across and along in the box's sides, and of the log of these sides
    CENTRE, LOG_SIDES = (0.10, 0.16), (0.13, 0.17)

    def __call__(self, photo: Image.Image, box: Box | None = None) -> Image.Image:
        box = box or find_face(photo)
        if box is None:
            return super().__call__(photo)
        (dx, dy), (w, h) = torch.randn(2, 2).tolist()
        jitter = (dx * self.CENTRE[0], dy * self.CENTRE[1])
        scales = (w * self.LOG_SIDES[0], h * self.LOG_SIDES[1])
        return super().__call__(photo, move_box(box, jitter, scales))


def move_box(box: Box, shift: tuple[float, float], log_scales: tuple[float, float]) -> Box:
    """A box with its centre moved by parts of its sides, which are multiplied by exp(log_scales).
    At least two pixels wide and high.
    """
    corners = []
    for axis in (0, 1):
        side = box[axis + 2] - box[axis]
        centre = (box[axis] + box[axis + 2]) / 2 + shift[axis] * side
        half = max(1.0, side / 2 * math.exp(log_scales[axis]))
        corners.append((round(centre - half), round(centre + half)))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


def face_jittered(size: int) -> augmentation.Forms:
    """facerandom with the box jittered in training."""
    train = JitteredFaceSteps(size, v2.Compose(_facerandom(size)))
    return dataclasses.replace(augmentation.facerandom(size), train=train)
