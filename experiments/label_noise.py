#!/usr/bin/env python3
"""What bounds the score: how wrong are the age labels? python -m experiments.label_noise AGE_RUN
FACERES

AGE_RUN is a finished run for `--task age`, whose oof.csv has out-of-fold years; FACERES the folder
`package/models` of tools.faceres. Label, run and package are three estimates of an age, each a line
of the true one plus an error. Where the errors are independent, their covariances give the
variance of each (triple collocation: Stoffelen 1998; with slopes: McColl et al. 2014,
doi:10.1002/2014GL061322). The two networks see the same photograph, so their errors are not quite
independent: what they share counts as the label's, and the figure is an upper bound. Photographs
without a mask, one for each person; 95 % by bootstrap over people.

The ceiling: the scores of answers that are off by the label's error alone, with all masks and
genders right, over all photographs of the run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import augmentation
import metrics
import out_of_fold
import run_directory
from benchmarks import harness
from data import images, tables
from experiments.ablation import even_macro_f1
from experiments.faceres import SIDE, Package
from labels import MASKS, TASKS
from runtime.cli import progress
from runtime.errors import UserError

DRAWS = 1000


def error_deviation(estimates: np.ndarray) -> float:
    """The standard deviation of the first one's error, of three estimates [3, people]."""
    covariance = np.cov(estimates)
    of_truth = covariance[0, 1] * covariance[0, 2] / covariance[1, 2]
    return float(np.sqrt(max(covariance[0, 0] - of_truth, 0)))


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="AGE_RUN")
    parser.add_argument("package", type=Path, metavar="FACERES")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = run_directory.read_run_json(args.run).get("settings", {})
    oof = out_of_fold.read_oof(args.run, "age")
    if oof is None:
        raise UserError(f"{args.run}: has no out-of-fold years; finish its training")
    table = tables.read_train(settings["train_root"]).set_index("file").loc[oof.rows["file"]]
    table["run"] = oof.predictions[:, 0]
    bare = table[table["mask"] == MASKS.index("not_wear")].drop_duplicates("person")
    package, crop = Package(args.package), augmentation.forms("facecrop", SIDE).valid
    photos = [
        crop(images.read_image(path), None) for path in progress(bare["path"], "cutting faces")
    ]
    ages = [package.age_and_gender(photo)[0] for photo in progress(photos, "answering")]
    estimates = np.stack([bare["age"].to_numpy(float), bare["run"].to_numpy(), np.array(ages)])
    rng = np.random.default_rng(0)
    people = len(bare)
    print(f"{people} people; standard deviation of the error, in years:")
    for number, name in enumerate(("label", "out of fold", "faceres")):
        rolled = np.roll(estimates, -number, axis=0)
        draws = [error_deviation(rolled[:, rng.integers(0, people, people)]) for _ in range(DRAWS)]
        low, high = metrics.interval(np.array(draws))
        print(f"  {name}: {error_deviation(rolled):.2f} ({low:.2f} to {high:.2f})")
    deviation = error_deviation(estimates)
    truth, scores = table["main"].to_numpy(), []
    for _ in range(100):
        # a person is as old in all photographs
        errors = dict(zip(bare["person"], rng.normal(0, deviation, people), strict=True))
        years = table["age"] + table["person"].map(errors)
        rows = zip(table["mask"], table["gender"], years, strict=True)
        score = metrics.score("main", np.array([TASKS["main"].label(*row) for row in rows]), truth)
        scores.append((score.macro_f1, float(even_macro_f1(score.matrix)), score.accuracy))
    means = dict(zip(("macro F1", "even F1", "accuracy"), np.mean(scores, axis=0), strict=True))
    print("the ceiling:", ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
