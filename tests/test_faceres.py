"""The conversion of a TensorFlow.js package into a backbone's weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import backbones
import train
from augmentation import IMAGENET_MEAN, IMAGENET_STD
from data import weight_files
from runtime.errors import UserError
from tests.helpers import support
from tools import faceres

BGR_MEAN = np.array([103.939, 116.779, 123.68])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "models"
    support.write_faceres(folder)
    return folder


def windows(image: np.ndarray, stride: int) -> np.ndarray:
    """[height, width, channels] -> [out, out, 3, 3, channels]: what TensorFlow's SAME padding
    shows a 3x3 kernel, as its documentation defines it.
    """
    side = image.shape[0]
    out = -(-side // stride)
    total = max((out - 1) * stride + 3 - side, 0)
    padded = np.pad(image, [(total // 2, total - total // 2)] * 2 + [(0, 0)])
    corners = [stride * k for k in range(out)]
    return np.array([[padded[y : y + 3, x : x + 3] for x in corners] for y in corners])


def relu6(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 6)


def reference(arrays: faceres.Arrays, pixels: np.ndarray) -> np.ndarray:
    """The package's graph, node by node: RGB pixels [side, side, 3] from 0 to 255 -> features."""
    values = windows(pixels[:, :, ::-1] - BGR_MEAN, 2)
    values = np.einsum("yxhwi,hwio->yxo", values, arrays["conv1/convolution/merged_input"])
    values = relu6(values + arrays["conv1_bn/batchnorm_1/sub"])
    for number in range(1, 14):
        kernel = arrays[f"conv_dw_{number}/depthwise_kernel"][..., 0]
        stride = 2 if number in (2, 4, 6, 12) else 1
        values = np.einsum("yxhwi,hwi->yxi", windows(values, stride), kernel)
        values = values * arrays[f"conv_dw_{number}_bn/batchnorm_1/mul"]
        values = relu6(values + arrays[f"conv_dw_{number}_bn/batchnorm_1/sub"])
        values = values @ arrays[f"conv_pw_{number}/convolution/merged_input"][0, 0]
        values = relu6(values + arrays[f"conv_pw_{number}_bn/batchnorm_1/sub"])
    return np.asarray(values.mean((0, 1)))


@pytest.mark.parametrize("side", [32, 45])
def test_the_backbone_gives_the_features_of_the_packages_graph(
    side: int, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "faceres.pth"
    assert faceres.main([str(package), str(out)]) == 0
    assert "4.2 million parameters of @vladmandic/human" in capsys.readouterr().out
    loaded = weight_files.safe_load(out)
    assert "MIT" in loaded["licence"]
    assert "VGGFace2" in loaded["source"]
    network = backbones.faceres("faceres", None).eval()
    network.load_state_dict(loaded["state_dict"])
    last = loaded["state_dict"]["56.weight"]  # keeps angles
    assert torch.allclose(last @ last.T, torch.eye(1000), atol=1e-5)
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3)).astype(float)
    normalised = (pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD
    images = torch.tensor(normalised.transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.inference_mode():
        features = network[:-1](images)[0].numpy()
    expected = reference(faceres.read_arrays(package), pixels)
    assert expected.std() > 0.01
    # the first padding is grey: ImageNet's mean there, half a shade beside the package's
    assert np.abs(features - expected).max() < 0.01 * np.abs(expected).max()


def test_a_model_trains_on_the_converted_backbone(
    package: Path, train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert faceres.main([str(package), str(tmp_path / "faceres.pth")]) == 0
    words = ["--train-root", str(train_root), "--save-path", str(tmp_path / "saved"), *support.FAST]
    words += ["--model-type", "Factorised", "--epochs", "1", "--backbone", "faceres"]
    with pytest.raises(UserError, match="made by python -m tools.faceres; give that file"):
        train.main(words)
    assert train.main([*words, "--pretrained", str(tmp_path / "faceres.pth")]) == 0
    assert "last layer" not in capsys.readouterr().err


def test_another_folder_or_file_is_refused(package: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "faceres.pth")
    with pytest.raises(UserError, match=r"faceres\.json: no such file; name the package's folder"):
        faceres.main([str(tmp_path), out])
    folder = tmp_path / "models"
    folder.mkdir()
    table = json.loads((package / "faceres.json").read_text())
    (folder / "faceres.json").write_text(json.dumps(table))
    (folder / "faceres.bin").write_bytes((package / "faceres.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"faceres\.bin: damaged"):
        faceres.main([str(folder), out])
    table["weightsManifest"][0]["weights"] = []
    (folder / "faceres.json").write_text(json.dumps(table))
    (folder / "faceres.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"faceres\.json: .*use the package's version 3\.3\.6"):
        faceres.main([str(folder), out])
    assert not Path(out).exists()
