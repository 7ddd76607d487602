"""What the tests share: a tiny backbone, small painted data roots, and how to run the scripts in
this process.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import registries

LIMIT = 600  # seconds, for what would hang: a loaded machine takes a tenth of it
SHOTS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")
PEOPLE = (
    ("000001", "female", 20),
    ("000002", "male", 61),
    ("000003", "female", 45),
    ("003397", "male", 19),
    ("003397", "female", 58),
    ("001498-1", "male", 33),
    ("001498-2", "female", 60),
    ("000008", "male", 25),
    ("000009", "female", 29),
    ("000010", "male", 59),
    ("000011", "female", 18),
    ("000012", "male", 30),
)


class Tiny(nn.Module):
    """A 1000-way network of a few thousand multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.fc = nn.Linear(8, 1000)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.fc(self.stem(images).relu().mean((2, 3)))
        return features


def tiny(name: str, padding: int | None) -> nn.Module:
    """Registered as the backbone `tiny`."""
    return Tiny()


def tiny_weights(name: str) -> dict[str, Tensor]:
    """Its "ImageNet" weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Tiny().state_dict()


TINY = registries.Backbone(
    "tests.helpers.support:tiny", "tests.helpers.support:tiny_weights", "efficientnet"
)
TINY_RESNET = registries.Backbone(
    "tests.helpers.support:tiny", "tests.helpers.support:tiny_weights", "resnet"
)
FAST = (
    "--backbone",
    "tiny",
    "--image-size",
    "32",
    "--workers",
    "0",
    "--threads",
    "1",
    "--device",
    "cpu",
)


def paint(path: Path, seed: object, size: tuple[int, int] = (384, 512), **save: object) -> None:
    """A photograph of coloured blocks that hang on the seed."""
    draw = random.Random(str(seed))
    small = Image.frombytes("RGB", (6, 8), draw.randbytes(6 * 8 * 3))
    small.resize(size, Image.Resampling.NEAREST).save(path, **save)  # type: ignore[arg-type]


def make_train(
    root: Path,
    people: Sequence[tuple[str, str, int]] = PEOPLE,
    junk: bool = True,
    table: bool = True,
) -> Path:
    """A training root: mixed extensions and case, duplicate and suffixed ids, stray files."""
    images = root / "images"
    images.mkdir(parents=True)
    rows = []
    for number, (ident, gender, age) in enumerate(people):
        name = f"{ident}_{gender}_Asian_{age}"
        (images / name).mkdir()
        rows.append([ident, gender, "Asian", age, name])
        for shot in SHOTS:
            extension = (".jpg", ".JPG", ".jpeg", ".png")[(number + len(shot)) % 4]
            paint(images / name / f"{shot}{extension}", (name, shot))
            if junk:
                (images / name / f"._{shot}{extension}").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    if junk:
        (images / "._stray").write_bytes(b"\x00")
        (images / ".DS_Store").write_bytes(b"\x00")
    if table:
        with open(root / "train.csv", "w", newline="") as file:
            csv.writer(file).writerows([["id", "gender", "race", "age", "path"], *rows])
    return root


def make_eval(root: Path, count: int = 9, answers: bool = True) -> Path:
    """An evaluation root whose info.csv is in no sorted order, with answers.csv."""
    (root / "images").mkdir(parents=True)
    names = [f"{number * 7919:040x}.jpg" for number in range(1, count + 1)]
    random.Random(0).shuffle(names)
    for name in names:
        paint(root / "images" / name, name)
    with open(root / "info.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ImageID", "ans"], *[[name, 0] for name in names]])
    if answers:
        with open(root / "answers.csv", "w", newline="") as file:
            rows = [[name, number % 18, 20 + number] for number, name in enumerate(names)]
            csv.writer(file).writerows([["ImageID", "ans", "age"], *rows])
    return root


def free_port() -> int:
    """A port for processes to meet at, below those that the system gives away by itself."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


def read_rows(path: Path) -> list[list[str]]:
    """A CSV's rows."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_faceres(folder: Path) -> None:
    """faceres.json and faceres.bin with the layers of the package's network, their values drawn."""
    generator, entries, parts = np.random.default_rng(0), [], []

    def add(name: str, *shape: int, scale: float = 0.1) -> None:
        values = (generator.normal(size=shape) * scale).astype(np.float16)
        quantization = {"dtype": "float16", "original_dtype": "float32"}
        entries.append(
            {"name": name, "shape": shape, "dtype": "float32", "quantization": quantization}
        )
        parts.append(values.tobytes())

    add("conv1/convolution/merged_input", 3, 3, 3, 32, scale=0.002)
    add("conv1_bn/batchnorm_1/sub", 32)
    widths = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
        add(f"conv_dw_{number}/depthwise_kernel", 3, 3, inputs, 1, scale=0.3)
        add(f"conv_dw_{number}_bn/batchnorm_1/mul", inputs, scale=1)
        add(f"conv_dw_{number}_bn/batchnorm_1/sub", inputs)
        add(f"conv_pw_{number}/convolution/merged_input", 1, 1, inputs, outputs)
        add(f"conv_pw_{number}_bn/batchnorm_1/sub", outputs)
    entries.append({"name": "reduction_indices", "shape": [2], "dtype": "int32"})
    parts.append(np.array([1, 2], np.int32).tobytes())
    folder.mkdir(parents=True)
    manifest = [{"paths": ["faceres.bin"], "weights": entries}]
    (folder / "faceres.json").write_text(json.dumps({"weightsManifest": manifest}))
    (folder / "faceres.bin").write_bytes(b"".join(parts))
