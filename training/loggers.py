"""Loggers of --log: a run's settings, each epoch's figures, the final scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import warn_on_failure

Log = Callable[[Mapping[str, float], int], None]  # figures by name, and their epoch


@contextlib.contextmanager
def open_log(
    logger: str | None, folder: Path, settings: Mapping[str, Any], first_epoch: int
) -> Iterator[Log]:
    """The function that logs figures of a folder (a fold's, or the whole run's) by `logger`, or
    does nothing where it is None or fails, which one warning says.

    first_epoch: what a killed run logged from there on counts no more.
    """
    stack = contextlib.ExitStack()
    log: Log | None = None
    if logger is not None:
        with warn_on_failure(f"--log {logger}"):
            log = stack.enter_context(LOGGERS[logger](folder, settings, first_epoch))

    def log_figures(figures: Mapping[str, float], epoch: int) -> None:
        nonlocal log
        if log is not None:
            failed = True
            with warn_on_failure(f"--log {logger}"):
                log(figures, epoch)
                failed = False
            log = None if failed else log

    try:
        yield log_figures
    finally:
        with warn_on_failure(f"--log {logger}"):
            stack.close()


@contextlib.contextmanager
def tensorboard(folder: Path, settings: Mapping[str, Any], first_epoch: int) -> Iterator[Log]:
    """Events in `tensorboard/` of the folder."""
    from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

    with SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch) as board:
        lines = [f"    {name}: {value}" for name, value in settings.items()]
        board.add_text("settings", "\n".join(lines), first_epoch)

        def log(figures: Mapping[str, float], epoch: int) -> None:
            for name, value in figures.items():
                board.add_scalar(name, value, epoch)
            board.flush()

        yield log


@contextlib.contextmanager
def wandb(folder: Path, settings: Mapping[str, Any], first_epoch: int) -> Iterator[Log]:
    """A Weights & Biases run per folder, those of one training in a group; WANDB_MODE=offline keeps
    it here.
    """
    import wandb as package  # optional

    run_dir = folder.parent if folder.name.startswith("fold") else folder
    run = package.init(
        project="image-classification",
        group=run_dir.name,
        name=f"{run_dir.name}/{folder.name}",
        id=f"{run_dir.name}-{folder.name}",
        dir=str(folder),
        config=dict(settings),
        resume="allow",
        settings=package.Settings(silent=True),
    )
    try:
        yield lambda figures, epoch: run.log({**figures, "epoch": epoch}, step=epoch)
    finally:
        run.finish()


LOGGERS = {"tensorboard": tensorboard, "wandb": wandb}
