"""Losses: callables (outputs [batch, classes], labels [batch]) -> the batch's mean as a scalar."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

import registries
from labels import INNER_HEADS


class LabelSmoothingLoss(nn.Module):
    """Cross entropy against 1 - smoothing on the true class and smoothing / (classes - 1) on each
    OTHER class.

    torch's `label_smoothing` spreads over all classes, the true one included: it equals this one at
    smoothing * classes / (classes - 1). Szegedy et al. 2016, arXiv:1512.00567.
    """

    def __init__(self, smoothing: float = 0.2) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        classes = outputs.shape[1]
        return functional.cross_entropy(
            outputs, labels, label_smoothing=self.smoothing * classes / (classes - 1)
        )


class YearsLoss(nn.Module):
    """Ages as a distribution over years: cross entropy of outputs + log of the years' shares in
    training [years] against a Gaussian of two years around the label.

    The soft target: DLDL, Gao et al. 2017, arXiv:1611.01731. The shares (smoothed as the target is:
    Yang et al. 2021, arXiv:2102.09554) make the outputs those of equally frequent years (Menon et
    al. 2021, arXiv:2007.07314), so that rare ages are predicted as readily.
    """

    DEVIATION_YEARS = 2.0
    MIN_SHARE = 0.001  # of a year, rarer ones count as this
    log_shares: Tensor

    def __init__(self, shares: Tensor) -> None:
        super().__init__()
        years = torch.arange(len(shares))
        smooth = (self.soft_target(years, len(shares)) * shares).sum(1)
        self.register_buffer("log_shares", smooth.clamp_min(self.MIN_SHARE).log())

    def soft_target(self, years: Tensor, bins: int) -> Tensor:
        """[n] years -> [n, bins]: the distribution around each."""
        distance = torch.arange(bins, device=years.device) - years[:, None]
        return (-(distance**2) / (2 * self.DEVIATION_YEARS**2)).softmax(1)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        target = self.soft_target(labels, outputs.shape[1]).to(outputs.dtype)
        return functional.cross_entropy(outputs + self.log_shares, target)


class FocalLoss(nn.Module):
    """(1 - p)^gamma * cross entropy, p of each sample's true class. arXiv:1708.02002."""

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        nll = functional.cross_entropy(outputs, labels, reduction="none")
        return ((1 - torch.exp(-nll)) ** self.gamma * nll).mean()


class MSELoss(nn.MSELoss):
    """Mean squared error of one value per photograph."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().forward(outputs.squeeze(1), labels)


class SmoothL1Loss(nn.SmoothL1Loss):
    """Huber's loss of one value per photograph: squared below one year, absolute above."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().forward(outputs.squeeze(1), labels)


def make_loss(name: str, shares: Tensor | None = None, head: str = "") -> nn.Module:
    """A registered loss; or an inner head's, from the training shares [classes] of its classes."""
    if head in INNER_HEADS:
        return registries.import_target(INNER_HEADS[head].loss)(shares)
    return registries.import_target(registries.LOSSES[name].target)()


def loss_of_outputs(criterion: nn.Module, outputs: Tensor, labels: Tensor) -> float:
    """The loss of all outputs [images, classes] of a validation, in double precision on the CPU."""
    criterion = copy.deepcopy(criterion).cpu().double()  # its buffers may be on a GPU
    labels = labels.double() if labels.is_floating_point() else labels
    return float(criterion(outputs.double(), labels))
