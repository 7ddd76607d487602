"""From settings to a run's context: the data read, checked and split, the weights that networks
start from, the run's folder.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
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
import model
import registries
from data import faces, images, label_fixes, splits, tables
from labels import TASKS
from runtime import loading
from runtime.devices import choose_device, free_memory, usable_processors
from runtime.errors import DistInfo, UserError, plural, printable, warn
from utils import derive_seed

MAX_CACHE_FRACTION = 0.7  # of the free memory that --cache ram may take
PROCESS_BYTES = 1.5 * 2**30  # of a process that trains a fold, without activations
PIXEL_BYTES = 5000  # of a batch's activations in training; EfficientNet-b3 takes 4,600
SINGLE_SPLIT_FOLDS = 10  # a single split holds out one fold of so many
SINGLE_PROCESS = DistInfo()


@dataclass(frozen=True)
class RunContext:
    """What is fixed for a run and shared by its folds."""

    data: config.DataSettings
    model: config.ModelSettings
    optim: config.OptimSettings
    output: config.OutputSettings
    settings: dict[str, Any]  # every option by name, for run.json
    table: pd.DataFrame  # a row per image, with the fold that holds its person out (-1: none)
    holdout: pd.DataFrame | None  # the images of a --valid-root that only the ensemble is scored on
    compute: engine.Compute
    dist: DistInfo
    weights: dict[str, torch.Tensor] | None  # of the pretrained backbone
    start: checkpoint.Checkpoint | None  # of --load-state-dict
    boxes: dict[str, faces.Box]  # of the faces, by file name, from --boxes
    crop_cache: dataset.CropCache | None  # decoded images, with --cache ram
    jobs: int = 1  # folds that are trained side by side
    run_dir: Path = Path()

    @property
    def heads(self) -> tuple[str, ...]:
        """The tasks that the network is trained for at once."""
        return registries.trained_heads(self.model.model_type, self.data.task)

    @property
    def folds(self) -> list[int]:
        return list(range(self.data.cv))

    @property
    def own_folds(self) -> list[int]:
        """The folds that this process trains: its share of those asked for, or with all other
        processes the one of --cv 1.
        """
        asked = list(self.output.folds or self.folds)
        return asked if self.data.cv == 1 else asked[self.dist.rank :: self.dist.world]

    @property
    def is_writer(self) -> bool:
        """Whether this process writes its folds' files: the first of those that share a fold."""
        return self.compute.rank == 0

    def share(self, rank: int) -> RunContext:
        """The context of one of the processes that train folds side by side."""
        return dataclasses.replace(self, dist=DistInfo(rank, self.jobs, rank, self.jobs))

    def threads(self, number: int) -> int:
        """torch's threads for a fold: --threads, or the processors by the number of folds beside
        it, which are fewer at the end.
        """
        if self.jobs == 1:
            return torch.get_num_threads()
        asked = list(self.output.folds or self.folds)
        rest = len(asked) % self.jobs
        sharing = rest if asked.index(number) >= len(asked) - rest else self.jobs
        return self.settings["threads"] or max(1, usable_processors() // sharing)

    def fold_dir(self, fold: int) -> Path:
        return self.run_dir / f"fold{fold:02d}"

    def validation_rows(self, fold: int) -> np.ndarray:
        """Row numbers of the images that a fold is validated on."""
        return np.flatnonzero(self.table["fold"] == fold)

    def labels(self, rows: np.ndarray, task: str | None = None) -> np.ndarray:
        """Unaltered labels of rows."""
        return self.table[task or self.data.task].to_numpy()[rows]


def choose_jobs(s: config.TrainSettings, device: torch.device) -> int:
    """How many folds are trained side by side: --jobs, or on a CPU as many as processors and memory
    allow.
    """
    folds = len(s.folds or range(s.cv))
    if s.jobs is not None or device.type != "cpu":
        return min(s.jobs or 1, folds)
    needed = PROCESS_BYTES + PIXEL_BYTES * s.batch_size * s.image_size**2
    return max(1, min(folds, usable_processors() // (s.threads or 1), int(free_memory() / needed)))


def load_table(s: config.DataSettings) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """(images with their `fold`, the holdout: images of a --valid-root that is only scored at the
    end, or None).
    """
    table = tables.read_train(s.train_root)
    holdout = tables.read_train(s.valid_root) if s.valid_root else None
    if holdout is not None:
        both = sorted(set(table["person"]) & set(holdout["person"]))
        if both:
            raise UserError(
                f"--valid-root {s.valid_root}: {plural(len(both), 'person is', 'people are')} in "
                f"--train-root too ({both[0]}); part them"
            )
        if s.cv == 1:
            parts = [apply_label_fixes(s, table).assign(fold=-1), holdout.assign(fold=0)]
            return pd.concat(parts, ignore_index=True), None
    people = table["person"].nunique()
    if people < 2:
        raise UserError(
            f"{s.train_root}: holds {plural(people, 'person', 'people')}; a split needs at least "
            "two"
        )
    count = s.cv if s.cv > 1 else min(SINGLE_SPLIT_FOLDS, people)
    folds = table["person"].map(splits.assign_folds(table, count, s.split_seed))
    # after the split: no fix moves a fold
    fixed = apply_label_fixes(s, table)
    return fixed.assign(fold=folds if s.cv > 1 else folds.where(folds == 0, -1)), holdout


def apply_label_fixes(s: config.DataSettings, table: pd.DataFrame) -> pd.DataFrame:
    """The images of --train-root with the labels of --label-fixes."""
    if s.label_fixes is None:
        return table
    fixed, counts = label_fixes.apply_fixes(table, s.label_fixes)
    columns = ["mask", "gender", "years"]
    relabelled = int((fixed[columns] != table[columns]).any(axis=1).sum())
    print(
        f"--label-fixes {printable(s.label_fixes)}: corrected "
        f"{', '.join(f'{column} {n}' for column, n in counts.items())} "
        f"({plural(relabelled, 'photograph')})"
    )
    return fixed


def drop_unreadable(
    s: config.DataSettings, table: pd.DataFrame, holdout: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Both tables without the images that cannot be read, folds as they were. Raises UserError."""
    parts = [table] if holdout is None else [table, holdout]
    kept = images.drop_unreadable_rows(parts, s.skip_bad_images)
    for fold in range(s.cv):
        inside = int((kept[0]["fold"] == fold).sum())
        if not 0 < inside < len(kept[0]):
            raise UserError(
                f"--skip-bad-images: nobody is left on one side of fold {fold}; mend the "
                "photographs"
            )
        if len(kept[0]) - inside < 2:
            raise UserError(
                f"{s.train_root}: a single photograph is left to train fold {fold} on; training "
                "takes two or more"
            )
    return kept[0], kept[1] if holdout is not None else None


def prepare_run(s: config.TrainSettings, dist: DistInfo = SINGLE_PROCESS) -> RunContext:
    """Read, check and split everything, before the first folder is created."""
    jobs = 1 if dist.world > 1 else choose_jobs(s, choose_device(s.device))
    sharing = dist if dist.world > 1 else DistInfo(local_world=jobs)
    compute = engine.make_compute(s, s.batch_size, sharing, shared=s.cv == 1)
    if jobs > 1:
        torch.set_num_threads(1)  # the threads of OpenMP would not outlive the fork
    workers = loading.workers_that_fit_shared_memory(  # training's loader and validation's
        compute.workers, s.batch_size, s.image_size, sharing=2 * sharing.local_world
    )
    compute = dataclasses.replace(compute, workers=workers)
    if s.batch_size < 2 * compute.world and compute.world > 1:
        # BatchNorm cannot train on a single image
        raise UserError(
            f"--batch-size {s.batch_size}: shared by {compute.world} processes; use at least "
            f"{2 * compute.world}"
        )
    data, network = s.part(config.DataSettings), s.part(config.ModelSettings)
    table, holdout = drop_unreadable(data, *load_table(data))
    start, weights = None, None
    if s.load_state_dict:
        path = Path(s.load_state_dict)
        start = checkpoint.load_checkpoint(path, model=s.model_type, task=s.task)
    else:
        weights = backbones.backbone_weights(s.backbone or "", s.pretrained)
    names, paths = table["file"].tolist(), table["path"].tolist()
    context = RunContext(
        data,
        network,
        s.part(config.OptimSettings),
        s.part(config.OutputSettings),
        dataclasses.asdict(s),
        table,
        holdout,
        compute,
        dist,
        weights,
        start,
        tables.read_boxes(s.boxes, names, paths) if s.boxes else {},
        make_crop_cache(data, len(table), compute, dist.local_world),
        jobs,
    )
    make_model(context, 0)  # weights that do not fit are refused before a folder is created
    return context


def make_crop_cache(
    s: config.DataSettings, count: int, compute: engine.Compute, sharing: int
) -> dataset.CropCache | None:
    """Room for `count` decoded images with --cache ram, in each of the processes that share this
    machine. Raises UserError where there is too little, or it would be of no use.
    """
    if s.cache == "none":
        return None
    forms = augmentation.forms(s.transform_type, s.image_size)
    if not all(isinstance(form, augmentation.Crop) for form in (forms.train, forms.valid)):
        raise UserError(
            f"--cache {s.cache}: --transform-type {s.transform_type} looks beyond the middle "
            "square; leave one out"
        )
    if compute.workers and multiprocessing.get_start_method() != "fork":
        raise UserError(
            f"--cache {s.cache}: this system's processes share no memory; use --workers 0, or "
            "leave it out"
        )
    needed, free = count * dataset.CropCache.SIZE * sharing / 2**30, free_memory() / 2**30
    if needed > MAX_CACHE_FRACTION * free:
        raise UserError(
            f"--cache {s.cache}: {count} photographs take {needed:.1f} GiB, and {free:.1f} GiB "
            "are free; leave it out, or use a larger machine"
        )
    return dataset.CropCache(count)


def make_model(context: RunContext, fold: int) -> torch.nn.Module:
    """A fold's network before its first step."""
    s, task = context.model, context.data.task
    torch.manual_seed(derive_seed("weights", context.optim.seed, fold))
    network = model.build(s.model_type, task, s.backbone or "", context.data.image_size)
    if context.weights is not None:
        source = f"--pretrained {s.pretrained}"
        model.load_backbone(model.trunk_of(network), context.weights, source)
    if TASKS[task].regression:
        training = context.table.loc[context.table["fold"] != fold, task]
        model.set_output_bias(network, float(training.mean()))
    if context.start is not None:
        fresh = model.load_for_training(network, context.start, s.model_type, task)
        if fresh:
            warn(
                f"--load-state-dict: only the backbone is loaded; for --task {task} these layers "
                f"are new: {', '.join(fresh)}"
            )
    return network
