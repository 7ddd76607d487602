"""Ideas on trial, as entries of the project's registries: `register` adds them to this process.

What wins in ablation.py moves into the project's own files. What does not win is removed from here;
its row in the results stays.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn
from torchvision.transforms import v2

import augmentation
import labels
import loss
import registries

HERE = "experiments.candidates"
YEAR_LOSSES = {  # Factorised_NAME: the loss of its years of age
    "raw_shares": "RawShares",
    "smooth_years": "SmoothedYears",
    "wide_years": "WideYears",
}


def register() -> None:
    """Make every candidate a choice of the command line, in this process."""
    registries.LOSSES["smoothing0.1"] = registries.Loss(f"{HERE}:half_smoothing")
    erased = registries.Transform(f"{HERE}:face_erased", registries.FACE, True)
    registries.TRANSFORMS["face_erased"] = erased
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


def face_erased(size: int) -> augmentation.Forms:
    """facerandom with a rectangle erased in every second image (Zhong 2020, arXiv:1708.04896)."""
    forms = augmentation.facerandom(size)
    assert isinstance(forms.train, augmentation.FaceSteps)
    assert isinstance(forms.train.crop, v2.Compose)
    erase = v2.RandomErasing(0.5, scale=(0.02, 0.2), value=0)
    steps = [*forms.train.crop.transforms, v2.PILToTensor(), erase, v2.ToPILImage()]
    train = augmentation.FaceSteps(size, v2.Compose(steps))
    return dataclasses.replace(forms, train=train)
