#!/usr/bin/env python3
"""Export a checkpoint, or all voting checkpoints of a run as one graph, to ONNX.

    python -m tools.export_onnx saved_models/kfold-ensemble-VanillaEfficientNet model.onnx
    python -m tools.export_onnx saved_models/.../fold00/Fold00_....pth model.onnx

The graph takes `images`, float32 [batch, 3, side, side], and gives `probabilities` [batch,
classes], the mean over the checkpoints (for --task age: `years` [batch, 1]). Pixels are from 0 to
1, minus the mean, divided by the standard deviation. Cutting the face or the middle out of a
photograph and scaling it to side x side stay outside of the graph. Its metadata, each a JSON value,
say how: mean, std, image_size, transform, crop; and task, classes, checkpoints. Names of the people
who were held out, which a checkpoint has, are not exported.

Every export is compared with torch on random images. Where a probability differs by more than 1e-4
(years: 0.01), the exit code is 1 and nothing is written.

Needs the packages onnx, onnxscript and onnxruntime. On two cores fifteen checkpoints of
efficientnet-b3 take about four minutes and 5 GiB of memory, one takes 12 seconds; --top-k 1 takes
the best of each fold.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
import model
import registries
from augmentation import IMAGENET_MEAN, IMAGENET_STD
from checkpoint import Checkpoint
from inference.predictor import Predictor
from labels import TASKS
from runtime.cli import run_script
from runtime.errors import RunError, UserError, plural, reason
from runtime.files import atomic_write, check_output_file
from runtime.options import Parser

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_DIFFERENCE = 1e-4  # of a probability, from torch's
MAX_DIFFERENCE_YEARS = 1e-2
MAX_WEIGHT_BYTES = 2**31 - 2**24  # a file of 2 GiB is the largest; 16 MiB are for the graph
BATCH_SIZES = (1, 3, 8)  # that are compared


class MeanProbabilities(nn.Module):
    """Normalised images [batch, 3, side, side] -> probabilities [batch, classes] of a task, the
    mean over the networks; for a regression its values [batch, 1].
    """

    def __init__(self, networks: Sequence[nn.Module], task: str) -> None:
        super().__init__()
        self.networks, self.task = nn.ModuleList(networks), task

    def forward(self, images: Tensor) -> Tensor:
        each = [model.probabilities(network(images), self.task) for network in self.networks]
        return torch.stack(each).mean(0)


def check_packages() -> None:
    """Raise UserError with the command that installs what cannot be imported."""
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f"{', '.join(missing)} cannot be imported; pip install {' '.join(missing)}")


def metadata(members: Sequence[Checkpoint], task: str) -> dict[str, Any]:
    """What is needed to use the graph."""
    transforms = sorted({member.info.transform for member in members})
    return {
        "task": task,
        "classes": TASKS[task].classes,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "image_size": members[0].info.image_size,
        "transform": transforms,
        "crop": [registries.TRANSFORMS[name].sees for name in transforms],
        "checkpoints": len(members),
    }


def export_graph(network: MeanProbabilities, side: int, properties: dict[str, Any]) -> bytes:
    """The network as an ONNX file's bytes."""
    import onnx

    with torch.inference_mode():
        network(torch.zeros(1, 3, side, side))  # fills the model's caches outside of the export
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 3, side, side),),
        input_names=["images"],
        output_names=["years" if TASKS[network.task].regression else "probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:  # the exporter notes paths of this machine there
        del node.metadata_props[:]
    texts = {name: json.dumps(value) for name, value in properties.items()}
    onnx.helper.set_model_props(graph, texts)
    data: bytes = graph.SerializeToString()
    return data


def largest_difference(network: MeanProbabilities, data: bytes, side: int) -> float:
    """Between the outputs of torch and of onnxruntime for random images; NaN where any is NaN."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    generator, differences = torch.Generator().manual_seed(0), []
    for batch in BATCH_SIZES:
        images = torch.randn(batch, 3, side, side, generator=generator)
        with torch.inference_mode():
            expected = network(images).numpy()
        (values,) = session.run(None, {"images": images.numpy()})
        differences.append(np.abs(values - expected).max())
    return float(np.max(differences))


def export(source: Path, out: Path, task: str, top_k: int) -> str:
    """Write the graph and return a line on it. Raises UserError, and RunError where it cannot be
    exported or differs from torch.
    """
    predictor = Predictor.load(source, task=task, top_k=top_k, device="cpu")
    sides = sorted({member.info.image_size for member in predictor.members})
    if len(sides) > 1:
        raise UserError(f"{source}: its checkpoints take images of {sides} pixels; export one")
    networks = [member.network for member in predictor.networks]  # without the faster copies
    network = MeanProbabilities(networks, task).eval()
    network = network.to(memory_format=torch.contiguous_format)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > MAX_WEIGHT_BYTES:
        raise UserError(
            f"{source}: its weights take {size / 2**30:.1f} GiB, an ONNX file holds less than 2; "
            "use a lower --top-k, or export one checkpoint"
        )
    try:
        data = export_graph(network, sides[0], metadata(predictor.members, task))
        difference = largest_difference(network, data, sides[0])
    except Exception as error:  # exporter and runtime raise many kinds
        raise RunError(f"{source}: cannot be exported ({reason(error)})") from error
    limit = MAX_DIFFERENCE_YEARS if TASKS[task].regression else MAX_DIFFERENCE
    if not difference <= limit:
        raise RunError(
            f"{out}: not written, its output differs from torch's by {difference:.2g}, more than "
            f"{limit:g}"
        )
    with atomic_write(out) as file:
        file.write(data)
    members = plural(len(predictor.members), "checkpoint")
    return f"{out}: {members}, {len(data) / 2**20:.1f} MiB, within {difference:.1g} of torch"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="export_onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", help="a run's folder or a .pth file")
    parser.add_argument("out", metavar="OUT.onnx", help="file to write")
    parser.add_argument(
        "--task", default="main", choices=list(TASKS), help="what to predict (default: main)"
    )
    parser.add_argument(
        "--top-k", type=int, default=3, metavar="N", help="best checkpoints per fold (default: 3)"
    )
    args = parser.parse_args(argv)
    source, out = Path(args.source), Path(args.out)
    if args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: is out of range; give 1 or more")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; name a run's folder or a .pth file")
    check_output_file(out, "OUT.onnx")
    check_packages()
    print(export(source, out, args.task, args.top_k))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "export_onnx"))
