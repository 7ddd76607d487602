#!/usr/bin/env python3
"""A backbone pretrained on faces, on trial. `register` adds `faceres` to this process.

    python -m tools.faceres package/models faceres.pth
    python -m experiments.faceres train.py --backbone faceres --pretrained faceres.pth ...
    python -m experiments.faceres check package/models PHOTOS

The first runs one of the project's scripts with the backbone registered. The second tells whether
the conversion is right: the package's own heads, on the converted backbone, answer the ages and
genders of PHOTOS, a folder with people.csv (photo, age, gender) and photos/ of one face each.
"""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import augmentation
import engine
import registries
from data import images
from runtime.cli import progress
from runtime.errors import UserError
from tools import faceres

SIDE = 224  # pixels that the weights were trained with
WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVED = (1, 3, 5, 11)  # blocks with a stride of 2


def pad_same(images: Tensor) -> Tensor:
    """TensorFlow's padding SAME of a 3x3 convolution with stride 2: of an even side it is one pixel
    right or below, of an odd one also left or above.
    """
    height, width = images.shape[2:]
    return functional.pad(images, (width % 2, 1, height % 2, 1))


class Block(nn.Module):
    """3x3 depthwise -> ReLU6 -> 1x1 -> ReLU6."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.halves = stride == 2  # else SAME is the same on all sides
        padding = 0 if self.halves else 1
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        padded = pad_same(images) if self.halves else images
        return functional.relu6(self.pointwise(functional.relu6(self.depthwise(padded))))


class FaceRes(nn.Module):
    """MobileNet v1 without batch norms (arXiv:1704.04861): its 1,024 features, turned into the 1000
    outputs that models take. `fc` is no part of the weights: rows at right angles keep the
    features' geometry but for 24 of their dimensions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, 2)
        inputs = (32, *WIDTHS)
        self.blocks = nn.Sequential(
            *(Block(inputs[k], w, 1 + (k in HALVED)) for k, w in enumerate(WIDTHS))
        )
        self.fc = nn.Linear(WIDTHS[-1], 1000)
        nn.init.orthogonal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def features(self, images: Tensor) -> Tensor:
        """[batch, 3, side, side] -> [batch, 1024]."""
        first = functional.relu6(self.conv(pad_same(images)))
        pooled: Tensor = self.blocks(first).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.features(images))
        return outputs


def build(name: str, padding: int | None) -> nn.Module:
    """A network of 1000 outputs; its padding follows the image."""
    return FaceRes()


def weights(name: str) -> dict[str, Tensor]:
    """There are none without a file: --pretrained PATH."""
    raise UserError("--backbone faceres: give --pretrained PATH, made by tools.faceres, or none")


def register() -> None:
    """Make `faceres` a choice of --backbone, in this process."""
    here = "experiments.faceres"
    registries.BACKBONES["faceres"] = registries.Backbone(
        f"{here}:build", f"{here}:weights", "faceres"
    )


def dense(arrays: faceres.Arrays, name: str, values: Tensor) -> Tensor:
    """A fully connected layer of the package."""
    kernel, bias = (torch.from_numpy(arrays[f"{name}/{part}"]) for part in ("kernel", "bias"))
    return values @ kernel + bias


class Package:
    """The package's own network and heads."""

    def __init__(self, folder: Path) -> None:
        self.arrays = faceres.read_arrays(folder)
        self.network = FaceRes().eval()
        self.network.load_state_dict(faceres.convert(self.arrays), strict=False)
        self.compute = engine.Compute(torch.device("cpu"), "fp32", 0, 1)

    @torch.inference_mode()
    def age_and_gender(self, photo: Image.Image) -> tuple[float, str]:
        """(years, male or female) of a photograph that is a face."""
        pixels = torch.from_numpy(augmentation.pixels(photo.resize((SIDE, SIDE))))[None]
        features = self.network.features(engine.to_network(self.compute, pixels))
        hidden = dense(self.arrays, "feats", features).relu()
        years = dense(self.arrays, "age_pred", hidden).softmax(1)[0]
        is_male = bool(dense(self.arrays, "gender_pred", hidden)[0, 0] > 0)
        return float(years @ torch.arange(100.0)), "male" if is_male else "female"


def check(folder: Path, people: Path) -> None:
    """Print the mean error of ages and the share of right genders by the package's heads."""
    torch.set_num_threads(1)
    package = Package(folder)
    with open(people / "people.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    photos = (images.read_image(str(people / "photos" / row["photo"])) for row in rows)
    ages, genders = zip(*map(package.age_and_gender, progress(photos, "checking")), strict=True)
    true_ages = np.array([float(row["age"]) for row in rows])
    right = np.mean([a == row["gender"] for a, row in zip(genders, rows, strict=True)])
    constant = np.abs(true_ages - np.median(true_ages)).mean()
    print(
        f"{len(rows)} photographs: mean error of age {np.abs(ages - true_ages).mean():.1f} years "
        f"(of their median {constant:.1f}), gender right {right:.1%}"
    )


if __name__ == "__main__":
    from experiments.faceres import check, register  # as the registry's targets import it

    command, *words = sys.argv[1:]
    if command == "check":
        check(*map(Path, words))
    else:
        register()
        sys.argv = [command, *words]
        runpy.run_path(command, run_name="__main__")
