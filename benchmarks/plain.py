"""What the project is compared with: photographs and networks as a tutorial has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from efficientnet_pytorch import VALID_MODELS, EfficientNet
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

import registries

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
CROP = 384  # pixels: side of the middle square that holds the person


def pipeline(*steps: Callable[[Any], Any]) -> transforms.Compose:
    """torchvision's v1 transforms: the middle square, `steps`, a normalised tensor."""
    end = (transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION))
    return transforms.Compose([transforms.CenterCrop(CROP), *steps, *end])


def training_pipeline(image_size: int) -> transforms.Compose:
    """The steps of --transform-type random in training."""
    return pipeline(transforms.RandomResizedCrop(image_size), transforms.RandAugment(2, 9))


def read(path: str) -> Image.Image:
    """Decode the whole photograph."""
    return Image.open(path).convert("RGB")


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """Item i -> (float32 [3, height, width], label)."""

    def __init__(
        self, paths: Sequence[str], labels: Sequence[int], transform: transforms.Compose
    ) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(read(self.paths[i])), self.labels[i]


def make_network(backbone: str, image_size: int, device: torch.device) -> Any:
    """efficientnet_pytorch's own, with its defaults: memory-efficient swish, contiguous, float32.

    EfficientNet-lite0 and others that are not in that library: the project's network, contiguous.
    """
    if backbone in VALID_MODELS:
        network = EfficientNet.from_name(backbone, num_classes=18)
    else:
        network = registries.import_target(registries.backbone_entry(backbone).target)(
            backbone, image_size
        )
    return network.to(device)
