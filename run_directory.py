"""A run's folder on disk: kfold-ensemble-<Model>/foldNN, run.json, who may write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

import config
from runtime import files
from runtime.errors import RunError, UserError, path_error, reason, warn

RUN_DIR_PREFIX = "kfold-ensemble-"
# the processes that read images for a killed run hold its locks for about 5 seconds more
LOCK_SECONDS = 15.0
RUN_JSON_TYPES = {
    **dict.fromkeys(("settings", "data", "chosen", "machine", "versions"), dict),
    **dict.fromkeys(("command", "resumed"), list),
}
# settings that a run may be resumed with differently
FREE_SETTINGS = {
    *("workers", "dry_run", "save_path", "run_name", "device", "folds", "resume", "quiet"),
    *("jobs", "log", "cache", "recipe"),
}
LONGER_TRAINING = "start a new run from its best checkpoint with --load-state-dict"
MAX_RUN_JSON_DEPTH = 8  # levels of run.json; a run writes 4


def open_run_dir(
    save_path: Path, model: str, run_name: str | None, resume: str | None, settings: dict[str, Any]
) -> Path:
    """A new run's folder, or that of --run-name or --resume if `settings`, its result_settings,
    are equal. Raises UserError.
    """
    name = RUN_DIR_PREFIX + model
    if resume is not None:
        runs = runs_to_resume(save_path, name, resume)
        run_dir = next((path for path in runs if not differing_settings(settings, path)), runs[0])
        option, remedy = "--resume", "give the settings it began with"
    elif run_name is not None:
        if not re.fullmatch(r"[\w.-]+", run_name):
            raise UserError(f"--run-name {run_name!r}: use letters, digits, '.', '-' and '_' only")
        run_dir = save_path / f"{name}_{run_name}"
        files.create_folder(run_dir)
        if not read_run_json(run_dir) and not fold_dirs(run_dir):
            return run_dir
        option, remedy = f"--run-name {run_name}", "choose another --run-name"
    else:
        suffix = time.strftime("_%Y%m%d-%H%M%S") if (save_path / name).exists() else ""
        return files.create_new_folder(save_path, name + suffix)
    differing = differing_settings(settings, run_dir)
    if any(text.startswith("--epochs ") for text in differing):
        remedy += f"; to train longer, {LONGER_TRAINING}"
    if differing:
        raise UserError(f"{option}: {run_dir} was trained with {', '.join(differing)}; {remedy}")
    return run_dir


def runs_to_resume(save_path: Path, name: str, resume: str) -> list[Path]:
    """The unfinished runs, newest first, or the one of that name or suffix; UserError for none."""
    if resume == config.NEWEST:
        paths = files.matching_paths(save_path, f"{RUN_DIR_PREFIX}*")
        runs = newest_first(path for path in paths if (path / "run.json").exists())
        contents = [(path, read_run_json(path)) for path in runs]
        # one with failed folds is tried again
        runs = [path for path, run in contents if "finished" not in run or run.get("failed")]
        remedy = f"leave --resume out, or, to train a complete one longer, {LONGER_TRAINING}"
        problem = f"--resume: no unfinished run in {save_path}; {remedy}"
    else:
        named = [save_path / resume, save_path / f"{name}_{resume}"]
        runs = [path for path in named if (path / "run.json").is_file()][:1]
        problem = f"--resume {resume}: no such run in {save_path}; name a folder in it"
    if not runs:
        raise UserError(problem)
    return runs


def differing_settings(settings: dict[str, Any], run_dir: Path) -> list[str]:
    """`--lr 0.001 (now 0.01)`: the result_settings in which a run differs. Raises UserError."""
    before = read_run_json(run_dir).get("settings")
    if not isinstance(before, dict):
        raise UserError(f"{run_dir}: has no run.json with settings; start a new run")
    return [
        f"--{key.replace('_', '-')} {before.get(key)} (now {value})"
        for key, value in json.loads(json.dumps(settings)).items()
        if before.get(key) != value
    ]


@contextlib.contextmanager
def fold_lock(folder: Path, needed: bool = True) -> Iterator[None]:
    """Make and lock a fold's folder; delete what a killed process was writing. Raises as _lock."""
    files.create_folder(folder)
    with contextlib.ExitStack() as stack:
        if needed:
            files.remove_stale_writes(folder, is_locked=_lock(folder, stack))
        yield


def _lock(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Lock until the stack is closed; False where the system has no locks, which a warning says.
    Raises UserError where another process keeps it, RunError where the drive fails.
    """
    if fcntl is None:
        return False
    handle = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, handle)
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                remedy = "wait for it, or choose another --run-name"
                raise UserError(f"{folder}: another process trains this fold; {remedy}") from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, *files.UNSUPPORTED_ERRNOS):
                problem = f"cannot be locked ({reason(error)}); repair that drive"
                raise RunError(f"{folder}: {problem}, then go on with --resume") from None
            problem = f"folders cannot be locked there ({reason(error)})"
            warn(f"{folder.parent}: {problem}; do not train one fold in two processes at once")
            return False


def result_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that its result depends on."""
    return {key: value for key, value in settings.items() if key not in FREE_SETTINGS}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    with files.atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_run_json(run_dir: Path) -> dict[str, Any]:
    """run.json of a run; empty where there is none (older runs). Raises UserError for values of
    other types than a run writes, and for more than MAX_RUN_JSON_DEPTH levels.
    """
    path = run_dir / "run.json"
    try:
        content = json.loads(files.read_file(path))
        if not isinstance(content, dict):
            raise ValueError("holds no settings")
        for name, kind in RUN_JSON_TYPES.items():
            if not isinstance(content.get(name, kind()), kind):
                raise ValueError(f"its {name!r} is no {kind.__name__}")
        if _depth(content) > MAX_RUN_JSON_DEPTH:
            raise ValueError(f"more than {MAX_RUN_JSON_DEPTH} levels deep")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise path_error(path, error, "restore or remove it", "read") from None
    return content


def _depth(value: object) -> int:
    """How many levels of lists and dictionaries lie within each other."""
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def fold_dirs(run_dir: Path) -> list[Path]:
    """fold00, fold01 ... of a run."""
    folders = [path for path in files.matching_paths(run_dir, "fold*") if path.is_dir()]
    return sorted(path for path in folders if re.fullmatch(r"fold\d+", path.name))


def fold_checkpoints(folder: Path) -> list[Path]:
    """A fold's checkpoints, sorted by name; macOS's `._*` and other hidden files are none."""
    return sorted(files.matching_paths(folder, "[!.]*.pth"))


def start_time(run_dir: Path) -> float:
    """When a run began, in seconds since 1970; of older runs their folder's time."""
    when = read_run_json(run_dir).get("started")
    try:
        return time.mktime(time.strptime(str(when)[:19], "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return run_dir.stat().st_mtime


def newest_first(run_dirs: Iterable[Path]) -> list[Path]:
    """Runs by the time when they began."""
    return sorted(run_dirs, key=lambda path: (start_time(path), path.name), reverse=True)


def list_run_dirs(parent: Path) -> list[Path]:
    """The runs in a folder that hold a checkpoint, the newest first."""
    candidates = files.matching_paths(parent, f"{RUN_DIR_PREFIX}*")
    return newest_first(p for p in candidates if any(map(fold_checkpoints, fold_dirs(p))))


def find_run_dir(root: str) -> Path:
    """The run that a folder is or holds. Raises UserError."""
    parent = Path(root)
    if not parent.is_dir():
        raise UserError(f"--root {root}: no such folder; name a {RUN_DIR_PREFIX}* folder")
    runs = [parent] if fold_dirs(parent) else list_run_dirs(parent)
    if len(runs) != 1:
        names = ", ".join(run_dir.name for run_dir in runs) or f"no {RUN_DIR_PREFIX}*/fold00"
        problem = f"holds {len(runs)} runs with checkpoints ({names})"
        raise UserError(f"--root {root}: {problem}; name one, or train first")
    return runs[0]


def free_disk_bytes(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free
