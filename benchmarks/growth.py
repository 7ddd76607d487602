#!/usr/bin/env python3
"""Growth: seconds per photograph and per row while their number grows.

    python benchmarks/growth.py input/data/train                               lite0 at 32 px, about
    3 minutes

- Photographs, 1x, 4x and 16x as many (the same few files again and again under other names): an
  epoch of training and a
  prediction by engine.train_epoch and engine.predict, in turns, per photograph. The start of the
  reading processes counts, so that small numbers look a little dearer than they are.
- Before training: the check of the photographs' headers and ends (audit.unreadable) and the search
  for near-duplicates
  (duplicates.find_duplicates, which compares all with all), over 1/16, 1/4 and all of the folder's
  photographs.
- Tables: tables.read_train, dataset.assign_folds and the labels. Of 18,900 rows both the listing
  (real folders of empty
  files) and the rest are timed; for 1,000,000 rows the listing is made up (tables.list_photos is
  replaced by a function that gives the names), the train.csv is a real file.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import timing

import audit
import augmentation
import config
import dataset
import duplicates
import engine
import loading
import prepare
import tables
import training
import utils

SHOTS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")


def people(count: int) -> list[tuple[str, str, int]]:
    """(path, gender, age) of made-up people."""
    drawn = [(config.GENDERS[number % 2], 18 + number // 2 % 43) for number in range(count)]
    return [
        (f"{number:06d}_{gender}_Asian_{age}", gender, age)
        for number, (gender, age) in enumerate(drawn)
    ]


def write_table(root: Path, rows: list[tuple[str, str, int]]) -> None:
    """train.csv of these people."""
    (root / "images").mkdir(parents=True)
    with open(root / "train.csv", "w", newline="") as file:
        lines = [[path.split("_")[0], gender, "Asian", age, path] for path, gender, age in rows]
        csv.writer(file).writerows([["id", "gender", "race", "age", "path"], *lines])


def listing(rows: list[tuple[str, str, int]]) -> Callable[[Path, Path], pd.DataFrame]:
    """Stands for tables.list_photos."""
    files = [(path, shot, f"images/{path}/{shot}.jpg") for path, _, _ in rows for shot in SHOTS]
    table = pd.DataFrame(files, columns=["person", "shot", "file"])
    return lambda root, images: table.assign(path=table["file"])


def time_tables(folder: Path, small: int, large: int) -> None:
    """Print seconds per row of both tables."""
    listed = tables.list_photos
    for rows, made_up in ((small, False), (small, True), (large, True)):
        who = people(-(-rows // len(SHOTS)))
        root = folder / f"table{rows}{made_up}"
        write_table(root, who)
        if not made_up:
            for path, _, _ in who:
                (root / "images" / path).mkdir()
                for shot in SHOTS:
                    (root / "images" / path / f"{shot}.jpg").touch()
        tables.list_photos = listing(who) if made_up else listed  # type: ignore[assignment]
        try:
            start = time.perf_counter()
            table = tables.read_train(root)
            read = time.perf_counter()
            dataset.assign_folds(table, 5, 42)
            dataset.label_tensors(table, ["main"])
            split = time.perf_counter()
        finally:
            tables.list_photos = listed
        print(
            f"  {len(table):>9,} rows, {'listing made up' if made_up else 'files listed':<15}  "
            f"read {read - start:6.2f} s  "
            f"split and labels {split - read:5.2f} s {1e6 * (split - start) / len(table):5.1f} "
            "us/row",
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__, rounds=3)
    timing.machine_options(parser)
    parser.add_argument("root", help="training root (train.csv and images/)")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=320, help="photographs at 1x")
    parser.add_argument("--rows", type=int, nargs=2, default=[18900, 1000000])
    args = parser.parse_args(argv)
    settings = config.TrainSettings(
        train_root=args.root,
        backbone=args.backbone,
        image_size=args.image_size,
        pretrained="none",
        cv=5,
        device=args.device,
        precision=args.precision,
        workers=args.workers,
        threads=args.threads,
    ).completed()
    study, _ = prepare.set_up(settings)
    fold = training.prepare_fold(study, 0)
    view = augmentation.View(augmentation.forms("random", args.image_size).train, ("benchmark",))
    sides: dict[str, timing.Side] = {}
    for times in (1, 4, 16):
        count = times * args.images
        rows = [k % len(study.table) for k in range(count)]
        paths = study.table["path"].iloc[rows].tolist()
        photos = dataset.Photos([f"{k}" for k in range(count)], paths, [view])
        batches = dataset.Batches(range(count), 32, ("benchmark",), least=2)
        labels = {
            task: values.repeat(count // len(values) + 1)[:count]
            for task, values in fold.labels.items()
        }

        def train(photos=photos, batches=batches, labels=labels) -> int:  # type: ignore[no-untyped-def]
            loader = loading.loader(photos, batches, study.compute.workers, study.compute.device)
            engine.train_epoch(fold.learner, fold.recipe, loader, labels, "main", study.compute, 0)
            return len(photos)

        def predict(photos=photos) -> int:  # type: ignore[no-untyped-def]
            engine.predict([fold.learner.model], [[0]], photos, ["main"], study.compute)
            return len(photos)

        sides |= {
            f"training, {count} photographs": train,
            f"prediction, {count} photographs": predict,
        }
    next(iter(sides.values()))()
    for part in (16, 4, 1):
        table = study.table.iloc[::part]

        def check(table=table) -> int:  # type: ignore[no-untyped-def]
            audit.unreadable(table["path"].tolist(), skip=False)
            return len(table)

        def search(table=table) -> int:  # type: ignore[no-untyped-def]
            duplicates.find_duplicates(table["path"].tolist(), table["person"].tolist())
            return len(table)

        sides |= {
            f"check, {len(table)} photographs": check,
            f"leak check, {len(table)} photographs": search,
        }
    seconds = timing.alternate(sides, args.rounds)
    print(
        f"{args.backbone} at {args.image_size} px, {study.compute.workers} workers (aim: within "
        "10 % of 1x):"
    )
    first: dict[str, float] = {}
    for name, each in seconds.items():
        least = first.setdefault(name.partition(",")[0], each)
        print(
            f"  {name:<36} {1000 * each:8.3f} ms a photograph   {each / least:.3f} of 1x",
            flush=True,
        )
    print("tables:")
    with tempfile.TemporaryDirectory() as name:
        time_tables(Path(name), *args.rows)
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
