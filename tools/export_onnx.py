#!/usr/bin/env python3
"""Export a checkpoint, or the checkpoints of a run as one graph, to ONNX.

    python -m tools.export_onnx saved_models/kfold-ensemble-VanillaEfficientNet model.onnx
    python -m tools.export_onnx saved_models/.../fold00/Fold00_....pth model.onnx

The graph takes normalised images, float32 [batch, 3, side, side], and gives `probabilities`
[batch, classes], the mean of all checkpoints (for age: `years` [batch, 1]). Its metadata hold the
classes' names and the preprocessing: mean, deviation, side, transform. Cutting the face or the
middle out of a photograph stays outside of the graph. Every export is compared with torch on random
images: where a probability differs by more than 1e-4 nothing is written. Names of the people who
were held out, which a checkpoint has, are not exported.

Needs the packages onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labels import TASKS
from runtime.cli import run_script
from runtime.errors import RunError, UserError, plural

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_DIFFERENCE = 1e-4  # of a probability, from torch's
MAX_DIFFERENCE_YEARS = 1e-2
BATCH_SIZES = (1, 3)  # that are compared


def export(source: Path, out: Path, task: str, top_k: int) -> str:
    """Write the graph and return a line on it. Raises UserError, and RunError where its answers
    differ from torch's.
    """
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    import model
    from augmentation import IMAGENET_MEAN, IMAGENET_STD
    from inference.predictor import Predictor
    from runtime.files import atomic_write

    predictor = Predictor.load(source, task=task, top_k=top_k, device="cpu")
    infos = [member.info for member in predictor.members]
    if predictor.groups or len({info.image_size for info in infos}) > 1:
        raise UserError(f"{source}: its checkpoints take images of several sizes; export one")

    class MeanProbabilities(torch.nn.Module):
        def __init__(self, networks: Sequence[torch.nn.Module]) -> None:
            super().__init__()
            self.networks = torch.nn.ModuleList(networks)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            each = [model.probabilities(network(images), task) for network in self.networks]
            return torch.stack(each).mean(0)

    side, spec = infos[0].image_size, TASKS[task]
    mean = MeanProbabilities(predictor.networks).eval().to(memory_format=torch.contiguous_format)
    name = "years" if spec.regression else "probabilities"
    with torch.inference_mode():
        mean(torch.rand(1, 3, side, side))  # what the model caches must not be the exporter's
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            mean,
            (torch.rand(2, 3, side, side),),
            path,
            input_names=["images"],
            output_names=[name],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        graph = onnx.load(path)
    metadata = {
        "task": task,
        "classes": list(spec.classes),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "image_size": side,
        "transform": sorted({info.transform for info in infos}),
        "checkpoints": len(infos),
    }
    for node in graph.graph.node:  # the exporter notes this machine's paths there
        del node.metadata_props[:]
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in metadata.items()})
    data = graph.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in BATCH_SIZES:
        images = torch.randn(batch, 3, side, side)
        with torch.inference_mode():
            expected = mean(images).numpy()
        (values,) = session.run(None, {"images": images.numpy()})
        difference = max(difference, float(np.abs(values - expected).max()))
    if not difference <= (MAX_DIFFERENCE_YEARS if spec.regression else MAX_DIFFERENCE):
        raise RunError(f"{out}: not written, its {name} differ from torch's by {difference:.2g}")
    with atomic_write(out) as file:
        file.write(data)
    members, size = plural(len(infos), "checkpoint"), len(data) / 2**20
    return f"{out}: {members}, {size:.0f} MiB; within {difference:.1g} of torch"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="export_onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="a run's folder, or a .pth file")
    parser.add_argument("out", help="file to write, such as model.onnx")
    parser.add_argument("--task", default="main", choices=list(TASKS), help="what to predict")
    parser.add_argument("--top-k", type=int, default=3, help="best checkpoints of each fold")
    args = parser.parse_args(argv)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        command = f"pip install {' '.join(missing)}"
        raise UserError(f"export_onnx: needs {', '.join(missing)}; {command}")
    if not Path(args.out).absolute().parent.is_dir():
        raise UserError(f"{args.out}: its folder does not exist; name another file")
    print(export(Path(args.run), Path(args.out), args.task, args.top_k))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "export_onnx"))
