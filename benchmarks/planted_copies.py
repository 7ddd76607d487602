"""Does the leak check find planted copies? python benchmarks/planted_copies.py TRAIN_ROOT

In a temporary copy of the root (links, nothing in it is changed) 50 photographs are replaced by
copies of others': each is a photograph of the same kind of shot of somebody else, in turn
re-encoded (JPEG quality 40 to 90, scaled by 0.6 to 1.4), mirrored, or cropped by up to 4 % of each
side; all are re-encoded in the end. Prints how many of the 50 pairs are found, how many pairs of
other people are reported that nobody planted, and seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import duplicates
import photographs
import tables

COPIES = 50


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


def plant(
    paths: list[str], people: list[str], shots: list[str], folder: Path, seed: int
) -> dict[int, int]:
    """Replace entries of `paths` by copies of others; {the copy's number: its source's}."""
    draw = random.Random(seed)
    planted: dict[int, int] = {}
    sources = draw.sample(range(len(paths)), COPIES)
    for number, source in enumerate(sources):
        fit = [
            k
            for k in range(len(paths))
            if shots[k] == shots[source]
            and people[k] != people[source]
            and k not in planted
            and k not in sources
        ]
        copy = draw.choice(fit)
        target = folder / f"copy{number}.jpg"
        disguise(photographs.read_photo(os.path.realpath(paths[source])), number, draw).save(
            target, quality=draw.randint(40, 90)
        )
        planted[copy] = source
        paths[copy] = str(target)
    return planted


def main(argv: list[str] | None = None) -> int:
    """Print the figures of each seed."""
    parser = argparse.ArgumentParser(
        description="Plant copies and look for them.", allow_abbrev=False
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--people", type=int, help="of the root's first people only")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args(argv)
    table = tables.read_train(args.root)
    table = table[table["person"].isin(table["person"].unique()[: args.people])]
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            paths, people = table["path"].tolist(), table["person"].tolist()
            planted = plant(paths, people, table["shot"].tolist(), Path(folder), seed)
            began = time.monotonic()
            found = duplicates.find_duplicates(paths, people)
            seconds = time.monotonic() - began
        number = {path: k for k, path in enumerate(paths)}
        pairs = {frozenset((number[a], number[b])) for a, b, _ in found}
        right = {frozenset(pair) for pair in planted.items()}
        couples = {frozenset((people[a], people[b])) for a, b in planted.items()}
        others = sum(frozenset(people[k] for k in pair) in couples for pair in pairs - right)
        print(
            f"seed {seed}: {len(pairs & right)} of {COPIES} found, {len(pairs - right) - others} "
            f"false pairs, {others} more "
            f"pairs of the planted couples; {len(paths)} photographs in {seconds:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
