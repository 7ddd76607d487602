"""Networks run by OpenVINO, an optional package, which is faster than torch on a processor."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from runtime.devices import has_bfloat16
from runtime.errors import RunError, reason

PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "f16"}  # of autocast; else f32
TIMES_AS_FAST = 1.5  # in bf16 as torch in float32; EfficientNet-b3 at 224 px, two processors
LONG_PREDICTION = 5000  # passes of an image through a network; conversion takes seconds


def faster_options(device: torch.device, passes: int) -> str:
    """The options by which a long prediction by torch would be much faster on this machine; empty
    where none are known.
    """
    if device.type != "cpu" or passes < LONG_PREDICTION or not has_bfloat16():
        return ""
    missing = "" if importlib.util.find_spec("openvino") else " (pip install openvino)"
    return (
        f"--backend openvino --precision bf16 would be about {TIMES_AS_FAST:g} times as "
        f"fast on this processor{missing}"
    )


class OpenVinoNetwork(nn.Module):
    """A compiled network: images [batch, 3, side, side] -> {head: outputs [batch, classes]}."""

    def __init__(self, compiled: Any, heads: list[str]) -> None:
        super().__init__()
        self.request, self.heads = compiled.create_infer_request(), heads

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        results = self.request.infer({0: images.contiguous().numpy()})
        return {head: torch.from_numpy(results[k]) for k, head in enumerate(self.heads)}


def convert(network: nn.Module, images: Tensor) -> nn.Module:
    """The network by OpenVINO, in autocast's number format and with torch's number of threads; no
    file is written. images: [batch, 3, side, side], for the shape. Raises RunError.
    """
    # its package for telemetry would report each import; without it, nothing is sent
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    is_mixed = torch.is_autocast_enabled("cpu")
    precision = PRECISIONS[torch.get_autocast_dtype("cpu")] if is_mixed else "f32"
    side = images.shape[-1]
    try:
        import openvino

        # traced as it is in float32: OpenVINO chooses where to round
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            example = torch.zeros(2, 3, side, side)
            heads = list(network(example))
            graph = openvino.convert_model(
                network, example_input=example, input=[(-1, 3, side, side)]
            )
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return OpenVinoNetwork(openvino.Core().compile_model(graph, "CPU", options), heads)
    except Exception as error:  # of many kinds
        raise RunError(
            f"--backend openvino: cannot convert this network ({reason(error)}); leave it out"
        ) from error
