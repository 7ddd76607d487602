"""Checkpoints: their names and contents, the N best of a fold, the kfold tree, safe reading, a run's state."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pickle
import re
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

import numpy as np
import torch
from torch import Tensor

import config
from utils import (
    RunError,
    UserError,
    atomic_write,
    make_folder,
    new_folder,
    read_arrays,
    read_file,
    reason,
    refuse_irregular,
    sweep,
    timestamp,
    warn,
)  # fmt: skip

FORMAT = 1
PREFIX = "kfold-ensemble-"
VALIDATION = "validation.npz"  # every epoch's probabilities of the fold's held-out people
LOCK_SECONDS = 15.0  # a killed run's processes that read photographs hold its locks until they notice, for about 5 seconds
MOST_FOLDS = 1_000_000  # as --cv
STATE = "state.pt"  # what an unfinished fold goes on from
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}  # the answers of drives without flock
RUN_KINDS = {"settings": dict, "data": dict, "chosen": dict, "machine": dict, "versions": dict, "command": list, "resumed": list}
RUN_DEPTH = 8  # levels of run.json; a run writes 4


# ------------------------------------------------------------------------------------------------ names and contents


@dataclass(frozen=True)
class Info:
    """What is needed to use a checkpoint's weights alone."""

    model: str
    task: str
    transform: str
    backbone: str
    image_size: int
    padding: int | None  # image size that the convolutions' padding was made for; None: the library's default
    fold: int
    epoch: int  # counted from 1
    macro_f1: float  # of the held-out people, in the task's classes
    loss: float
    scores: dict[str, float] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights. `info` is None for a bare state dict whose name does not tell enough either."""

    path: Path
    weights: dict[str, Tensor]
    info: Info | None


NAME = re.compile(
    r"Fold(?P<fold>\d+)_(?P<model>\w+?)_task\((?P<task>[^)]+)\)ep\((?P<epoch>\d+)\)f1\((?P<f1>[^)]+)\)"
    r"bs\((?P<batch_size>\d+)\)loss\((?P<loss>[^)]+)\)lr\((?P<lr>[^)]+)\)trans\((?P<transform>[^)]+)\)"
    r"optim\((?P<optim>[^)]+)\)crit\((?P<loss_type>[^)]+)\)seed\((?P<seed>\d+)\)\.pth"
)


def file_name(info: Info, settings: config.TrainSettings) -> str:
    """The long name that tells a checkpoint's story."""
    return (
        f"Fold{info.fold:02d}_{info.model}_task({info.task})ep({info.epoch})f1({info.macro_f1:.4f})"
        f"bs({settings.batch_size})loss({info.loss:.4f})lr({settings.lr!r})trans({info.transform})"
        f"optim({settings.optim_type})crit({settings.loss_type})seed({settings.seed}).pth"
    )


def info_from_name(file: str) -> Info | None:
    """What an older file's name tells; its backbone, size and padding are the recipe's. None for another name."""
    match = NAME.fullmatch(file)
    aliases = {entry.alias: name for name, entry in config.MODELS.items() if entry.alias}
    name = aliases.get(match["model"], match["model"]) if match else ""
    model = config.MODELS.get(name)
    if not match or not model or match["task"] not in config.TASKS or match["transform"] not in config.TRANSFORMS:
        return None
    try:
        f1, loss = float(match["f1"]), float(match["loss"])
        fold, epoch = int(match["fold"]), int(match["epoch"])
    except ValueError:
        return None
    if not math.isfinite(f1) or fold > MOST_FOLDS:  # nothing could be ranked by it
        return None
    return Info(name, match["task"], match["transform"], model.backbone, 224, None, fold, epoch, f1, loss)


def write(path: Path, weights: dict[str, Tensor], info: Info) -> None:
    """Save weights and what is needed to use them, as plain types and tensors, under the final name at once."""
    plain = {"format": FORMAT, "info": dataclasses.asdict(info), "state_dict": {k: v.cpu() for k, v in weights.items()}}
    with atomic_write(path) as file:
        torch.save(plain, file)


def safe_load(path: Path, mapped: bool = True) -> dict[str, Any]:
    """A dictionary from a torch file, unpickling nothing but plain types and tensors. Raises UserError.

    mapped: read tensors from the file when they are used, not at once.
    """
    try:
        refuse_irregular(path)
        refuse_packed(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of odd pickles
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except (RuntimeError, ValueError):  # the format before torch 1.6 cannot be mapped
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # over damaged bytes the unpickler raises nearly every kind there is
        # torch's own words advise to unpickle it all the same
        why = "it holds more than tensors and plain types" if isinstance(error, pickle.UnpicklingError) else reason(error)
        raise UserError(f"{path}: cannot be read safely as weights ({why}); use another file") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not weights; use a checkpoint or a state dict")
    return loaded


def refuse_packed(path: Path) -> None:
    """Raise ValueError for a zip that unpacks to more than it is: torch writes none, a zip bomb is one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"{size:,} bytes unpacked from {path.stat().st_size:,}, which torch never writes")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else (
            hashlib.sha256(file.read()).hexdigest()
        )  # fmt: skip


def read(path: Path) -> Checkpoint:
    """A checkpoint, or a bare state dict described by its name where that tells enough. Raises UserError."""
    loaded = safe_load(path)
    if "state_dict" not in loaded:
        weights, info = loaded, info_from_name(path.name)
    else:
        weights, info = loaded["state_dict"], _checked_info(loaded.get("info"), path)
    if not isinstance(weights, dict) or not weights or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):  # fmt: skip
        raise UserError(f"{path}: holds no state dict; use a checkpoint or a state dict")
    return Checkpoint(path, weights, info)


def _checked_info(plain: Any, path: Path) -> Info:
    kinds = {"str": str, "int": int, "float": float, "int | None": (int, type(None)), "dict[str, float]": dict,
             "list[str]": list}  # fmt: skip
    if not isinstance(plain, dict):
        raise UserError(f"{path}: its metadata is missing; use another file")
    for member in dataclasses.fields(Info):
        value = plain.get(member.name)
        if member.name not in plain or not isinstance(value, kinds[str(member.type)]):  # type: ignore[arg-type]
            raise UserError(f"{path}: its metadata gives {member.name} as {value!r}; use another file")
    info = Info(**{member.name: plain[member.name] for member in dataclasses.fields(Info)})
    low, high = 16, 2048  # as --image-size
    sizes = low <= info.image_size <= high and (info.padding is None or low <= info.padding <= high)
    if not sizes or not 0 <= info.macro_f1 <= 1 or not 0 <= info.fold <= MOST_FOLDS or info.epoch < 0:
        raise UserError(f"{path}: its metadata is out of range (image size {info.image_size}, padding {info.padding}, macro F1 "
                        f"{info.macro_f1}, fold {info.fold}, epoch {info.epoch}); use another file")  # fmt: skip
    known = (("model", config.MODELS), ("task", config.TASKS), ("transform", config.TRANSFORMS))
    for name, registry in known:
        if getattr(info, name) not in registry:
            raise UserError(f"{path}: its {name} {getattr(info, name)!r} is unknown here; add it to config.py")
    try:
        config.backbone_entry(info.backbone)
    except UserError as error:
        raise UserError(f"{path}: its metadata names a backbone that is unknown here ({error})"[:500]) from None
    return info


# ------------------------------------------------------------------------------------------------ a fold while it runs


@dataclass
class Kept:
    """One of a fold's best checkpoints."""

    file: str
    epoch: int
    macro_f1: float

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts the best first: higher macro F1, then the earlier epoch."""
        return (-self.macro_f1, self.epoch)


@dataclass
class FoldState:
    """All that a fold goes on from, beside the weights and the optimizer's state."""

    fold: int
    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps of the next epoch that are done
    sums: list[float] = field(default_factory=list)  # what metrics.RunningLoss has counted in those steps
    kept: list[Kept] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)  # a row per epoch
    probabilities: dict[str, list[np.ndarray]] = field(default_factory=dict)  # task -> [images, classes] per epoch


def save_best(folder: Path, kept: list[Kept], new: Kept, weights: dict[str, Tensor], info: Info, top: int) -> None:
    """Save the new checkpoint if it is among the `top` best; updates `kept`. What it displaces stays (see `tidy`)."""
    ranked = sorted([*kept, new], key=lambda k: k.rank)
    if new not in ranked[top:]:
        write(folder / new.file, weights, info)
        kept[:] = ranked[:top]


def tidy(folder: Path, kept: list[Kept]) -> None:
    """Delete the checkpoints of a fold that are not among its best.

    Called after the state that lists `kept` is safe on the disk, so that every file which a state lists exists.
    """
    files = {best.file for best in kept}
    for path in folder.glob("*.pth"):
        if path.name not in files and NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_state(folder: Path, state: FoldState, learner: dict[str, Any]) -> None:
    """Keep what a fold goes on from; learner: state dicts of model, optimizer and scaler. The probabilities of complete
    epochs are not repeated here: `write_validation` comes first."""
    plain = dataclasses.asdict(dataclasses.replace(state, probabilities={}))
    with atomic_write(folder / STATE) as file:
        torch.save({"format": FORMAT, "state": plain, "learner": learner}, file)


def read_state(folder: Path) -> tuple[FoldState, dict[str, Any]] | None:
    """(state, state dicts) of a fold that was begun, None where nothing was kept. Raises UserError for a damaged file."""
    path = folder / STATE
    if not path.exists():
        return None
    loaded = safe_load(path, mapped=False)
    remedy = f"remove {folder} to train the fold again"
    try:
        plain, learner = loaded["state"], loaded["learner"]
        state = FoldState(**{**plain, "kept": [Kept(**kept) for kept in plain["kept"]], "probabilities": {}})
        ({**learner["model"]}, {**learner["optimizer"]}, {**learner["scaler"]})
        if not plausible(state):
            raise TypeError("its counts are none")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no state of a fold ({reason(error)}); {remedy}") from None
    with_probabilities(folder, state)
    return state, learner


def plausible(state: FoldState) -> bool:
    """Whether a state that was read holds what `write_state` writes: plain types of the right kinds, in their ranges."""
    counts = all(type(n) is int and 0 <= n < 1 << 53 for n in (state.fold, state.epoch, state.step))
    sums = type(state.sums) is list and len(state.sums) in (0, 5) and all(
        type(n) is float and math.isfinite(n) for n in state.sums
    )  # fmt: skip
    kept = counts and all(
        type(k.file) is str and Path(k.file).name == k.file and type(k.epoch) is int and 1 <= k.epoch <= state.epoch
        and type(k.macro_f1) is float and 0 <= k.macro_f1 <= 1 for k in state.kept
    )  # fmt: skip
    rows = type(state.history) is list and all(type(row) is dict and row.keys() == state.history[0].keys() and all(
        type(c) is str and re.fullmatch(r"\w+", c, re.ASCII) and type(n) is float for c, n in row.items()
    ) for row in state.history)  # fmt: skip
    return sums and kept and rows


def with_probabilities(folder: Path, state: FoldState) -> None:
    """Fill a state's probabilities of the epochs it counts from the fold's own file. Raises UserError where they lack."""
    if not state.epoch:
        return
    arrays = read_arrays(folder / VALIDATION, f"remove {folder} to train it again") or {}
    told = {name.removeprefix("probs_"): array for name, array in arrays.items() if name.startswith("probs_")}
    whole = (array.ndim == 3 and array.dtype.kind == "f" and len(array) >= state.epoch for array in told.values())
    if not told or len(state.history) != state.epoch or not all(whole):
        raise UserError(f"{folder / STATE}: counts epochs that {VALIDATION} lacks; remove {folder} to train the fold again")
    if not all(np.isfinite(array).all() for array in told.values()):
        raise UserError(f"{folder / VALIDATION}: damaged (it holds what is no number); remove {folder} to train the fold again")
    state.probabilities = {task: list(array[: state.epoch]) for task, array in told.items()}


def write_validation(folder: Path, state: FoldState, files: list[str]) -> None:
    """Keep every epoch's validation probabilities: one array [epochs, images, classes] per task, and the file names."""
    columns = list(state.history[0])
    with atomic_write(folder / "history.csv", "w") as file:
        file.write(",".join(columns) + "\n")
        file.writelines(",".join(f"{row.get(c, math.nan):.8g}" for c in columns) + "\n" for row in state.history)
    arrays = {f"probs_{task}": np.stack(rows) for task, rows in state.probabilities.items()}
    with atomic_write(folder / VALIDATION) as file:
        np.savez_compressed(file, files=np.array(files), **arrays)  # type: ignore[arg-type]


def read_validation(folder: Path, task: str) -> tuple[list[str], np.ndarray] | None:
    """(file names, [epochs, images, classes]) of a fold, None where it has none."""
    path = folder / VALIDATION
    arrays = read_arrays(path, f"remove {folder} to train it again")
    if arrays is None:
        return None
    files, probabilities = arrays.get("files"), arrays.get(f"probs_{task}")
    if files is None or probabilities is None or files.ndim != 1 or files.dtype.kind != "U" or (
        probabilities.dtype.kind != "f" or probabilities.shape[1:] != (len(files), config.TASKS[task].outputs)
    ) or not np.isfinite(probabilities).all():  # fmt: skip
        raise UserError(f"{path}: damaged (its arrays do not fit {task}, or hold what is no number); remove {folder} to train "
                        "it again")  # fmt: skip
    return files.tolist(), probabilities


# ------------------------------------------------------------------------------------------------------- the tree


def open_tree(settings: config.TrainSettings) -> Path:
    """The folder of a run: new, or that of --run-name or --resume, whose settings must agree. Raises UserError."""
    parent, name = Path(settings.save_path), PREFIX + settings.model_type
    if settings.resume is not None:
        return unfinished_tree(settings)
    if settings.run_name is None:
        return new_folder(parent, name if not (parent / name).exists() else f"{name}_{timestamp()}")
    if not re.fullmatch(r"[\w.-]+", settings.run_name):
        raise UserError(f"--run-name {settings.run_name!r}: use letters, digits, dots, hyphens and underscores")
    tree = parent / f"{name}_{settings.run_name}"
    make_folder(tree)
    if read_run(tree) or fold_folders(tree):
        check_agrees(settings, tree, f"--run-name {settings.run_name}", "choose another --run-name")
    return tree


def unfinished_tree(settings: config.TrainSettings) -> Path:
    """The tree that --resume means: the newest unfinished one of the same settings, or the one named. Raises UserError."""
    parent, name = Path(settings.save_path), PREFIX + settings.model_type
    if settings.resume != config.NEWEST:
        named = [parent / str(settings.resume), parent / f"{name}_{settings.resume}"]
        tree = next((p for p in named if (p / "run.json").is_file()), None)
        if tree is None:
            raise UserError(f"--resume {settings.resume}: no such run in {parent}; name a folder that is there")
        check_agrees(settings, tree, "--resume", "give the settings it began with")
        return tree
    runs = [p for p in parent.glob(f"{PREFIX}*") if (p / "run.json").is_file() and not complete(read_run(p))]
    runs.sort(key=lambda p: (started(p), p.name), reverse=True)
    if not runs:
        raise UserError(f"--resume: no unfinished run in {parent}; leave --resume out to start one")
    same = next((p for p in runs if not disagreements(settings, p)), None)
    if same is None:
        check_agrees(settings, runs[0], "--resume", "give the settings it began with")
    return same or runs[0]


def complete(run: dict[str, Any]) -> bool:
    """Whether a run.json tells of a run that ended with all its folds; a fold that failed is tried again."""
    return "finished" in run and not run.get("failed")


def disagreements(settings: config.TrainSettings, tree: Path) -> list[str]:
    """`--lr 0.001 (now 0.01)`: the settings that a result hangs on and a tree's run had otherwise. Raises UserError."""
    before = read_run(tree).get("settings")
    if not isinstance(before, dict):
        raise UserError(f"{tree}: has no run.json with settings; start a new run")
    now = json.loads(json.dumps(result_settings(settings)))
    differ = {key: value for key, value in now.items() if before.get(key) != value}
    return [f"--{key.replace('_', '-')} {before.get(key)} (now {value})" for key, value in differ.items()]


def check_agrees(settings: config.TrainSettings, tree: Path, option: str, remedy: str) -> None:
    """Raise UserError naming the settings that a tree's run had otherwise."""
    differ = disagreements(settings, tree)
    if differ:
        raise UserError(f"{option}: {tree} was trained with {', '.join(differ)}; {remedy}")


def _try_lock(handle: int, folder: Path) -> bool | None:
    """Lock an open folder: True locked, False where another process has it, None where its file system has no locks (which one
    warning says). Raises RunError where the drive fails."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise RunError(f"{folder}: cannot be locked ({reason(error)}); mend that drive, then go on with --resume") from None
        warn(f"{folder.parent}: folders cannot be locked there ({reason(error)}); do not train one fold in two processes at once")
        return None
    return True


@contextlib.contextmanager
def locked(folder: Path, needed: bool = True) -> Iterator[None]:
    """Make a fold's folder, keep other processes on this machine out of it, and delete what a killed one was writing there.

    Raises UserError where another process does not leave it, RunError where the drive fails.
    """
    folder.mkdir(exist_ok=True)
    if not needed:
        yield
        return
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else -1
    try:
        until = time.monotonic() + LOCK_SECONDS
        while (exclusive := _try_lock(handle, folder)) is False:
            if time.monotonic() > until:
                raise UserError(f"{folder}: another process trains this fold; wait for it, or choose another --run-name")
            time.sleep(0.1)
        sweep(folder, of_living=bool(exclusive))
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def result_settings(settings: config.TrainSettings) -> dict[str, Any]:
    """The settings that a run's result hangs on."""
    free = ("workers", "dry_run", "save_path", "run_name", "device", "folds", "resume", "quiet", "tensorboard", "cache",
            "recipe")  # fmt: skip
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in free}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_run(tree: Path) -> dict[str, Any]:
    """run.json of a tree; empty where there is none (older trees). Raises UserError for a damaged one: what it holds is of the
    kinds that a run writes, and no deeper."""
    try:
        content = json.loads(read_file(tree / "run.json"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{tree / 'run.json'}: damaged ({reason(error)}); restore or remove it") from None
    if not isinstance(content, dict):
        raise UserError(f"{tree / 'run.json'}: holds no settings; restore or remove it")
    for name, kind in RUN_KINDS.items():
        if name in content and not isinstance(content[name], kind):
            raise UserError(f"{tree / 'run.json'}: its {name!r} is no {kind.__name__}; restore or remove it")
    if deeper(content, RUN_DEPTH):
        raise UserError(f"{tree / 'run.json'}: damaged (more than {RUN_DEPTH} levels deep); restore or remove it")
    return content


def deeper(value: object, levels: int) -> bool:
    """Whether lists and dictionaries lie within each other deeper than so many levels."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list)) and (levels == 0 or any(deeper(part, levels - 1) for part in inside))


def fold_folders(tree: Path) -> list[Path]:
    """fold00, fold01 ... of a tree."""
    return sorted(p for p in tree.glob("fold*") if p.is_dir() and re.fullmatch(r"fold\d+", p.name))


def fold_checkpoints(folder: Path) -> list[Path]:
    """A fold's checkpoints, sorted by name; macOS's `._*` and other hidden files are none."""
    return sorted(path for path in folder.glob("*.pth") if not path.name.startswith("."))


def started(tree: Path) -> float:
    """When a tree's run began, in seconds since 1970; older trees tell it by their folder's time."""
    when = read_run(tree).get("started")
    try:
        return time.mktime(time.strptime(str(when)[:19], "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return tree.stat().st_mtime


def trees_below(parent: Path) -> list[Path]:
    """The kfold trees in a folder that hold a checkpoint, the newest first."""
    trees = [p for p in parent.glob(f"{PREFIX}*") if p.is_dir() and any(p.glob("fold*/*.pth"))]
    return sorted(trees, key=lambda p: (started(p), p.name), reverse=True)


def find_tree(root: str) -> Path:
    """The tree that a folder is or holds. Raises UserError."""
    parent = Path(root)
    if not parent.is_dir():
        raise UserError(f"--root {root}: no such folder; name a kfold-ensemble-* folder")
    if fold_folders(parent):
        return parent
    trees = trees_below(parent)
    if not trees:
        raise UserError(f"--root {root}: no {PREFIX}*/fold00 with a checkpoint in it; train first, or name a tree")
    if len(trees) > 1:
        raise UserError(f"--root {root}: holds {len(trees)} trees ({', '.join(t.name for t in trees)}); name one of them")
    return trees[0]


def read_described(path: Path, model: str | None = None, task: str = "main") -> tuple[Checkpoint, Info]:
    """A checkpoint that tells what it is; of a bare state dict, model and task may do so. Raises UserError for another."""
    found = read(path)
    if found.info is None and model is not None:
        return found, Info(model, task, "base", config.MODELS[model].backbone, 224, None, fold=0, epoch=0, macro_f1=0.0, loss=0.0)
    if found.info is None:
        raise UserError(f"{path}: a bare state dict whose name does not tell its model and task; name it as train.py does, or "
                        "tell both to submit_singular.py (--model-type, --task)")  # fmt: skip
    return found, found.info


def ranked_members(folder: Path) -> list[tuple[Checkpoint, Info]]:
    """A fold's checkpoints, the best by validation macro F1 first."""
    found = [read_described(path) for path in sorted(folder.glob("*.pth")) if not path.name.startswith(".")]
    return sorted(found, key=lambda pair: (-pair[1].macro_f1, pair[1].epoch, pair[0].path.name))


def member_name(path: Path, tree: Path) -> str:
    """fold00/Fold00_...: a checkpoint's name within its tree."""
    return path.relative_to(tree).as_posix()


def disk_free(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    stat = os.statvfs(there)
    return stat.f_bavail * stat.f_frsize
