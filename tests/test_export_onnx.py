"""tools/export_onnx: one graph that answers as torch does, with what is needed to use it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoint
from inference.predictor import Predictor
from runtime.errors import RunError, UserError
from tools import export_onnx

HAS_PACKAGES = all(importlib.util.find_spec(name) for name in export_onnx.PACKAGES)
needs_packages = pytest.mark.skipif(not HAS_PACKAGES, reason="needs onnx's packages")


@needs_packages
def test_an_ensemble_is_one_graph_with_torchs_probabilities(tree: Path, tmp_path: Path) -> None:
    import onnxruntime

    out = tmp_path / "model.onnx"
    assert export_onnx.main([str(tree), str(out), "--top-k", "1", "--task", "mask"]) == 0
    session = onnxruntime.InferenceSession(str(out))
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == ["wear", "incorrect", "not_wear"]
    side = json.loads(properties["image_size"])
    images = torch.randn(5, 3, side, side)
    (values,) = session.run(["probabilities"], {"images": images.numpy()})
    assert values.shape == (5, 3)
    networks = Predictor.load(tree, task="mask", top_k=1, device="cpu").networks
    with torch.inference_mode():
        from model import probabilities

        expected = torch.stack([probabilities(n(images), "mask") for n in networks]).mean(0)
    assert np.abs(values - expected.numpy()).max() < 1e-4
    data = out.read_bytes()
    _, info = checkpoint.load_described(next((tree / "fold00").glob("*.pth")))
    assert info.held_out
    assert not any(person.encode() in data for person in info.held_out)
    assert str(Path(export_onnx.__file__).parents[1]).encode() not in data


@needs_packages
def test_a_graph_that_differs_is_not_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_onnx, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(RunError, match="not written, its probabilities differ from torch's"):
        export_onnx.main([str(next(tree.glob("fold00/*.pth"))), str(tmp_path / "model.onnx")])
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found("json")
    )
    with pytest.raises(UserError, match="needs onnxscript; pip install onnxscript"):
        export_onnx.main([str(tree), str(tmp_path / "model.onnx")])
