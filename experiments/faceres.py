#!/usr/bin/env python3
"""Is the conversion of tools.faceres right? python -m experiments.faceres package/models PHOTOS

The package's own heads, on the converted backbone, answer the ages and genders of PHOTOS, a folder
with people.csv (photo, age, gender) and photos/ of one face each.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import augmentation
import backbones
import engine
from benchmarks import harness
from data import images
from runtime.cli import progress
from tools import faceres

SIDE = 224  # pixels that the weights were trained with


class Package:
    """The package's own network and heads."""

    def __init__(self, folder: Path) -> None:
        self.arrays = faceres.read_arrays(folder)
        network = backbones.faceres("faceres", None)
        network.load_state_dict(faceres.convert(self.arrays))
        self.features = network[:-1].eval()  # without the linear layer, which is not the package's
        self.compute = engine.Compute(torch.device("cpu"), "fp32", 0, 1)

    def dense(self, name: str, values: Tensor) -> Tensor:
        """A fully connected layer."""
        kernel, bias = self.arrays[f"{name}/kernel"], self.arrays[f"{name}/bias"]
        return values @ torch.from_numpy(kernel) + torch.from_numpy(bias)

    @torch.inference_mode()
    def age_and_gender(self, photo: Image.Image) -> tuple[float, str]:
        """(years, male or female) of a photograph that is a face."""
        pixels = torch.from_numpy(augmentation.pixels(photo.resize((SIDE, SIDE))))[None]
        features = self.features(engine.to_network(self.compute, pixels))
        hidden = self.dense("feats", features).relu()
        years = self.dense("age_pred", hidden).softmax(1)[0]
        is_male = bool(self.dense("gender_pred", hidden)[0, 0] > 0)
        return float(years @ torch.arange(100.0)), "male" if is_male else "female"


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("package", type=Path, metavar="FOLDER", help="of faceres.json, faceres.bin")
    parser.add_argument("people", type=Path, metavar="PHOTOS")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    package = Package(args.package)
    with open(args.people / "people.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    photos = (images.read_image(str(args.people / "photos" / row["photo"])) for row in rows)
    answers = [package.age_and_gender(photo) for photo in progress(photos, "checking")]
    ages, genders = np.array([age for age, _ in answers]), [gender for _, gender in answers]
    true_ages = np.array([float(row["age"]) for row in rows])
    right = np.mean([a == row["gender"] for a, row in zip(genders, rows, strict=True)])
    constant = np.abs(true_ages - np.median(true_ages)).mean()
    print(
        f"{len(rows)} photographs: mean error of age {np.abs(ages - true_ages).mean():.1f} years "
        f"(of their median {constant:.1f}), gender right {right:.1%}"
    )
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
