"""What the peers share: the people and their split as train.py has them, the evaluation
photographs, CPU time, the score.

A peer is another library as its users run it, on whole photographs. Equal for all: the photographs
and labels, the people held out (train.py --cv 1: one of ten folds), the 18 classes,
EfficientNet-lite0 with the ImageNet weights of one package, the image size, one thread that also
reads. Everything else (reading, augmentation, head, optimizer, schedule, which epoch is taken, the
views at the end) is the library's.

CPU seconds are user and system time of this process and its children, which other jobs on the
machine hardly change. Those of training include validation after each epoch, as every library does
it; not the start of the program.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
import utils  # noqa: E402  (before torch, whose threads it sets up)

BACKBONE = "efficientnet-lite0"
TASK = "main"
CLASSES = 18


@dataclass(frozen=True)
class Data:
    """Rows of train.csv's people (path, main ...), and the photographs to answer in info.csv's
    order.
    """

    train: pd.DataFrame
    held_out: pd.DataFrame
    images: list[str]
    paths: list[str]


@dataclass(frozen=True)
class Result:
    """What a peer came to."""

    probabilities: np.ndarray  # [images, classes]
    held_out: float  # macro F1 of the epoch that was taken
    train_seconds: float
    answer_seconds: float
    package: str  # name and version


Play = Callable[[argparse.Namespace, Data], Result]


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every peer takes."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a data root with train/ and eval/, the latter with answers.csv",
    )
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT.npz",
        help="where the probabilities go; a finished one is only scored",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--folds",
        metavar="CSV",
        help="a run's folds.csv, whose fold 0 is held out (default: train.py's split)",
    )
    return parser


def read(args: argparse.Namespace) -> Data:
    """Both sides of the split and the evaluation photographs. Raises UserError."""
    import config
    import prepare
    import tables

    table, _ = prepare.load_table(config.TrainSettings(train_root=str(Path(args.data) / "train")))
    if args.folds is not None:
        told = tables.read_csv(Path(args.folds), ("person", "fold"))
        folds = dict(
            zip(told["person"].str.strip().map(tables.nfc), told["fold"].str.strip(), strict=True)
        )
        lost = sorted(set(table["person"]) - set(folds))
        if lost:
            raise utils.UserError(
                f"{args.folds}: no row for {lost[0]} ({len(lost)} people lack one); use the folds "
                "of this data"
            )
        table = table.assign(
            fold=table["person"].map(lambda person: 0 if folds[person] == "0" else -1)
        )
    train, held_out = (
        table[part].reset_index(drop=True) for part in (table["fold"] != 0, table["fold"] == 0)
    )
    if train.empty or held_out.empty:
        raise utils.UserError(
            f"{args.folds}: nobody is on one side of fold 0; use the folds.csv of train.py --cv 1"
        )
    return Data(train, held_out, *tables.read_eval(str(Path(args.data) / "eval")))


def cpu_seconds() -> float:
    """User and system time so far, of this process and its children that ended."""
    return sum(os.times()[:4])


def asked(args: argparse.Namespace) -> str:
    """All that a result hangs on, as text."""
    return json.dumps(
        {name: value for name, value in vars(args).items() if name != "out"}, sort_keys=True
    )


def stored(args: argparse.Namespace, images: list[str]) -> Result | None:
    """What an earlier run with the same arguments came to; None where there was none. Raises
    UserError for another's file.
    """
    arrays = utils.read_arrays(args.out, "remove it")
    if arrays is None:
        return None
    if str(arrays.get("arguments")) != asked(args) or arrays["images"].tolist() != images:
        raise utils.UserError(
            f"{args.out}: made with other arguments or photographs; name another file, or remove it"
        )
    numbers = {
        name: float(arrays[name]) for name in ("held_out", "train_seconds", "answer_seconds")
    }
    return Result(arrays["probabilities"][0, 0], package=str(arrays["package"]), **numbers)


def play(args: argparse.Namespace, side: Play) -> int:
    """Train and answer where that was not done yet; print the score."""
    import metrics
    import tables

    data = read(args)
    truth = tables.read_answers(str(Path(args.data) / "eval" / "answers.csv"), data.images, TASK)
    result = stored(args, data.images)
    if result is None:
        utils.set_threads(1)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result = side(args, data)
        with utils.atomic_write(args.out) as file:
            np.savez(
                file,
                images=np.array(data.images),
                probabilities=result.probabilities[None, None].astype(np.float32),
                arguments=np.array(asked(args)),
                held_out=np.array(result.held_out),
                package=np.array(result.package),
                train_seconds=np.array(result.train_seconds),
                answer_seconds=np.array(result.answer_seconds),
            )
    score = metrics.score(TASK, result.probabilities.argmax(1), truth)
    print(
        f"{result.package}, seed {args.seed}: answers {score.line()}; held out macro F1 "
        f"{result.held_out:.4f}"
    )
    each, answer = (
        result.train_seconds / len(data.train) / args.epochs,
        result.answer_seconds / len(truth),
    )
    print(
        f"CPU seconds: training {result.train_seconds:.1f} ({each:.4f} a photograph and epoch of "
        f"{args.epochs}), "
        f"answering {result.answer_seconds:.1f} ({answer:.4f} a photograph)",
        flush=True,
    )
    return 0


def macro_f1(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The project's own score of probabilities [images, classes]."""
    import metrics

    return metrics.score(TASK, probabilities.argmax(1), truth).macro_f1
