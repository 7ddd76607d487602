"""A run's folder on disk: kfold-ensemble-<Model>/foldNN, run.json, who may write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

import config
from runtime.errors import RunError, UserError, read_error, reason, warn
from runtime.files import (
    atomic_write,
    create_folder,
    create_new_folder,
    read_file,
    remove_stale_writes,
    timestamp,
)

RUN_DIR_PREFIX = "kfold-ensemble-"
# a killed run's processes that read photographs hold its locks until they notice, for about 5
# seconds
LOCK_SECONDS = 15.0
# the answers of drives without flock
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
RUN_JSON_TYPES = {
    "settings": dict,
    "data": dict,
    "chosen": dict,
    "machine": dict,
    "versions": dict,
    "command": list,
    "resumed": list,
}
# settings that a run may be resumed with differently
FREE_SETTINGS = (
    *("workers", "dry_run", "save_path", "run_name", "device", "folds", "resume", "quiet"),
    *("tensorboard", "cache", "recipe"),
)
MAX_RUN_JSON_DEPTH = 8  # levels of run.json; a run writes 4


# --- the tree


def open_run_dir(
    save_path: Path, model: str, run_name: str | None, resume: str | None, settings: dict[str, Any]
) -> Path:
    """The folder of a run: new, or that of --run-name or --resume, whose result_settings must be
    `settings`. Raises UserError.
    """
    name = RUN_DIR_PREFIX + model
    if resume is not None:
        return find_unfinished_run(save_path, name, resume, settings)
    if run_name is None:
        exists = (save_path / name).exists()
        return create_new_folder(save_path, f"{name}_{timestamp()}" if exists else name)
    if not re.fullmatch(r"[\w.-]+", run_name):
        raise UserError(
            f"--run-name {run_name!r}: use letters, digits, dots, hyphens and underscores"
        )
    run_dir = save_path / f"{name}_{run_name}"
    create_folder(run_dir)
    if read_run_json(run_dir) or fold_dirs(run_dir):
        check_same_settings(
            settings, run_dir, f"--run-name {run_name}", "choose another --run-name"
        )
    return run_dir


def find_unfinished_run(save_path: Path, name: str, resume: str, settings: dict[str, Any]) -> Path:
    """The run that --resume means: the newest unfinished one with these settings, or the one named
    (in full, or by its suffix to `name`). Raises UserError.
    """
    remedy = "give the settings it began with"
    if resume != config.NEWEST:
        named = [save_path / resume, save_path / f"{name}_{resume}"]
        run_dir = next((p for p in named if (p / "run.json").is_file()), None)
        if run_dir is None:
            raise UserError(
                f"--resume {resume}: no such run in {save_path}; name a folder that is there"
            )
        check_same_settings(settings, run_dir, "--resume", remedy)
        return run_dir
    runs = [
        p
        for p in save_path.glob(f"{RUN_DIR_PREFIX}*")
        if (p / "run.json").is_file() and not is_complete(read_run_json(p))
    ]
    runs.sort(key=lambda p: (start_time(p), p.name), reverse=True)
    if not runs:
        raise UserError(
            f"--resume: no unfinished run in {save_path}; leave --resume out to start one"
        )
    same = next((p for p in runs if not differing_settings(settings, p)), None)
    if same is None:
        check_same_settings(settings, runs[0], "--resume", remedy)
    return same or runs[0]


def is_complete(run: dict[str, Any]) -> bool:
    """Whether a run.json says that a run ended with all its folds (a failed one is tried again)."""
    return "finished" in run and not run.get("failed")


def differing_settings(settings: dict[str, Any], run_dir: Path) -> list[str]:
    """`--lr 0.001 (now 0.01)`: the result_settings in which a run differs. Raises UserError."""
    before = read_run_json(run_dir).get("settings")
    if not isinstance(before, dict):
        raise UserError(f"{run_dir}: has no run.json with settings; start a new run")
    now = json.loads(json.dumps(settings))
    return [
        f"--{key.replace('_', '-')} {before.get(key)} (now {value})"
        for key, value in now.items()
        if before.get(key) != value
    ]


def check_same_settings(settings: dict[str, Any], run_dir: Path, option: str, remedy: str) -> None:
    """Raise UserError naming the settings in which a run differs."""
    differ = differing_settings(settings, run_dir)
    if differ:
        raise UserError(f"{option}: {run_dir} was trained with {', '.join(differ)}; {remedy}")


def _try_lock(handle: int, folder: Path) -> bool | None:
    """Lock an open folder: True locked, False where another process has it, None where its file
    system has no locks (which one warning says). Raises RunError where the drive fails.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise RunError(
                f"{folder}: cannot be locked ({reason(error)}); mend that drive, then go on with "
                "--resume"
            ) from None
        warn(
            f"{folder.parent}: folders cannot be locked there ({reason(error)}); do not train one "
            "fold in two processes at once"
        )
        return None
    return True


@contextlib.contextmanager
def fold_lock(folder: Path, needed: bool = True) -> Iterator[None]:
    """Make a fold's folder, keep other processes on this machine out of it, and delete what a
    killed one was writing there.

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
                raise UserError(
                    f"{folder}: another process trains this fold; wait for it, or choose another "
                    "--run-name"
                )
            time.sleep(0.1)
        remove_stale_writes(folder, of_living=bool(exclusive))
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def result_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that its result depends on."""
    return {key: value for key, value in settings.items() if key not in FREE_SETTINGS}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_run_json(tree: Path) -> dict[str, Any]:
    """run.json of a tree; empty where there is none (older trees). Raises UserError for a damaged
    one: what it holds is of the kinds that a run writes, and no deeper.
    """
    try:
        content = json.loads(read_file(tree / "run.json"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        path = tree / "run.json"
        raise read_error(
            path, error, f"{path}: damaged ({reason(error)}); restore or remove it"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{tree / 'run.json'}: holds no settings; restore or remove it")
    for name, kind in RUN_JSON_TYPES.items():
        if name in content and not isinstance(content[name], kind):
            raise UserError(
                f"{tree / 'run.json'}: its {name!r} is no {kind.__name__}; restore or remove it"
            )
    if is_nested_deeper(content, MAX_RUN_JSON_DEPTH):
        raise UserError(
            f"{tree / 'run.json'}: damaged (more than {MAX_RUN_JSON_DEPTH} levels deep); restore "
            "or remove "
            "it"
        )
    return content


def is_nested_deeper(value: object, levels: int) -> bool:
    """Whether lists and dictionaries lie within each other deeper than so many levels."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list)) and (
        levels == 0 or any(is_nested_deeper(part, levels - 1) for part in inside)
    )


def fold_dirs(tree: Path) -> list[Path]:
    """fold00, fold01 ... of a tree."""
    return sorted(p for p in tree.glob("fold*") if p.is_dir() and re.fullmatch(r"fold\d+", p.name))


def fold_checkpoints(folder: Path) -> list[Path]:
    """A fold's checkpoints, sorted by name; macOS's `._*` and other hidden files are none."""
    return sorted(path for path in folder.glob("*.pth") if not path.name.startswith("."))


def start_time(tree: Path) -> float:
    """When a tree's run began, in seconds since 1970; of older trees their folder's time."""
    when = read_run_json(tree).get("started")
    try:
        return time.mktime(time.strptime(str(when)[:19], "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return tree.stat().st_mtime


def list_run_dirs(parent: Path) -> list[Path]:
    """The kfold trees in a folder that hold a checkpoint, the newest first."""
    trees = [
        p
        for p in parent.glob(f"{RUN_DIR_PREFIX}*")
        if p.is_dir() and any(map(fold_checkpoints, fold_dirs(p)))
    ]
    return sorted(trees, key=lambda p: (start_time(p), p.name), reverse=True)


def find_run_dir(root: str) -> Path:
    """The tree that a folder is or holds. Raises UserError."""
    parent = Path(root)
    if not parent.is_dir():
        raise UserError(f"--root {root}: no such folder; name a kfold-ensemble-* folder")
    if fold_dirs(parent):
        return parent
    trees = list_run_dirs(parent)
    if not trees:
        raise UserError(
            f"--root {root}: no {RUN_DIR_PREFIX}*/fold00 with a checkpoint in it; train first, or "
            "name a "
            "tree"
        )
    if len(trees) > 1:
        raise UserError(
            f"--root {root}: holds {len(trees)} trees ({', '.join(t.name for t in trees)}); name "
            "one of them"
        )
    return trees[0]


def free_disk_bytes(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free
