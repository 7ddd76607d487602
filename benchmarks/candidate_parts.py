"""What the candidates of candidates.py are made of."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

import augmentation
import config
import loss
import optim

LEAST_SHARE = 0.001  # of a year: no rarer one counts as rarer
SPREAD = 2.0  # deviation in years of the soft target around an age


def adamw(groups: optim.Groups, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, Loshchilov and Hutter 2019, arXiv:1711.05101."""
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def smoothing0() -> nn.Module:
    """No label smoothing."""
    return loss.LabelSmoothingLoss(0.0)


def smoothing1() -> nn.Module:
    """Half of the recipe's label smoothing."""
    return loss.LabelSmoothingLoss(0.1)


class SoftF1(nn.Module):
    """Label smoothing of 0.1, and one minus the mean over the batch's classes of F1 with probabilities in place of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = loss.LabelSmoothingLoss(0.1)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        told, truth = outputs.softmax(1), functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
        there = truth.sum(0) > 0
        f1 = 2 * (told * truth).sum(0) / (told.sum(0) + truth.sum(0))
        both: Tensor = self.smooth(outputs, labels) + 1 - f1[there].mean()
        return both


class AdjustedSoftF1(loss.LogitAdjustedLoss):
    """LogitAdjustedLoss, and one minus the soft macro F1 of the same outputs."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        told, truth = outputs.softmax(1), functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
        there = truth.sum(0) > 0
        f1 = 2 * (told * truth).sum(0) / (told.sum(0) + truth.sum(0))
        return super().forward(outputs, labels) + 1 - f1[there].mean()


class FactorLoss(nn.Module):
    """Label smoothing of 0.1; for ages the cross entropy against a Gaussian around the true year (DLDL, Gao et al. 2017,
    arXiv:1611.01731)."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = loss.LabelSmoothingLoss(0.1)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        classes = outputs.shape[1]
        if classes != config.TASKS["year"].outputs:
            told: Tensor = self.smooth(outputs, labels)
            return told
        years = torch.arange(classes, device=outputs.device, dtype=outputs.dtype)
        target = (-((years - labels[:, None]) ** 2) / (2 * SPREAD**2)).softmax(1)
        return functional.cross_entropy(outputs, target)


def factor_smooth() -> nn.Module:
    """FactorLoss with the recipe's label smoothing."""
    made = FactorLoss()
    made.smooth = loss.LabelSmoothingLoss(0.2)
    return made


class BalancedFactorLoss(FactorLoss):
    """FactorLoss on outputs + log of the age groups' shares, which are counted on the way: what is left in the outputs holds
    for age groups that are alike frequent (Menon et al. 2021, arXiv:2007.07314)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.ones(3)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        classes = outputs.shape[1]
        if outputs.requires_grad and classes in (config.TASKS["year"].outputs, 18):  # in training, not in validation
            if classes == 18:
                groups = torch.arange(18, device=outputs.device) % 3
                self.counts = self.counts.to(outputs.device) + torch.bincount(labels % 3, minlength=3)
            else:
                years = torch.arange(classes, device=outputs.device)
                groups = (years >= config.GROUP_STARTS[0]).long() + (years >= config.GROUP_STARTS[1]).long()
            outputs = outputs + (self.counts / self.counts.sum()).log().to(outputs.device)[groups]
        return super().forward(outputs, labels)


class FlatYears(nn.Module):
    """For the Factorised model: label smoothing of 0.1 for mask and gender; for ages the cross entropy of outputs + log of the
    years' smoothed shares against a Gaussian around the true year, so that the outputs hold for years that are alike frequent
    (Menon et al. 2021; shares smoothed as by Yang et al. 2021, arXiv:2102.09554); nothing for their product."""

    def __init__(self, shares: Tensor, power: float = 1.0) -> None:
        super().__init__()
        self.classes = len(shares)
        if self.classes == config.TASKS["year"].outputs:
            smoothed = (_around(torch.arange(self.classes), self.classes) * shares).sum(1)
            self.register_buffer("logs", power * smoothed.clamp_min(LEAST_SHARE).log())

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.classes == 18:
            return outputs.sum() * 0.0
        if self.classes == config.TASKS["year"].outputs:
            return functional.cross_entropy(outputs + self.get_buffer("logs"), _around(labels, self.classes).to(outputs.dtype))
        return functional.cross_entropy(outputs, labels, label_smoothing=0.15)


def half_flat_years(shares: Tensor) -> nn.Module:
    """FlatYears with half of the logarithm."""
    return FlatYears(shares, 0.5)


def _around(years: Tensor, bins: int) -> Tensor:
    """[n] years -> [n, bins]: a Gaussian around each."""
    return (-((torch.arange(bins, device=years.device) - years[:, None]) ** 2) / (2 * SPREAD**2)).softmax(1)


class Factorised(nn.Module):
    """backbone -> BatchNorm, Dropout -> mask, gender and a distribution over years; `main` is their product (log p).

    Forward: images [batch, 3, side, side] -> {mask, gender, year, main: outputs [batch, classes]}.
    """

    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.batchnorm = nn.BatchNorm1d(1000)
        self.dropout = nn.Dropout(0.5)
        self.heads = nn.ModuleDict({name: nn.Linear(1000, heads[name]) for name in ("mask", "gender", "year")})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.dropout(self.batchnorm(self.backbone(images)).relu())
        told = {name: head(features) for name, head in self.heads.items()}
        mask, gender, years = (told[name].float().log_softmax(1) for name in ("mask", "gender", "year"))
        edges = (0, *config.GROUP_STARTS, years.shape[1])
        groups = torch.stack([years[:, a:b].logsumexp(1) for a, b in itertools.pairwise(edges)], 1)
        main = mask[:, :, None, None] + gender[:, None, :, None] + groups[:, None, None, :]
        return {**told, "main": main.flatten(1)}


class Parts(nn.Module):
    """backbone -> BatchNorm, Dropout, ReLU -> mask, age group, gender; `main` is the product of their probabilities."""

    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.batchnorm = nn.BatchNorm1d(1000)
        self.dropout = nn.Dropout(0.5)
        self.heads = nn.ModuleDict({name: nn.Linear(1000, outputs) for name, outputs in heads.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.dropout(self.batchnorm(self.backbone(images)).relu())
        return {name: head(features) for name, head in self.heads.items()}


def _face(size: int, *steps: v2.Transform) -> augmentation.Forms:
    view = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    return augmentation.Forms(
        augmentation.FaceSteps(size, v2.Compose([*steps])), augmentation.FaceSteps(size, v2.CenterCrop(size)),
        augmentation.FaceSteps(size, view),
    )  # fmt: skip


def _resized(size: int) -> v2.Transform:
    return v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.85, 1.18))


def face_flip(size: int) -> augmentation.Forms:
    """facecrop, mirrored half of the time."""
    return _face(size, v2.RandomCrop(size), v2.RandomHorizontalFlip())


def face_resized(size: int) -> augmentation.Forms:
    """A random part of the face's square, mirrored half of the time."""
    return _face(size, _resized(size), v2.RandomHorizontalFlip())


def face_erased(size: int) -> augmentation.Forms:
    """facerandom with a rectangle erased in every second image (RandomErasing, Zhong et al. 2020, arXiv:1708.04896)."""
    erasing = (v2.PILToTensor(), v2.RandomErasing(0.5, scale=(0.02, 0.2), value=0), v2.ToPILImage())
    return _face(size, _resized(size), v2.RandomHorizontalFlip(), v2.RandAugment(2, 9), *erasing)


def tta_flip(size: int) -> augmentation.Forms:
    """tta, mirrored half of the time in training and at test."""
    flip = v2.RandomHorizontalFlip()
    train = augmentation.Crop(size, change=v2.Compose([flip, v2.RandAugment(2, 9)]))
    return augmentation.Forms(train, augmentation.Crop(size, augmentation.WIDE), augmentation.Crop(size, change=flip))
