#!/usr/bin/env python3
"""Memory: the peak of training and of ensembles, against their members and their photographs.

    python -m benchmarks.memory input/data/train                     lite0 at 32 px, about 4 minutes

Every figure is the largest resident set (ru_maxrss) of a process of its own that runs train.py's or
submit_ensemble.py's main, without reading processes unless --workers asks for them. With --tta 2
every member has crops of its own, which lie in memory as bytes for the batches that are read ahead
(0.15 MB for each photograph and view at 224 px). The folders hold links to a few real photographs
under many names; the checkpoints are written with random weights, five folds of a run where the
members are a multiple of five. For ensembles the file's weights are subtracted once per member. The
number of photographs is changed at the most members, the members at the fewest photographs.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness  # isort: skip  (before torch, whose threads it sets up)

import torch

import checkpoint
import config
import model
from data import tables

CHILD = """{before}
import resource, sys
import {module}
code = {module}.main({words!r})
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""
SOURCES = 50  # real photographs that are linked to


def peak(module: str, words: list[str], before: str = "") -> float:
    """MiB at the most of a process that runs a script's main; before: code that it runs first."""
    out = harness.run_python(["-c", CHILD.format(module=module, words=words, before=before)])
    last = [line for line in out.splitlines() if line.startswith("peak ")][-1]
    return int(last.split()[1]) / (2**20 if sys.platform == "darwin" else 1024)


def link_eval(root: Path, sources: list[str], count: int) -> None:
    """An evaluation folder of `count` names."""
    (root / "images").mkdir(parents=True)
    names = []
    for number in range(count):
        source = Path(sources[number % len(sources)])
        names.append(f"{number:040x}{source.suffix}")
        (root / "images" / names[-1]).symlink_to(source)
    with open(root / "info.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ImageID", "ans"], *[[name, 0] for name in names]])


def link_train(root: Path, sources: list[str], count: int) -> None:
    """A training root of at least `count` photographs, seven for each person, without a table."""
    shots = harness.SHOTS
    for number, (path, _, _) in enumerate(harness.made_up_people(-(-count // len(shots)))):
        (root / "images" / path).mkdir(parents=True)
        for k, shot in enumerate(shots):
            source = Path(sources[(number * len(shots) + k) % len(sources)])
            (root / "images" / path / f"{shot}{source.suffix}").symlink_to(source)


def write_run(run_dir: Path, members: int, backbone: str, size: int) -> tuple[list[str], float]:
    """Checkpoints with random weights: (options that take them all, MiB of a member's weights)."""
    settings = config.TrainSettings(backbone=backbone, image_size=size, pretrained="none")
    settings = settings.completed()
    folds = 5 if members % 5 == 0 else 1
    weights = model.build(settings.model_type, settings.task, backbone, size).state_dict()
    for number in range(members):
        info = checkpoint.CheckpointInfo(
            model=settings.model_type,
            task=settings.task,
            transform=settings.transform_type,
            backbone=backbone,
            image_size=size,
            padding=size,
            fold=number % folds,
            epoch=number + 1,
            macro_f1=number / 100,
            loss=1.0,
        )
        folder = run_dir / f"fold{info.fold:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        training = settings.part(config.OptimSettings)
        checkpoint.save_checkpoint(folder / checkpoint.file_name(info, training), weights, info)
    mib = sum(t.numel() * t.element_size() for t in weights.values()) / 2**20
    return ["--root", str(run_dir), "--top-k", str(members // folds)], mib


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("root", help="training root whose photographs are linked to")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10, 20])
    parser.add_argument("--images", type=int, nargs="+", default=[3150, 12600])
    parser.add_argument(
        "--tta", type=int, default=1, help="views; above 1 every member has its own"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that read, whose own memory does not count",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(harness.describe_machine())
    paths = tables.read_train(args.root)["path"].tolist()
    sources = [str(Path(path).resolve()) for path in harness.spread(paths, SOURCES)]
    common = ["--device", "cpu", "--workers", str(args.workers)]
    least, most = min(args.images), max(args.members)
    cases = [(members, least) for members in args.members]
    cases += [(most, images) for images in args.images if images != least]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for images in args.images:
            link_eval(folder / f"eval{images}", sources, images)
            link_train(folder / f"train{images}", sources, images)
        print(f"{args.backbone} at {args.image_size} px, peak MiB:")
        for members, images in cases:
            run_dir = folder / f"kfold-ensemble-VanillaEfficientNet_{members}"
            words, weights = write_run(run_dir, members, args.backbone, args.image_size)
            words += ["--data-root", str(folder / f"eval{images}"), "--tta", str(args.tta)]
            words += ["--save-path", str(folder / "prediction"), *common]
            mib = peak("submit_ensemble", words)
            print(
                f"  ensemble of {members:>2} over {images:>6} photographs {mib:>22.0f}   without "
                f"its members' weights ({weights:.0f} each) {mib - members * weights:.0f}",
                flush=True,
            )
        for images in args.images:
            words = ["--train-root", str(folder / f"train{images}"), *common, "--epochs", "1"]
            words += ["--save-path", str(folder / f"saved{images}"), "--pretrained", "none"]
            words += ["--backbone", args.backbone, "--image-size", str(args.image_size)]
            mib = peak("train", words)
            print(f"  training on {images:>6} photographs {mib:>29.0f}", flush=True)
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
