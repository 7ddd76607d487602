"""tools/export_onnx: one graph that predicts as torch does, with what is needed to use it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import augmentation
import checkpoint
from inference.predictor import Predictor
from runtime.errors import RunError, UserError
from tools import export_onnx


@pytest.fixture
def packages() -> None:
    """Skips where an optional package is missing."""
    for name in export_onnx.PACKAGES:
        pytest.importorskip(name)


def open_session(path: Path) -> tuple[Any, dict[str, Any]]:
    """(an onnxruntime session, its metadata)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    return session, {name: json.loads(text) for name, text in properties.items()}


@pytest.mark.usefixtures("packages")
def test_an_ensemble_is_one_graph_that_predicts_photographs_alike(
    tree: Path, eval_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.onnx"
    assert export_onnx.main([str(tree), str(out), "--top-k", "1", "--task", "mask"]) == 0
    session, properties = open_session(out)
    assert properties == {
        "task": "mask",
        "classes": ["wear", "incorrect", "not_wear"],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "image_size": 32,
        "transform": ["tta"],
        "crop": ["the middle 384 pixels"],
        "checkpoints": 3,
    }
    # with nothing but the metadata and the crop, as a user of the file would
    photos = sorted((eval_root / "images").glob("*.jpg"))[:5]
    cut = augmentation.tta(32).valid
    pixels = [np.asarray(cut(Image.open(path), None), np.float32) / 255 for path in photos]
    scaled = (np.stack(pixels) - properties["mean"]) / properties["std"]
    images = scaled.transpose(0, 3, 1, 2).astype(np.float32)
    (values,) = session.run(["probabilities"], {"images": images})
    assert values.shape == (5, 3)
    table = Predictor.load(tree, task="mask", top_k=1, device="cpu").predict(list(photos))
    assert np.abs(values - table[["p0", "p1", "p2"]].to_numpy()).max() < 1e-4


@pytest.mark.usefixtures("packages")
def test_neither_people_nor_paths_are_exported(tree: Path, tmp_path: Path) -> None:
    source, out = next((tree / "fold00").glob("*.pth")), tmp_path / "model.onnx"
    assert export_onnx.main([str(source), str(out)]) == 0
    session, properties = open_session(out)
    assert (properties["checkpoints"], len(properties["classes"])) == (1, 18)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    data, info = out.read_bytes(), checkpoint.load_checkpoint(source).info
    assert info.held_out
    assert not [person for person in info.held_out if person.encode() in data]
    root = Path(export_onnx.__file__).parents[1]
    for text in (str(root), str(Path(torch.__file__).parent), str(tree), "site-packages", ".py"):
        assert text.encode() not in data


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(("limit", "difference"), [(-1.0, 0.0), (1e-4, float("nan"))])
def test_a_graph_that_differs_is_not_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, difference: float
) -> None:
    monkeypatch.setattr(export_onnx, "MAX_DIFFERENCE", limit)
    original = export_onnx.MeanProbabilities.forward

    def shifted(self: export_onnx.MeanProbabilities, images: torch.Tensor) -> torch.Tensor:
        return original(self, images) + difference

    monkeypatch.setattr(export_onnx.MeanProbabilities, "forward", shifted)
    with pytest.raises(RunError, match="not written, its output differs from torch's by"):
        export_onnx.main([str(next(tree.glob("fold00/*.pth"))), str(tmp_path / "model.onnx")])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("packages")
def test_what_the_exporter_does_not_know_is_one_line(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def branching(self: export_onnx.MeanProbabilities, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0] if images.sum() > 0 else images[:, 1]

    monkeypatch.setattr(export_onnx.MeanProbabilities, "forward", branching)
    with pytest.raises(RunError, match=r"cannot be exported \("):
        export_onnx.main([str(next(tree.glob("fold00/*.pth"))), str(tmp_path / "model.onnx")])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("packages")
def test_more_weights_than_a_file_holds_are_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_onnx, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(UserError, match="use a lower --top-k"):
        export_onnx.main([str(tree), str(tmp_path / "model.onnx")])


def test_a_missing_package_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in export_onnx.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # import raises ImportError
    with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime$"):
        export_onnx.main([str(tree), str(tmp_path / "model.onnx")])


def test_bad_arguments_are_refused_first(tree: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "model.onnx")
    for words, message in (
        ([str(tree / "gone"), out], "no such file or folder; name a run's folder or a .pth file"),
        ([str(tree), str(tmp_path)], "OUT.onnx .*: is a folder"),
        ([str(tree), str(tmp_path / "gone" / "model.onnx")], "in a missing one"),
        ([str(tree), out, "--top-k", "0"], "--top-k 0: is out of range; give 1 or more"),
        ([str(tree)], "required: OUT.onnx"),
    ):
        with pytest.raises(UserError, match=message):
            export_onnx.main(words)
