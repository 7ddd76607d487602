#!/usr/bin/env python3
"""Which settings pay? python -m experiments.ablation DATA DIR [--settings NAME ...] [--seeds 1]

Each setting is trained with each seed by the real train.py (--cv 1: one and the same 90/10 split;
equal epochs and image size; with --cv 5 the folds' best checkpoints vote) and answers DATA/eval by
the real submit_ensemble.py, in each of its views. DIR keeps, for each setting and seed, the
probabilities and the training's report, and drops the checkpoints. What is there is not run again,
so an interrupted experiment goes on, and settings can be added one by one. --jobs of them run side
by side, each in one thread.

The table: macro F1 on the held-out people of training (the best epoch's, so a little optimistic)
and on DATA/eval/answers.csv, means over the seeds; the difference to --base, in the view that
serves the base best, seed by seed on the same people, with its 95 % interval by bootstrap over
people (--people: ImageID,person; without it photographs count as independent, which is too narrow);
and the processor's seconds for an epoch, its validation included.

Settings may use what is on trial (candidates.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import ensemble
import metrics
from benchmarks import harness
from data import tables
from inference import submission
from runtime.errors import UserError

CLASSES = 18
SAME_IN_DIR = ("image_size", "epochs", "cv")  # of all runs whose results DIR holds
PASSED_ON = (*SAME_IN_DIR, "device", "threads", "workers")


@dataclass(frozen=True)
class Setting:
    """Options of train.py, and the views in which its model answers."""

    train: tuple[str, ...]
    views: Mapping[str, tuple[str, ...]]  # {name: options of submit_ensemble.py}

    def plus(self, *options: str) -> Setting:
        """The same with more options, in the plain view."""
        return Setting((*self.train, *options), PLAIN)


PLAIN = {"plain": ("--transform-type", "auto")}
FACE = {**PLAIN, "two views": ("--transform-type", "auto", "--tta", "2")}
WIDE = {
    "wide": ("--transform-type", "auto"),
    "middle 224": ("--transform-type", "base"),
    "two crops": ("--transform-type", "tta", "--tta", "2"),
}
FILTER = ("--age-filter", "58")
SEED, STRONG = Setting(("--recipe", "seed"), WIDE), Setting(("--recipe", "strong"), FACE)
PARTS = Setting(("--transform-type", "facerandom", "--model-type", "Parts"), PLAIN)
SETTINGS: dict[str, Setting] = {
    "seed": SEED,
    "strong": STRONG,
    "seed, age filter 58": Setting((*SEED.train, *FILTER), WIDE),
    "seed + flip": Setting(("--transform-type", "tta_flip"), FACE),
    "facecrop": Setting(("--transform-type", "facecrop"), PLAIN),
    "face + flip": Setting(("--transform-type", "face_flip"), FACE),
    "face + flip + scale": Setting(("--transform-type", "face_resized"), FACE),
    "face + flip + scale + RandAugment": Setting(("--transform-type", "facerandom"), FACE),
    "parts": PARTS,
    "parts, age filter 58": PARTS.plus(*FILTER),
    "strong, age filter 58": STRONG.plus(*FILTER),
    "strong, smoothing 0.1": STRONG.plus("--loss-type", "smoothing0.1"),
    "strong, smoothing 0.2": STRONG.plus("--loss-type", "labelsmoothingloss"),
    "strong, lr 0.002": STRONG.plus("--lr", "0.002"),
    "strong, lr 0.0005": STRONG.plus("--lr", "0.0005"),
    "strong, warm-up": STRONG.plus("--warmup-epochs", "1"),
    "strong, head faster": STRONG.plus("--lr", "0.003", "--backbone-lr-scale", "0.3"),
    "strong, constant rate": STRONG.plus("--lr-scheduler", "none"),
    "strong, erasing": STRONG.plus("--transform-type", "face_erased"),
    "strong, oversampled": STRONG.plus("--oversample", "repeat"),
}


def file_name(name: str) -> str:
    """A setting's or a view's, with only letters, digits and underscores."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def run_child(args: argparse.Namespace) -> int:
    """Train one setting with one seed, and answer in all its views; in a process of its own."""
    from experiments import candidates

    candidates.register()
    import submit_ensemble
    import train

    setting, data, folder = SETTINGS[args.child], Path(args.data), Path(args.folder)
    machine = harness.as_options({name: getattr(args, name) for name in PASSED_ON[3:]})
    start = time.process_time()
    words = ["--train-root", str(data / "train"), "--save-path", str(folder / "models"), "--quiet"]
    words += ["--backbone", "efficientnet-lite0", "--image-size", str(args.image_size)]
    words += ["--epochs", str(args.epochs), "--seed", str(args.seeds[0]), *machine, *setting.train]
    code = train.main([*words, "--cv", str(args.cv)])
    if code:
        return code
    (folder / "cpu.json").write_text(json.dumps(time.process_time() - start))
    (run_dir,) = (folder / "models").iterdir()
    for view, options in setting.views.items():
        out = folder / file_name(view)
        words = ["--root", str(run_dir), "--data-root", str(data / "eval"), "--save-path", str(out)]
        submit_ensemble.main([*words, "--top-k", "1", *options, *machine])
        (prediction,) = out.iterdir()
        (prediction / submission.PROBS).rename(folder / f"{file_name(view)}.npz")
        shutil.rmtree(out)
    for name in ("report.json", "oof.csv"):
        (run_dir / name).rename(folder / name)
    histories = sorted(run_dir.glob("fold*/history.csv"))
    history = pd.concat([pd.read_csv(path).assign(fold=path.parent.name) for path in histories])
    history.to_csv(folder / "history.csv", index=False)
    if not args.keep:
        shutil.rmtree(folder / "models")
    return 0


def run(args: argparse.Namespace, setting: str, seed: int) -> None:
    """One setting and seed, in a process of its own, where it is not there yet."""
    folder = args.folder.absolute() / file_name(setting) / f"seed{seed}"
    results = ["history.csv", *(f"{file_name(view)}.npz" for view in SETTINGS[setting].views)]
    if all((folder / name).is_file() for name in results):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = ["-m", "experiments.ablation", str(Path(args.data).absolute()), str(folder)]
    words += ["--child", setting, "--seeds", str(seed), *["--keep"] * args.keep]
    words += harness.as_options({n.replace("_", "-"): getattr(args, n) for n in PASSED_ON})
    with open(folder / "log.txt", "w") as log:
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


@dataclass(frozen=True)
class Results:
    """Of one setting, over its seeds."""

    predictions: dict[tuple[str, int], np.ndarray]  # (view, seed) -> classes [images]
    held_out: list[float]  # macro F1 of each seed
    seconds: list[float]  # of the processor for an epoch, its validation included


def read_results(args: argparse.Namespace, setting: str, images: list[str]) -> Results:
    """What DIR has of a setting. Raises UserError where it is of other photographs."""
    results = Results({}, [], [])
    for folder in sorted((args.folder / file_name(setting)).glob("seed*")):
        if not (folder / "history.csv").is_file():
            continue
        history = pd.read_csv(folder / "history.csv")
        best = history.assign(fold=history.get("fold", 0)).groupby("fold")["macro_f1"].max()
        results.held_out.append(float(best.mean()))
        if (folder / "cpu.json").is_file():
            seconds = json.loads((folder / "cpu.json").read_text())
            results.seconds.append(seconds / len(history))
        for view in SETTINGS[setting].views:
            path = folder / f"{file_name(view)}.npz"
            if not path.is_file():  # a view that the setting was given later
                continue
            with np.load(path) as stored:
                array, names = stored["probabilities"], stored["images"].tolist()
            if names != images:
                reason = f"answers other photographs than {args.data}"
                raise UserError(f"{folder}: {reason}; use another folder")
            seed = int(folder.name.removeprefix("seed"))
            results.predictions[view, seed] = ensemble.arithmetic(array).argmax(1)
    return results


def read_people(path: str | None, images: list[str]) -> np.ndarray:
    """The person on each photograph; without a table each photograph is a person."""
    if path is None:
        return np.arange(len(images))
    person = pd.read_csv(path, dtype=str).set_index("ImageID")["person"]
    return person.loc[images].to_numpy()


def make_table(args: argparse.Namespace) -> pd.DataFrame:
    """A row per setting and view, with the difference to the base in its own best view."""
    images, _ = tables.read_eval(str(Path(args.data) / "eval"))
    answers = str(Path(args.data) / "eval" / "answers.csv")
    truth = tables.read_labels(answers, images, "main")
    people = read_people(args.people, images)

    def score(classes: np.ndarray) -> float:
        return float(metrics.macro_f1(metrics.confusion(truth, classes, CLASSES)))

    def draws(classes: np.ndarray) -> np.ndarray:
        return metrics.macro_f1(metrics.bootstrap("main", classes, truth, people))

    results = {setting: read_results(args, setting, images) for setting in SETTINGS}
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for setting, result in results.items():
        for (view, seed), classes in result.predictions.items():
            scores.setdefault((setting, view), {})[seed] = score(classes)
    of_base = {view: by_seed for (setting, view), by_seed in scores.items() if setting == args.base}
    if not of_base:
        reason = f"nothing of {args.base}, which the others are compared to"
        raise UserError(f"{args.folder}: {reason}; run it, or take another --base")
    best = max(of_base, key=lambda view: float(np.mean(list(of_base[view].values()))))
    base = results[args.base].predictions
    rows = []
    for (setting, view), by_seed in scores.items():
        result, shared = results[setting], sorted(set(by_seed) & set(of_base[best]))
        apart = [draws(result.predictions[view, s]) - draws(base[best, s]) for s in shared]
        low, high = metrics.interval(np.mean(apart, axis=0)) if apart else (np.nan, np.nan)
        gains = [by_seed[s] - of_base[best][s] for s in shared]
        rows.append(
            {
                "setting": setting,
                "view": view,
                "seeds": len(by_seed),
                "held out": np.mean(result.held_out),
                "answers": np.mean(list(by_seed.values())),
                "gain": np.mean(gains) if gains else np.nan,
                "low": low,
                "high": high,
                "CPU s/epoch": np.median(result.seconds) if result.seconds else np.nan,
            }
        )
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
    add("--base", choices=SETTINGS, default="seed", metavar="NAME")
    add("--people", metavar="CSV", help="ImageID,person of the evaluation photographs")
    add("--image-size", type=int, default=96)
    add("--epochs", type=int, default=6)
    add("--cv", type=int, default=1, help="1: one split; else the folds whose ensemble answers")
    add("--keep", action="store_true", help="keep the checkpoints")
    add("--jobs", type=int, default=2)
    add("--threads", type=int, default=1)
    add("--workers", type=int, default=0)
    add("--device", default="cpu")
    add("--child", choices=SETTINGS, metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return run_child(args)
    check_same(args)
    pairs = [(setting, seed) for setting in args.settings for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda pair: run(args, *pair), pairs))
    print(make_table(args).round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
