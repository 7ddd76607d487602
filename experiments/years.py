#!/usr/bin/env python3
"""How to answer years from a distribution over them: python -m experiments.years RUN

    python -m experiments.years RUN --against AGE_RUN ...

RUN is a finished run of Factorised, for any task. Each fold's best network predicts its held-out
people again, and their distribution over years is read in four ways: its mean and its median, as if
years were alike frequent (what training made of it) and by the years' shares among the fold's
training photographs. AGE_RUN, a run for `--task age` on the same folds, is compared with each: its
oof.csv holds years. Intervals are 95 % by bootstrap over people; a difference below 0 is a gain.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import augmentation
import checkpoint
import dataset
import engine
import metrics
import model
import out_of_fold
import run_directory
from benchmarks import harness
from data import tables
from runtime.errors import UserError
from training import fold as training_fold

DRAWS = 1000  # of people, for an interval


def year_outputs(run_dir: Path, table: pd.DataFrame, fold: int, boxes: dict) -> Tensor:
    """[images, years] of a fold's held-out images, by its best network."""
    stored = checkpoint.load_ranked(run_dir / f"fold{fold:02d}")[0]
    form = augmentation.forms(stored.info.transform, stored.info.image_size).valid
    view = augmentation.View(form)
    held_out = table[table["fold"] == fold]
    names, paths = held_out["file"].tolist(), held_out["path"].tolist()
    photos = dataset.ImageDataset(names, paths, [view], boxes)
    compute = engine.Compute(torch.device("cpu"), "fp32", 0, 32)
    network = model.to_device(model.build_from_checkpoint(stored), compute.device)
    with engine.make_eval_loader(photos, range(len(photos)), compute) as loader:
        return engine.validate(network, ["year"], loader, len(photos), compute)["year"]


def readings(outputs: Tensor, log_shares: Tensor) -> dict[str, np.ndarray]:
    """{way: years [images]} of outputs [images, years]."""
    years = torch.arange(outputs.shape[1]).double()
    read = {}
    for prior, logits in (("alike", outputs), ("training's shares", outputs + log_shares)):
        probabilities = logits.double().softmax(1)
        read[f"mean, {prior}"] = (probabilities @ years).numpy()
        median = (probabilities.cumsum(1) < 0.5).sum(1)
        read[f"median, {prior}"] = median.double().numpy()
    return read


def interval(errors: np.ndarray, people: np.ndarray) -> str:
    """The mean of errors [images] with its interval."""
    sums = pd.DataFrame({"person": people, "error": errors}).groupby("person")["error"]
    total, count = sums.sum().to_numpy(), sums.count().to_numpy()
    draws = np.random.default_rng(0).integers(0, len(total), (DRAWS, len(total)))
    low, high = metrics.interval(total[draws].sum(1) / count[draws].sum(1))
    return f"{errors.mean():.2f} ({low:.2f} to {high:.2f})"


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="of Factorised")
    text = "for --task age"
    parser.add_argument("--against", type=Path, nargs="*", default=[], metavar="AGE_RUN", help=text)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = run_directory.read_run_json(args.run).get("settings", {})
    oof = out_of_fold.read_oof(args.run, settings.get("task", "main"))
    if oof is None or settings["model_type"] != "Factorised":
        raise UserError(f"{args.run}: is no finished run of Factorised; name another one")
    table = tables.read_train(settings["train_root"])
    table = table.merge(oof.rows[["file", "fold"]], on="file")
    files, paths = table["file"].tolist(), table["path"].tolist()
    boxes = tables.read_boxes(settings["boxes"], files, paths) if settings["boxes"] else {}
    read: dict[str, list[np.ndarray]] = {}
    parts = []
    for fold in sorted(table["fold"].unique()):
        trained = dataset.label_tensors(table[table["fold"] != fold], ["year"])["year"]
        criterion = training_fold.make_criterion("", "year", trained, "main")
        outputs = year_outputs(args.run, table, fold, boxes)
        for way, years in readings(outputs, criterion.get_buffer("log_shares")).items():
            read.setdefault(way, []).append(years)
        parts.append(table[table["fold"] == fold])
    rows = pd.concat(parts, ignore_index=True)
    predictions = {way: np.concatenate(years) for way, years in read.items()}
    for run_dir in args.against:
        other = out_of_fold.read_oof(run_dir, "age")
        if other is None:
            raise UserError(f"{run_dir}: has no out-of-fold years; finish its training")
        years = pd.Series(other.predictions[:, 0], index=other.rows["file"])
        predictions[run_dir.name] = years.reindex(rows["file"]).to_numpy()
    truth, people = rows["age"].to_numpy(float), rows["person"].to_numpy()
    first = np.abs(next(iter(predictions.values())) - truth)
    groups = rows["ageg"].to_numpy()
    lines = []
    for way, years in predictions.items():
        errors = np.abs(years - truth)
        of_group = [errors[groups == group].mean() for group in np.unique(groups)]
        lines.append(
            {
                "way": way,
                "MAE": interval(errors, people),
                "difference to the first": interval(errors - first, people),
                "MAE of each age group": ", ".join(f"{mean:.2f}" for mean in of_group),
                "their mean": f"{np.mean(of_group):.2f}",
                "RMSE": f"{np.sqrt((errors**2).mean()):.2f}",
                "F1 of age groups": f"{metrics.score('age', years, truth).macro_f1:.3f}",
            }
        )
    print(f"{len(rows)} photographs of {len(set(people))} people, out of fold")
    print(pd.DataFrame(lines).to_string(index=False))
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
