"""Networks: heads on a backbone, loading their weights, probabilities from their outputs.

A model takes images [batch, 3, side, side] and returns {head: outputs [batch, classes]}. `trunk`
names the attribute that holds its backbone, a network of 1000 outputs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

import backbones
import checkpoint
import registries
from data import weight_files
from labels import INNER_HEADS, PARTS, TASKS, head_spec
from runtime.errors import UserError, plural, reason, warn

# --- whole models


class _Vanilla(nn.Module):
    """backbone -> BatchNorm1d(1000) -> Dropout -> ReLU -> Linear, for one task."""

    trunk = ""

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
    """backbone -> Dropout -> one linear head per task, all on the same 1000 outputs."""

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
    """backbone -> BatchNorm, Dropout, ReLU -> linear heads: mask, gender and year of age."""

    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.batchnorm = nn.BatchNorm1d(1000)
        self.dropout = nn.Dropout(0.5)
        self.relu = nn.ReLU()
        self.heads = nn.ModuleDict({head: nn.Linear(1000, heads[head]) for head in heads})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.relu(self.dropout(self.batchnorm(self.backbone(images))))
        return {name: head(features) for name, head in self.heads.items()}


class Attention(nn.Module):
    """8-head self-attention over states [batch, states, 64], with a residual. arXiv:1706.03762."""

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
    """backbone -> BatchNorm, Dropout -> a state of 64 per label set -> attention -> outputs."""

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
    """MultiLabelTHANet, and from its 8 outputs -> ReLU -> Linear(8, 18): main."""

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__(backbone, heads)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(sum(heads[part] for part in self.parts), heads["main"])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(images)
        joined = torch.cat([outputs[part] for part in self.parts], 1)
        return {**outputs, "main": self.linear(self.relu(joined))}


def build(name: str, task: str, backbone: str, padding: int | None) -> nn.Module:
    """A registered model with the heads that it trains for a task, its weights drawn by torch."""
    trunk = registries.import_target(registries.backbone_entry(backbone).target)(backbone, padding)
    heads = {head: head_spec(head).outputs for head in registries.trained_heads(name, task)}
    return registries.import_target(registries.MODELS[name].target)(trunk, heads)


def trunk_of(model: nn.Module) -> nn.Module:
    """The model's backbone."""
    return getattr(model, str(model.trunk))


def set_output_bias(model: nn.Module, value: float) -> None:
    """Let a regression start at this value, by the last one-output layer outside the backbone."""
    in_trunk = set(trunk_of(model).modules())
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in in_trunk]
    heads = [layer for layer in layers if layer.out_features == 1 and layer.bias is not None]
    if heads:
        nn.init.constant_(heads[-1].bias, value)


# --- loading weights


def with_prefix_of(own: backbones.StateDict, weights: backbones.StateDict) -> backbones.StateDict:
    """Weights under the prefix of all of a module's own names, which `find_state_dict` drops."""
    prefix = weight_files.common_prefix(own)
    if not prefix or any(name.startswith(prefix) for name in weights):
        return weights
    return {prefix + name: value for name, value in weights.items()}


def _form(tensor: Tensor | None) -> str:
    """What has to agree between a file's tensor and the network's: `float [64, 3]`."""
    if tensor is None:
        return "missing"
    return f"{'float' if tensor.is_floating_point() else tensor.dtype} {list(tensor.shape)}"


def first_non_finite(module: nn.Module) -> str:
    """The first tensor of a module that holds NaN or infinity, by name; empty where none does."""
    return next(
        (name for name, t in module.state_dict().items() if not bool(torch.isfinite(t).all())), ""
    )


def load_weights(module: nn.Module, weights: backbones.StateDict, source: str) -> None:
    """Load a whole state dict. Raises UserError naming the first three that do not match, or the
    first that holds NaN or infinity.
    """
    if not weight_files.is_state_dict(weights):
        raise UserError(f"{source}: holds no state dict; use another file")
    own = module.state_dict()
    weights = with_prefix_of(own, weights)
    # files older than torch 0.4.1 lack these counts, which only a BatchNorm without momentum uses
    weights = {**{n: own[n] for n in own if n.endswith("num_batches_tracked")}, **weights}
    forms = {n: (_form(weights.get(n)), _form(own.get(n))) for n in {**own, **weights}}
    problems = [
        f"{name[:100]}: {stored} in the file, {needed} in the network"
        for name, (stored, needed) in forms.items()
        if stored != needed
    ]
    if problems and "attention.project.weight" in own and "attention.project.weight" not in weights:
        raise UserError(
            f"{source}: holds no {type(module).__name__} of this toolkit, and one of the original "
            "entry cannot be loaded, as its attention differs by design; train it again, or "
            "name the file's own --model-type"
        )
    if problems:
        count = plural(len(problems), "mismatch", "mismatches")
        raise UserError(
            f"{source}: the weights are another network's ({count}: {'; '.join(problems[:3])}); "
            "name its --model-type, --backbone and --task"
        )
    try:
        module.load_state_dict(weights)
    except (RuntimeError, NotImplementedError) as error:  # sparse ones, or ones without values
        raise UserError(
            f"{source}: its weights cannot be loaded ({reason(error)}); use another file"
        ) from None
    if bad := first_non_finite(module):
        raise UserError(f"{source}: {bad} holds NaN or infinity; use another file")


def load_backbone(trunk: nn.Module, weights: backbones.StateDict, source: str) -> None:
    """Load a backbone's state dict. Where the file has another number of classes, or no last layer,
    that layer keeps its own weights, which a warning says. Raises UserError for other mismatches.
    """
    own = trunk.state_dict()
    weights = with_prefix_of(own, weights)
    wide = [name for name, value in own.items() if value.dim() > 1 and value.shape[0] == 1000]
    last = wide[-1] if wide else ""
    layer, stored = last.rpartition(".")[0], weights.get(last)
    differs = stored is not None and stored.shape[:1] != (1000,)
    if last and (stored is None or (differs and stored.shape[1:] == own[last].shape[1:])):
        outputs = "no weights" if stored is None else f"{len(stored)} outputs for 1000"
        warn(f"{source}: has {outputs} in the last layer ({layer}), which starts at random")
        kept = {name: value for name, value in own.items() if name.rpartition(".")[0] == layer}
        weights = {**weights, **kept}
    load_weights(trunk, weights, source)


def build_from_checkpoint(stored: checkpoint.Checkpoint) -> nn.Module:
    """The network of a checkpoint. Raises UserError for weights that do not fit or hold NaN."""
    info = stored.info
    network = build(info.model, info.task, info.backbone, info.padding)
    load_weights(network, stored.weights, str(stored.path))
    return network


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to where it runs, its weights channels last in memory, as the images are."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_model(network: nn.Module, alone: bool = True) -> nn.Module:
    """The network by torch.compile. On a GPU that it has `alone`, its kernels are replayed as CUDA
    graphs: those of a small batch take less time than the host needs to launch them one by one.
    """
    # AMD's graphs train wrongly; a shared GPU means DDP, whose hooks would be outside of them
    on_cuda = next(network.parameters()).device.type == "cuda" and torch.version.hip is None
    mode = "reduce-overhead" if alone and on_cuda else None
    # static: the epoch's smaller last batch would make all later ones dynamic and slower
    return cast(nn.Module, torch.compile(network, mode=mode, dynamic=False))


def load_for_training(
    network: nn.Module, start: checkpoint.Checkpoint, name: str, task: str
) -> list[str]:
    """Load a checkpoint to train on from: its backbone where the same model was trained for another
    task by the only head, else all of it. Raises UserError where the architectures differ.

    Returns the names of the layers that start at random.
    """
    source, info = f"--load-state-dict {start.path}", start.info
    if info.model != name or info.task == task or registries.MODELS[name].heads:
        load_weights(network, start.weights, source)
        return []
    prefix = f"{network.trunk}."
    keys = [key for key in start.weights if key.startswith(prefix)]
    trunk = {key.removeprefix(prefix): start.weights[key] for key in keys}
    load_weights(trunk_of(network), trunk, source)
    children = network.named_children()
    return [child for child, part in children if child != network.trunk and [*part.parameters()]]


# --- training


def train_mode(network: nn.Module, frozen: bool = False) -> None:
    """Training mode. A frozen backbone learns nothing, its BatchNorm statistics included."""
    network.train()
    trunk_of(network).requires_grad_(not frozen).train(not frozen)


def parameter_groups(model: nn.Module, backbone_scale: float) -> list[dict[str, Any]]:
    """The backbone's parameters and the others', each with its `scale` of the learning rate."""
    trunk = {id(p) for p in trunk_of(model).parameters()}
    return [
        {"params": [p for p in model.parameters() if (id(p) in trunk) == inside], "scale": scale}
        for inside, scale in ((True, backbone_scale), (False, 1.0))
    ]


# --- the copy for predictions

CHECKED_IMAGES = 8  # of the first batch, on which a copy is compared with its network
Convert = Callable[[nn.Module, Tensor], nn.Module]  # network, images -> its copy
MAX_ERROR, MAX_ERROR_MIXED = 0.01, 0.1  # of outputs, as a fraction of the largest (TF32: 1e-3)


def fold_batchnorms(network: nn.Module, images: Tensor) -> nn.Module:
    """A faster copy of a network in eval mode: each BatchNorm2d that follows a convolution becomes
    part of its weights (torch.nn.utils.fusion), and activations work in place.

    images: [batch, 3, side, side], to see which convolution comes before which BatchNorm2d.
    """
    copied = copy.deepcopy(network)
    sources: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the id of an output, which is kept alive
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            sources[id(output)] = module, output
        elif type(module) is nn.BatchNorm2d and id(inputs[0]) in sources:
            pairs[module] = sources[id(inputs[0])][0]

    hooks = [module.register_forward_hook(note) for module in copied.modules()]
    copied(images[:1])
    for hook in hooks:
        hook.remove()
    for name, module in list(copied.named_modules()):
        if isinstance(module, (nn.SiLU, nn.ReLU, nn.ReLU6)):
            module.inplace = True
        elif isinstance(module, nn.BatchNorm2d) and module in pairs:
            conv = pairs[module]
            folded = fuse_conv_bn_eval(conv, module)
            conv.weight, conv.bias = folded.weight, folded.bias
            copied.set_submodule(name, nn.Identity())
    return copied


class InferenceNetwork(nn.Module):
    """A network as predictions run it: by a faster copy, made at the first batch and compared there
    with the network, which stays in use, with a warning, where the outputs differ.
    """

    def __init__(self, network: nn.Module, convert: Convert = fold_batchnorms) -> None:
        super().__init__()
        self.network, self.convert, self.is_ready = network, convert, False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if not self.is_ready:
            self.network, self.is_ready = self.checked_copy(images[:CHECKED_IMAGES]), True
        outputs: dict[str, Tensor] = self.network(images)
        return outputs

    def checked_copy(self, images: Tensor) -> nn.Module:
        """The copy, or the network where their outputs for these images differ."""
        limit = MAX_ERROR_MIXED if torch.is_autocast_enabled(images.device.type) else MAX_ERROR
        copied = self.convert(self.network, images)
        outputs = copied(images)
        for head, expected in self.network(images).items():
            atol = limit * max(1.0, float(expected.abs().nan_to_num().max()))
            values = outputs[head].to(expected.dtype)
            if not torch.allclose(values, expected, 0.0, atol, equal_nan=True):
                name = type(self.network).__name__
                warn(f"the copy of {name} for predictions gives other outputs; it is not used")
                return self.network
        return copied


# --- outputs -> probabilities


def probabilities(outputs: dict[str, Tensor], task: str) -> Tensor:
    """float32 [batch, classes] of a task, or a regression's values, from the heads that predict it.

    Without a head of its own, a task sums the classes of an inner head or of `main` that belong to
    each of its own, or takes their mean value; `main` is the product of mask, gender, age group.
    """
    if task in outputs:
        own = outputs[task].float()
        return own if head_spec(task).regression else own.softmax(1)
    for name in outputs:
        if name in INNER_HEADS and task in INNER_HEADS[name].tasks:
            return sum_class_groups(outputs[name].float().softmax(1), task, name)
    if task != "main":
        return sum_class_groups(probabilities(outputs, "main"), task)
    mask, gender, group = (spread_over_main(probabilities(outputs, part), part) for part in PARTS)
    return mask * gender * group


class Spread(nn.Module):
    """`main` from a network that knows one part of it; the others' classes are equally likely."""

    def __init__(self, network: nn.Module, part: str) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        known = self.network(images)[self.part].float().log_softmax(1)
        return {"main": spread_over_main(known, self.part)}


@functools.cache  # a new tensor for each batch would make the host wait for a GPU
@torch.inference_mode(False)
def class_mapping(source: str, task: str, device: torch.device) -> Tensor:
    """int64 [classes]: a task's class, or value, for each of `source` (main or an inner head)."""
    mapping = TASKS[task].from_main if source == "main" else INNER_HEADS[source].tasks[task]
    return torch.tensor(mapping, device=device)


def spread_over_main(values: Tensor, part: str) -> Tensor:
    """[batch, classes of a part] -> [batch, 18]: each class of `main` gets the value of its own."""
    return values.index_select(1, class_mapping("main", part, values.device))


def sum_class_groups(probs: Tensor, task: str, source: str = "main") -> Tensor:
    """[batch, classes of `source`] probabilities -> [batch, classes] of a task, or mean values."""
    index = class_mapping(source, task, probs.device)
    if TASKS[task].regression:
        return (probs * index).sum(1, keepdim=True)
    return probs.new_zeros(probs.shape[0], TASKS[task].outputs).index_add_(1, index, probs)
