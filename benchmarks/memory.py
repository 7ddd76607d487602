#!/usr/bin/env python3
"""Memory: the peak of training and of ensembles, against their members and their photographs.

    python benchmarks/memory.py input/data/train                               lite0 at 32 px, about
    4 minutes

Every figure is the largest resident set (ru_maxrss) of a process of its own that runs train.py's or
submit_ensemble.py's main, without reading processes unless --workers asks for them. With --tta 2
every member has crops of its own, which lie in memory as bytes for the batches that are read ahead
(0.15 MB for each photograph and view at 224 px). The folders hold links to a few real photographs
under many names; the checkpoints are written with random weights, five folds of a tree where there
are five members or more. For ensembles the file's weights are subtracted once per member. The
number of photographs is changed at the most members, the members at the fewest photographs.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import timing
import torch

import checkpoint
import config
import model as models
import tables
import utils

SHOTS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")
CHILD = """
import resource, sys
sys.path.insert(0, {project!r})
import {module}
code = {module}.main({words!r})
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def peak(module: str, words: list[str]) -> float:
    """MiB at the most of a process that runs a script."""
    text = CHILD.format(project=str(timing.PROJECT), module=module, words=words)
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("peak ")]
    if ended.returncode or not lines:
        raise utils.UserError(
            f"{module}: ended with {ended.returncode}: {ended.stderr.strip()[-300:]}"
        )
    return int(lines[-1].split()[1]) / (2**20 if sys.platform == "darwin" else 1024)


def link_eval(root: Path, sources: list[str], count: int) -> Path:
    """An evaluation folder of `count` names."""
    (root / "images").mkdir(parents=True)
    names = [
        f"{number:040x}{Path(sources[number % len(sources)]).suffix}" for number in range(count)
    ]
    for number, name in enumerate(names):
        (root / "images" / name).symlink_to(sources[number % len(sources)])
    with open(root / "info.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ImageID", "ans"], *[[name, 0] for name in names]])
    return root


def link_train(root: Path, sources: list[str], count: int) -> Path:
    """A training root of `count` photographs, seven for each person."""
    for number in range(-(-count // len(SHOTS))):
        folder = (
            root
            / "images"
            / f"{number:06d}_{config.GENDERS[number % 2]}_Asian_{18 + number // 2 % 43}"
        )
        folder.mkdir(parents=True)
        for k, shot in enumerate(SHOTS):
            source = sources[(number * len(SHOTS) + k) % len(sources)]
            (folder / f"{shot}{Path(source).suffix}").symlink_to(source)
    return root


def write_tree(tree: Path, members: int, backbone: str, size: int) -> tuple[list[str], float]:
    """A tree of checkpoints with random weights: (the options that take all of it, MiB of a
    member's weights).
    """
    settings = config.TrainSettings(
        backbone=backbone, image_size=size, pretrained="none"
    ).completed()
    folds = 5 if members % 5 == 0 else 1
    weights = models.build(settings.model_type, settings.task, backbone, size).state_dict()
    for number in range(members):
        fold = number % folds
        info = checkpoint.Info(
            settings.model_type,
            settings.task,
            settings.transform_type,
            backbone,
            size,
            size,
            fold,
            number + 1,
            number / 100,
            1.0,
        )
        (tree / f"fold{fold:02d}").mkdir(parents=True, exist_ok=True)
        checkpoint.write(
            tree / f"fold{fold:02d}" / checkpoint.file_name(info, settings), weights, info
        )
    mib = sum(t.numel() * t.element_size() for t in weights.values()) / 2**20
    return ["--root", str(tree), "--top-k", str(members // folds)], mib


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__)
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
    found = tables.read_train(args.root)["path"].tolist()
    sources = [str(Path(path).resolve()) for path in found[:: max(1, len(found) // 50)]]
    common = ["--device", "cpu", "--workers", str(args.workers)]
    least, most = min(args.images), max(args.members)
    cases = [(members, least) for members in args.members] + [
        (most, images) for images in args.images if images != least
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for images in args.images:
            link_eval(folder / f"eval{images}", sources, images)
            link_train(folder / f"train{images}", sources, images)
        print(f"{args.backbone} at {args.image_size} px, peak MiB:")
        for members, images in cases:
            tree = folder / f"kfold-ensemble-VanillaEfficientNet_{members}"
            words, weights = write_tree(tree, members, args.backbone, args.image_size)
            taken = peak(
                "submit_ensemble",
                [
                    *words,
                    "--data-root",
                    str(folder / f"eval{images}"),
                    "--save-path",
                    str(folder / "prediction"),
                    "--tta",
                    str(args.tta),
                    *common,
                ],
            )
            print(
                f"  ensemble of {members:>2} over {images:>6} photographs {taken:>22.0f}   "
                "without its members' weights "
                f"({weights:.0f} each) {taken - members * weights:.0f}",
                flush=True,
            )
        for images in args.images:
            taken = peak(
                "train",
                [
                    "--train-root",
                    str(folder / f"train{images}"),
                    "--save-path",
                    str(folder / f"saved{images}"),
                    "--backbone",
                    args.backbone,
                    "--image-size",
                    str(args.image_size),
                    "--pretrained",
                    "none",
                    "--epochs",
                    "1",
                    *common,
                ],
            )
            print(f"  training on {images:>6} photographs {taken:>29.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
