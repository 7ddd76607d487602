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
    and without its `if` on a value of every tensor, at which the host would wait for a GPU.
    """

    def _channel_view(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), -1)

    def _layer_view(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)

    def _projection(
        self, p: Tensor, grad: Tensor, perturb: Tensor, delta: float, wd_ratio: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(step, factor of the weight decay): projected where the weights hardly turn."""
        broadcast = [-1] + [1] * (p.dim() - 1)
        step, decay = perturb, perturb.new_ones(())
        # the channels come first in the package, so here the last word is theirs
        for view in (self._layer_view, self._channel_view):
            similarity = self._cosine_similarity(grad, p.data, eps, view).max()
            turns_little = similarity < delta / math.sqrt(view(p.data).size(1))
            unit = p.data / view(p.data).norm(dim=1).view(broadcast).add_(eps)
            projected = perturb - unit * view(unit * perturb).sum(dim=1).view(broadcast)
            step = torch.where(turns_little, projected, step)
            decay = torch.where(turns_little, wd_ratio, decay)
        return step, decay


def adamp(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """AdamP, Heo et al. 2021, arXiv:2006.08217."""
    return AnyLayoutAdamP(groups, lr, (0.9, 0.999), weight_decay=weight_decay)


def sgd(groups: Groups, lr: float, weight_decay: float, momentum: float = 0.0) -> Optimizer:
    """Plain SGD."""
    fused = _fused(groups)
    return torch.optim.SGD(groups, lr, momentum, weight_decay=weight_decay, fused=fused)


def momentum(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """SGD with momentum 0.9."""
    return sgd(groups, lr, weight_decay, 0.9)


def make_optimizer(name: str, groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    """A registered optimizer over parameter groups, each with its `scale` of the learning rate."""
    return registries.import_target(registries.OPTIMIZERS[name].target)(groups, lr, weight_decay)


def optimizer_slots(optimizer: Optimizer) -> dict[str, Any]:
    """What this optimizer keeps after a step for a parameter of one number: {name: value}."""
    first = optimizer.param_groups[0]["params"][0]
    parameter = torch.zeros(1, dtype=first.dtype, device=first.device, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    # torch adds defaults that a package's own optimizer does not take
    names = inspect.signature(type(optimizer)).parameters.keys() & optimizer.defaults.keys()
    twin = type(optimizer)([parameter], **{name: optimizer.defaults[name] for name in names})
    twin.step()
    return dict(twin.state[parameter])


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state into an optimizer, whose own settings stay. Raises ValueError for what is
    no state of it, and what `load_state_dict` raises.

    Every tensor is copied into memory laid out as its parameter's: a fused step runs through both
    side by side, unchecked.
    """
    expected = optimizer_slots(optimizer)
    own_groups = [dict(group) for group in optimizer.param_groups]
    parameters = {id(parameter) for group in own_groups for parameter in group["params"]}
    plain_types = (Tensor, int, float, type(None))
    for slot in state["state"].values():  # before torch walks it, however deep or endless it is
        names_fit = isinstance(slot, dict) and set(slot) == set(expected)
        if not names_fit or not all(isinstance(value, plain_types) for value in slot.values()):
            raise ValueError("it holds something else")
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own_groups, strict=True):
        group.clear()  # another version of torch has other settings
        group.update(settings)
    for parameter, slot in optimizer.state.items():
        if id(parameter) not in parameters:
            raise ValueError("it holds something else")
        for name, example in expected.items():
            slot[name] = _checked_slot(name, slot[name], example, parameter)


def _checked_slot(name: str, value: Any, example: Any, parameter: Tensor) -> Any:
    """A saved value, of the type of `example` and its parameter's shape. Raises ValueError."""
    if not isinstance(example, Tensor):
        if type(value) is not type(example) or not value >= 0:
            raise ValueError(f"{name} is {short_repr(value)}")
        return value
    target = torch.zeros_like(example if example.dim() == 0 else parameter)
    is_valid = isinstance(value, Tensor) and value.shape == target.shape
    # infinite squares of large gradients are kept too: such weights do not change
    if not is_valid or not value.is_floating_point() or bool(value.isnan().any()):
        raise ValueError(f"{name} is no tensor of numbers of its parameter's shape")
    return target.copy_(value)


def cosine_annealing(step: int, cycle: int) -> float:
    """From 1 to 0 over `cycle` steps, repeated. Loshchilov and Hutter 2017, arXiv:1608.03983."""
    return (1 + math.cos(math.pi * (step % cycle) / cycle)) / 2


def constant(step: int, cycle: int) -> float:
    """1, whatever the step."""
    return 1.0


def schedule(
    name: str, steps_per_epoch: int, epochs: int, warmup_epochs: float, cycle_epochs: float | None
) -> Callable[[int], float]:
    """A registered schedule after a linear warm-up: step of the whole run -> factor of the rate."""
    warmup = round(warmup_epochs * steps_per_epoch)
    whole = steps_per_epoch * epochs - warmup
    cycle = whole if cycle_epochs is None else max(1, round(cycle_epochs * steps_per_epoch))
    factor = registries.import_target(registries.SCHEDULES[name.partition(":")[0]].target)
    return lambda step: (step + 1) / warmup if step < warmup else factor(step - warmup, cycle)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group its own scale of this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
