"""The run's folder, what is written into it at the start, and the first lines of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import config
import run_directory
from data import csv_tables, duplicates
from labels import TASKS, scoring_task
from runtime.devices import usable_processors
from runtime.errors import RunError, UserError, plural, printable, warn, warn_counted
from runtime.files import remove_stale_writes
from training.run import RunContext

DUPLICATES_COLUMNS = ["first", "second", "distance"]


def create_run_dir(context: RunContext) -> Path:
    """The run's folder: a new one, or that of the run to resume."""
    s = context.output
    run_dir = run_directory.open_run_dir(
        Path(s.save_path),
        context.model.model_type,
        s.run_name,
        s.resume,
        run_directory.result_settings(context.settings),
    )
    context = dataclasses.replace(context, run_dir=run_dir)
    for folder in (run_dir, *run_directory.fold_dirs(run_dir)):
        remove_stale_writes(folder)
    if (run_dir / "run.json").is_file():
        update_run_json(context)
    else:
        try:
            parts = [context.table] if context.holdout is None else [context.table, context.holdout]
            searched = warn_of_duplicates(run_dir, parts)
            write_folds(context)
            write_run_json(context, searched)
        except Exception:  # nothing to resume is left behind
            with contextlib.suppress(OSError):
                for name in ("duplicates.csv", "folds.csv"):
                    (run_dir / name).unlink(missing_ok=True)
                run_dir.rmdir()
            raise
    print(f"checkpoints: {printable(run_dir)}", flush=True)
    return run_dir


def warn_of_duplicates(run_dir: Path, parts: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """One warning for near-duplicate images of different people, who may be on both sides of a
    fold; all pairs go into duplicates.csv. Returns what tells the next run, which need not search
    the same files again.
    """
    table = pd.concat(parts)
    files = duplicates.files_digest(table)
    pairs = earlier_duplicates(run_dir.parent, files)
    if pairs is None:
        names = dict(zip(table["path"], table["file"], strict=True))
        found = duplicates.find_duplicates(list(names), table["person"].tolist())
        rows = [(names[a], names[b], distance) for a, b, distance in found]
        pairs = pd.DataFrame(rows, columns=DUPLICATES_COLUMNS)
    if len(pairs):
        csv_tables.write_csv(run_dir / "duplicates.csv", pairs, "%.4f")
        warn_counted(
            [f"{a} and {b}" for a, b in zip(pairs["first"], pairs["second"], strict=True)],
            "nearly the same photograph under two people's names, a leak between "
            f"folds unless they are one person; all pairs in {run_dir / 'duplicates.csv'}",
        )
    return {"files": files, "near_duplicates": len(pairs)}


def earlier_duplicates(save_path: Path, files: str) -> pd.DataFrame | None:
    """duplicates.csv of an earlier run on the same files; None where there is none to be read."""
    for run_dir in save_path.glob(f"{run_directory.RUN_DIR_PREFIX}*"):
        with contextlib.suppress(UserError, RunError, ValueError):
            run = run_directory.read_run_json(run_dir)
            data = run.get("data", {})
            if run.get("version") != config.VERSION or data.get("files") != files:
                continue
            if data.get("near_duplicates") == 0:
                return pd.DataFrame(columns=DUPLICATES_COLUMNS)
            pairs = csv_tables.read_csv(run_dir / "duplicates.csv", DUPLICATES_COLUMNS)
            if len(pairs) == data.get("near_duplicates"):
                return pairs.astype({"distance": float})
    return None


def write_folds(context: RunContext) -> None:
    """folds.csv: who is held out in which fold."""
    people = context.table.drop_duplicates("person")[["person", "gender", "ageg", "fold"]]
    folds = people["fold"].map(lambda fold: "" if fold < 0 else fold)
    csv_tables.write_csv(context.run_dir / "folds.csv", people.assign(fold=folds))


def describe_data(context: RunContext) -> dict[str, Any]:
    """Counts of the data, for run.json and the first lines."""
    table, task = context.table, context.data.task
    classes = TASKS[scoring_task(task)].classes
    counts = table[scoring_task(task)].value_counts()
    people = table.groupby("fold")["person"].nunique()
    return {
        "photographs": len(table),
        "people": int(table["person"].nunique()),
        "people_per_fold": {str(fold): int(people.get(fold, 0)) for fold in context.folds},
        "photographs_per_class": {
            name: int(counts.get(number, 0)) for number, name in enumerate(classes)
        },
        "regression": TASKS[task].regression,
        "digest": data_digest(table),
        "median_age": float(table["years"].median()),
    }


def data_digest(table: pd.DataFrame) -> str:
    """A hash of what a run's result depends on in its table: names, labels and folds."""
    text = table[["file", "person", "mask", "gender", "years", "fold"]].to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolved_machine(context: RunContext) -> dict[str, Any]:
    """What was left to the machine, as it was chosen."""
    return {
        "device": context.compute.device.type,
        "precision": context.compute.precision,
        "workers": context.compute.workers,
        "threads": context.threads(context.own_folds[0]),
        "processes": context.dist.world,
        "jobs": context.jobs,
    }


def banner(context: RunContext) -> list[str]:
    """The first lines of a run."""
    data, compute, world = describe_data(context), context.compute, context.dist.world
    *others, last = data["people_per_fold"].values()
    several = f", {world} processes" if world > 1 else ""
    several += f", {context.jobs} folds side by side" if context.jobs > 1 else ""
    threads = context.threads(context.own_folds[0])
    return [
        f"{data['photographs']} photographs of {data['people']} people; held out per fold: "
        f"{''.join(f'{count}, ' for count in others)}{plural(last, 'person', 'people')}",
        f"{context.model.model_type} on {context.model.backbone}, {context.data.image_size} px, "
        f"{compute.precision} on {compute.device}, {plural(threads, 'thread')}, "
        f"{plural(compute.workers, 'worker')}{several}",
    ]


def write_run_json(context: RunContext, searched: dict[str, Any]) -> None:
    """run.json of a new run. searched: what `warn_of_duplicates` gives."""
    versions = {
        name: __import__(name).__version__
        for name in ("torch", "torchvision", "numpy", "pandas", "PIL")
    }
    device = context.compute.device
    machine = {
        "system": platform.platform(),
        "processors": usable_processors(),
        "device": str(device),
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    content = {
        "version": config.VERSION,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "command": sys.argv,
        "settings": context.settings,
        "chosen": resolved_machine(context),
        "versions": {"python": platform.python_version(), **versions},
        "machine": machine,
        "data": describe_data(context) | searched,
    }
    run_directory.write_json(context.run_dir / "run.json", content)


def update_run_json(context: RunContext) -> None:
    """Note in run.json that a run is resumed. Raises UserError where its data have changed."""
    run_dir = context.run_dir
    content = run_directory.read_run_json(run_dir)
    digest = content.get("data", {}).get("digest")
    if digest not in (None, data_digest(context.table)):
        raise UserError(
            f"{run_dir}: {context.data.train_root} has other photographs, labels or folds than "
            "when the run began; restore them, or start a new run"
        )
    now, before = resolved_machine(context), content.get("chosen", {})
    began = before.get("processes", 1)
    if context.data.cv == 1 and began != now["processes"]:
        # each takes BatchNorm's statistics of its own share of a batch
        raise UserError(
            f"{run_dir}: {began} processes began to share its batches, now there are "
            f"{now['processes']}; go on with {began} (torchrun --nproc-per-node), or start a new "
            "run"
        )
    for key in ("device", "precision", "threads"):
        if before.get(key, now[key]) != now[key]:
            warn(
                f"{key}: the run began with {before[key]} and goes on with {now[key]}, so it will "
                "differ by rounding"
            )
    resumed = {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "command": sys.argv, "chosen": now}
    content.setdefault("resumed", []).append(resumed)
    kept = {key: value for key, value in content.items() if key not in ("finished", "failed")}
    run_directory.write_json(run_dir / "run.json", kept)
