"""What comes before the first epoch: the data read, checked and split, the network as it starts,
the run's tree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import multiprocessing
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import augmentation
import backbones
import checkpoint
import config
import dataset
import engine
import loading
import model
import run_directory
from data import duplicates, faces, images, label_fixes, splits, tables
from labels import TASKS, scoring_task
from runtime.devices import free_memory, usable_processors
from runtime.errors import DistInfo, RunError, UserError, plural, printable, warn, warn_counted
from runtime.files import atomic_write, csv_cell, remove_stale_writes
from utils import derive_seed

MAX_CACHE_FRACTION = 0.7  # of the free memory that --cache ram may take
SINGLE_SPLIT_FOLDS = 10  # a single split holds out one fold of so many
SINGLE_PROCESS = DistInfo()


@dataclass(frozen=True)
class RunContext:
    """What all folds of a run share."""

    settings: config.TrainSettings
    table: pd.DataFrame  # a row per photograph, with the fold that holds its person out (-1: none)
    compute: engine.Compute
    weights: dict[str, torch.Tensor] | None  # of the pretrained backbone
    start: checkpoint.Checkpoint | None  # trained on from here
    boxes: dict[str, faces.Box]  # of the faces, where a file tells them
    tree: Path
    who: DistInfo
    squares: dataset.CropCache | None = None  # decoded, with --cache ram

    @property
    def folds(self) -> list[int]:
        return list(range(self.settings.cv))

    @property
    def own_folds(self) -> list[int]:
        """The folds that this process trains: every so many-th of those asked for, or with all
        others the one of --cv 1.
        """
        asked = list(self.settings.folds or self.folds)
        return asked if self.settings.cv == 1 else asked[self.who.rank :: self.who.world]

    @property
    def writes(self) -> bool:
        """Whether this process writes its folds' files: the first of those that share a fold."""
        return self.compute.rank == 0

    def validation_rows(self, fold: int) -> np.ndarray:
        """Row numbers of the photographs that a fold is validated on."""
        return np.flatnonzero(self.table["fold"] == fold)

    def truth(self, rows: np.ndarray, task: str | None = None) -> np.ndarray:
        """Unaltered labels of rows."""
        return self.table[task or self.settings.task].to_numpy()[rows]


def load_table(s: config.TrainSettings) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """(photographs with their `fold`, photographs of a --valid-root that is only scored at the end
    or None).
    """
    table = tables.read_train(s.train_root)
    outside = tables.read_train(s.valid_root) if s.valid_root else None
    if outside is not None:
        both = sorted(set(table["person"]) & set(outside["person"]))
        if both:
            many = plural(len(both), "person is", "people are")
            raise UserError(
                f"--valid-root {s.valid_root}: {many} in --train-root too ({both[0]}); part them"
            )
        if s.cv == 1:
            return pd.concat(
                [apply_label_fixes(s, table).assign(fold=-1), outside.assign(fold=0)],
                ignore_index=True,
            ), None
    people = table["person"].nunique()
    if people < 2:
        raise UserError(
            f"{s.train_root}: holds {plural(people, 'person', 'people')}; a split needs at least "
            "two"
        )
    folds = splits.assign_folds(
        table, s.cv if s.cv > 1 else min(SINGLE_SPLIT_FOLDS, people), s.split_seed
    )
    fold = table["person"].map(folds)
    return apply_label_fixes(s, table).assign(
        fold=fold if s.cv > 1 else fold.where(fold == 0, -1)
    ), outside


def apply_label_fixes(s: config.TrainSettings, table: pd.DataFrame) -> pd.DataFrame:
    """The photographs of --train-root with the labels of --label-fixes; after the split, so that no
    fix moves a fold.
    """
    if s.label_fixes is None:
        return table
    fixed, counts = label_fixes.apply_fixes(table, s.label_fixes)
    relabelled = int(
        (fixed[["mask", "gender", "years"]] != table[["mask", "gender", "years"]]).any(axis=1).sum()
    )
    print(
        f"--label-fixes {printable(s.label_fixes)}: corrected "
        f"{', '.join(f'{column} {n}' for column, n in counts.items())} "
        f"({plural(relabelled, 'photograph')})"
    )
    return fixed


def drop_unreadable(
    s: config.TrainSettings, table: pd.DataFrame, outside: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Both tables without the photographs that cannot be read, folds as they were. Raises UserError
    (see audit).
    """
    kept = images.drop_unreadable_rows(
        [table] if outside is None else [table, outside], s.skip_bad_images
    )
    for fold in range(s.cv):
        if not 0 < (kept[0]["fold"] == fold).sum() < len(kept[0]):
            raise UserError(
                f"--skip-bad-images: nobody is left on one side of fold {fold}; mend the "
                "photographs"
            )
        if (kept[0]["fold"] != fold).sum() < 2:
            raise UserError(
                f"{s.train_root}: a single photograph is left to train fold {fold} on; training "
                "takes two or more"
            )
    return kept[0], kept[1] if outside is not None else None


def prepare_run(
    s: config.TrainSettings, who: DistInfo = SINGLE_PROCESS
) -> tuple[RunContext, pd.DataFrame | None]:
    """Read, check and split everything, before the first folder is made."""
    compute = engine.make_compute(s, s.batch_size, who, shared=s.cv == 1)
    workers = loading.workers_that_fit_shared_memory(
        compute.workers, s.batch_size, s.image_size, sharing=who.local_world
    )
    compute = dataclasses.replace(compute, workers=workers)
    if (
        s.batch_size < 2 * compute.world and compute.world > 1
    ):  # BatchNorm cannot train on a single photograph
        raise UserError(
            f"--batch-size {s.batch_size}: shared by {compute.world} processes; use at least "
            f"{2 * compute.world}"
        )
    table, outside = drop_unreadable(s, *load_table(s))
    start = None
    if s.load_state_dict:
        start, _ = checkpoint.load_described(
            Path(s.load_state_dict), s.model_type, s.task, mapped=False
        )
    weights = backbones.backbone_weights(s.backbone or "", s.pretrained) if start is None else None
    boxes = (
        tables.read_boxes(s.boxes, table["file"].tolist(), table["path"].tolist())
        if s.boxes
        else {}
    )
    study = RunContext(
        s,
        table,
        compute,
        weights,
        start,
        boxes,
        Path(),
        who,
        make_crop_cache(s, table, compute, who),
    )
    make_model(study, 0)  # weights that do not fit are refused before a folder is made
    return study, outside


def make_crop_cache(
    s: config.TrainSettings, table: pd.DataFrame, compute: engine.Compute, who: DistInfo
) -> dataset.CropCache | None:
    """Room for the decoded middle squares with --cache ram. Raises UserError where it is not there,
    or of no use.
    """
    if s.cache == "none":
        return None
    made = augmentation.forms(s.transform_type, s.image_size)
    if not all(isinstance(form, augmentation.Crop) for form in (made.train, made.valid)):
        raise UserError(
            f"--cache {s.cache}: --transform-type {s.transform_type} looks beyond the middle "
            "square; leave one out"
        )
    if compute.workers and multiprocessing.get_start_method() != "fork":
        raise UserError(
            f"--cache {s.cache}: this system's processes share no memory; use --workers 0, or "
            "leave it out"
        )
    needed, free = (
        len(table) * dataset.CropCache.SIZE * who.local_world / 2**30,
        free_memory() / 2**30,
    )
    if needed > MAX_CACHE_FRACTION * free:
        raise UserError(
            f"--cache {s.cache}: {len(table)} photographs take {needed:.1f} GiB, and {free:.1f} "
            "GiB are free; leave "
            "it out, or use a larger machine"
        )
    return dataset.CropCache(len(table))


def describe_data(study: RunContext) -> dict[str, Any]:
    """Counts of the data, for run.json and the first lines."""
    table, task = study.table, TASKS[study.settings.task]
    counts = table[scoring_task(study.settings.task)].value_counts()
    names = TASKS[scoring_task(study.settings.task)].classes
    return {
        "photographs": len(table),
        "people": int(table["person"].nunique()),
        "people_per_fold": {
            str(f): int(table.loc[table["fold"] == f, "person"].nunique()) for f in study.folds
        },
        "photographs_per_class": {
            name: int(counts.get(number, 0)) for number, name in enumerate(names)
        },
        "regression": task.regression,
        "digest": digest(table),
        "median_age": float(table["years"].median()),
    }


def digest(table: pd.DataFrame) -> str:
    """What a run's result hangs on in its table: names, labels and folds of all photographs."""
    told = table[["file", "person", "mask", "gender", "years", "fold"]].to_csv(index=False)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def resolved_machine(study: RunContext) -> dict[str, Any]:
    """What was left to the machine, as it was chosen."""
    return {
        "device": study.compute.device.type,
        "precision": study.compute.precision,
        "workers": study.compute.workers,
        "threads": torch.get_num_threads(),
        "processes": study.who.world,
    }


def banner(study: RunContext) -> list[str]:
    """The first lines of a run."""
    s, data = study.settings, describe_data(study)
    *others, last = data["people_per_fold"].values()
    several = f", {study.who.world} processes" if study.who.world > 1 else ""
    return [
        f"{data['photographs']} photographs of {data['people']} people; held out per fold: "
        f"{''.join(f'{count}, ' for count in others)}{plural(last, 'person', 'people')}",
        f"{s.model_type} on {s.backbone}, {s.image_size} px, {study.compute.precision} on "
        f"{study.compute.device}, "
        f"{plural(torch.get_num_threads(), 'thread')}, "
        f"{plural(study.compute.workers, 'worker')}{several}",
    ]


def create_run_dir(study: RunContext, outside: pd.DataFrame | None = None) -> Path:
    """The run's tree: a new one, or that of the run to go on with. outside: photographs that are
    only scored at the end.
    """
    s = study.settings
    tree = run_directory.open_run_dir(
        Path(s.save_path),
        s.model_type,
        s.run_name,
        s.resume,
        run_directory.result_settings(dataclasses.asdict(s)),
    )
    study = dataclasses.replace(study, tree=tree)
    if (tree / "run.json").is_file():
        note_resume(study)
    else:
        try:
            warn_of_duplicates(tree, [study.table] if outside is None else [study.table, outside])
            write_run_start(study)
        except RunError:  # nothing is there to go on with
            with contextlib.suppress(OSError):
                for name in ("duplicates.csv", "folds.csv"):
                    (tree / name).unlink(missing_ok=True)
                tree.rmdir()
            raise
    print(f"checkpoints: {printable(tree)}", flush=True)
    return tree


def warn_of_duplicates(tree: Path, parts: Sequence[pd.DataFrame]) -> None:
    """One warning for near-duplicate photographs of different people, who may stand on both sides
    of a fold.
    """
    table = pd.concat(parts)
    names = dict(zip(table["path"], table["file"], strict=True))
    pairs = [
        (names[a], names[b], d)
        for a, b, d in duplicates.find_duplicates(list(names), table["person"].tolist())
    ]
    if not pairs:
        return
    duplicates.write_pairs(tree / "duplicates.csv", pairs)
    warn_counted(
        [f"{a} and {b}" for a, b, _ in pairs],
        "nearly the same photograph under two people's names, a leak between "
        f"folds unless they are one person; all pairs in {tree / 'duplicates.csv'}",
    )


def write_run_start(study: RunContext) -> None:
    """run.json and folds.csv of a run that begins."""
    versions = {
        name: __import__(name).__version__
        for name in ("torch", "torchvision", "numpy", "pandas", "PIL")
    }
    machine = {
        "system": platform.platform(),
        "processors": usable_processors(),
        "device": str(study.compute.device),
    }
    if study.compute.device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(study.compute.device)
    content = {
        "version": config.VERSION,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "command": sys.argv,
        "settings": dataclasses.asdict(study.settings),
        "chosen": resolved_machine(study),
        "versions": {"python": platform.python_version(), **versions},
        "machine": machine,
        "data": describe_data(study),
    }
    people = study.table.drop_duplicates("person")[["person", "gender", "ageg", "fold"]]
    shown = people.assign(
        person=people["person"].map(csv_cell), fold=people["fold"].map(lambda f: "" if f < 0 else f)
    )
    with atomic_write(study.tree / "folds.csv", "w") as file:
        shown.to_csv(file, index=False)
    run_directory.write_json(study.tree / "run.json", content)


def note_resume(study: RunContext) -> None:
    """Note in run.json that a run goes on. Raises UserError where its data are others now."""
    content = run_directory.read_run_json(study.tree)
    before = content.get("data", {}).get("digest")
    if before not in (None, digest(study.table)):
        raise UserError(
            f"{study.tree}: {study.settings.train_root} has other photographs, labels or folds "
            "than when the run "
            "began; restore them, or start a new run"
        )
    now, then = resolved_machine(study), content.get("chosen", {})
    began = then.get("processes", 1)
    if (
        study.settings.cv == 1 and began != now["processes"]
    ):  # each takes BatchNorm's statistics of its own share
        raise UserError(
            f"{study.tree}: {began} processes began to share its batches, now there are "
            f"{now['processes']}; "
            f"go on with {began} (torchrun --nproc-per-node), or start a new run"
        )
    for key in ("device", "precision", "threads"):
        if then.get(key, now[key]) != now[key]:
            warn(
                f"{key}: the run began with {then[key]} and goes on with {now[key]}, so it will "
                "differ by rounding"
            )
    content.setdefault("resumed", []).append(
        {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "command": sys.argv, "chosen": now}
    )
    content = {key: value for key, value in content.items() if key not in ("finished", "failed")}
    for folder in (study.tree, *run_directory.fold_dirs(study.tree)):
        remove_stale_writes(folder)
    run_directory.write_json(study.tree / "run.json", content)


def make_model(study: RunContext, fold: int) -> torch.nn.Module:
    """A fold's network before its first step."""
    s = study.settings
    torch.manual_seed(derive_seed("weights", s.seed, fold))
    network = model.build(s.model_type, s.task, s.backbone or "", s.image_size)
    if study.weights is not None:
        source = f"--pretrained {s.pretrained}"
        model.load_backbone(model.trunk_of(network), study.weights, source)
        model.check_finite(model.trunk_of(network), source)
    if TASKS[s.task].regression:
        training = study.table.loc[study.table["fold"] != fold, s.task]
        model.set_output_bias(network, float(training.mean()))
    if study.start is not None:
        fresh = model.load_for_training(network, study.start, s.model_type, s.task)
        model.check_finite(network, f"--load-state-dict {s.load_state_dict}")
        if fresh:
            warn(
                f"--load-state-dict: the backbone is taken; for --task {s.task} these start "
                f"afresh: {', '.join(fresh)}"
            )
    return network
