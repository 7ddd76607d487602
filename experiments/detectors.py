#!/usr/bin/env python3
"""Which face finder finds masked faces? python -m experiments.detectors DATA [--boxes-out DIR]

The finders of face_finders.py look for the face on the same photographs, in turns, in one thread;
those that cannot be imported are named. DATA is a root with train/, eval/ and the true boxes in
boxes.csv (file,left,top,right,bottom). A photograph shows one person, so of several boxes the
surest one is taken.

Every detector frames a face in its own way. So there are three measures: found, IoU with the true
box of 0.5 or more; found loosely, the box's centre inside the true box and its sides between half
and twice the true ones; and the IoU after calibration: the box is moved and scaled by the medians
(of its offset and scale, in its own sides) over the photographs of training's last people, of which
none is measured. One calibration serves all mask states, which nobody knows beforehand. Quantiles
of the IoU are over the photographs with a box, percentages over all. CPU: the median of the
process's time, over all its threads, from the decoded photograph to the box.

--boxes-out writes each detector's calibrated boxes of ALL photographs of train and eval as
DETECTOR.csv for `--boxes`; photographs without a box are left out there, and have their faces found
in the pixels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks import harness
from data import images, tables
from experiments.face_finders import DETECTORS, Detect
from labels import MASKS
from runtime.cli import progress

Floats = NDArray[np.float64]
CALIBRATION = 30  # people, the last ones by name
CORNERS = ["left", "top", "right", "bottom"]


def make_detectors(names: list[str]) -> dict[str, Detect]:
    """The detectors that can be imported; the others are named."""
    detectors: dict[str, Detect] = {}
    for name in names:
        try:
            detectors[name] = DETECTORS[name].make()
        except ImportError as error:
            print(f"missing: {name} ({error}); install {DETECTORS[name].package}", flush=True)
    return detectors


def read_photos(data: Path) -> pd.DataFrame:
    """A row per photograph: side, path, file (below `data`), person, mask, its true box or NaN."""
    train = tables.read_train(data / "train").assign(side="train")
    names, paths = tables.read_eval(str(data / "eval"))
    masks = tables.read_labels(str(data / "eval" / "answers.csv"), names, "mask")
    columns = {"side": "eval", "path": paths, "person": names, "mask": masks}
    rows = pd.concat([train[list(columns)], pd.DataFrame(columns)], ignore_index=True)
    rows["file"] = [tables.nfc(Path(path).relative_to(data).as_posix()) for path in rows["path"]]
    files = rows["file"].tolist()
    boxes = tables.read_boxes(str(data / "boxes.csv"), files, rows["path"].tolist())
    rows[CORNERS] = [boxes.get(file, (np.nan,) * 4) for file in files]
    return rows


def find_boxes(
    detectors: Mapping[str, Detect], paths: list[str]
) -> tuple[dict[str, Floats], dict[str, float]]:
    """Of each detector its surest boxes [photographs, 4], NaN without one; its median seconds."""
    boxes = {name: np.full((len(paths), 4), np.nan) for name in detectors}
    seconds: dict[str, list[float]] = {name: [] for name in detectors}
    for row, path in enumerate(progress(paths, "looking")):
        photo = images.read_image(path)
        for name, detect in detectors.items():
            start = time.process_time()
            faces = list(detect(photo))
            seconds[name].append(time.process_time() - start)
            if faces:
                boxes[name][row] = max(faces, key=lambda face: face[0])[1]
    return boxes, {name: float(np.median(values)) for name, values in seconds.items()}


def centres_and_sides(boxes: Floats) -> tuple[Floats, Floats]:
    """Each [boxes, 2]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def found_loosely(boxes: Floats, truth: Floats) -> NDArray[np.bool_]:
    """Whether a box has its centre inside the true one, and sides of half to twice its sides."""
    (centre, side), (true_centre, true_side) = centres_and_sides(boxes), centres_and_sides(truth)
    ratio, inside = side / true_side, np.abs(centre - true_centre) <= true_side / 2
    return np.asarray((inside & (ratio >= 0.5) & (ratio <= 2)).all(1))


def iou(boxes: Floats, truth: Floats) -> Floats:
    """Intersection over union of each box with the true one, NaN without a box."""
    corners = np.minimum(boxes[:, 2:], truth[:, 2:]) - np.maximum(boxes[:, :2], truth[:, :2])
    common = corners.clip(0).prod(1)
    areas = centres_and_sides(boxes)[1].prod(1) + centres_and_sides(truth)[1].prod(1)
    return np.asarray(common / (areas - common))


def fit_calibration(boxes: Floats, truth: Floats) -> Floats:
    """[2, 2]: how far boxes are off, and what their sides are multiplied by, in their own sides."""
    near = found_loosely(boxes, truth)
    if not near.any():
        return np.array([[0.0, 0.0], [1.0, 1.0]])
    centre, side = centres_and_sides(boxes[near])
    true_centre, true_side = centres_and_sides(truth[near])
    offset = np.median((true_centre - centre) / side, axis=0)
    return np.stack([offset, np.median(true_side / side, axis=0)])


def calibrate(boxes: Floats, calibration: Floats) -> Floats:
    """The boxes, moved and scaled."""
    centre, side = centres_and_sides(boxes)
    offset, scale = calibration
    corners = [centre + (offset - scale / 2) * side, centre + (offset + scale / 2) * side]
    return np.concatenate(corners, axis=1)


def measure(boxes: Floats, truth: Floats, calibration: Floats) -> dict[str, float]:
    """A row of the table."""
    row = {
        "box %": 100 * np.isfinite(boxes[:, 0]).mean(),
        "loosely %": 100 * found_loosely(boxes, truth).mean(),
    }
    for prefix, shown in (("", boxes), ("cal. ", calibrate(boxes, calibration))):
        ious = iou(shown, truth)
        some = np.isfinite(ious).any()
        low, middle = np.nanquantile(ious, [0.1, 0.5]) if some else (np.nan, np.nan)
        row[f"{prefix}found %"] = 100 * (ious >= 0.5).mean()
        row |= {f"{prefix}median": middle, f"{prefix}p10": low}
    return row


def write_boxes(path: Path, files: pd.Series, boxes: Floats) -> None:
    """Write the boxes that there are, as a table for --boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(boxes, index=files, columns=CORNERS).dropna().round().astype(int)
    table.to_csv(path)
    print(f"{path}: the boxes of {len(table)} of {len(boxes)} photographs")


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="train/, eval/ (with answers.csv) and boxes.csv")
    add("--photos", type=int, default=700, help="photographs to measure on, the first whole people")
    sides = ("train", "eval")
    add("--side", choices=sides, default="train", help="whose photographs are measured")
    names = list(DETECTORS)
    add("--detectors", nargs="+", choices=names, default=names, metavar="NAME", help="which")
    add("--boxes-out", type=Path, metavar="DIR", help="write the boxes of all photographs there")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = read_photos(args.data)
    train, known = rows["side"] == "train", rows["left"].notna()
    last_people = sorted(set(rows.loc[train, "person"]))[-CALIBRATION:]
    last = train & known & rows["person"].isin(last_people)
    eligible = known & ~last & (rows["side"] == args.side)
    measured = eligible & rows["person"].isin(rows.loc[eligible, "person"].head(args.photos))
    if not args.boxes_out:
        rows, last, measured = (each[last | measured] for each in (rows, last, measured))
    boxes, seconds = find_boxes(make_detectors(args.detectors), rows["path"].tolist())
    truth = rows[CORNERS].to_numpy(float)
    kinds = {name: rows["mask"] == state for state, name in enumerate(MASKS)}
    table = []
    for name, own in boxes.items():
        calibration = fit_calibration(own[last], truth[last])
        (x, y), (width, height) = calibration
        print(
            f"{name}: moved by {x:+.3f} and {y:+.3f} of its sides, "
            f"scaled by {width:.3f} and {height:.3f}"
        )
        for kind, of_kind in {**kinds, "all": measured}.items():
            chosen = measured & of_kind
            if chosen.any():
                row = {"detector": name, "mask": kind, "photos": chosen.sum()}
                row |= measure(own[chosen], truth[chosen], calibration)
                table.append(row | {"CPU ms": 1000 * seconds[name]})
        if args.boxes_out:
            write_boxes(args.boxes_out / f"{name}.csv", rows["file"], calibrate(own, calibration))
    print(f"{args.side}, {measured.sum()} photographs; calibrated on {last.sum()} others")
    print(pd.DataFrame(table).round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
