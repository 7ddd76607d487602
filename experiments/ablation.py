#!/usr/bin/env python3
"""Which settings pay? python -m experiments.ablation DATA DIR [--settings NAME ...] [--seeds 1]

Each setting is trained with each seed by the real train.py, equal epochs and image size, in one
thread; --jobs of them side by side. DIR keeps what the tables are made of and drops the checkpoints
(--keep: keeps them). What is complete is not run again and an interrupted training goes on, so
settings and seeds can be added one by one.

Choices are made by SCREENING, which is the default: --cv 3 folds of DATA/train, judged by their
out-of-fold predictions; DATA/eval is not read. `even F1` is macro F1 with the photographs of each
of the 18 classes weighed to the same total, so that a rule that ignores the old does not win; its
gain is that over --base, seed by seed on the same people, with a 95 % interval by bootstrap over
people. The interval does not cover other seeds: see `sd`, the standard deviation over the seeds.

--final is for finished choices: each answers DATA/eval by the real submit_ensemble.py in each of
its views (--cv 1: one split of ten, its best checkpoint; --cv 5: the folds' best vote), and is
scored by DATA/eval/answers.csv beside the --peers, gains over --base in its own best view. How many
choices were scored there is on record (answers.py). --people: without it photographs count as
independent, which is too narrow.

CPU s: of the processor for a seed's training, validation included. Settings may use what is on
trial (candidates.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ensemble
import metrics
import out_of_fold
from benchmarks import harness
from experiments import answers
from inference import submission
from runtime.errors import UserError
from runtime.files import load_npz

SAME_IN_DIR = ("image_size", "epochs", "cv", "final")  # of all runs whose results DIR holds
PASSED_ON = ("image_size", "epochs", "cv", "device", "threads", "workers")
SCREENED = "out of fold"  # in place of a view


@dataclass(frozen=True)
class Setting:
    """Options of train.py, and the views in which its model answers."""

    train: tuple[str, ...]
    views: Mapping[str, tuple[str, ...]]  # {name: options of submit_ensemble.py}

    def plus(self, *options: str) -> Setting:
        """The same with more options."""
        return Setting((*self.train, *options), self.views)


FACE = {
    "one view": ("--transform-type", "auto"),
    "two views": ("--transform-type", "auto", "--tta", "2"),
}
WIDE = {
    "wide": ("--transform-type", "auto"),
    "middle 224": ("--transform-type", "base"),
    "two crops": ("--transform-type", "tta", "--tta", "2"),
}
STRONG = Setting(("--recipe", "strong"), FACE)
SETTINGS: dict[str, Setting] = {
    "original": Setting(("--recipe", "seed"), WIDE),
    "strong": STRONG,
    "lr 0.0005": STRONG.plus("--lr", "0.0005"),
    "warm-up": STRONG.plus("--warmup-epochs", "1"),
    "head faster": STRONG.plus("--lr", "0.003", "--backbone-lr-scale", "0.3"),
    "backbone half": STRONG.plus("--backbone-lr-scale", "0.5"),
    "constant rate": STRONG.plus("--lr-scheduler", "none"),
    "freeze 2": STRONG.plus("--freeze", "2"),
    "smoothing 0.1": STRONG.plus("--loss-type", "smoothing0.1"),
    "age filter 58": STRONG.plus("--age-filter", "58"),
    "oversampled": STRONG.plus("--oversample", "repeat"),
    "erasing": STRONG.plus("--transform-type", "face_erased"),
    "boxes jittered": STRONG.plus("--transform-type", "face_jittered"),
    "shares not smoothed": STRONG.plus("--model-type", "Factorised_raw_shares"),
    "years smoothed 0.1": STRONG.plus("--model-type", "Factorised_smooth_years"),
    "years wider": STRONG.plus("--model-type", "Factorised_wide_years"),
    # weights by `python -m tools.faceres package/models faceres.pth`; the processor time of 128 px
    "faceres": STRONG.plus(
        *("--backbone", "faceres", "--pretrained", "faceres.pth", "--image-size", "224"),
        *("--epochs", "4", "--freeze", "1", "--backbone-lr-scale", "0.1"),
    ),
}


def file_name(name: str) -> str:
    """A setting's or a view's, with only letters, digits and underscores."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def run_child(args: argparse.Namespace) -> int:
    """Train one setting with one seed, and answer in its views; in a process of its own."""
    from experiments import candidates

    candidates.register()
    import submit_ensemble
    import train

    setting, data, folder = SETTINGS[args.child], Path(args.data), Path(args.folder)
    machine = harness.as_options({name: getattr(args, name) for name in PASSED_ON[3:]})
    models = folder / "models"
    is_new, start = not models.exists(), time.process_time()
    words = ["--train-root", str(data / "train"), "--save-path", str(models), "--quiet"]
    words += ["--backbone", "efficientnet-lite0", "--image-size", str(args.image_size)]
    words += ["--epochs", str(args.epochs), "--seed", str(args.seeds[0]), "--jobs", "1"]
    words += ["--run-name", "run", "--save-top", "1", *machine, *setting.train]
    code = train.main([*words, "--cv", str(args.cv)])
    if code:
        return code
    if is_new:  # else a part of the time was another process's
        (folder / "cpu.json").write_text(json.dumps(time.process_time() - start))
    (run_dir,) = models.iterdir()
    for view, options in setting.views.items() if args.final else ():
        out = folder / file_name(view)
        words = ["--root", str(run_dir), "--data-root", str(data / "eval"), "--save-path", str(out)]
        submit_ensemble.main([*words, "--top-k", "1", *options, *machine])
        (prediction,) = out.iterdir()
        (prediction / submission.PROBS).rename(folder / f"{file_name(view)}.npz")
        shutil.rmtree(out)
    for name in ("report.json", "oof.csv"):
        shutil.copy(run_dir / name, folder)
    for fold_dir in sorted(run_dir.glob("fold??")):
        shutil.copy(fold_dir / "validation.npz", folder / f"{fold_dir.name}.npz")
        shutil.copy(fold_dir / "history.csv", folder / f"{fold_dir.name}.csv")
    if not args.keep:
        shutil.rmtree(models)
    (folder / "complete").touch()
    return 0


def run(args: argparse.Namespace, setting: str, seed: int) -> None:
    """One setting and seed, in a process of its own, where it is not complete yet."""
    folder = args.folder.absolute() / file_name(setting) / f"seed{seed}"
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    words = ["-m", "experiments.ablation", str(Path(args.data).absolute()), str(folder)]
    words += ["--child", setting, "--seeds", str(seed)]
    words += [*["--keep"] * args.keep, *["--final"] * args.final]
    words += harness.as_options({n.replace("_", "-"): getattr(args, n) for n in PASSED_ON})
    with open(folder / "log.txt", "a") as log:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=harness.PROJECT, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        reason = f"ended with {done.returncode}; see {folder / 'log.txt'}"
        raise UserError(f"{setting}, seed {seed}: {reason}")
    print(f"done: {setting}, seed {seed}", flush=True)


def check_same(args: argparse.Namespace) -> None:
    """Raise UserError where DIR was filled by runs of another kind."""
    kind = {name: getattr(args, name) for name in SAME_IN_DIR}
    kind["data"] = str(Path(args.data).resolve())
    path = args.folder / "asked.json"
    if path.is_file() and json.loads(path.read_text()) != kind:
        before = path.read_text()
        raise UserError(f"{path}: these runs had other settings ({before}); use another DIR")
    args.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kind))


@dataclass
class Results:
    """Of one setting in one view, over its seeds."""

    predictions: dict[int, np.ndarray] = field(default_factory=dict)  # seed -> classes [images]
    held_out: list[float] = field(default_factory=list)  # out-of-fold macro F1 of each seed
    seconds: list[float] = field(default_factory=list)  # of the processor, for training


@dataclass(frozen=True)
class Truth:
    """What predictions are scored by."""

    images: list[str]
    classes: np.ndarray  # [images]
    people: np.ndarray  # [images]


AllResults = dict[tuple[str, str], Results]  # by (setting, view)
Measure = Callable[[np.ndarray], np.ndarray]  # confusion matrices [..., 18, 18] -> [...]


def complete_folders(folder: Path, setting: str) -> list[tuple[int, Path]]:
    """(seed, folder) of what is complete in DIR."""
    done = sorted((folder / file_name(setting)).glob("seed*/complete"))
    return [(int(path.parent.name.removeprefix("seed")), path.parent) for path in done]


def read_screened(args: argparse.Namespace) -> tuple[AllResults, Truth]:
    """The out-of-fold predictions of all settings in DIR."""
    results: AllResults = {}
    rows = None
    for setting in SETTINGS:
        for seed, folder in complete_folders(args.folder, setting):
            oof = out_of_fold.read_oof(folder, "main")
            assert oof is not None
            rows = oof.rows if rows is None else rows
            if not oof.rows[out_of_fold.PAIRING_COLUMNS].equals(rows[out_of_fold.PAIRING_COLUMNS]):
                raise UserError(f"{folder}: other people or folds than before; use another DIR")
            result = results.setdefault((setting, SCREENED), Results())
            result.predictions[seed] = oof.predictions.argmax(1)
            add_figures(result, folder)
    if rows is None:
        raise UserError(f"{args.folder}: nothing is complete; name --settings to run")
    truth = Truth(rows["file"].tolist(), rows["main"].to_numpy(), rows["person"].to_numpy())
    return results, truth


def add_figures(result: Results, folder: Path) -> None:
    """What a seed's folder holds beside predictions."""
    oof = out_of_fold.read_oof(folder, "main")
    assert oof is not None
    result.held_out.append(out_of_fold.score_rows("main", *oof).macro_f1)
    if (folder / "cpu.json").is_file():
        result.seconds.append(json.loads((folder / "cpu.json").read_text()))


def read_final(args: argparse.Namespace) -> tuple[AllResults, Truth]:
    """The answers to DATA/eval of all settings in DIR, and of the peers."""
    results: AllResults = {}
    answered: list[tuple[Path, list[str]]] = []
    for setting in SETTINGS:
        for seed, folder in complete_folders(args.folder, setting):
            for view in SETTINGS[setting].views:
                path = folder / f"{file_name(view)}.npz"
                result = results.setdefault((setting, view), Results())
                arrays = read_arrays(path, answered)
                result.predictions[seed] = ensemble.arithmetic(arrays["probabilities"]).argmax(1)
                add_figures(result, folder)
    # a peer's own program has recorded it
    choices = [f"{args.folder.resolve().name}: {setting}, {view}" for setting, view in results]
    for path in args.peers:
        arrays = read_arrays(path, answered)
        options = json.loads(str(arrays["arguments"]))
        name = f"{arrays['package']} {Path(options['data']).name}"
        result = results.setdefault((name, "its own"), Results())
        result.predictions[options["seed"]] = arrays["probabilities"][0, 0].argmax(1)
        result.held_out.append(float(arrays["held_out"]))
        result.seconds.append(float(arrays["train_seconds"]))
    images, classes = answers.read_answers(args.data, choices)
    for path, names in answered:
        if names != images:
            raise UserError(f"{path}: answers other photographs than {args.data}; leave it out")
    return results, Truth(images, classes, answers.read_people(args.people, images))


def read_arrays(path: Path, answered: list[tuple[Path, list[str]]]) -> dict[str, np.ndarray]:
    """A file's arrays; its photographs go to `answered`. Raises UserError."""
    arrays = load_npz(path, "remove it")
    if arrays is None:
        raise UserError(f"{path}: no such file; run it first")
    answered.append((path, arrays["images"].tolist()))
    return arrays


def even(matrices: np.ndarray) -> np.ndarray:
    """Confusion matrices [..., C, C] with each true class's row weighed to a total of 1."""
    return matrices / np.maximum(matrices.sum(-1, keepdims=True), 1)


def even_macro_f1(matrices: np.ndarray) -> np.ndarray:
    """Macro F1 as if all classes were alike frequent, of matrices [..., C, C] -> [...]."""
    return metrics.macro_f1(even(matrices))


def make_table(
    results: AllResults, truth: Truth, base_name: str, measures: Mapping[str, Measure]
) -> pd.DataFrame:
    """A row per setting and view: its scores, and the gain in the first measure over the base in
    the base's best view.
    """
    first, measure = next(iter(measures.items()))

    def score(classes: np.ndarray, by: Measure = measure) -> float:
        return float(by(metrics.score("main", classes, truth.classes).matrix))

    def draws(classes: np.ndarray) -> np.ndarray:
        return measure(metrics.bootstrap("main", classes, truth.classes, truth.people))

    scores = {
        key: {seed: score(classes) for seed, classes in result.predictions.items()}
        for key, result in results.items()
    }
    of_base = [key for key in results if key[0] == base_name]
    if not of_base:
        reason = f"nothing of {base_name}, which the others are compared to"
        raise UserError(
            f"{reason}; run it, or name another --base ({', '.join(k[0] for k in results)})"
        )
    base = max(of_base, key=lambda key: float(np.mean(list(scores[key].values()))))
    base_draws = {seed: draws(classes) for seed, classes in results[base].predictions.items()}
    rows = []
    for (setting, view), result in results.items():
        by_seed = scores[setting, view]
        row: dict[str, Any] = {"setting": setting, "view": view, "seeds": len(by_seed)}
        for name, by in measures.items():
            row[name] = np.mean([score(each, by) for each in result.predictions.values()])
        row["sd"] = np.std(list(by_seed.values()), ddof=1) if len(by_seed) > 1 else np.nan
        shared = sorted(set(by_seed) & set(base_draws))
        row["gain"] = row["low"] = row["high"] = np.nan
        if shared:
            apart = [draws(result.predictions[s]) - base_draws[s] for s in shared]
            row["gain"] = np.mean([by_seed[s] - scores[base][s] for s in shared])
            row["low"], row["high"] = metrics.interval(np.mean(apart, axis=0))
        if view != SCREENED:
            row["held out"] = np.mean(result.held_out)
        row["CPU s"] = np.median(result.seconds) if result.seconds else np.nan
        rows.append(row)
    print(f"gain: in {first} over {', '.join(base)}")
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="a root with train/ and eval/, the latter with answers.csv")
    add("folder", type=Path, metavar="DIR")
    names = "; ".join(SETTINGS)
    add("--settings", nargs="*", choices=SETTINGS, default=[], metavar="NAME", help=names)
    add("--seeds", type=int, nargs="+", default=[1])
    add("--base", default="strong", metavar="NAME", help="a setting, or a peer")
    add("--final", action="store_true", help="answer and score DATA/eval")
    add("--cv", type=int, help="folds (default: 3; with --final 1, one split)")
    add("--peers", nargs="*", type=Path, default=[], metavar="NPZ", help="what peers wrote")
    text = "the evaluation photographs' people: ImageID,person, or the renderer's table (photo)"
    add("--people", metavar="CSV", help=text)
    add("--image-size", type=int, default=96)
    add("--epochs", type=int, default=6)
    add("--keep", action="store_true", help="keep the checkpoints")
    add("--jobs", type=int, default=2, help="trainings side by side")
    add("--threads", type=int, default=1)
    add("--workers", type=int, default=0)
    add("--device", default="cpu")
    add("--child", choices=SETTINGS, metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.cv = args.cv or (1 if args.final else 3)
    if args.child:
        return run_child(args)
    if (args.peers or args.people) and not args.final:
        raise UserError("--peers and --people: screening reads no answers; add --final")
    check_same(args)
    pairs = [(setting, seed) for setting in args.settings for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda pair: run(args, *pair), pairs))
    measures: dict[str, Measure] = {"macro F1": metrics.macro_f1, "accuracy": metrics.accuracy}
    if args.final:
        results, truth = read_final(args)
    else:
        results, truth = read_screened(args)
        measures = {"even F1": even_macro_f1, **measures}
    print(make_table(results, truth, args.base, measures).round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
