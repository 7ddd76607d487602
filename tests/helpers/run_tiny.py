"""Run train.py or submit_ensemble.py in a process of its own with the tests' tiny backbones: python
tests/helpers/run_tiny.py SCRIPT ...

SAVE_SECONDS in the environment: how often an epoch's state is kept.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import registries  # noqa: E402
import submit_ensemble  # noqa: E402
import train  # noqa: E402
from runtime.cli import run_script  # noqa: E402
from tests.helpers import support  # noqa: E402
from training import fold as training_fold  # noqa: E402


class Plain(nn.Module):
    """A model without dropout and BatchNorm: its gradients do not depend on how a batch is shared
    out.
    """

    trunk = "backbone"

    def __init__(self, backbone: nn.Module, heads: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        ((self.task, outputs),) = heads.items()
        self.linear = nn.Linear(1000, outputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.task: self.linear(self.backbone(images))}


def register() -> None:
    """Add the tiny backbone and the plain model to their registries."""
    registries.BACKBONES["tiny"] = support.TINY
    registries.MODELS["Plain"] = registries.Model("tests.helpers.run_tiny:Plain", "tiny")
    sys.modules.setdefault("tests.helpers.run_tiny", sys.modules[__name__])


if __name__ == "__main__":
    register()
    torch.set_num_threads(1)
    training_fold.SAVE_INTERVAL_SECONDS = float(
        os.environ.get("SAVE_SECONDS", training_fold.SAVE_INTERVAL_SECONDS)
    )
    script = {"train.py": train, "submit_ensemble.py": submit_ensemble}[sys.argv.pop(1)]
    sys.exit(run_script(script.main, "train.py"))
