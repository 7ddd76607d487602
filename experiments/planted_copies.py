#!/usr/bin/env python3
"""Does the leak check find planted copies? python -m experiments.planted_copies TRAIN_ROOT

In a temporary copy of the root's table (nothing in the root is changed) 50 photographs are replaced
by copies of others': each is a photograph of the same kind of shot of somebody else, in turn scaled
by 0.6 to 1.4, mirrored, or cropped by up to 4 % of each side, and re-encoded (JPEG quality 40 to
90). Printed: how many of the 50 pairs are found, how many pairs of other people are reported that
nobody planted, and seconds.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

from benchmarks import harness
from data import duplicates, images, tables

COPIES = 50
Pairs = set[frozenset[int]]  # of row numbers


def disguise(photo: Image.Image, number: int, draw: random.Random) -> Image.Image:
    """The photograph scaled, mirrored or slightly cropped."""
    width, height = photo.size
    if number % 3 == 0:
        scale = draw.uniform(0.6, 1.4)
        return photo.resize((round(width * scale), round(height * scale)))
    if number % 3 == 1:
        return ImageOps.mirror(photo)
    left, top, right, bottom = (draw.uniform(0, 0.04) for _ in range(4))
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return photo.resize((width, height), Image.Resampling.BICUBIC, box)


def plant(table: pd.DataFrame, folder: Path, seed: int) -> tuple[list[str], Pairs]:
    """(the table's paths with some replaced by copies of others, (copy, source) pairs)."""
    paths, people, shots = (table[name].tolist() for name in ("path", "person", "shot"))
    draw = random.Random(seed)
    sources = draw.sample(range(len(paths)), COPIES)
    copies: dict[int, int] = {}
    for number, source in enumerate(sources):
        fit = [
            k
            for k in range(len(paths))
            if shots[k] == shots[source] and people[k] != people[source]
            if k not in copies and k not in sources
        ]
        copy = draw.choice(fit)
        target = folder / f"copy{number}.jpg"
        photo = disguise(images.read_image(os.path.realpath(paths[source])), number, draw)
        photo.save(target, quality=draw.randint(40, 90))
        copies[copy] = source
        paths[copy] = str(target)
    return paths, {frozenset(pair) for pair in copies.items()}


def main(argv: list[str] | None = None) -> int:
    """Print the figures of each seed."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--people", type=int, help="of the root's first people only")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args(argv)
    table = tables.read_train(args.root)
    table = table[table["person"].isin(table["person"].unique()[: args.people])]
    people = table["person"].tolist()
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            paths, planted = plant(table, Path(folder), seed)
            start = time.monotonic()
            reported = duplicates.find_duplicates(paths, people)
            seconds = time.monotonic() - start
        row = {path: k for k, path in enumerate(paths)}
        pairs = {frozenset((row[a], row[b])) for a, b, _ in reported}
        couples = {frozenset(people[k] for k in pair) for pair in planted}
        others = sum(frozenset(people[k] for k in pair) in couples for pair in pairs - planted)
        print(
            f"seed {seed}: {len(pairs & planted)} of {COPIES} found, "
            f"{len(pairs - planted) - others} false pairs, {others} more pairs of the planted "
            f"couples; {len(paths)} photographs in {seconds:.1f} s"
        )
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
