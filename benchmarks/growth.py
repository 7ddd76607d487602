#!/usr/bin/env python3
"""Growth: seconds per photograph and per row while their number grows.

    python -m benchmarks.growth input/data/train                     lite0 at 32 px, about 3 minutes

- Photographs, 1x, 4x and 16x as many (the same few files again and again under other names): an
  epoch of training and a prediction by engine.train_one_epoch and engine.predict, in turns, per
  photograph. The start of the reading processes counts, so small numbers look a little dearer than
  they are.
- Before training: the check of the photographs' headers and ends (images.find_unreadable) and the
  search for near-duplicates (duplicates.find_duplicates, which compares all with all), over 1/16,
  1/4 and all of the folder's photographs.
- Tables: tables.read_train, splits.assign_folds and the labels. Of 18,900 rows both the listing
  (real folders of empty files) and the rest are timed; for 1,000,000 rows the listing is made up
  (a function that gives the names replaces tables.list_images), the train.csv is a real file.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from benchmarks import harness  # isort: skip  (before torch, whose threads it sets up)

import pandas as pd

import dataset
from benchmarks import product
from data import duplicates, images, splits, tables
from training.fold import FoldTrainer

TIMES = (1, 4, 16)
Person = tuple[str, str, int]  # path, gender, age


def write_table(root: Path, people: list[Person], with_files: bool) -> None:
    """train.csv of these people, and their photographs as empty files where asked for."""
    (root / "images").mkdir(parents=True)
    lines = [[path.split("_")[0], gender, "Asian", age, path] for path, gender, age in people]
    with open(root / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "gender", "race", "age", "path"], *lines])
    for path, _, _ in people if with_files else ():
        (root / "images" / path).mkdir()
        for shot in harness.SHOTS:
            (root / "images" / path / f"{shot}.jpg").touch()


def made_up_listing(people: list[Person]) -> Callable[[Path, Path], pd.DataFrame]:
    """Stands for tables.list_images."""
    files = [
        (path, shot, f"images/{path}/{shot}.jpg") for path, _, _ in people for shot in harness.SHOTS
    ]
    table = pd.DataFrame(files, columns=["person", "shot", "file"])
    return lambda root, images: table.assign(path=table["file"])


def time_table(root: Path, rows: int, with_files: bool) -> None:
    """Print seconds per row of a table."""
    people = harness.made_up_people(-(-rows // len(harness.SHOTS)))
    write_table(root, people, with_files)
    list_images = tables.list_images
    if not with_files:
        tables.list_images = made_up_listing(people)  # type: ignore[assignment]
    try:
        start = time.perf_counter()
        table = tables.read_train(root)
        read = time.perf_counter()
        splits.assign_folds(table, product.FOLDS, 42)
        dataset.label_tensors(table, ["main"])
        split = time.perf_counter()
    finally:
        tables.list_images = list_images
    listing = "files listed" if with_files else "listing made up"
    print(
        f"  {len(table):>9,} rows, {listing:<15}  read {read - start:6.2f} s  split and labels "
        f"{split - read:5.2f} s {1e6 * (split - start) / len(table):5.1f} us/row",
        flush=True,
    )


def network_sides(trainer: FoldTrainer, count: int) -> dict[str, harness.Side]:
    """An epoch and a prediction over `count` photographs."""
    photos, labels = product.repeated(trainer, count)

    def train() -> int:  # a loader of its own, so that its workers start in every turn
        return product.Training(trainer, photos, range(count), labels)()

    predict = product.prediction([trainer.network], [[0]], photos, trainer.context.compute)
    return {f"training, {count} photographs": train, f"prediction, {count} photographs": predict}


def check_sides(paths: list[str], people: list[str]) -> dict[str, harness.Side]:
    """The check of the files and the search for near-duplicates."""

    def check() -> int:
        images.find_unreadable(paths, skip=False)
        return len(paths)

    def search() -> int:
        duplicates.find_duplicates(paths, people)
        return len(paths)

    return {
        f"check, {len(paths)} photographs": check,
        f"leak check, {len(paths)} photographs": search,
    }


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__, rounds=3)
    harness.add_machine_options(parser)
    parser.add_argument("root", help="training root (train.csv and images/)")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=320, help="photographs at 1x")
    parser.add_argument("--rows", type=int, nargs=2, default=[18900, 1000000])
    args = parser.parse_args(argv)
    print(harness.describe_machine(args.device))
    trainer = product.make_trainer(args, backbone=args.backbone, image_size=args.image_size)
    sides: dict[str, harness.Side] = {}
    for times in TIMES:
        sides |= network_sides(trainer, times * args.images)
    next(iter(sides.values()))()
    paths, people = (trainer.context.table[name].tolist() for name in ("path", "person"))
    for times in reversed(TIMES):
        sides |= check_sides(paths[::times], people[::times])
    seconds = harness.median_seconds(sides, args.rounds)
    workers = trainer.context.compute.workers
    print(f"{args.backbone} at {args.image_size} px, {workers} workers (aim: within 10 % of 1x):")
    at_1x: dict[str, float] = {}
    for name, each in seconds.items():
        ratio = each / at_1x.setdefault(name.partition(",")[0], each)
        print(f"  {name:<36} {1000 * each:8.3f} ms a photograph   {ratio:.3f} of 1x", flush=True)
    print("tables:")
    small, large = args.rows
    with tempfile.TemporaryDirectory() as name:
        for k, (rows, with_files) in enumerate(((small, True), (small, False), (large, False))):
            time_table(Path(name) / str(k), rows, with_files)
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
