"""Networks: backbones and where their weights come from, heads, and what their outputs answer."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import backbones
import checkpoint
import foreign_weights
import registries
from labels import INNER_HEADS, PARTS, TASKS, head_spec, tasks_answered_by
from runtime.errors import UserError, plural, reason, warn

# --- whole models


class _Vanilla(nn.Module):
    """backbone -> BatchNorm1d(1000) -> Dropout -> ReLU -> Linear, for one task.

    Forward: images [batch, 3, side, side] -> {task: outputs [batch, classes]}.
    """

    trunk = ""  # the backbone's name among the modules

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        ((self.task, outputs),) = heads.items()
        self.add_module(self.trunk, backbone)
        self.batchnorm = nn.BatchNorm1d(1000)
        self.dropout = nn.Dropout(0.5)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(1000, outputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = getattr(self, self.trunk)(images)
        return {self.task: self.linear(self.relu(self.dropout(self.batchnorm(features))))}


class VanillaEfficientNet(_Vanilla):
    trunk = "efficientnet"


class VanillaResNet(_Vanilla):
    trunk = "resnet"


class THANet(nn.Module):
    """backbone -> one linear head per task, all on the same 1000 outputs.

    Forward: images [batch, 3, side, side] -> {task: outputs [batch, classes]}.
    """

    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = tuple(heads)
        for head, outputs in heads.items():
            self.add_module(f"linear_{head}", nn.Linear(1000, outputs))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = functional.dropout(self.backbone(images), 0.5, self.training)
        return {head: getattr(self, f"linear_{head}")(features) for head in self.heads}


class Factorised(nn.Module):
    """backbone -> BatchNorm, Dropout, ReLU -> a linear head for each of mask, gender and the years
    of age.

    Forward: images [batch, 3, side, side] -> {mask, gender, year: outputs [batch, classes]}.
    """

    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.batchnorm = nn.BatchNorm1d(1000)
        self.dropout = nn.Dropout(0.5)
        self.relu = nn.ReLU()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(1000, outputs) for name, outputs in heads.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.relu(self.dropout(self.batchnorm(self.backbone(images))))
        return {name: head(features) for name, head in self.heads.items()}


class Attention(nn.Module):
    """8-head self-attention over the states of a photograph (Vaswani et al. 2017,
    arXiv:1706.03762), with a residual.

    Forward: [batch, states, 64] -> the same shape.
    """

    def __init__(self, width: int = 64, parts: int = 8) -> None:
        super().__init__()
        self.parts = parts
        self.project = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        batch, count, width = states.shape
        # [batch, states, 3 * width] -> 3 x [batch, heads, states, width / heads]
        split = self.project(states).view(batch, count, 3, self.parts, width // self.parts)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        joined: Tensor = self.join(mixed.transpose(1, 2).reshape(batch, count, width))
        return states + joined


class MultiLabelTHANet(nn.Module):
    """backbone -> BatchNorm, Dropout -> a state of 64 per label set -> self-attention over the
    states -> their outputs.

    Forward: images [batch, 3, side, side] -> {mask, ageg, gender: outputs [batch, classes]}.
    """

    trunk = "backbone"
    parts = ("mask", "ageg", "gender")

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.batchnorm = nn.BatchNorm1d(1000)
        self.dropout = nn.Dropout(0.5)
        self.states = nn.ModuleDict({part: nn.Linear(1000, 64) for part in self.parts})
        self.attention = Attention()
        self.outputs = nn.ModuleDict({part: nn.Linear(64, heads[part]) for part in self.parts})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.dropout(self.batchnorm(self.backbone(images)))
        states = self.attention(
            torch.stack([self.states[part](features) for part in self.parts], 1)
        )
        return {part: self.outputs[part](states[:, k]) for k, part in enumerate(self.parts)}


class MultiClassTHANet(MultiLabelTHANet):
    """The same, and the three label sets' 8 outputs -> ReLU -> Linear(8, 18): {mask, ageg, gender,
    main}.
    """

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__(backbone, heads)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(sum(heads[part] for part in self.parts), heads["main"])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(images)
        joined = torch.cat([outputs[part] for part in self.parts], 1)
        return {**outputs, "main": self.linear(self.relu(joined))}


def build(name: str, task: str, backbone: str, padding: int | None) -> nn.Module:
    """A registered model with the heads that it trains for a task, its weights drawn from torch's
    generator.
    """
    entry = registries.MODELS[name]
    trunk = registries.import_target(registries.backbone_entry(backbone).target)(backbone, padding)
    heads = {head: head_spec(head).outputs for head in registries.trained_heads(name, task)}
    made: nn.Module = registries.import_target(entry.target)(trunk, heads)
    return made


def trunk_of(model: nn.Module) -> nn.Module:
    """The model's backbone."""
    trunk: nn.Module = getattr(model, str(model.trunk))
    return trunk


def set_output_bias(model: nn.Module, value: float) -> None:
    """Let a regression's head answer this value before training, so that no epoch is spent on
    finding its level.

    The head is the last linear layer of one output outside the backbone; a model without one starts
    where it starts.
    """
    inside = {id(module) for module in trunk_of(model).modules()}
    heads = [
        m
        for m in model.modules()
        if isinstance(m, nn.Linear) and m.out_features == 1 and id(m) not in inside
    ]
    if heads and heads[-1].bias is not None:
        nn.init.constant_(heads[-1].bias, value)


def kind(tensor: Tensor) -> str:
    """What a tensor's numbers are, whatever their width."""
    if tensor.dtype == torch.bool or tensor.is_complex():
        return str(tensor.dtype)
    return "fractions" if tensor.is_floating_point() else "whole numbers"


def with_prefix_of(own: backbones.StateDict, weights: backbones.StateDict) -> backbones.StateDict:
    """Weights under the prefix that all of a module's own names carry: `checkpoint.load_checkpoint`
    drops it from those of a file.
    """
    prefix = foreign_weights.common_prefix(own)
    if not prefix or any(name.startswith(prefix) for name in weights):
        return weights
    return {prefix + name: value for name, value in weights.items()}


def load_weights(module: nn.Module, weights: backbones.StateDict, source: str) -> None:
    """Load a whole state dict. Raises UserError naming the first three names or shapes that do not
    match.
    """
    if not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise UserError(f"{source}: holds weights that are no tensors; use another file")
    own = module.state_dict()
    weights = with_prefix_of(own, weights)
    # files older than torch 0.4.1 lack these counts, which only a BatchNorm without momentum uses
    weights = {**{n: own[n] for n in own if n.endswith("num_batches_tracked")}, **weights}
    lost = [f"{n} {list(own[n].shape)} is missing" for n in own if n not in weights]
    extra = [f"{n[:100]} {list(weights[n].shape)} is unknown" for n in weights if n not in own]
    shapes = [
        f"{n} is {list(weights[n].shape)} for {list(own[n].shape)}"
        for n in own
        if n in weights and weights[n].shape != own[n].shape
    ]
    kinds = [
        f"{n} holds {weights[n].dtype} for {own[n].dtype}"
        for n in own
        if n in weights and kind(weights[n]) != kind(own[n])
    ]
    problems = shapes + kinds + lost + extra
    if (
        problems
        and isinstance(module, MultiLabelTHANet)
        and "attention.project.weight" not in weights
    ):
        raise UserError(
            f"{source}: holds no {type(module).__name__} of this toolkit, and one of the original "
            "entry cannot be loaded, as its "
            "attention differs by design; train the model anew, or name the file's own "
            "--model-type"
        )
    if problems:
        raise UserError(
            f"{source}: the weights are another network's "
            f"({plural(len(problems), 'mismatch', 'mismatches')}: "
            f"{'; '.join(problems[:3])}); "
            "name its --model-type, --backbone and --task"
        )
    try:
        module.load_state_dict(weights)
    except (RuntimeError, NotImplementedError) as error:  # sparse ones, or ones without values
        raise UserError(
            f"{source}: its weights cannot be taken ({reason(error)}); use another file"
        ) from None


def load_backbone(trunk: nn.Module, weights: backbones.StateDict, source: str) -> None:
    """Load a backbone's state dict. Its last layer keeps its own weights, which one line says,
    where that of the file has other outputs or is missing. Raises UserError where anything else
    does not match.
    """
    own = trunk.state_dict()
    weights = with_prefix_of(own, weights)
    layer = [name for name, value in own.items() if value.dim() > 1 and value.shape[0] == 1000][-1:]
    last = [
        name for name in own if layer and name.rpartition(".")[0] == layer[0].rpartition(".")[0]
    ]
    shape = weights[layer[0]].shape if layer and layer[0] in weights else None
    fresh = shape is None or (shape[1:] == own[layer[0]].shape[1:] and shape != own[layer[0]].shape)
    load_weights(
        trunk, {**weights, **{name: own[name] for name in last}} if fresh else weights, source
    )
    if fresh and layer:
        outputs = f"{shape[0]} outputs for 1000" if shape else "no weights"
        warn(
            f"{source}: has {outputs} in the last layer ({last[0].rpartition('.')[0]}), which "
            "starts afresh; the rest is taken"
        )


def first_non_finite(module: nn.Module) -> str:
    """The first tensor of a module that holds NaN or infinity, by name; empty where none does."""
    return next(
        (name for name, t in module.state_dict().items() if not bool(torch.isfinite(t).all())), ""
    )


def check_finite(module: nn.Module, source: str) -> None:
    """Raise UserError where weights that came from a file hold NaN or infinity."""
    bad = first_non_finite(module)
    if bad:
        raise UserError(
            f"{source}: {bad} holds NaN or infinity, so it answers nothing; use another file"
        )


def build_from_checkpoint(
    info: checkpoint.CheckpointInfo, weights: backbones.StateDict, source: str
) -> nn.Module:
    """The network of a checkpoint with its weights. Needs no download. Raises UserError where they
    do not fit or are no numbers.
    """
    network = build(info.model, info.task, info.backbone, info.padding)
    load_weights(network, weights, source)
    check_finite(network, source)
    return network


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to where it runs, its weights channels last in memory, as the images are."""
    placed: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def compile_model(network: nn.Module, alone: bool = True) -> nn.Module:
    """The network by torch.compile. On a GPU that it has `alone`, its kernels are replayed as CUDA
    graphs: those of a small batch take less time than the host needs to launch them one by one.
    """
    # AMD's graphs train wrongly
    on_cuda = next(network.parameters()).device.type == "cuda" and torch.version.hip is None
    graphs = alone and on_cuda  # shared, DDP's hooks would be outside of them
    made = torch.compile(network, mode="reduce-overhead" if graphs else None)
    return cast(nn.Module, made)


def load_for_training(
    network: nn.Module, start: checkpoint.Checkpoint, name: str, task: str
) -> list[str]:
    """Load a checkpoint to train on from: whole for the same task (or a model with heads of its
    own), else its backbone.

    Returns the names of the layers that start afresh. Raises UserError where the architectures
    differ.
    """
    other = (
        start.info is not None
        and start.info.model == name
        and start.info.task != task
        and not registries.MODELS[name].heads
    )
    if not other:
        load_weights(network, start.weights, f"--load-state-dict {start.path}")
        return []
    prefix = f"{network.trunk}."
    trunk = {
        key.removeprefix(prefix): value
        for key, value in start.weights.items()
        if key.startswith(prefix)
    }
    load_weights(trunk_of(network), trunk, f"--load-state-dict {start.path}")
    return [
        child
        for child, module in network.named_children()
        if child != network.trunk and [*module.parameters()]
    ]


def freeze(network: nn.Module, frozen: bool) -> None:
    """Keep the backbone as it is, or let it learn. `train_mode` lets its BatchNorm statistics rest
    too.
    """
    trunk_of(network).requires_grad_(not frozen)


def train_mode(network: nn.Module) -> None:
    """Training mode; a frozen backbone stays in evaluation mode, so that its BatchNorm statistics
    do not move.
    """
    network.train()
    trunk = trunk_of(network)
    trunk.train(any(p.requires_grad for p in trunk.parameters()))


def parameter_groups(model: nn.Module, backbone_scale: float) -> list[dict[str, Any]]:
    """The backbone's parameters and the others', each with its `scale` of the learning rate."""
    trunk = {id(p) for p in trunk_of(model).parameters()}
    return [
        {"params": [p for p in model.parameters() if (id(p) in trunk) == inside], "scale": scale}
        for inside, scale in ((True, backbone_scale), (False, 1.0))
    ]


# --- outputs -> probabilities


def can_answer(heads: tuple[str, ...], task: str) -> bool:
    """Whether a model with these heads answers a task: by its own head, by an inner head, from
    `main`, or `main` from the three parts.
    """
    known = {answered for head in heads for answered in tasks_answered_by(head)}
    knows_main = "main" in known or set(PARTS) <= known
    return task in known or (knows_main and bool(TASKS[task].from_main))


def probabilities(outputs: dict[str, Tensor], task: str) -> Tensor:
    """float32 [batch, classes] of a task (a regression's values as they are), from whichever heads
    answer it.

    Without a head of its own a task sums the classes of an inner head, or those of `main`, that
    belong to each of its own; `main` without a head is the product of mask, gender and age group.
    """
    if task in outputs:
        return (
            outputs[task].float()
            if head_spec(task).regression
            else outputs[task].float().softmax(1)
        )
    for name in outputs:
        if name in INNER_HEADS and task in INNER_HEADS[name].answers:
            return sum_class_groups(outputs[name].float().softmax(1), task, name)
    if "main" in outputs:
        return sum_class_groups(probabilities(outputs, "main"), task)
    mask, gender, group = (spread_over_main(probabilities(outputs, part), part) for part in PARTS)
    product = mask * gender * group
    return product if task == "main" else sum_class_groups(product, task)


class Spread(nn.Module):
    """A network that knows one part of `main`, answering `main`: every class of the other parts is
    as likely.
    """

    def __init__(self, network: nn.Module, part: str) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        known = self.network(images)[self.part].float().log_softmax(1)
        return {"main": spread_over_main(known, self.part)}


@functools.cache  # making it anew for each batch would make the host wait for a GPU
@torch.inference_mode(False)
def class_probabilities(source: str, task: str, device: torch.device) -> Tensor:
    """int64 [classes]: the class of a task that each class of `main`, or of an inner head, belongs
    to.
    """
    of_main = TASKS[task].from_main
    return torch.tensor(
        of_main if source == "main" else INNER_HEADS[source].answers[task], device=device
    )


def spread_over_main(known: Tensor, part: str) -> Tensor:
    """[batch, classes of a part] -> [batch, 18]: for each class of `main` the value of its own
    class.
    """
    return known.index_select(1, class_probabilities("main", part, known.device))


def sum_class_groups(known: Tensor, task: str, source: str = "main") -> Tensor:
    """[batch, classes of `main` or an inner head] probabilities -> [batch, classes] of a task that
    it knows.
    """
    index = class_probabilities(source, task, known.device)
    return known.new_zeros(known.shape[0], TASKS[task].outputs).index_add_(1, index, known)
