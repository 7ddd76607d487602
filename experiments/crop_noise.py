#!/usr/bin/env python3
"""What does a worse crop cost? python -m experiments.crop_noise DATA PORTRAITS RUN [RUN ...]

The finder in the pixels is compared with hand-drawn boxes on the even rows of PORTRAITS (photos/,
boxes.csv: file,left,top,right,bottom), after one affine correction: how far each centre is off, in
the true box's sides, and the log of the ratio of the sides; without a box, the product's middle
square. The boxes were not drawn by one rule, so some of this error is theirs.

Then the best checkpoint of each fold of a RUN (its kfold-ensemble-* folder; ablation.py --keep)
predicts its held-out people of DATA/train twice: with the finder's own boxes, and with each box
moved and scaled by the error of a portrait drawn at random. Even F1, macro F1 and accuracy of both
and the cost in even F1, with its 95 % interval by bootstrap over people.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import checkpoint
import config
import metrics
import run_directory
from benchmarks import harness
from data import faces, images, tables
from experiments import detectors
from experiments.ablation import even_macro_f1
from inference.predictor import PredictionRequest, Predictor
from runtime.cli import progress
from runtime.errors import UserError

CORNERS = detectors.CORNERS
FALLBACK = (
    1 / 2 - 0.3 / 1.3,
    1 / 2 + 0.3 / 1.3,
)  # of the width: face_square adds 0.15 on each side


def portrait_errors(portraits: Path) -> np.ndarray:
    """[portraits, 4]: centre x and y, log width and log height; NaN without a box."""
    rows = pd.read_csv(portraits / "boxes.csv").iloc[::2]
    paths = [str(portraits / "photos" / file) for file in rows["file"]]
    found = [faces.find_face(images.read_image(path)) or (np.nan,) * 4 for path in paths]
    boxes, truth = np.array(found, float), rows[CORNERS].to_numpy(float)
    boxes = detectors.calibrate(boxes, detectors.fit_calibration(boxes, truth))
    centre, side = detectors.centres_and_sides(boxes)
    true_centre, true_side = detectors.centres_and_sides(truth)
    errors = [(centre - true_centre) / true_side, np.log(side / true_side)]
    return np.asarray(np.concatenate(errors, axis=1))


def move_box(
    box: faces.Box, shift: tuple[float, float], log_scales: tuple[float, float]
) -> faces.Box:
    """A box with its centre moved by parts of its sides, which are multiplied by exp(log_scales).
    At least two pixels wide and high.
    """
    corners = []
    for axis in (0, 1):
        side = box[axis + 2] - box[axis]
        centre = (box[axis] + box[axis + 2]) / 2 + shift[axis] * side
        half = max(1.0, side / 2 * math.exp(log_scales[axis]))
        corners.append((round(centre - half), round(centre + half)))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


def find_boxes(paths: list[str], errors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The finder's boxes [photographs, 4], and the same with errors of portraits."""
    generator = np.random.default_rng(seed)
    own, jittered = [], []
    for path in progress(paths, "looking"):
        photo = images.read_image(path)
        low, high = (part * photo.width for part in FALLBACK)
        down = (photo.height - photo.width) / 2
        middle = round(low), round(low + down), round(high), round(high + down)
        box, error = faces.find_face(photo) or middle, generator.choice(errors)
        own.append(box)
        shift, scales = (error[0], error[1]), (error[2], error[3])
        jittered.append(middle if np.isnan(error[0]) else move_box(box, shift, scales))
    return np.array(own), np.array(jittered)


def predict(run_dir: Path, table: pd.DataFrame, boxes: np.ndarray) -> np.ndarray:
    """Classes [photographs] of each fold's best checkpoint for its held-out people; -1 elsewhere.
    Raises UserError for a run without checkpoints.
    """
    classes = np.full(len(table), -1)
    for folder in run_directory.fold_dirs(run_dir):
        ranked = checkpoint.load_ranked(folder)
        if not ranked:
            raise UserError(f"{folder}: no checkpoints; train with --keep")
        rows = np.flatnonzero(table["person"].isin(ranked[0].info.held_out))
        part, predictor = table.iloc[rows], Predictor.load(ranked[0].path, device="cpu")
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as temporary:
            csv = Path(temporary) / "boxes.csv"
            given = pd.DataFrame(boxes[rows], columns=CORNERS)
            given.assign(file=part["file"].to_numpy()).to_csv(csv, index=False)
            request = PredictionRequest("main", config.AUTO, 1, str(csv))
            names, paths = part["file"].tolist(), part["path"].tolist()
            classes[rows] = predictor.probabilities(request, names, paths).array[0, 0].argmax(1)
    return classes


def compare(table: pd.DataFrame, own: np.ndarray, jittered: np.ndarray) -> dict[str, float]:
    """A row of the table, from the classes predicted with both kinds of boxes."""
    seen = own >= 0  # of a single split the held-out people alone
    truth, people = table["main"].to_numpy()[seen], table["person"].to_numpy()[seen]
    kinds = {"own": own[seen], "jittered": jittered[seen]}
    draws, row = {}, {}
    for kind, classes in kinds.items():
        scores = metrics.score("main", classes, truth)
        draws[kind] = even_macro_f1(metrics.bootstrap("main", classes, truth, people))
        row[f"even F1, {kind}"] = float(even_macro_f1(scores.matrix))
        row |= {f"macro F1, {kind}": scores.macro_f1, f"accuracy, {kind}": scores.accuracy}
    row["change"] = row["even F1, jittered"] - row["even F1, own"]
    row["low"], row["high"] = metrics.interval(draws["jittered"] - draws["own"])
    return row


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="a root with train/")
    add("portraits", type=Path, metavar="PORTRAITS", help="photos/ and boxes.csv")
    add("runs", type=Path, nargs="+", metavar="RUN", help="folders with checkpoints of all folds")
    add("--seed", type=int, default=0, help="of which portrait's error each photograph gets")
    args = parser.parse_args(argv)
    errors = portrait_errors(args.portraits)
    deviations = np.nanstd(errors, axis=0).round(3).tolist()
    missed = np.isnan(errors[:, 0]).mean()
    print(f"errors on {len(errors)} portraits: deviations {deviations}, {missed:.1%} without a box")
    table = tables.read_train(args.data / "train")
    own, jittered = find_boxes(table["path"].tolist(), errors, args.seed)
    rows = []
    for run_dir in args.runs:
        kinds = [predict(run_dir, table, boxes) for boxes in (own, jittered)]
        rows.append({"run": str(run_dir)} | compare(table, *kinds))
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
