"""What the peers share: people and split as train.py has them, CPU time, the score.

A peer is another library as its users run it, on whole photographs or, where DATA is what
face_crops.py wrote, on faces cut out by the product. Equal for all: the photographs and labels, the
people held out (train.py --cv 1: one of ten folds), the 18 classes, EfficientNet-lite0 with the
ImageNet weights of one package, the image size, one thread that also reads. Everything else
(reading, augmentation, head, optimizer, schedule, which epoch is taken, the views at the end) is
the library's. A whole window of the photograph may be no face, a part of a cut face always is one:
timm's milder `--scale 0.5 1 --reprob 0` fits these.

CPU seconds are user and system time of this process and its children, which other jobs on the
machine hardly change. Those of training include validation after each epoch, as every library does
it; not the start of the program.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import config
import metrics
from data import csv_tables, tables
from experiments import answers
from runtime.errors import UserError
from runtime.files import atomic_write, load_npz
from training import run as training_run

BACKBONE = "efficientnet-lite0"
TASK = "main"
CLASSES = 18


@dataclass(frozen=True)
class Data:
    """Rows of people (path, main ...), and the photographs to answer in info.csv's order."""

    train: pd.DataFrame
    held_out: pd.DataFrame
    images: list[str]
    paths: list[str]


@dataclass(frozen=True)
class Result:
    """Of a peer."""

    probabilities: np.ndarray  # [images, classes]
    held_out: float  # macro F1 of the epoch that was taken
    train_seconds: float
    answer_seconds: float
    package: str  # name and version


Peer = Callable[[argparse.Namespace, Data], Result]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every peer takes."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="a root with train/ and eval/, the latter with answers.csv")
    text = "where the probabilities go; a finished one is only scored"
    add("out", type=Path, metavar="OUT.npz", help=text)
    add("--seed", type=int, default=1)
    add("--image-size", type=int, default=96)
    add("--epochs", type=int, default=6)
    add("--batch-size", type=int, default=32)
    text = "a run's folds.csv, whose fold 0 is held out (default: train.py's split)"
    add("--folds", metavar="CSV", help=text)
    return parser


def read_data(args: argparse.Namespace) -> Data:
    """Both sides of the split and the evaluation photographs. Raises UserError."""
    settings = config.TrainSettings(train_root=str(Path(args.data) / "train"))
    table, _ = training_run.load_table(settings)
    if args.folds is not None:
        rows = csv_tables.read_csv(Path(args.folds), ("person", "fold"))
        people, folds = rows["person"].str.strip().map(tables.nfc), rows["fold"].str.strip()
        fold_of = dict(zip(people, folds, strict=True))
        missing = sorted(set(table["person"]) - set(fold_of))
        if missing:
            text = f"no row for {missing[0]} ({len(missing)} people lack one)"
            raise UserError(f"{args.folds}: {text}; use the folds of this data")
        table["fold"] = [0 if fold_of[person] == "0" else -1 for person in table["person"]]
    held_out = table["fold"] == 0
    if held_out.all() or not held_out.any():
        text = "nobody is on one side of fold 0; use the folds.csv of train.py --cv 1"
        raise UserError(f"{args.folds}: {text}")
    images, paths = tables.read_eval(str(Path(args.data) / "eval"))
    train, rest = (table[part].reset_index(drop=True) for part in (~held_out, held_out))
    return Data(train, rest, images, paths)


def cpu_seconds() -> float:
    """User and system time so far, of this process and its children that ended."""
    return sum(os.times()[:4])


def arguments_of(args: argparse.Namespace) -> str:
    """All that a result depends on, as text."""
    values = {name: value for name, value in vars(args).items() if name != "out"}
    return json.dumps(values, sort_keys=True)


def read_result(args: argparse.Namespace, images: list[str]) -> Result | None:
    """The result of an earlier run with the same arguments; None where there is none.

    Raises UserError for a file of other arguments or photographs.
    """
    arrays = load_npz(args.out, "remove it")
    if arrays is None:
        return None
    same = str(arrays.get("arguments")) == arguments_of(args)
    if not same or arrays["images"].tolist() != images:
        text = "made with other arguments or photographs; name another file, or remove it"
        raise UserError(f"{args.out}: {text}")
    names = ("held_out", "train_seconds", "answer_seconds")
    numbers = {name: float(arrays[name]) for name in names}
    return Result(arrays["probabilities"][0, 0], package=str(arrays["package"]), **numbers)


def write_result(args: argparse.Namespace, images: list[str], result: Result) -> None:
    """Write the probabilities [1, 1, images, classes] with the figures and the arguments."""
    with atomic_write(args.out) as file:
        np.savez(
            file,
            images=np.array(images),
            probabilities=result.probabilities[None, None].astype(np.float32),
            arguments=np.array(arguments_of(args)),
            held_out=np.array(result.held_out),
            package=np.array(result.package),
            train_seconds=np.array(result.train_seconds),
            answer_seconds=np.array(result.answer_seconds),
        )


def run(args: argparse.Namespace, peer: Peer) -> int:
    """Train and answer where that was not done yet; print the score."""
    data = read_data(args)
    result = read_result(args, data.images)
    if result is None:
        torch.set_num_threads(1)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result = peer(args, data)
        write_result(args, data.images, result)
    choice = f"{result.package} {Path(args.data).name}: {args.out.stem}"
    _, truth = answers.read_answers(args.data, [choice])
    score = metrics.score(TASK, result.probabilities.argmax(1), truth).line()
    held_out = f"held out macro F1 {result.held_out:.4f}"
    print(f"{result.package}, seed {args.seed}: answers {score}; {held_out}")
    train, answer = result.train_seconds, result.answer_seconds
    print(
        f"CPU seconds: training {train:.1f} ({train / len(data.train) / args.epochs:.4f} a "
        f"photograph and epoch of {args.epochs}), answering {answer:.1f} "
        f"({answer / len(truth):.4f} a photograph)",
        flush=True,
    )
    return 0


def macro_f1(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The project's own score of probabilities [images, classes]."""
    return metrics.score(TASK, probabilities.argmax(1), truth).macro_f1
