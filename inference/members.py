"""The checkpoints of a run: which ones predict, and what each knows of a task."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

import checkpoint
import ensemble
import labels
import model
import registries
import run_directory
from checkpoint import Checkpoint
from labels import PARTS, TASKS
from runtime.errors import UserError, warn


def load_member(path: Path, task: str, model_type: str | None = None) -> Checkpoint:
    """One checkpoint. Raises UserError where it is of another model than `model_type`."""
    stored = checkpoint.load_checkpoint(path, model=model_type, task=task)
    if model_type not in (None, stored.info.model):
        raise UserError(
            f"--model-type {model_type}: {path} holds a {stored.info.model}; leave the option out"
        )
    return stored


def load_members(run_dir: Path, top_k: int) -> list[Checkpoint]:
    """The k best checkpoints of each fold of a run. Raises UserError for a fold without one."""
    folders = run_directory.fold_dirs(run_dir)
    best = {folder: checkpoint.load_ranked(folder)[:top_k] for folder in folders}
    for folder, ranked in best.items():
        if not ranked:
            raise UserError(f"{folder}: holds no checkpoint; finish its training or remove it")
    ensemble.warn_fewer_members([f.name for f, own in best.items() if len(own) < top_k], top_k)
    members = [
        dataclasses.replace(stored, name=f"{folder.name}/{with_fold(stored.name, folder)}")
        for folder, ranked in best.items()
        for stored in ranked
    ]
    folds = run_directory.read_run_json(run_dir).get("settings", {}).get("cv")
    if isinstance(folds, int) and folds > len(folders):
        warn(f"{run_dir}: only {len(folders)} of its {folds} folds are present; those vote")
    kinds = sorted({f"{m.info.model} for {m.info.task}" for m in members})
    if len(kinds) > 1:
        warn(f"{run_dir}: checkpoints of {len(kinds)} kinds ({', '.join(kinds)}) vote together")
    return members


def with_fold(name: str, folder: Path) -> str:
    """A checkpoint's file name, its fold before it where it does not say that."""
    return name if re.match(r"Fold\d+_", name) else f"{folder.name.capitalize()}_{name}"


def can_predict(info: checkpoint.CheckpointInfo, task: str) -> bool:
    """Whether a checkpoint knows a task, by a head of its own or from its other heads."""
    return labels.can_predict(registries.trained_heads(info.model, info.task), task)


def read_info(path: Path) -> checkpoint.CheckpointInfo:
    """What a checkpoint says of itself; its weights are not read."""
    return checkpoint.load_checkpoint(path, mapped=True).info


def newest_run(task: str, option: str, model_type: str | None = None) -> tuple[Path, list[Path]]:
    """(the newest run under ./saved_models that knows a task, its checkpoints that do), of any
    model or the one named. Raises UserError where there is none, naming the option to use instead.
    """
    parent = Path("./saved_models")

    def is_able(path: Path) -> bool:
        info = checkpoint.info_from_name(path.name) or read_info(path)
        return model_type in (None, info.model) and can_predict(info, task)

    for run_dir in run_directory.list_run_dirs(parent):
        folders = run_directory.fold_dirs(run_dir)
        paths = [p for f in folders for p in run_directory.fold_checkpoints(f) if is_able(p)]
        if paths:
            return run_dir, paths
    of_model = f" of {model_type}" if model_type else ""
    raise UserError(
        f"--task {task}: no checkpoint{of_model} under {parent} answers {task}; train one, or name "
        f"another place with {option}"
    )


def find_best_checkpoint(task: str, model_type: str | None = None) -> Path:
    """The best checkpoint of the newest run under ./saved_models that knows a task."""
    infos = {path: read_info(path) for path in newest_run(task, "--load-state-dict", model_type)[1]}
    return min(infos, key=lambda path: (-infos[path].macro_f1, infos[path].fold, infos[path].epoch))


def known_part(info: checkpoint.CheckpointInfo, task: str) -> str:
    """The part of `main` that a checkpoint adds to a product; empty where it adds none."""
    is_part = task == "main" and info.task in PARTS and not can_predict(info, task)
    return info.task if is_part else ""


def part_groups(members: Sequence[Checkpoint], task: str) -> Sequence[Sequence[int]]:
    """Groups of three members, from runs for mask, gender and ageg, that multiply into one of
    `main`: in each fold the k-th of each part. Empty where all members know the task.

    Raises UserError where a member knows too little, or has no partners.
    """
    several = len({member.path.parent.parent for member in members}) > 1
    parts = [known_part(member.info, task) if several else "" for member in members]
    for member, part in zip(members, parts, strict=True):
        if not part and not can_predict(member.info, task):
            known = next(name for name in TASKS if can_predict(member.info, name))
            raise UserError(
                f"--task {task}: {member.path} was trained for {member.info.task}; use "
                f"--task {known}{', or leave its run out' if several else ''}"
            )
    missing = " and ".join(part for part in PARTS if part not in parts)
    if any(parts) and missing:
        present = " and ".join(part for part in PARTS if part in parts)
        raise UserError(
            f"--root: runs trained for {present} answer main only together with {missing}; name a "
            f"run of {missing} too, or leave theirs out"
        )
    folds = [member.info.fold for member in members]
    counts = Counter(zip(folds, parts, strict=True))
    for fold in sorted(set(folds)):
        if len({counts[fold, part] for part in PARTS}) > 1:
            shown = ", ".join(f"{part} has {counts[fold, part]}" for part in PARTS)
            raise UserError(
                f"--root: members for fold {fold}: {shown}, and three multiply into one of main; "
                "name runs of as many folds, or use a lower --top-k"
            )
    order = sorted(range(len(members)), key=folds.__getitem__)
    return list(zip(*([i for i in order if parts[i] == part] for part in PARTS), strict=True))


def labels_run_dir(members: Sequence[Checkpoint], task: str) -> Path:
    """The run whose labels the predictions are compared with: the first for the task or `main`."""
    able = (member for member in members if member.info.task in ("main", task))
    return next(able, members[0]).path.absolute().parent.parent


def build_network(member: Checkpoint, task: str, device: torch.device) -> torch.nn.Module:
    """A member's network on the device; one that knows a part of `main` spreads it over `main`."""
    network = model.build_from_checkpoint(member)
    part = known_part(member.info, task)
    moved = model.to_device(model.Spread(network, part) if part else network, device)
    member.weights.clear()  # mapped from the file: they would lie in memory a second time
    return moved.eval()
