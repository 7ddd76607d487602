#!/usr/bin/env python3
"""Which settings pay? python benchmarks/ablation.py DATA DIR [--settings NAME ...] [--seeds 1]
[--people CSV]

Each setting is trained with each seed by the real train.py (--cv 1: one and the same 90/10 split;
equal epochs and image size; with --cv 5 the folds' best checkpoints answer together) and answers
DATA/eval by the real submit_ensemble.py, in each of its views. DIR keeps, for each setting and
seed, the probabilities and what the training told, and drops the checkpoints; what is there is not
run again, so an interrupted benchmark goes on, and settings can be added one by one. --jobs of them
run side by side, each in one thread.

The table: macro F1 on the held-out people of training (the best epoch's, so a little optimistic)
and on DATA/eval/answers.csv, means over the seeds; the difference to the setting it is compared
with (--base, in the view that serves the base best), seed by seed on the same people, with its 95 %
interval by bootstrap over people (--people: ImageID,person; where nobody tells whose the
photographs are, they count as independent, which is too narrow); and the processor's seconds for an
epoch.

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
import timing

import checkpoint
import ensemble
import metrics
import submission
import tables
import utils

ASKED = ("image_size", "epochs", "cv", "device", "threads", "workers")
LITE0 = ("--backbone", "efficientnet-lite0")
FACE_VIEWS = {
    "plain": ("--transform-type", "auto"),
    "two views": ("--transform-type", "auto", "--tta", "2"),
}


@dataclass(frozen=True)
class Setting:
    """Options of train.py, and the views in which its model answers: {name: options of
    submit_ensemble.py}.
    """

    train: tuple[str, ...]
    views: Mapping[str, tuple[str, ...]]
    # of candidates.py, where it is no entry of a registry: average (the weights), mean of 3, grow,
    # halves
    trick: str = ""


WIDE_VIEWS = {
    "wide": ("--transform-type", "auto"),
    "middle 224": ("--transform-type", "base"),
    "two crops": ("--transform-type", "tta", "--tta", "2"),
}
FACE = {"plain": ("--transform-type", "auto")}
FILTER = ("--age-filter", "58")
PARTS = ("--transform-type", "facerandom", "--model-type", "Parts")


def with_more(
    base: Setting, settings: dict[str, tuple[tuple[str, ...], str]]
) -> dict[str, Setting]:
    """A setting with one more idea each: {name: (options, trick)}, in the plain view."""
    return {
        name: Setting((*base.train, *words), FACE, trick)
        for name, (words, trick) in settings.items()
    }


SEED, BEST = Setting(("--recipe", "seed"), WIDE_VIEWS), Setting(("--recipe", "strong"), FACE_VIEWS)
SETTINGS: dict[str, Setting] = {
    "seed": SEED,
    "strong": BEST,
    "seed, age filter 58": Setting((*SEED.train, *FILTER), WIDE_VIEWS),
    "seed + flip": Setting(("--transform-type", "tta_flip"), FACE_VIEWS),
    "facecrop": Setting(("--transform-type", "facecrop"), FACE),
    "face + flip": Setting(("--transform-type", "face_flip"), FACE_VIEWS),
    "face + flip + scale": Setting(("--transform-type", "face_resized"), FACE_VIEWS),
    "face + flip + scale + RandAugment": Setting(("--transform-type", "facerandom"), FACE_VIEWS),
    "parts": Setting(PARTS, FACE),
    "parts, age filter 58": Setting((*PARTS, *FILTER), FACE),
    **with_more(
        BEST,
        {
            "strong, age filter 58": (FILTER, ""),
            "strong, smoothing 0.1": (("--loss-type", "smoothing0.1"), ""),
            "strong, smoothing 0.2": (("--loss-type", "labelsmoothingloss"), ""),
            "strong, soft F1 of mask and gender": (("--loss-type", "softf1"), ""),
            "strong, AdamW": (("--optim-type", "adamw"), ""),
            "strong, lr 0.002": (("--lr", "0.002"), ""),
            "strong, lr 0.0005": (("--lr", "0.0005"), ""),
            "strong, warm-up": (("--warmup-epochs", "1"), ""),
            "strong, head faster": (("--lr", "0.003", "--backbone-lr-scale", "0.3"), ""),
            "strong, constant rate": (("--lr-scheduler", "none"), ""),
            "strong, erasing": (("--transform-type", "face_erased"), ""),
            "strong, oversampled": (("--oversample", "repeat"), ""),
            "strong, moving average": ((), "average"),
            "strong, mean of 3": ((), "mean of 3"),
            "strong, growing": ((), "grow"),
            "strong, halves": ((), "halves"),
        },
    ),
}


def file_name(setting: str) -> str:
    """A setting's folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in setting)


def child(args: argparse.Namespace) -> int:
    """What a process of its own does: train one setting with one seed, and answer in all views."""
    import candidates

    candidates.register()
    trick = SETTINGS[args.child].trick
    candidates.play(trick, args.epochs, args.image_size)
    import submit_ensemble
    import train

    setting, data, folder = SETTINGS[args.child], Path(args.data), Path(args.folder)
    machine = (
        "--device",
        args.device,
        "--threads",
        str(args.threads),
        "--workers",
        str(args.workers),
    )
    before = time.process_time()
    code = train.main(
        [
            "--train-root",
            str(data / "train"),
            "--save-path",
            str(folder / "models"),
            "--quiet",
            "--save-top",
            "3",
            *LITE0,
            "--image-size",
            str(args.image_size),
            "--epochs",
            str(args.epochs),
            "--seed",
            str(args.seeds[0]),
            *machine,
            *setting.train,
            "--cv",
            str(args.cv),
        ]
    )
    (folder / "cpu.json").write_text(json.dumps(time.process_time() - before))
    (tree,) = (folder / "models").iterdir()
    if trick == "mean of 3":
        for fold in checkpoint.fold_folders(tree):
            candidates.average_checkpoints(fold)
    for view, words in setting.views.items():
        code = code or submit_ensemble.main(
            [
                "--root",
                str(tree),
                "--data-root",
                str(data / "eval"),
                "--save-path",
                str(folder / file_name(view)),
                "--top-k",
                "1",
                *words,
                *machine,
            ]
        )
        (made,) = (folder / file_name(view)).iterdir()
        (made / submission.PROBS).rename(folder / f"{file_name(view)}.npz")
        shutil.rmtree(folder / file_name(view))
    for name in ("report.json", "oof.csv"):
        (tree / name).rename(folder / name)
    pd.concat(
        [
            pd.read_csv(file).assign(fold=file.parent.name)
            for file in sorted(tree.glob("fold*/history.csv"))
        ]
    ).to_csv(folder / "history.csv", index=False)
    if not args.keep:
        shutil.rmtree(folder / "models")
    return code


def run(args: argparse.Namespace, setting: str, seed: int) -> None:
    """One setting and seed, in a process of its own, where it is not there yet."""
    folder = args.folder / file_name(setting) / f"seed{seed}"
    if (folder / "history.csv").is_file() and all(
        (folder / f"{file_name(v)}.npz").is_file() for v in SETTINGS[setting].views
    ):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = [
        str(timing.PROJECT / "benchmarks" / "ablation.py"),
        args.data,
        str(folder),
        "--child",
        setting,
        "--seeds",
        str(seed),
    ]
    for name in ASKED:
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    words += ["--keep"] * args.keep
    with open(folder / "log.txt", "w") as log:
        ended = subprocess.run([sys.executable, *words], stdout=log, stderr=subprocess.STDOUT)
    if ended.returncode:
        raise utils.UserError(
            f"{setting}, seed {seed}: ended with {ended.returncode}; see {folder / 'log.txt'}"
        )
    print(f"done: {setting}, seed {seed}", flush=True)


def check_same(args: argparse.Namespace) -> None:
    """Raise UserError where DIR was filled by runs of another kind."""
    asked = {name: getattr(args, name) for name in ASKED[:3]} | {
        "data": str(Path(args.data).resolve())
    }
    path = args.folder / "asked.json"
    if path.is_file() and json.loads(path.read_text()) != asked:
        raise utils.UserError(
            f"{path}: these runs had other settings ({path.read_text()}); use another DIR"
        )
    args.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked))


@dataclass(frozen=True)
class Results:
    """What the seeds of a setting came to."""

    answers: dict[tuple[str, int], np.ndarray]  # (view, seed) -> classes [images]
    held_out: list[float]  # macro F1 of each seed
    seconds: list[float]  # of the processor for an epoch, its validation included


def results(args: argparse.Namespace, setting: str, images: list[str]) -> Results:
    """Read what is there of a setting."""
    answers, held_out, seconds = {}, [], []
    for folder in sorted((args.folder / file_name(setting)).glob("seed*")):
        if not (folder / "history.csv").is_file():
            continue
        history = pd.read_csv(folder / "history.csv")
        held_out.append(
            float(
                history.assign(fold=history.get("fold", 0)).groupby("fold")["macro_f1"].max().mean()
            )
        )
        if (folder / "cpu.json").is_file():
            seconds.append(json.loads((folder / "cpu.json").read_text()) / len(history))
        for view in SETTINGS[setting].views:
            if not (
                folder / f"{file_name(view)}.npz"
            ).is_file():  # a view that the setting was given later
                continue
            with np.load(folder / f"{file_name(view)}.npz") as stored:
                array, names = stored["probabilities"], stored["images"].tolist()
            if names != images:
                raise utils.UserError(
                    f"{folder}: answers other photographs than {args.data}; use another folder"
                )
            answers[view, int(folder.name.removeprefix("seed"))] = ensemble.arithmetic(
                array
            ).argmax(1)
    return Results(answers, held_out, seconds)


def table(args: argparse.Namespace) -> pd.DataFrame:
    """A row per setting and view, with the difference to the base in its own best view."""
    images, _ = tables.read_eval(str(Path(args.data) / "eval"))
    truth = tables.read_answers(str(Path(args.data) / "eval" / "answers.csv"), images, "main")
    people = np.arange(len(images)) if args.people is None else whose(args.people, images)

    def draws(classes: np.ndarray) -> np.ndarray:
        return metrics.macro_f1s(metrics.bootstrap_people(truth, classes, people, 18))

    found = {setting: results(args, setting, images) for setting in SETTINGS}
    base = found[args.base]
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for setting, result in found.items():
        for (view, seed), classes in result.answers.items():
            scores.setdefault((setting, view), {})[seed] = metrics.macro_f1(
                metrics.confusion(truth, classes, 18)
            )
    own = [view for setting, view in scores if setting == args.base]
    if not own:
        raise utils.UserError(
            f"{args.folder}: nothing of {args.base}, which the others are compared to; run it, or "
            "take another --base"
        )
    best = max(own, key=lambda view: float(np.mean(list(scores[args.base, view].values()))))
    rows = []
    for (setting, view), by_seed in scores.items():
        result, shared = found[setting], sorted(set(by_seed) & set(scores[args.base, best]))
        apart = [
            draws(result.answers[view, seed]) - draws(base.answers[best, seed]) for seed in shared
        ]
        low, high = metrics.interval(np.mean(apart, axis=0)) if apart else (np.nan, np.nan)
        gain = (
            float(np.mean([by_seed[seed] - scores[args.base, best][seed] for seed in shared]))
            if shared
            else np.nan
        )
        rows.append(
            {
                "setting": setting,
                "view": view,
                "seeds": len(by_seed),
                "held out": np.mean(result.held_out),
                "answers": np.mean(list(by_seed.values())),
                "gain": gain,
                "low": low,
                "high": high,
                "CPU s/epoch": np.median(result.seconds) if result.seconds else np.nan,
            }
        )
    return pd.DataFrame(rows)


def whose(path: str, images: list[str]) -> np.ndarray:
    """The person on each photograph."""
    told = dict(
        pd.read_csv(path, dtype=str)[["ImageID", "person"]].itertuples(index=False, name=None)
    )
    return np.array([told[name] for name in images])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a data root with train/ and eval/, the latter with answers.csv",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--settings",
        nargs="*",
        choices=SETTINGS,
        default=[],
        metavar="NAME",
        help="; ".join(SETTINGS),
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--base", choices=SETTINGS, default="seed", metavar="NAME")
    parser.add_argument(
        "--people", metavar="CSV", help="ImageID,person of the evaluation photographs"
    )
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--cv", type=int, default=1, help="1: one split; else the folds whose ensemble answers"
    )
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", choices=SETTINGS, metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args)
    check_same(args)
    pairs = [(setting, seed) for setting in args.settings for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda pair: run(args, *pair), pairs))
    shown = table(args)
    print(shown.round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_script(main, Path(__file__).name))
