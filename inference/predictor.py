"""The checkpoints of a run, or of several, and images -> probabilities."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import augmentation
import checkpoint
import config
import dataset
import engine
import ensemble
import loading
import model
import registries
import run_directory
from data import images, tables
from inference import submission
from labels import PARTS, TASKS
from runtime.errors import UserError, is_rank_zero, warn, warn_counted


@dataclass(frozen=True)
class Member:
    """One checkpoint of an ensemble."""

    name: str  # within its run; after the run's name where several vote
    info: checkpoint.CheckpointInfo
    path: Path
    weights: dict[str, Tensor]  # emptied once a network holds them


@dataclass(frozen=True)
class PredictionRequest:
    """What the members are to predict, and how they see each image."""

    task: str
    transform: str  # config.AUTO: each member's own
    views: int = 1  # per member and image
    boxes_csv: str | None = None  # face boxes in place of the finder's
    skip_bad_images: bool = False  # predict the most frequent class where an image is unreadable


def load_members(run_dir: Path, top_k: int) -> list[Member]:
    """The k best checkpoints of each fold of a run. Raises UserError for a fold without one."""
    folders = run_directory.fold_dirs(run_dir)
    best = {folder: checkpoint.load_ranked(folder)[:top_k] for folder in folders}
    for folder, ranked in best.items():
        if not ranked:
            raise UserError(f"{folder}: holds no checkpoint; finish its training or remove it")
    ensemble.warn_fewer_members([f.name for f, own in best.items() if len(own) < top_k], top_k)
    members = [
        Member(checkpoint.member_name(stored.path, run_dir), info, stored.path, stored.weights)
        for ranked in best.values()
        for stored, info in ranked
    ]
    folds = run_directory.read_run_json(run_dir).get("settings", {}).get("cv")
    if isinstance(folds, int) and folds > len(folders):
        warn(f"{run_dir}: only {len(folders)} of its {folds} folds are present; those vote")
    kinds = sorted({f"{m.info.model} for {m.info.task}" for m in members})
    if len(kinds) > 1:
        warn(f"{run_dir}: checkpoints of {len(kinds)} kinds ({', '.join(kinds)}) vote together")
    return members


def can_predict(info: checkpoint.CheckpointInfo, task: str) -> bool:
    """Whether a checkpoint knows a task, by a head of its own or from its other heads."""
    return model.can_answer(registries.trained_heads(info.model, info.task), task)


def newest_run(task: str, option: str, model_type: str | None = None) -> tuple[Path, list[Path]]:
    """(the newest run under ./saved_models that knows a task, its checkpoints that do), of any
    model or the one named. Raises UserError where there is none, naming the option to use instead.
    """
    parent = Path("./saved_models")

    def is_able(path: Path) -> bool:
        info = checkpoint.info_from_name(path.name) or checkpoint.load_described(path)[1]
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

    def rank(path: Path) -> tuple[float, int, int]:
        info = checkpoint.load_described(path)[1]
        return -info.macro_f1, info.fold, info.epoch

    return min(newest_run(task, "--load-state-dict", model_type)[1], key=rank)


def known_part(info: checkpoint.CheckpointInfo, task: str) -> str:
    """The part of `main` that a checkpoint adds to a product; empty where it adds none."""
    is_part = task == "main" and info.task in PARTS and not can_predict(info, task)
    return info.task if is_part else ""


def part_groups(members: Sequence[Member], task: str) -> Sequence[Sequence[int]]:
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
                f"--task {known}"
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


def resolve_transforms(members: Sequence[Member], transform: str, views: int) -> list[str]:
    """The transform type of each member's views. Prints a note where `auto` takes another than the
    member's own, or where its validation saw another part of the image.

    Raises UserError where several views would all be the same.
    """
    transforms, is_auto = registries.TRANSFORMS, transform == config.AUTO
    trained = [member.info.transform for member in members]
    automatic = [registries.random_form_of(name, views) for name in trained]
    used = automatic if is_auto else [transform] * len(members)
    for name in used:
        config.check_views(name, views)
    notes = []
    pairs = list(zip(used, trained, strict=True))
    replaced = sorted({f"{new} for {old}" for new, old in pairs if new != old})
    if is_auto and replaced:
        notes.append(
            f"--tta {views} needs random views, so {config.AUTO} takes {', '.join(replaced)}"
        )
    unlike = [new for new, old in pairs if transforms[new].sees != transforms[old].sees]
    if unlike:
        name, validated = min(unlike), [transforms[old].sees for old in trained]
        auto_matches = [transforms[new].sees for new in automatic] == validated
        notes.append(
            f"{name} looks at {transforms[name].sees}, validation looked at "
            f"{', '.join(sorted(set(validated)))}; --transform-type {config.AUTO}"
            f"{'' if auto_matches else ' with --tta 1'} looks where validation did"
        )
    if notes and is_rank_zero():
        print(f"note: {'; '.join(notes)}")
    return used


def predict_images(
    members: Sequence[Member],
    request: PredictionRequest,
    names: list[str],
    paths: list[str],
    compute: engine.Compute,
) -> ensemble.Probabilities:
    """Probabilities of all members, views and images, in the order of `names`; each image is
    decoded once. The same in all processes that share the images.

    Raises UserError naming all unreadable images, unless the request skips them.
    """
    task = request.task
    groups = part_groups(members, task)
    bad = set(images.find_unreadable(paths, request.skip_bad_images))
    good = [i for i, path in enumerate(paths) if path not in bad]
    good_names, good_paths = [names[i] for i in good], [paths[i] for i in good]
    transforms = resolve_transforms(members, request.transform, request.views)
    sizes = [(m.name, t, m.info.image_size) for m, t in zip(members, transforms, strict=True)]
    views, plan = augmentation.plan_views(sizes, request.views, request.transform == config.AUTO)
    networks = [build_network(member, task, compute.device) for member in members]
    boxes = None
    if request.boxes_csv is not None:
        if not any(registries.TRANSFORMS[name].of_face for name in transforms):
            raise UserError(
                f"--boxes {request.boxes_csv}: none of these checkpoints was trained on cropped "
                "faces; leave --boxes out"
            )
        boxes = tables.read_boxes(request.boxes_csv, good_names, good_paths)
    side = max(member.info.image_size for member in members)
    workers = loading.workers_that_fit_shared_memory(
        compute.workers, compute.batch_size, side, len(views), compute.world
    )
    compute = dataclasses.replace(compute, workers=workers)
    photos = dataset.ImageDataset(good_names, good_paths, views, boxes)
    array = engine.predict(networks, plan, photos, [task], compute)[task]
    for member, values in zip(members, array, strict=True):
        if not np.isfinite(values).all():
            raise UserError(
                f"{member.path}: predictions are NaN or infinite; use another file, or "
                "--precision fp32"
            )
    member_names, infos = [m.name for m in members], [m.info for m in members]
    folds, weights = [info.fold for info in infos], [info.macro_f1 for info in infos]
    probs = ensemble.Probabilities(task, array, member_names, folds, weights, good_names)
    probs = probs.multiply_groups(groups)
    return fill_unreadable(probs, names, good, labels_run_dir(members, task)) if bad else probs


def build_network(member: Member, task: str, device: torch.device) -> torch.nn.Module:
    """A member's network on the device; one that knows a part of `main` spreads it over `main`."""
    network = model.build_from_checkpoint(member.info, member.weights, str(member.path))
    part = known_part(member.info, task)
    moved = model.to_device(model.Spread(network, part) if part else network, device)
    member.weights.clear()  # mapped from the file: they would lie in memory a second time
    return moved


def labels_run_dir(members: Sequence[Member], task: str) -> Path:
    """The run whose labels the predictions are compared with: the first for the task or `main`."""
    able = (member for member in members if member.info.task in ("main", task))
    return next(able, members[0]).path.absolute().parent.parent


def fill_unreadable(
    probs: ensemble.Probabilities, names: list[str], good: Sequence[int], run_dir: Path
) -> ensemble.Probabilities:
    """Probabilities of all names: those of `good` positions, the others the most frequent class."""
    value, source = most_frequent_class(probs, run_dir)
    spec = TASKS[probs.task]
    members, views, _, outputs = probs.array.shape
    array = np.zeros((members, views, len(names), outputs), probs.array.dtype)
    if spec.regression:
        array[...], shown = value, f"{value:g} years, the median"
    else:
        array[..., int(value)] = 1
        shown = f"{int(value)} ({spec.classes[int(value)]}), the commonest"
    array[:, :, good] = probs.array
    bad = [names[i] for i in sorted(set(range(len(names))).difference(good))]
    warn_counted(bad, f"photographs that cannot be read, answered with {shown} of {source}")
    return dataclasses.replace(probs, array=array, images=names)


def most_frequent_class(probs: ensemble.Probabilities, run_dir: Path) -> tuple[float, str]:
    """(the most frequent class or median of years, whose): training data's, else predictions'."""
    is_regression = TASKS[probs.task].regression
    if is_regression:
        with contextlib.suppress(UserError, KeyError, ValueError):  # an older run, or none
            median = run_directory.read_run_json(run_dir)["data"]["median_age"]
            return tables.parse_years(str(median)), "the training data"
    elif (counts := submission.training_counts(run_dir, probs.task)) is not None:
        return float(counts.argmax()), "the training data"
    decided = ensemble.decide(probs.task, ensemble.arithmetic(probs.array))
    value = np.median(decided) if is_regression else np.bincount(decided).argmax()
    return float(value), "the other predictions"
