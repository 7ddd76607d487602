"""Ideas on trial, as entries of the project's registries: `register` adds them to this process.

What wins in ablation.py moves into the project's own files. What does not win is removed from here;
its row in the results stays.
"""

from __future__ import annotations

from torch import nn
from torchvision.transforms import v2

import augmentation
import loss
import registries

HERE = "experiments.candidates"


def register() -> None:
    """Make every candidate a choice of the command line, in this process."""
    registries.MODELS["Parts"] = registries.Model(
        "model:Factorised", "efficientnet-b3", heads=("mask", "ageg", "gender")
    )
    registries.LOSSES["smoothing0.1"] = registries.Loss(f"{HERE}:half_smoothing")
    for name in ("face_flip", "face_resized", "face_erased"):
        registries.TRANSFORMS[name] = registries.Transform(f"{HERE}:{name}", registries.FACE, True)
    middle = registries.TRANSFORMS["tta"].sees
    registries.TRANSFORMS["tta_flip"] = registries.Transform(f"{HERE}:tta_flip", middle, True)


def half_smoothing() -> nn.Module:
    """Half of the default label smoothing; none is crossentropyloss."""
    return loss.LabelSmoothingLoss(0.1)


def _face(size: int, *steps: v2.Transform) -> augmentation.Forms:
    """Training by `steps`, validation in the middle, test views moved and mirrored."""
    view = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    forms = (v2.Compose([*steps]), v2.CenterCrop(size), view)
    return augmentation.Forms(*(augmentation.FaceSteps(size, form) for form in forms))


def _facerandom(size: int) -> list[v2.Transform]:
    """The product's steps in training: a part of the square, mirroring, RandAugment."""
    train = augmentation.facerandom(size).train
    assert isinstance(train, augmentation.FaceSteps)
    assert isinstance(train.crop, v2.Compose)
    return list(train.crop.transforms)


def face_flip(size: int) -> augmentation.Forms:
    """facecrop, mirrored half of the time."""
    return _face(size, v2.RandomCrop(size), v2.RandomHorizontalFlip())


def face_resized(size: int) -> augmentation.Forms:
    """A random part of the face's square, mirrored half of the time."""
    return _face(size, *_facerandom(size)[:2])


def face_erased(size: int) -> augmentation.Forms:
    """facerandom with a rectangle erased in every second image (Zhong 2020, arXiv:1708.04896)."""
    erase = v2.RandomErasing(0.5, scale=(0.02, 0.2), value=0)
    return _face(size, *_facerandom(size), v2.PILToTensor(), erase, v2.ToPILImage())


def tta_flip(size: int) -> augmentation.Forms:
    """tta, mirrored half of the time in training and at test."""
    flip = v2.RandomHorizontalFlip()
    train = augmentation.Crop(size, change=v2.Compose([flip, v2.RandAugment(2, 9)]))
    valid = augmentation.Crop(size, augmentation.WIDE_CROP_PIXELS)
    return augmentation.Forms(train, valid, augmentation.Crop(size, change=flip))
