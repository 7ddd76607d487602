#!/usr/bin/env python3
"""Which face finder finds masked faces? python benchmarks/detectors.py DATA [--side eval]
[--boxes-out DIR]

The finders of face_finders.py look for the face on the same photographs, in turns, in one thread;
those that cannot be imported are named. DATA is a root with train/, eval/ and the true boxes in
boxes.csv (file,left,top,right,bottom). A photograph shows one person, so of several boxes the
surest one is taken.

Every detector frames a face in its own way. So there are three judgements: found, IoU with the true
box of 0.5 or more; found loosely, the box's centre inside the true box and its sides between half
and twice the true ones; and the IoU after calibration: the box is moved and scaled by the medians
(of its offset and scale, in its own sides) over the photographs of training's last people, of which
none is measured. One calibration serves all mask states, as nobody tells them beforehand.
The quantiles of the IoU are over the photographs with a box, the percentages over all. CPU: the
median of the process's time, over all its threads, from the decoded photograph to the box.

--boxes-out writes each detector's calibrated boxes of ALL photographs of train and eval as
DETECTOR.csv for `--boxes`; photographs in which nothing is found are left out there, and have their
faces found in the pixels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import timing
from face_finders import DETECTORS, Detect
from numpy.typing import NDArray

import config
import photographs
import tables
import utils

Floats = NDArray[np.float64]
CALIBRATION = 30  # people, the last ones by name
CORNERS = ["left", "top", "right", "bottom"]


def made(names: list[str]) -> dict[str, Detect]:
    """The detectors that can be imported; the others are named."""
    there: dict[str, Detect] = {}
    for name in names:
        try:
            there[name] = DETECTORS[name].make()
        except ImportError as error:
            print(f"missing: {name} ({error}); install {DETECTORS[name].package}", flush=True)
    return there


def read(data: Path) -> pd.DataFrame:
    """A row per photograph of both sides: side, path, file (below `data`), person, mask and the
    true box (or NaN).
    """
    train = tables.read_train(data / "train").assign(side="train")
    names, paths = tables.read_eval(str(data / "eval"))
    states = tables.read_answers(str(data / "eval" / "answers.csv"), names, "mask")
    judged = pd.DataFrame({"side": "eval", "path": paths, "person": names, "mask": states})
    rows = pd.concat([train[judged.columns], judged], ignore_index=True)
    rows["file"] = [tables.nfc(Path(path).relative_to(data).as_posix()) for path in rows["path"]]
    told = tables.read_boxes(str(data / "boxes.csv"), rows["file"].tolist(), rows["path"].tolist())
    rows[CORNERS] = [told.get(file, (np.nan,) * 4) for file in rows["file"]]
    return rows


def look(
    detectors: Mapping[str, Detect], rows: pd.DataFrame
) -> tuple[dict[str, Floats], dict[str, float]]:
    """Of each detector its surest boxes [photographs, 4], NaN where it finds none, and its median
    seconds.
    """
    boxes = {name: np.full((len(rows), 4), np.nan) for name in detectors}
    seconds: dict[str, list[float]] = {name: [] for name in detectors}
    for row, path in enumerate(utils.progress(rows["path"].tolist(), "looking")):
        photo = photographs.read_photo(path)
        for name, detect in detectors.items():
            start = time.process_time()
            found = list(detect(photo))
            seconds[name].append(time.process_time() - start)
            if found:
                boxes[name][row] = max(found, key=lambda face: face[0])[1]
    return boxes, {name: float(np.median(taken)) for name, taken in seconds.items()}


def parts(boxes: Floats) -> tuple[Floats, Floats]:
    """Centres and sides, each [boxes, 2]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def loosely(boxes: Floats, truth: Floats) -> NDArray[np.bool_]:
    """Whether each box has its centre inside the true one, and sides between half and twice the
    true ones.
    """
    (centre, side), (true_centre, true_side) = parts(boxes), parts(truth)
    ratio = side / true_side
    return np.asarray(
        ((np.abs(centre - true_centre) <= true_side / 2) & (ratio >= 0.5) & (ratio <= 2)).all(1)
    )


def overlap(boxes: Floats, truth: Floats) -> Floats:
    """The IoU of each box with the true one, NaN without a box."""
    common = (
        (np.minimum(boxes[:, 2:], truth[:, 2:]) - np.maximum(boxes[:, :2], truth[:, :2]))
        .clip(0)
        .prod(1)
    )
    return np.asarray(common / (parts(boxes)[1].prod(1) + parts(truth)[1].prod(1) - common))


def calibration(boxes: Floats, truth: Floats) -> Floats:
    """How far a detector's boxes are off and by what their sides must be multiplied, in their own
    sides: [2, 2].
    """
    near = loosely(boxes, truth)
    if not near.any():
        return np.array([[0.0, 0.0], [1.0, 1.0]])
    (centre, side), (true_centre, true_side) = parts(boxes[near]), parts(truth[near])
    return np.stack(
        [np.median((true_centre - centre) / side, axis=0), np.median(true_side / side, axis=0)]
    )


def calibrated(boxes: Floats, by: Floats) -> Floats:
    """The boxes, moved and scaled."""
    centre, side = parts(boxes)
    return np.concatenate(
        [centre + (by[0] - by[1] / 2) * side, centre + (by[0] + by[1] / 2) * side], axis=1
    )


def judge(boxes: Floats, truth: Floats, by: Floats) -> dict[str, float]:
    """A row of the table."""
    row = {
        "box %": 100 * np.isfinite(boxes[:, 0]).mean(),
        "loosely %": 100 * loosely(boxes, truth).mean(),
    }
    for prefix, shown in (("", boxes), ("cal. ", calibrated(boxes, by))):
        ious = overlap(shown, truth)
        low, middle = (
            np.nanquantile(ious, [0.1, 0.5]) if np.isfinite(ious).any() else (np.nan, np.nan)
        )
        row |= {
            f"{prefix}found %": 100 * (ious >= 0.5).mean(),
            f"{prefix}median": middle,
            f"{prefix}p10": low,
        }
    return row


def write(path: Path, files: pd.Series, boxes: Floats) -> None:
    """The boxes that there are, as a table for --boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(boxes, index=files, columns=CORNERS).dropna().round().astype(int)
    table.to_csv(path)
    print(f"{path}: the boxes of {len(table)} of {len(boxes)} photographs")


def main(argv: list[str] | None = None) -> int:
    parser = timing.options(__doc__)
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="train/, eval/ (with answers.csv) and boxes.csv"
    )
    parser.add_argument(
        "--photos",
        type=int,
        default=700,
        help="photographs to measure on, the first by name (whole people)",
    )
    parser.add_argument(
        "--side", choices=("train", "eval"), default="train", help="whose photographs are measured"
    )
    parser.add_argument(
        "--detectors",
        nargs="+",
        choices=DETECTORS,
        default=list(DETECTORS),
        metavar="NAME",
        help="which",
    )
    parser.add_argument(
        "--boxes-out", type=Path, metavar="DIR", help="write the boxes of all photographs there"
    )
    args = parser.parse_args(argv)
    utils.set_threads(1)
    rows = read(args.data)
    train = rows["side"] == "train"
    known = rows["left"].notna()
    last = (
        train & known & rows["person"].isin(sorted(set(rows.loc[train, "person"]))[-CALIBRATION:])
    )
    free = rows[known & (rows["side"] == args.side) & ~last].head(args.photos)
    measured = known & ~last & (rows["side"] == args.side) & rows["person"].isin(free["person"])
    if not args.boxes_out:
        rows, last, measured = (each[last | measured] for each in (rows, last, measured))
    detectors = made(args.detectors)
    boxes, seconds = look(detectors, rows)
    truth = rows[CORNERS].to_numpy(float)
    kinds = {
        **{name: rows["mask"] == state for state, name in enumerate(config.MASKS)},
        "all": measured,
    }
    table = []
    for name, found in boxes.items():
        by = calibration(found[last], truth[last])
        print(
            f"{name}: moved by {by[0, 0]:+.3f} and {by[0, 1]:+.3f} of its sides, scaled by "
            f"{by[1, 0]:.3f} and {by[1, 1]:.3f}"
        )
        for kind, rows_of_it in kinds.items():
            chosen = measured & rows_of_it
            if not chosen.any():
                continue
            row = {
                "detector": name,
                "mask": kind,
                "photos": chosen.sum(),
                **judge(found[chosen], truth[chosen], by),
            }
            table.append(row | {"CPU ms": 1000 * seconds[name]})
        if args.boxes_out:
            write(args.boxes_out / f"{name}.csv", rows["file"], calibrated(found, by))
    print(f"{args.side}, {measured.sum()} photographs; calibrated on {last.sum()} others")
    print(pd.DataFrame(table).round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
