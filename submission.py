"""What both submit scripts share: checkpoints and photographs -> stored probabilities -> voted CSVs and their scores."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import config
import ensemble
import metrics
from utils import UserError, atomic_write, choose_device, new_folder, set_threads, timestamp, warn, warn_counted

if TYPE_CHECKING:  # imported where they are used: a vote on stored probabilities needs no torch
    import torch

    import checkpoint
    import engine

PROBS = "probs.npz"


@dataclass(frozen=True)
class Member:
    """One checkpoint of an ensemble."""

    name: str  # within its tree
    info: checkpoint.Info
    found: checkpoint.Checkpoint


def members_of(tree: Path, top_k: int) -> list[Member]:
    """The k best checkpoints of each fold of a tree. Raises UserError for a fold without one."""
    import checkpoint

    found: list[Member] = []
    fewer: list[str] = []
    for folder in checkpoint.fold_folders(tree):
        ranked = checkpoint.ranked_members(folder)
        if not ranked:
            raise UserError(f"{folder}: holds no checkpoint; finish its training or remove the folder")
        fewer += [folder.name] if len(ranked) < top_k else []
        found += [Member(checkpoint.member_name(c.path, tree), info, c) for c, info in ranked[:top_k]]
    warn_counted(fewer, f"--top-k {top_k}: all that a fold holds vote in folds that hold fewer")
    return found


def check_answers(members: Sequence[Member], task: str) -> None:
    """Every member must know the task. Raises UserError naming one that does not, and what it knows."""
    import model as models

    for member in members:
        heads = config.trained_heads(member.info.model, member.info.task)
        if not models.can_answer(heads, task):
            known = [name for name in config.TASKS if models.can_answer(heads, name)]
            raise UserError(f"--task {task}: {member.found.path} was trained for {member.info.task}; use --task {known[0]}")


def best_checkpoint(task: str, model_type: str) -> Path:
    """The best checkpoint of the newest tree under ./saved_models that answers a task with a model."""
    import checkpoint
    import model as models

    parent = Path("./saved_models")
    for tree in checkpoint.trees_below(parent):
        able = []
        for path in tree.glob("fold*/*.pth"):
            info = checkpoint.info_from_name(path.name) or checkpoint.read_described(path)[1]
            if info.model == model_type and models.can_answer(config.trained_heads(info.model, info.task), task):
                able.append(checkpoint.read_described(path))
        if able:
            return min(able, key=lambda pair: (-pair[1].macro_f1, pair[1].fold, pair[1].epoch))[0].path
    raise UserError(f"--load-state-dict: no checkpoint of {model_type} under {parent} answers {task}; train one, or name a file")


def compute_for(settings: config.PredictSettings) -> engine.Compute:
    """Device, precision and workers of a prediction."""
    import dataset
    import engine

    device = choose_device(settings.device)
    set_threads(settings.threads)
    precision = engine.choose_precision(settings.precision, device)
    return engine.Compute(device, precision, dataset.choose_workers(settings.workers, device), settings.batch_size)


def transforms_of(members: Sequence[Member], asked: str, views: int) -> list[str]:
    """The transform type of each member's views. One line where a member's validation saw another part of the photograph.

    Raises UserError where several views would all be the same.
    """
    own = [member.info.transform for member in members]
    used = own if asked == config.AUTO else [asked] * len(members)
    fixed = [name for name in used if not config.TRANSFORMS[name].random_view]
    if views > 1 and fixed:
        raise UserError(f"--tta {views}: transform {fixed[0]} shows every view alike; use --transform-type tta")
    sees = config.TRANSFORMS
    others = sorted({name for name, mine in zip(used, own, strict=True) if sees[name].sees != sees[mine].sees})
    if others:
        validated = sorted({sees[name].sees for name in own})
        print(f"note: {others[0]} looks at {sees[others[0]].sees}, validation looked at {', '.join(validated)}; "
              f"--transform-type {config.AUTO} looks where validation did")  # fmt: skip
    return used


def run_members(
    members: Sequence[Member], task: str, transform: str, views: int, names: list[str], paths: list[str],
    compute: engine.Compute,
    boxes_csv: str | None = None,
) -> ensemble.Probabilities:  # fmt: skip
    """Probabilities of all members, views and photographs, each photograph decoded once. Empties the members' `found`."""
    import augmentation
    import dataset
    import engine
    import model as models

    check_answers(members, task)
    used = transforms_of(members, transform, views)
    sizes = [(m.name, t, m.info.image_size) for m, t in zip(members, used, strict=True)]
    distinct, plan = augmentation.view_plan(sizes, views, transform == config.AUTO)
    networks: list[torch.nn.Module] = []
    for member in members:
        network = models.rebuild(member.info, member.found.weights, str(member.found.path))
        networks.append(models.place(network, compute.device))
        member.found.weights.clear()  # mapped from the file: they would lie in memory a second time
    if boxes_csv is not None and "facecrop" not in used:
        raise UserError(f"--boxes {boxes_csv}: none of these checkpoints was trained with facecrop; leave --boxes out")
    boxes = dataset.read_boxes(boxes_csv, names, paths) if boxes_csv else None
    photos = dataset.Photos(names, paths, distinct, boxes)
    array = engine.predict(networks, plan, photos, [task], compute)[task]
    return ensemble.Probabilities(
        task, array, [m.name for m in members], [m.info.fold for m in members],
        [m.info.macro_f1 for m in members], names,
    )  # fmt: skip


def save(folder: Path, probs: ensemble.Probabilities) -> None:
    """probs.npz: plain arrays, read without unpickling; not compressed, which saves a tenth and takes most of a vote's time."""
    with atomic_write(folder / PROBS) as file:
        np.savez(
            file, task=np.array(probs.task), probabilities=probs.array, members=np.array(probs.members),
            folds=np.array(probs.folds), weights=np.array(probs.weights), images=np.array(probs.images),
        )  # fmt: skip


def load(folder: Path) -> ensemble.Probabilities:
    """Stored probabilities. Raises UserError for a file that is missing, damaged or not what it should be."""
    path = folder / PROBS
    try:
        with np.load(path, allow_pickle=False) as a:
            loaded = ensemble.Probabilities(
                str(a["task"]), a["probabilities"], a["members"].tolist(), a["folds"].tolist(), a["weights"].tolist(),
                a["images"].tolist(),
            )  # fmt: skip
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name the folder of an earlier prediction with --from-probs") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); predict again") from None
    expected = (len(loaded.members), len(loaded.images), config.TASKS[loaded.task].outputs if loaded.task in config.TASKS else -1)
    if loaded.array.ndim != 4 or (loaded.array.shape[0], *loaded.array.shape[2:]) != expected:
        raise UserError(f"{path}: its arrays do not fit each other; predict again")
    return loaded


def write_answers(path: Path, task: str, images: Sequence[str], answers: np.ndarray) -> None:
    """A submission: ImageID,ans in the order of the images; years with two decimals."""
    with atomic_write(path, "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["ImageID", "ans"])
        shown = [f"{a:.2f}" for a in answers] if config.TASKS[task].regression else [str(int(a)) for a in answers]
        rows.writerows(zip(images, shown, strict=True))


def write_confusion(path: Path, task: str, scores: metrics.Scores) -> None:
    """The confusion matrix as a table: a row per true class, a column per predicted."""
    names = config.TASKS[config.judged(task)].classes
    with atomic_write(path, "w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["true / predicted", *names])
        rows.writerows([name, *counts] for name, counts in zip(names, scores.matrix.tolist(), strict=True))


def truth_of(settings: config.PredictSettings, names: Sequence[str]) -> np.ndarray | None:
    """The true answers of these photographs where --answers names them."""
    if settings.answers is None:
        return None
    import dataset

    return dataset.read_answers(settings.answers, names, settings.task)


def output_folder(save_path: str, tree: str, task: str) -> Path:
    """A new folder for a prediction, named after tree, task and time."""
    return new_folder(Path(save_path), f"{tree}_{task}_{timestamp()}")


def write_prediction(folder: Path, voted: dict[str, np.ndarray], probs: ensemble.Probabilities, truth: np.ndarray | None) -> None:
    """All CSVs of a prediction, the probabilities, and where the truth is known the scores; prints where everything is."""
    save(folder, probs)
    if len(probs.members) > 1:
        (folder / "members").mkdir()
        for name, alone in zip(probs.members, member_answers(probs), strict=True):
            write_answers(folder / "members" / f"{Path(name).stem}.csv", probs.task, probs.images, alone)
    for name, decided in voted.items():
        write_answers(folder / f"{name}.csv", probs.task, probs.images, decided)
        note = ""
        if truth is not None:
            scores = metrics.score(probs.task, decided, truth)
            write_confusion(folder / f"{name}_confusion.csv", probs.task, scores)
            note = f"  {scores.line()}"
        print(f"{folder / f'{name}.csv'}{note}")
    if truth is not None:
        print_members(probs, truth)
        absent = metrics.absent_classes(probs.task, truth)
        if absent:
            warn(f"--answers: {len(absent)} classes are not in it ({absent[0]}, ...): macro F1 leaves them out "
                 "unless they are predicted")  # fmt: skip


def print_members(probs: ensemble.Probabilities, truth: np.ndarray) -> None:
    """Each member's own score, and their mean."""
    if len(probs.members) < 2:
        return
    alone = [metrics.score(probs.task, answers, truth) for answers in member_answers(probs)]
    for name, scores in zip(probs.members, alone, strict=True):
        print(f"  {Path(name).stem.partition('bs(')[0]:<60}  {scores.line()}")
    print(f"  mean macro F1 of the {len(alone)} members alone: {np.mean([scores.macro_f1 for scores in alone]):.4f}")


def member_answers(probs: ensemble.Probabilities) -> list[np.ndarray]:
    """What each member alone would answer [images]."""
    each = [ensemble.arithmetic(probs.array[m : m + 1]) for m in range(len(probs.members))]
    return [ensemble.decide(probs.task, mean) for mean in each]
