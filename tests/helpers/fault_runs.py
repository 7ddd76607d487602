"""Kill real training processes at random moments, resume them, and compare with a run that was
never stopped.

    python -m tests.helpers.fault_runs --kills 300 [--seed 0]

Each round trains two folds of the tiny model in a forked process, kills it with SIGKILL after a
random time, resumes, kills again ..., until it ends; then every file that a result hangs on must be
bit for bit that of the unbroken run. The state is kept after every step, so that many kills fall
while it is being written. Prints where the kills fell.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import checkpoint
import engine
import registries
import run_directory
import train
from reporting import html, plots
from tests.helpers import support
from training import cross_validation, fold_state
from training import fold as training_fold

STAGES = (
    "before the first step",
    "within an epoch",
    "validating",
    "writing a checkpoint",
    "writing the validation",
    "writing the state",
    "deleting the displaced",
    "closing",
)
FORK = multiprocessing.get_context("fork")
RUN = (
    "--cv",
    "2",
    "--epochs",
    "3",
    "--save-top",
    "2",
    "--batch-size",
    "8",
    "--transform-type",
    "tta",
)


def watch(stage: Any, owner: Any, name: str, inside: int, after: int) -> None:
    """Let `stage` tell when a function is at work."""
    plain: Callable[..., object] = getattr(owner, name)

    def watched(*args: object, **named: object) -> object:
        stage.value = inside
        found = plain(*args, **named)
        stage.value = after
        return found

    setattr(owner, name, watched)


def prepare(save_seconds: float) -> None:
    """Make this process one for tiny runs, whose time goes into what is tested."""
    torch.set_num_threads(1)
    registries.BACKBONES["tiny"] = support.TINY
    training_fold.SAVE_INTERVAL_SECONDS = save_seconds
    run_directory.LOCK_SECONDS = support.LIMIT  # the killed one's readers keep it until they notice
    # else most kills would fall while the report is drawn
    html.render_page = lambda *_: "<html></html>"
    plots.render_svg = lambda *_, **__: "<svg></svg>"
    for name in ("show_views", "show_heat_maps"):
        setattr(cross_validation, name, lambda *_: html.Gallery("", []))


def child(words: list[str], stage: Any, save_seconds: float) -> None:
    """A training process: silent, its stage sent to the parent."""
    prepare(save_seconds)
    watch(stage, engine, "validate", 2, 1)
    watch(stage, checkpoint, "save_checkpoint", 3, 1)
    watch(stage, fold_state, "save_validation", 4, 1)
    watch(stage, fold_state, "save_fold_state", 5, 1)
    watch(stage, checkpoint, "delete_displaced", 6, 1)
    watch(stage, cross_validation, "finish_run", 7, 7)
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        os._exit(train.main(words))


def start(words: list[str], stage: Any, save_seconds: float = 0.0) -> Any:
    """Fork a training process."""
    stage.value = 0
    process = FORK.Process(target=child, args=(words, stage, save_seconds))
    process.start()
    return process


def result(saved: Path) -> dict[str, object]:
    """What a run leaves that may not hang on how often it was stopped."""
    (tree,) = [path.parent for path in saved.glob("*/run.json")]
    found: dict[str, object] = {
        "files": sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*"))
    }
    for path in tree.rglob("*.pth"):
        found[path.name] = {
            k: v.numpy().tobytes() for k, v in checkpoint.load_checkpoint(path).weights.items()
        }
    for path in tree.rglob("validation.npz"):
        with np.load(path) as arrays:
            found[path.parent.name] = {k: arrays[k].tobytes() for k in arrays}
    for path in tree.glob("report.json"):  # some tests leave reports out
        report = json.loads(path.read_text(encoding="utf-8"))
        for fold in report["folds"]:
            del fold["history"]["images_per_second"]
        changing = ("path", "name", "time", "run")
        found["report"] = {k: v for k, v in report.items() if k not in changing}
    return found | {name: (tree / name).read_bytes() for name in ("oof.csv", "folds.csv")}


def one_round(
    root: Path, saved: Path, rng: random.Random, seconds: float, fell: collections.Counter[str]
) -> int:
    """Train, kill and resume until the run ends; returns the kills. Raises RuntimeError where a
    resumed run fails.
    """
    stage, kills = FORK.Value("i", 0), 0
    words = ["--train-root", str(root), "--save-path", str(saved), *RUN, *support.FAST]
    while True:
        begun = list(saved.glob("*/run.json")) if saved.is_dir() else []
        if begun and "finished" in run_directory.read_run_json(begun[0].parent):
            return kills  # killed after its last file was written
        more = ["--resume"] if begun else []
        if not begun and saved.is_dir():  # killed before run.json was there: nothing to go on with
            for tree in saved.iterdir():
                for path in tree.iterdir():
                    path.unlink()
                tree.rmdir()
        process = start([*words, *more, "--workers", str(rng.choice((0, 0, 1)))], stage)
        # or a machine that became slower would never come to a step
        process.join(rng.uniform(0, seconds) * 1.1**kills)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            fell[STAGES[stage.value]] += 1
            kills += 1
            continue
        if process.exitcode:
            raise RuntimeError(f"the run {saved} ended with {process.exitcode}; words: {more}")
        return kills


def compare(kills: int, seed: int, folder: Path) -> tuple[collections.Counter[str], int, int, int]:
    """(where the kills fell, kills, rounds, rounds that differ) until that many kills."""
    torch.set_num_threads(1)
    root = support.make_train(folder / "train")
    stage = FORK.Value("i", 0)
    began = time.monotonic()
    whole = start(
        ["--train-root", str(root), "--save-path", str(folder / "whole"), *RUN, *support.FAST],
        stage,
    )
    whole.join()
    seconds = time.monotonic() - began
    expected = result(folder / "whole")
    rng, fell = random.Random(seed), collections.Counter[str]()
    done = rounds = differ = 0
    while done < kills:
        saved = folder / f"round{rounds}"
        done += one_round(root, saved, rng, seconds, fell)
        rounds += 1
        if result(saved) != expected:
            differ += 1
            print(f"round {rounds}: differs, kept in {saved}", flush=True)
        print(f"{done} kills, {rounds} runs ended, {differ} differ", flush=True)
    return fell, done, rounds, differ


def main() -> int:
    """Run until so many kills; exit 1 where a result differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    registries.BACKBONES["tiny"] = support.TINY
    folder = Path(tempfile.mkdtemp(prefix="fault-"))
    fell, kills, rounds, differ = compare(args.kills, args.seed, folder)
    for stage, count in fell.most_common():
        print(f"{count:>5}  {stage}")
    print(f"{kills} kills, {kills} resumes, {rounds} runs ended, {differ} differences")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
