"""What the candidates of candidates.py are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

import augmentation
import loss
import optim


def adamw(groups: optim.Groups, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, Loshchilov and Hutter 2019, arXiv:1711.05101."""
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def smoothing1() -> nn.Module:
    """Half of the recipe's label smoothing; none is crossentropyloss."""
    return loss.LabelSmoothingLoss(0.1)


class SoftF1(nn.Module):
    """Label smoothing of 0.1, and one minus the mean over the batch's classes of F1 with
    probabilities in place of answers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.smooth = loss.LabelSmoothingLoss(0.1)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        told, truth = (
            outputs.softmax(1),
            functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype),
        )
        there = truth.sum(0) > 0
        f1 = 2 * (told * truth).sum(0) / (told.sum(0) + truth.sum(0))
        both: Tensor = self.smooth(outputs, labels) + 1 - f1[there].mean()
        return both


def _face(size: int, *steps: v2.Transform) -> augmentation.Forms:
    view = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    return augmentation.Forms(
        augmentation.FaceSteps(size, v2.Compose([*steps])),
        augmentation.FaceSteps(size, v2.CenterCrop(size)),
        augmentation.FaceSteps(size, view),
    )


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
    """facerandom with a rectangle erased in every second image (RandomErasing, Zhong et al. 2020,
    arXiv:1708.04896).
    """
    erasing = (v2.PILToTensor(), v2.RandomErasing(0.5, scale=(0.02, 0.2), value=0), v2.ToPILImage())
    return _face(size, *_facerandom(size), *erasing)


def tta_flip(size: int) -> augmentation.Forms:
    """tta, mirrored half of the time in training and at test."""
    flip = v2.RandomHorizontalFlip()
    train = augmentation.Crop(size, change=v2.Compose([flip, v2.RandAugment(2, 9)]))
    return augmentation.Forms(
        train, augmentation.Crop(size, augmentation.WIDE), augmentation.Crop(size, change=flip)
    )
