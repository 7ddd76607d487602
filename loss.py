"""Losses: callables (outputs [batch, classes], labels [batch]) -> the batch's mean as a scalar."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

import config

SMALLEST = 1e-38  # probabilities below this count as this much: the least that float32 holds at full precision


class LabelSmoothingLoss(nn.Module):
    """Cross entropy against 1 - smoothing on the true class and smoothing / (classes - 1) on each OTHER class.

    torch's `label_smoothing` spreads over all classes, the true one included: it equals this one at
    smoothing * classes / (classes - 1). Szegedy et al. 2016, arXiv:1512.00567.
    """

    def __init__(self, smoothing: float = 0.2) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        classes = outputs.shape[1]
        return functional.cross_entropy(outputs, labels, label_smoothing=self.smoothing * classes / (classes - 1))


class LogitAdjustedLoss(LabelSmoothingLoss):
    """Label smoothing of 0.1 on outputs + log of the classes' shares in training: what the outputs themselves then say holds
    for classes that are alike frequent. Menon et al. 2021, arXiv:2007.07314.

    shares [classes]: as they are; a class that is not there is not adjusted, for it is to be held down.
    """

    logs: Tensor

    def __init__(self, shares: Tensor | None = None, smoothing: float = 0.1) -> None:
        super().__init__(smoothing)
        known = torch.ones(1) if shares is None else torch.where(shares > 0, shares, 1.0)
        self.register_buffer("logs", known.log())

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().forward(outputs + self.logs, labels)


class FocalLoss(nn.Module):
    """(1 - p)^gamma * cross entropy with p of each sample's own true class. Lin et al. 2017, arXiv:1708.02002."""

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        surprise = functional.cross_entropy(outputs, labels, reduction="none")
        return ((1 - torch.exp(-surprise)) ** self.gamma * surprise).mean()


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Plain cross entropy."""


class MSELoss(nn.MSELoss):
    """Mean squared error of one value per photograph."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().forward(outputs.squeeze(1), labels)


class SmoothL1Loss(nn.SmoothL1Loss):
    """Huber's loss of one value per photograph: squared below one year, absolute above."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().forward(outputs.squeeze(1), labels)


def make_loss(name: str, shares: Tensor | None = None) -> nn.Module:
    """A registered loss. shares [classes]: of the classes in training, for the losses that reckon with them."""
    target = config.resolve(config.LOSSES[name].target)
    made: nn.Module = target(shares) if config.LOSSES[name].of_shares else target()
    return made


def loss_of_probabilities(criterion: nn.Module, task: str, probabilities: Tensor, labels: Tensor) -> float:
    """The loss of answers [images, classes] that are probabilities (or values, for a regression) already.

    Right because every classification loss here goes through log-softmax, and log-softmax(log p) = log p.
    """
    answers = probabilities.double()
    criterion = copy.deepcopy(criterion).cpu()  # what it reckons with may be on a GPU
    if not config.TASKS[task].regression:
        return float(criterion(answers.clamp_min(SMALLEST).log(), labels))
    return float(criterion(answers, labels.double()))
