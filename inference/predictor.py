"""A tree's checkpoints and the photographs to answer -> probabilities."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import augmentation
import checkpoint
import config
import dataset
import engine
import ensemble
import loading
import model
import run_directory
from data import images, tables
from inference import submission
from labels import PARTS, TASKS
from runtime import distributed
from runtime.errors import DistInfo, UserError, is_rank_zero, warn, warn_counted
from runtime.files import check_writable


@dataclass(frozen=True)
class Member:
    """One checkpoint of an ensemble."""

    name: str  # within its tree; after the tree's name where several vote
    info: checkpoint.CheckpointInfo
    found: checkpoint.Checkpoint


def load_members(tree: Path, top_k: int) -> list[Member]:
    """The k best checkpoints of each fold of a tree. Raises UserError for a fold without one."""
    found: list[Member] = []
    fewer: list[str] = []
    for folder in run_directory.fold_dirs(tree):
        ranked = checkpoint.load_ranked(folder)
        if not ranked:
            raise UserError(
                f"{folder}: holds no checkpoint; finish its training or remove the folder"
            )
        fewer += [folder.name] if len(ranked) < top_k else []
        found += [
            Member(checkpoint.member_name(c.path, tree), info, c) for c, info in ranked[:top_k]
        ]
    warn_counted(fewer, f"--top-k {top_k}: all that a fold holds vote in folds that hold fewer")
    asked = run_directory.read_run_json(tree).get("settings", {})
    folds = asked.get("cv") if isinstance(asked, dict) else None
    if isinstance(folds, int) and folds > len(run_directory.fold_dirs(tree)):
        warn(
            f"{tree}: {len(run_directory.fold_dirs(tree))} of its run's {folds} folds are there; "
            "those vote"
        )
    kinds = sorted({f"{m.info.model} for {m.info.task}" for m in found})
    if len(kinds) > 1:
        warn(
            f"{tree}: its checkpoints are of {len(kinds)} kinds ({', '.join(kinds)}) and vote "
            "together"
        )
    return found


def check_can_predict(members: Sequence[Member], task: str) -> None:
    """Every member must know the task. Raises UserError naming one that does not, and what it
    knows.
    """
    for member in members:
        heads = config.trained_heads(member.info.model, member.info.task)
        if not model.can_answer(heads, task):
            known = [name for name in TASKS if model.can_answer(heads, name)]
            raise UserError(
                f"--task {task}: {member.found.path} was trained for {member.info.task}; use "
                f"--task {known[0]}"
            )


def known_part(member: Member, task: str) -> str:
    """The part of `main` that a member was trained for where `main` is asked and it knows no more;
    else nothing.
    """
    info = member.info
    if (
        task != "main"
        or info.task not in PARTS
        or model.can_answer(config.trained_heads(info.model, info.task), task)
    ):
        return ""
    return info.task


def part_groups(members: Sequence[Member], task: str) -> list[list[int]]:
    """Groups of three members, of trees for mask, gender and ageg, that multiply into one of
    `main`; none where all know it.

    In each fold the k-th member for mask goes with the k-th for gender and the k-th for ageg.
    Raises UserError where a member knows too little, or has no partners.
    """
    several = len({member.found.path.parent.parent for member in members}) > 1
    known = [known_part(member, task) if several else "" for member in members]
    check_can_predict(
        [member for member, part in zip(members, known, strict=True) if not part], task
    )
    parts = {part: [m for m, own in enumerate(known) if own == part] for part in PARTS}
    missing = [part for part, own in parts.items() if not own]
    if 0 < len(missing) < len(parts):
        there, more = (
            " and ".join(part for part in parts if (part in missing) == lacking)
            for lacking in (False, True)
        )
        raise UserError(
            f"--root: trees trained for {there} answer main only together with {more}; name a "
            f"tree of {more} too, "
            "or leave theirs out"
        )
    groups: list[list[int]] = []
    for fold in sorted({members[m].info.fold for m, part in enumerate(known) if part}):
        ranked = [[m for m in own if members[m].info.fold == fold] for own in parts.values()]
        if len({len(own) for own in ranked}) > 1:
            counts = ", ".join(
                f"{part} has {len(own)}" for part, own in zip(parts, ranked, strict=True)
            )
            raise UserError(
                f"--root: members for fold {fold}: {counts}, and three multiply into one of main; "
                "name trees of as "
                "many folds, or use a lower --top-k"
            )
        groups += map(list, zip(*ranked, strict=True))
    return groups


def newest_able_run(
    task: str, option: str, model_type: str | None = None
) -> tuple[Path, list[Path]]:
    """(the newest tree under ./saved_models that answers a task, its checkpoints that do), by any
    model or the one named.

    Raises UserError where there is none. option: the one that names another tree or checkpoint.
    """
    parent = Path("./saved_models")
    for tree in run_directory.list_run_dirs(parent):
        able = []
        for path in [
            p
            for folder in run_directory.fold_dirs(tree)
            for p in run_directory.fold_checkpoints(folder)
        ]:
            info = checkpoint.info_from_name(path.name) or checkpoint.load_described(path)[1]
            if model_type in (None, info.model) and model.can_answer(
                config.trained_heads(info.model, info.task), task
            ):
                able.append(path)
        if able:
            return tree, able
    of = f" of {model_type}" if model_type else ""
    raise UserError(
        f"--task {task}: no checkpoint{of} under {parent} answers {task}; train one, or name "
        "another place with "
        f"{option}"
    )


def find_best_checkpoint(task: str, model_type: str | None = None) -> Path:
    """The best checkpoint of the newest tree under ./saved_models that answers a task, by any model
    or the one named.
    """
    described = [
        checkpoint.load_described(path)
        for path in newest_able_run(task, "--load-state-dict", model_type)[1]
    ]
    return min(described, key=lambda pair: (-pair[1].macro_f1, pair[1].fold, pair[1].epoch))[0].path


def resolve_transforms(members: Sequence[Member], asked: str, views: int) -> list[str]:
    """The transform type of each member's views. One line where `auto` takes another than the
    member's own, or where a member's validation saw another part of the photograph.

    Raises UserError where several views would all be the same.
    """
    own = [member.info.transform for member in members]
    automatic = [config.random_form_of(name, views) for name in own]
    used = automatic if asked == config.AUTO else [asked] * len(members)
    for name in used:
        config.check_views(name, views)
    notes = []
    replaced = sorted(
        {f"{name} for {mine}" for name, mine in zip(used, own, strict=True) if name != mine}
    )
    if asked == config.AUTO and replaced:
        notes.append(
            f"--tta {views} needs random views, so {config.AUTO} takes {', '.join(replaced)}"
        )
    sees = {name: entry.sees for name, entry in config.TRANSFORMS.items()}
    elsewhere = sorted(
        {name for name, mine in zip(used, own, strict=True) if sees[name] != sees[mine]}
    )
    if elsewhere:
        helps = asked != config.AUTO and all(
            sees[name] == sees[mine] for name, mine in zip(automatic, own, strict=True)
        )
        remedy = f"--transform-type {config.AUTO}{'' if helps else ' with --tta 1'}"
        notes.append(
            f"{elsewhere[0]} looks at {sees[elsewhere[0]]}, validation looked at "
            f"{', '.join(sorted({sees[mine] for mine in own}))}; {remedy} looks where validation "
            "did"
        )
    if notes and is_rank_zero():
        print(f"note: {'; '.join(notes)}")
    return used


def predict_images(
    members: Sequence[Member],
    settings: config.PredictSettings,
    transform: str,
    views: int,
    tree: Path,
    names: list[str],
    paths: list[str],
    who: DistInfo | None = None,
) -> ensemble.Probabilities:
    """Probabilities for every name. With --skip-bad-images a photograph that cannot be read gets
    the usual answer.

    tree: the members' run, which tells how frequent the classes are. `who`: one of several
    processes that share the photographs. Raises UserError naming bad photographs otherwise.
    """
    part_groups(members, settings.task)  # refused early, if it is to be refused
    check_writable(settings.save_path, "--save-path")  # not only when all is predicted
    with distributed.explain_failures(settings.batch_size):
        compute = engine.make_compute(settings, settings.batch_size, who or DistInfo(), shared=True)
        bad = set(images.find_unreadable(paths, settings.skip_bad_images))
        good = [i for i, path in enumerate(paths) if path not in bad]
        probs = predict_members(
            members,
            settings.task,
            transform,
            views,
            [names[i] for i in good],
            [paths[i] for i in good],
            compute,
            settings.boxes,
        )
    return fill_unreadable(probs, names, good, tree) if bad else probs


def fill_unreadable(
    probs: ensemble.Probabilities, names: list[str], good: Sequence[int], tree: Path
) -> ensemble.Probabilities:
    """Probabilities [.., images, ..] of the `good` positions among all names, the others certain of
    the usual answer.
    """
    usual, source = most_frequent_class(probs, tree)
    spec = TASKS[probs.task]
    members, views, _, width = probs.array.shape
    array = np.zeros((members, views, len(names), width), probs.array.dtype)
    array[:, :, :, 0 if spec.regression else int(usual)] = usual if spec.regression else 1
    array[:, :, good] = probs.array
    shown = (
        f"{usual:g} years, the median"
        if spec.regression
        else f"{int(usual)} ({spec.classes[int(usual)]}), the commonest"
    )
    lost = sorted(set(range(len(names))) - set(good))
    warn_counted(
        [names[i] for i in lost],
        f"photographs that cannot be read, answered with {shown} of {source}",
    )
    return dataclasses.replace(probs, array=array, images=names)


def most_frequent_class(probs: ensemble.Probabilities, tree: Path) -> tuple[float, str]:
    """(the most frequent class, or the median of years; whose): the training data's where the tree
    tells it, else the predictions'.
    """
    spec = TASKS[probs.task]
    if spec.regression:
        with contextlib.suppress(UserError, KeyError, ValueError):  # an older tree, or none
            return tables.parse_years(
                str(run_directory.read_run_json(tree)["data"]["median_age"])
            ), "the training data"
    else:
        counts = submission.training_counts(tree, probs.task)
        if counts is not None:
            return float(counts.argmax()), "the training data"
    decided = ensemble.decide(probs.task, ensemble.arithmetic(probs.array))
    return float(
        np.median(decided) if spec.regression else np.bincount(decided).argmax()
    ), "the other predictions"


def predict_members(
    members: Sequence[Member],
    task: str,
    transform: str,
    views: int,
    names: list[str],
    paths: list[str],
    compute: engine.Compute,
    boxes_csv: str | None = None,
) -> ensemble.Probabilities:
    """Probabilities of all members, views and photographs, each photograph decoded once."""
    groups = part_groups(members, task)
    used = resolve_transforms(members, transform, views)
    sizes = [(m.name, t, m.info.image_size) for m, t in zip(members, used, strict=True)]
    distinct, plan = augmentation.plan_views(sizes, views, transform == config.AUTO)
    networks: list[torch.nn.Module] = []
    for member in members:
        network = model.build_from_checkpoint(
            member.info, member.found.weights, str(member.found.path)
        )
        part = known_part(member, task)
        networks.append(
            model.to_device(model.Spread(network, part) if part else network, compute.device)
        )
        member.found.weights.clear()  # mapped from the file: they would lie in memory a second time
    if boxes_csv is not None and not any(config.TRANSFORMS[name].of_face for name in used):
        raise UserError(
            f"--boxes {boxes_csv}: none of these checkpoints was trained on cropped faces; leave "
            "--boxes out"
        )
    boxes = tables.read_boxes(boxes_csv, names, paths) if boxes_csv else None
    photos = dataset.ImageDataset(names, paths, distinct, boxes)
    side = max(size for *_, size in sizes)
    workers = loading.workers_that_fit_shared_memory(
        compute.workers, compute.batch_size, side, len(distinct), compute.world
    )
    compute = dataclasses.replace(compute, workers=workers)
    array = engine.predict(networks, plan, photos, [task], compute)[task]
    for member, own in zip(members, array, strict=True):
        if not np.isfinite(own).all():
            raise UserError(
                f"{member.found.path}: its answers overflow, they are no numbers; use another "
                "file, or "
                "--precision fp32"
            )
    probs = ensemble.Probabilities(
        task,
        array,
        [m.name for m in members],
        [m.info.fold for m in members],
        [m.info.macro_f1 for m in members],
        names,
    )
    return probs.multiplied(groups)
