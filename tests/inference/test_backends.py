"""Networks as predictions run them: the faster copies of torch and of OpenVINO."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import engine
import model
import registries
import submit_ensemble
import train
from inference import openvino_backend, submission
from inference.predictor import Predictor
from runtime import devices
from runtime.errors import RunError, UserError
from tests.helpers import support

ROOT = Path(__file__).resolve().parents[2]
BACKBONES = {"VanillaEfficientNet": "efficientnet-b0", "VanillaResNet": "resnet18"}


def learned(name: str, task: str = "main") -> nn.Module:
    """A network whose BatchNorms have statistics of their own."""
    torch.manual_seed(0)
    network = model.build(name, task, BACKBONES.get(name, "efficientnet-lite0"), 32).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, 32, 32) * 2 + 1)
    return network.eval()


def batchnorms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", registries.MODELS)
def test_a_copy_without_batchnorms_gives_the_same_outputs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images = learned(name), torch.randn(5, 3, 32, 32)
    before, norms = copy.deepcopy(network.state_dict()), batchnorms(network)
    faster = model.InferenceNetwork(network)
    with torch.inference_mode():
        expected = network(images)
        for part in (images, images[:2]):
            outputs = faster(part)
            for head in expected:
                assert torch.allclose(outputs[head], expected[head][: len(part)], 1e-4, 1e-4)
    assert norms
    assert not batchnorms(faster.network)
    assert batchnorms(network) == norms  # training goes on with the network as it was
    assert all(torch.equal(before[n], tensor) for n, tensor in network.state_dict().items())
    assert not capsys.readouterr().err


class ConvolutionReadTwice(nn.Module):
    """Its BatchNorm cannot be folded: what comes before it is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.weight, 5.0)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = self.conv(images)
        return {"main": (self.norm(values) + values).mean((2, 3))}


def test_a_copy_with_other_outputs_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    network, images = ConvolutionReadTwice().eval(), torch.randn(2, 3, 8, 8)
    faster = model.InferenceNetwork(network)
    with torch.inference_mode():
        assert torch.equal(faster(images)["main"], network(images)["main"])
    assert faster.network is network
    assert "ConvolutionReadTwice for predictions gives other outputs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["VanillaEfficientNet", "MultiClassTHANet_MK1"])
@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_openvino_gives_the_same_outputs(name: str, precision: str, error: float) -> None:
    pytest.importorskip("openvino")
    compute = engine.Compute(torch.device("cpu"), precision, 0, 4)
    network, images = learned(name), torch.randn(4, 3, 32, 32)
    convert = registries.import_target(registries.BACKENDS["openvino"])
    faster = model.InferenceNetwork(network, convert)
    with torch.inference_mode():
        expected = network(images)
        with compute.autocast():
            outputs = faster(images)
    assert faster.network is not network
    differences = [float((outputs[n] - expected[n]).abs().max()) for n in expected]
    scale = max(float(values.abs().max()) for values in expected.values())
    assert max(differences) <= error * scale
    if precision == "bf16":
        assert max(differences) > 1e-5 * scale  # it does round


WITHOUT_NETWORK = """
import socket, sys
def refuse(*address):
    sys.exit(f"a connection to {address}")
socket.socket.connect = socket.create_connection = refuse
sys.argv[0] = "submit_ensemble.py"
import registries, submit_ensemble
from tests.helpers import support
registries.BACKBONES["tiny"] = support.TINY
code = submit_ensemble.main(sys.argv[1:])
assert "openvino" in sys.modules
sys.exit(code or [name for name in sys.modules if name.startswith("openvino_telemetry.")] or 0)
"""


def test_a_submission_by_openvino_leaves_no_file_and_sends_nothing(
    train_root: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    assert train.main(["--train-root", str(train_root), "--epochs", "1", *support.FAST]) == 0
    words = ["--data-root", str(eval_root), "--device", "cpu", "--workers", "0", "--save-path"]
    assert submit_ensemble.main([*words, "by_torch"]) == 0
    before = set(tmp_path.rglob("*"))
    command = [sys.executable, "-c", WITHOUT_NETWORK, *words, "new", "--backend", "openvino"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    new = {path.suffix for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert new == {".csv", ".npz", ".json", ".html"}
    arrays = [
        submission.load_probabilities(next((tmp_path / name).iterdir())).array
        for name in ("new", "by_torch")
    ]
    assert np.abs(arrays[0] - arrays[1]).max() < 1e-5


def test_a_backend_that_cannot_run_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = engine.Compute(torch.device("cuda"), "fp32", 0, 4)
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("openvino") is None:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(importlib.util, "find_spec", lambda name: name)
        with pytest.raises(UserError, match=r"--backend openvino: .* use --device cpu"):
            Predictor([], "main", compute, "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--backend openvino: not installed; pip install openvino"):
        Predictor([], "main", compute, "openvino")


def test_a_long_prediction_names_the_faster_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, many = torch.device("cpu"), openvino_backend.LONG_PREDICTION
    cpuinfo = tmp_path / "proc/cpuinfo"
    cpuinfo.parent.mkdir()
    for flags, able in (("fpu avx2", False), ("fpu avx512_bf16 avx2", True), ("amx_bf16", True)):
        cpuinfo.write_text(f"model name\t: x\nflags\t\t: {flags}\nbugs\t: none\n")
        assert devices.has_bfloat16(tmp_path) == able
    monkeypatch.setattr(openvino_backend, "has_bfloat16", lambda: True)
    note = openvino_backend.faster_options(cpu, many)
    assert "--backend openvino --precision bf16 would be about" in note
    assert not openvino_backend.faster_options(cpu, many - 1)
    assert not openvino_backend.faster_options(torch.device("cuda"), many)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "(pip install openvino)" in openvino_backend.faster_options(cpu, many)


def test_a_network_that_openvino_cannot_convert_is_refused_in_a_line() -> None:
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            raise ValueError("no such operation")

    convert = registries.import_target(registries.BACKENDS["openvino"])
    with pytest.raises(RunError, match=r"--backend openvino: cannot convert .* leave it out"):
        convert(Fails(), torch.zeros(1, 3, 8, 8))
