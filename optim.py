"""Optimizers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from adamp import AdamP
from torch import Tensor
from torch.optim import Optimizer

import registries
from runtime.errors import short_repr

Groups = list[dict[str, Any]]


def _fused(groups: Groups) -> bool:
    """Whether torch has a one-call step for where the parameters are."""
    return groups[0]["params"][0].device.type in ("cpu", "cuda")


def adam(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """Adam, Kingma and Ba 2015, arXiv:1412.6980."""
    return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, fused=_fused(groups))


class AnyLayoutAdamP(AdamP):
    """The package's AdamP for weights in any memory layout (its `view` refuses channels-last ones),
    and without its `if` on a value of every tensor, for each of which the host would wait for a
    GPU.
    """

    def _channel_view(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), -1)

    def _layer_view(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)

    def _projection(
        self, p: Tensor, grad: Tensor, perturb: Tensor, delta: float, wd_ratio: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(step, factor of the weight decay): projected by channels where the weights hardly turn,
        else so by the whole.
        """
        broadcast = [-1] + [1] * (p.dim() - 1)
        step, decay = perturb, perturb.new_ones(())
        for view in (
            self._layer_view,
            self._channel_view,
        ):  # the latter comes first in the package, so it has the last word
            turns_little = self._cosine_similarity(
                grad, p.data, eps, view
            ).max() < delta / math.sqrt(view(p.data).size(1))
            unit = p.data / view(p.data).norm(dim=1).view(broadcast).add_(eps)
            projected = perturb - unit * view(unit * perturb).sum(dim=1).view(broadcast)
            step, decay = (
                torch.where(turns_little, projected, step),
                torch.where(turns_little, wd_ratio, decay),
            )
        return step, decay


def adamp(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """AdamP, Heo et al. 2021, arXiv:2006.08217."""
    optimizer: Optimizer = AnyLayoutAdamP(
        groups, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay
    )
    return optimizer


def sgd(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """Plain SGD."""
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, fused=_fused(groups))


def momentum(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """SGD with momentum 0.9."""
    return torch.optim.SGD(
        groups, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=_fused(groups)
    )


def make_optimizer(name: str, groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """A registered optimizer over parameter groups, each with its `scale` of the learning rate."""
    made: Optimizer = registries.import_target(registries.OPTIMIZERS[name].target)(
        groups, lr, weight_decay
    )
    return made


def optimizer_slots(optimizer: Optimizer) -> dict[str, Any]:
    """What this optimizer keeps for a parameter after a step: {name: value}, the values those of a
    parameter of one number.
    """
    first = optimizer.param_groups[0]["params"][0]
    alone = torch.zeros(1, dtype=first.dtype, device=first.device, requires_grad=True)
    alone.grad = torch.zeros_like(alone)
    known = inspect.signature(
        type(optimizer)
    ).parameters  # torch adds defaults that a package's own optimizer does not take
    another = type(optimizer)(
        [alone], **{name: value for name, value in optimizer.defaults.items() if name in known}
    )
    another.step()
    return dict(another.state[alone])


def load_optimizer_state(optimizer: Optimizer, kept: dict[str, Any]) -> None:
    """Load a kept state into an optimizer, whose own settings stay. Raises ValueError for what is
    no state of it, and what `load_state_dict` raises.

    Every tensor is copied into memory laid out as its parameter's: a fused step runs through both
    side by side, unchecked.
    """
    expected = optimizer_slots(optimizer)
    own = [dict(group) for group in optimizer.param_groups]
    for slot in kept[
        "state"
    ].values():  # before torch walks through it, however deep or endless it is
        if (
            not isinstance(slot, dict)
            or set(slot) != set(expected)
            or any(
                not isinstance(value, (Tensor, int, float, type(None))) for value in slot.values()
            )
        ):
            raise ValueError("it holds something else")
    optimizer.load_state_dict(kept)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.clear()  # another version of torch has other settings
        group.update(settings)
    parameters = {id(parameter) for group in own for parameter in group["params"]}
    for parameter, slot in optimizer.state.items():
        if id(parameter) not in parameters:
            raise ValueError("it holds something else")
        slot.update(
            {name: _slot(name, slot[name], like, parameter) for name, like in expected.items()}
        )


def _slot(name: str, value: Any, like: Any, parameter: Tensor) -> Any:
    """A kept value, where it is of the kind of `like` and of its parameter's shape. Raises
    ValueError.
    """
    if not isinstance(like, Tensor):
        if type(value) is not type(like) or not value >= 0:
            raise ValueError(f"{name} is {short_repr(value)}")
        return value
    made = torch.zeros_like(like if like.dim() == 0 else parameter)
    # infinite squares of large gradients are kept too: their weights rest, and the run goes on
    if (
        not isinstance(value, Tensor)
        or value.shape != made.shape
        or not value.is_floating_point()
        or bool(value.isnan().any())
    ):
        raise ValueError(f"{name} is no tensor of numbers of its parameter's shape")
    return made.copy_(value)


def cosine_annealing(step: int, cycle: int) -> float:
    """From 1 to 0 over `cycle` steps, again and again (SGDR, Loshchilov and Hutter 2017,
    arXiv:1608.03983).
    """
    return (1 + math.cos(math.pi * (step % cycle) / cycle)) / 2


def constant(step: int, cycle: int) -> float:
    """1, whatever the step."""
    return 1.0


def schedule(
    name: str, steps_per_epoch: int, epochs: int, warmup_epochs: float, cycle_epochs: float | None
) -> Callable[[int], float]:
    """A registered schedule after a linear warm-up: the factor of the learning rate as a function
    of the step, counted over the whole run.
    """
    warmup = round(warmup_epochs * steps_per_epoch)
    whole = steps_per_epoch * epochs - warmup
    cycle = whole if cycle_epochs is None else max(1, round(cycle_epochs * steps_per_epoch))
    shape = registries.SCHEDULES[name.partition(":")[0]]
    factor = registries.import_target(shape.target)
    return lambda step: (step + 1) / warmup if step < warmup else factor(step - warmup, cycle)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group its own scale of this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
