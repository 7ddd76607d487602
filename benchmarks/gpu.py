#!/usr/bin/env python3
"""Everything that this project claims of a GPU: speed, waiting, memory, equal results.

    python -m benchmarks.gpu                         all parts on drawn people, about 15 minutes
    python -m benchmarks.gpu --parts large,recipe --train-root input/data/train --json gpu.json

Each part is a process of its own, whose lines are printed as they are measured: a run that is cut
short is still of use. A part that fails ends with a line, the others go on (exit code 1). Parts,
the most important first:

- large, small: training with --batch-size and --small-batch-size. Bare steps on a batch that lies
  on the device (eager; the whole step as a CUDA graph; eager with contiguous weights and images;
  compiled as --compile does), the fastest of which is the limit. The real loop, epochs of --images
  photographs from files. The same loop over a batch that is ready: what the real loop takes longer
  is waiting for photographs. Peak GPU memory of each. large also validates, and projects the whole
  recipe. Compiling takes minutes: --modes eager,graph leaves it out.
- recipe: two epochs of the trainer over 18,900 photographs (drawn ones again and again), with
  validation, checkpoints and state.
- loading: what the reading processes give without a network, and waiting, with and without the
  cache in memory.
- ensemble: see ensemble_speed.py.
- resume: whether an equal second run, and a run that was stopped and resumed, have the same bits.
- deterministic: the same with torch.use_deterministic_algorithms.
- precision: the training loss in float32 and in bfloat16, epoch by epoch.
- ddp: two processes on one GPU, by gloo, against one.
- tests: those that are skipped without a GPU.
- profile: the kernels that take an eager bare step's time.
- plain: a tutorial's loop (plain.py) at both batch sizes.

Weights are random: they do not change the speed. On a processor, tiny sizes show that it works:

    python -m benchmarks.gpu --device cpu --backbone efficientnet-lite0 --image-size 32 \\
        --people 12 --batch-size 8 --small-batch-size 4 --images 16 --members 2
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness  # isort: skip  (before torch, whose threads it sets up)

import torch

from benchmarks import gpu_equality, gpu_speed
from benchmarks.gpu_parts import Part, PartContext, run_part
from runtime import errors
from runtime.devices import choose_device

PARTS: dict[str, Part] = {
    "large": gpu_speed.large,
    "small": gpu_speed.small,
    "recipe": gpu_speed.recipe,
    "loading": gpu_speed.loading_speed,
    "ensemble": gpu_speed.ensemble,
    "resume": gpu_equality.resume,
    "deterministic": gpu_equality.deterministic,
    "precision": gpu_equality.precision,
    "ddp": gpu_equality.ddp,
    "tests": gpu_equality.gpu_tests,
    "profile": gpu_speed.profile,
    "plain": gpu_speed.plain,
}


def machine(context: PartContext) -> None:
    """What the figures are measured on. Raises UserError for a device that does not work."""
    device = choose_device(context.args.device)
    text = harness.describe_machine(context.args.device)
    if device.type == "cuda":
        text += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    context.add("machine", text, text)


def run_parts(args: argparse.Namespace, results: dict[str, Any]) -> bool:
    """Run the parts one after another; whether all succeeded. results: gets their figures."""
    begin, succeeded = time.monotonic(), True
    for name in [name for name in PARTS if name in args.parts]:
        if time.monotonic() - begin > 60 * args.minutes:
            print(f"== {name}: left out, {args.minutes:g} minutes are over", flush=True)
            continue
        print(f"== {name}", flush=True)
        results[name] = run_part(PARTS[name], args, results)
        if error := results[name].get("error"):
            succeeded = False
            print(f"  {name} failed: {error}")
        print(f"  ({results[name]['seconds']:.0f} s)", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return succeeded


def names_of(known: Any) -> Any:
    """An option's type: some of the known names, comma-separated."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: choose from {', '.join(known)}")
        return names

    return parse


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=2)
    harness.add_machine_options(parser)
    parser.set_defaults(device="cuda")
    parser.add_argument("--train-root", dest="root", help="photographs (default: drawn people)")
    parser.add_argument("--people", type=int, default=120, help="how many are drawn")
    parser.add_argument("--parts", type=names_of(PARTS), default=",".join(PARTS))
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="a part that would start later is left out"
    )
    parser.add_argument("--json", type=Path, help="write all figures here, after each part")
    modes = gpu_speed.MODES
    parser.add_argument(
        "--modes", type=names_of(modes), help=f"default: {','.join(modes)}; on a processor eager"
    )
    parser.add_argument("--backbone", default="efficientnet-b3")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--small-batch-size", type=int, default=32)
    parser.add_argument(
        "--images",
        type=int,
        default=gpu_speed.TRAINED,
        help="photographs of an epoch of the real loop",
    )
    parser.add_argument("--members", type=int, default=2 * gpu_speed.FOLDS, help="of the ensemble")
    args = parser.parse_args(argv)
    args.modes = args.modes or (modes if args.device.startswith("cuda") else ["eager"])
    if not set(args.modes) & set(gpu_speed.REAL_MODES):
        parser.error("--modes: name eager, compiled or both")
    about = run_part(machine, args, {})
    if error := about.get("error"):
        raise errors.UserError(error)
    settings = {name: str(value) for name, value in vars(args).items()}
    results: dict[str, Any] = {"machine": about["machine"], "settings": settings}
    with tempfile.TemporaryDirectory() as name:
        if args.root is None:
            options = {"out": f"{name}/data", "people": args.people, "eval-people": 0}
            harness.run_python(["-m", "tools.sample_data", *harness.as_options(options)])
            args.root = f"{name}/data/train"
        return 0 if run_parts(args, results) else 1


if __name__ == "__main__":
    harness.run_main(main, __file__)
