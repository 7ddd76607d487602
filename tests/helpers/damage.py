"""Flip single bits in files of all four kinds that a run leaves: each load must give the values of
the whole file, or refuse it in one line.

    python -m tests.helpers.damage --flips 2000 [--seed 0] [--headers]

Half of the flips fall anywhere, half on what is no member's content: the zip file's headers, its
directory, its end. --headers: every bit of those besides.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import checkpoint
import ensemble
from inference import submission
from runtime.errors import CliError
from runtime.files import load_npz
from tests.helpers import fuzz_readers
from training import fold_state

VERDICTS = ("refused", "same", "other", "traceback")


@dataclass(frozen=True)
class Kind:
    """A whole file, and the function that reads it."""

    path: Path
    load: Callable[[], object]


def whole_files(folder: Path) -> list[Kind]:
    """state.pt, a checkpoint, validation.npz and probs.npz with values that all differ."""
    draw = np.random.RandomState(0)
    array = draw.rand(2, 3, 4, 18).astype(np.float32)
    array /= array.sum(-1, keepdims=True)
    names = [f"photograph {number}.jpg" for number in range(4)]

    kept, history = [checkpoint.KeptCheckpoint("a.pth", 2, 0.4)], [{"epoch": 1.0}, {"epoch": 2.0}]
    state = fold_state.FoldState(1, 2, 3, [0.5, 1.0, 0.0, 1.0, -1.0], kept, history)
    state.probabilities = {task: [*array[:, 0]] for task in ("main", "mask")}
    fold_state.save_validation(folder, state, names)
    training = fuzz_readers.small_training()
    fold_state.save_fold_state(folder, state, fold_state.training_state_dict(*training))

    sizes = ("VanillaResNet", "main", "base", "resnet18", 224, 224)
    info = checkpoint.CheckpointInfo(*sizes, 1, 3, 0.5, 1.2, {"macro_f1": 0.5}, ["p1", "p2"])
    weights = {"linear.weight": torch.rand(18, 40), "linear.bias": torch.rand(18)}
    pth = folder / "a.pth"
    checkpoint.save_checkpoint(pth, weights, info)

    members, folds, f1 = ["fold00/a.pth", "fold01/b.pth"], [0, 1], [0.5, 0.6]
    probs = ensemble.Probabilities("main", array, members, folds, f1, names)
    submission.save_probabilities(folder, probs)
    validation = folder / fold_state.VALIDATION_FILE
    return [
        Kind(folder / fold_state.STATE_FILE, lambda: fold_state.load_fold_state(folder)),
        Kind(pth, lambda: [checkpoint.load_checkpoint(pth, mapped) for mapped in (False, True)]),
        Kind(validation, lambda: load_npz(validation, "train again")),
        Kind(folder / submission.PROBS, lambda: submission.load_probabilities(folder)),
    ]


def frozen(value: object) -> object:
    """Values that are equal only where all bits of what was read are."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(frozen, value)]
    return (type(value).__name__, repr(value))


def judge(kind: Kind, intact: object) -> str:
    """One of VERDICTS on the file as it is now; same: it was read with all its values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = frozen(kind.load())
    except CliError as error:
        line = str(error)
        return "refused" if line.startswith(f"{kind.path}: ") and "\n" not in line else "traceback"
    except Exception:
        return "traceback"
    return "same" if values == intact else "other"


def header_bits(path: Path) -> list[int]:
    """The bits of a zip file that are no member's content."""
    data = path.read_bytes()
    outside = bytearray(b"\1" * len(data))
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            lengths = data[member.header_offset + 26 : member.header_offset + 30]
            start = member.header_offset + 30
            start += int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            outside[start : start + member.compress_size] = bytes(member.compress_size)
    return [8 * at + bit for at, is_outside in enumerate(outside) if is_outside for bit in range(8)]


def sampled_bits(path: Path, count: int, draw: random.Random) -> list[int]:
    """Half of them anywhere, half of them outside the members' content."""
    anywhere = range(8 * path.stat().st_size)
    return draw.sample(anywhere, count - count // 2) + draw.sample(header_bits(path), count // 2)


def flip(kind: Kind, bits: list[int]) -> Iterator[tuple[int, str]]:
    """(bit, verdict) of each bit, flipped alone; the file is whole again at the end."""
    whole, intact = kind.path.read_bytes(), frozen(kind.load())
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        kind.path.write_bytes(data)
        yield bit, judge(kind, intact)
    kind.path.write_bytes(whole)


def flip_sample(kind: Kind, count: int) -> tuple[int, str]:
    """(flips, those that were not noticed) of a sample of a file's bits."""
    bits = sampled_bits(kind.path, count, random.Random(0))
    wrong = [bit for bit, verdict in flip(kind, bits) if verdict in ("other", "traceback")]
    return len(bits), f"bits {wrong}" if wrong else ""


def all_cases(folder: Path) -> Iterator[tuple[str, Callable[[], tuple[int, str]]]]:
    """2,000 flips for `make proof`, a case for each file."""
    for kind in whole_files(folder):
        yield f"flips in {kind.path.name}", partial(flip_sample, kind, 500)


def main(argv: list[str] | None = None) -> int:
    """Print the verdicts of all flips; 1 where another value was used, or a traceback came."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--headers", action="store_true")
    args = parser.parse_args(argv)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind in whole_files(Path(folder)):
            bits = sampled_bits(kind.path, args.flips // 4, random.Random(args.seed))
            bits += header_bits(kind.path) if args.headers else []
            verdicts = Counter[str]()
            for bit, verdict in flip(kind, bits):
                verdicts[verdict] += 1
                if verdict in ("other", "traceback"):
                    print(f"{kind.path.name}: bit {bit % 8} of byte {bit // 8}: {verdict}")
            print(f"{kind.path.name:>15}: {len(bits)} flips: {dict(verdicts)}", flush=True)
            total += verdicts
    print(f"{total.total()} flips: " + ", ".join(f"{total[v]} {v}" for v in VERDICTS))
    return 1 if total["other"] or total["traceback"] else 0


if __name__ == "__main__":
    sys.exit(main())
