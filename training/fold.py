"""The training of one fold: its epochs, its best checkpoints, its state for --resume."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import augmentation
import checkpoint
import config
import dataset
import engine
import ensemble
import loading
import loss
import metrics
import model
import optim
import run_directory
from labels import TASKS, head_spec, scoring_task, tasks_answered_by
from runtime import distributed
from runtime.cli import StopSignal, duration
from runtime.errors import DistInfo, Stopped, UserError, plural, warn, warn_on_failure
from training import fold_state
from training import run as training_run
from training.run import RunContext

SAVE_INTERVAL_SECONDS = 60.0  # a kill inside an epoch costs no more than this


class Diverged(Exception):
    """A loss that is NaN or infinite; ends its fold."""


class RemainingTime:
    """How long the rest of a run will take, from the epochs that it has seen."""

    def __init__(self, epochs: int) -> None:
        self.left, self.done, self.start = epochs, 0, time.monotonic()

    def epoch_over(self) -> str:
        """Count an epoch; the time left as h:mm:ss."""
        self.done, self.left = self.done + 1, self.left - 1
        return duration((time.monotonic() - self.start) / self.done * self.left)

    def fold_over(self, epochs: int) -> None:
        """Leave out epochs that will not be trained."""
        self.left -= epochs


@dataclass
class Fold:
    """One fold in training: its people, its learner, and the views it trains and validates by."""

    number: int
    learner: engine.Learner
    recipe: engine.Recipe
    training: dataset.ImageDataset
    batches: dataset.EpochBatchSampler
    validation: dataset.ImageDataset
    rows: np.ndarray  # held-out photographs
    labels: dict[str, torch.Tensor]


def prepare_fold(study: RunContext, number: int) -> Fold:
    """Network, optimizer, schedule, photographs and labels of a fold."""
    s, table, device = study.settings, study.table, study.compute.device
    network = model.to_device(training_run.make_model(study, number), device)
    optimizer = optim.make_optimizer(
        s.optim_type,
        model.parameter_groups(network, s.backbone_lr_scale),
        s.lr or 0.0,
        s.weight_decay or 0.0,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=study.compute.precision == "fp16")
    rows = study.validation_rows(number)
    rest = np.flatnonzero(table["fold"] != number).tolist()
    labels = dataset.label_tensors(table, s.heads, s.age_filter)
    indices, blending = oversample(study, number, rest)
    batches = dataset.EpochBatchSampler(
        indices,
        s.batch_size,
        ("fold", s.seed, number),
        least=2,
        rank=study.compute.rank,
        world=study.compute.world,
    )
    factor = optim.schedule(s.lr_scheduler, len(batches), s.epochs, s.warmup_epochs, s.cycle_epochs)
    criteria = {
        head: loss.make_loss(s.loss_type or "", shares_of(head, labels[head][indices]), head).to(
            device
        )
        for head in s.heads
    }
    recipe = engine.Recipe(
        s.heads, criteria, lambda step: (s.lr or 0.0) * factor(step), s.clip_grad, (s.seed, number)
    )
    made = augmentation.forms(s.transform_type, s.image_size)
    training = augmentation.View(made.train, ("train", s.seed, number))
    names, paths = table["file"].tolist(), table["path"].tolist()
    return Fold(
        number,
        engine.Learner(
            network,
            optimizer,
            scaler,
            model.compile_model(network, study.compute.world == 1) if s.compile else network,
        ),
        recipe,
        dataset.ImageDataset(names, paths, [training], study.boxes, blending, study.squares),
        batches,
        dataset.ImageDataset(
            names, paths, [augmentation.View(made.valid)], study.boxes, squares=study.squares
        ),
        rows,
        {task: values.to(device) for task, values in labels.items()},
    )


def shares_of(head: str, labels: torch.Tensor) -> torch.Tensor | None:
    """The classes' shares [classes] in an epoch's labels; None for a regression."""
    spec = head_spec(head)
    return None if spec.regression else torch.bincount(labels, minlength=spec.outputs) / len(labels)


def oversample(
    study: RunContext, number: int, rows: list[int]
) -> tuple[list[int], dataset.MixupPartners | None]:
    """A fold's training photographs with the rarer classes' repeated, and with whom the repeated
    ones are blended.
    """
    s = study.settings
    if s.oversample == "none":
        return rows, None
    judged = scoring_task(s.task)
    labels = dataset.label_tensors(study.table, (judged, *s.heads), s.age_filter)
    indices = dataset.oversample_rows(rows, labels[judged].numpy()[rows], f"{s.seed}/{number}")
    print(
        f"fold {number}: {len(indices)} photographs an epoch, {len(rows)} before --oversample "
        f"{s.oversample}"
    )
    if s.oversample == "repeat":
        return indices, None
    relabelled = study.table.assign(**{task: values.numpy() for task, values in labels.items()})
    return indices, dataset.find_mixup_partners(
        relabelled, rows, (judged, *s.heads), ("mixup", s.seed, number)
    )


class Keeper:
    """Keeps a fold's state: at the end of each epoch, inside long ones every minute, and when asked
    to stop.
    """

    def __init__(
        self,
        study: RunContext,
        fold: Fold,
        state: fold_state.FoldState,
        folder: Path,
        stop: StopSignal,
    ) -> None:
        self.study, self.fold, self.state, self.folder, self.stop = study, fold, state, folder, stop
        self.saved = time.monotonic()

    def save(self) -> None:
        """Write the state, then delete the checkpoints that it does not list."""
        if self.study.writes:
            fold_state.save_fold_state(self.folder, self.state, self.fold.learner.state())
            checkpoint.delete_displaced(self.folder, self.state.kept)
        self.saved = time.monotonic()

    def after_step(self, running: metrics.RunningLoss, done: int) -> None:
        """done: steps of this epoch that are complete. Raises Stopped where that was asked for."""
        if not self.stop.number and (
            time.monotonic() - self.saved < SAVE_INTERVAL_SECONDS or not self.study.writes
        ):
            return
        if (
            self.study.compute.world > 1
            and not self.stop.number
            and running.first_bad() is not None
        ):
            # told at the epoch's end, when no other process waits for this one's part of a batch
            return
        check_finite(self.fold, running)
        if model.first_non_finite(
            self.fold.learner.model
        ):  # kept, they would be refused by --resume
            raise divergence(
                self.fold,
                self.state.epoch * len(self.fold.batches) + done - 1,
                "weights are NaN or infinite",
            )
        self.state.step, self.state.sums = done, running.kept()
        self.save()
        if self.stop.number:
            raise Stopped(
                self.stop.number,
                f"stopped in epoch {self.state.epoch + 1} of fold {self.fold.number}; the same "
                f"command with --resume goes on from there ({self.study.tree})",
            )


def check_finite(fold: Fold, running: metrics.RunningLoss) -> None:
    """Raise Diverged where a loss was NaN or infinite."""
    step = running.first_bad()
    if step is not None:
        raise divergence(fold, step, "loss is NaN or infinite")


def divergence(fold: Fold, step: int, what: str) -> Diverged:
    """What is said of a fold that went wrong in a step, counted over the whole run."""
    epoch, inside = divmod(step, len(fold.batches))
    return Diverged(
        f"fold {fold.number}, epoch {epoch + 1}, step {inside + 1} of {len(fold.batches)}: {what} "
        f"at a learning rate of {fold.recipe.rate(step):g}; try a smaller --lr, --clip-grad 1 or "
        "--warmup-epochs 1"
    )


def finished(study: RunContext, number: int) -> np.ndarray | None:
    """The answers [epochs, images, classes] of a fold that is complete, by this process or another;
    else None.

    Complete: all epochs are validated, no state is left to go on from, and a checkpoint is there.
    Only under the fold's lock does this stay true. Raises UserError where the fold was trained on
    other photographs.
    """
    folder = study.tree / f"fold{number:02d}"
    stored = fold_state.load_validation(folder, study.settings.task)
    files = study.table["file"].iloc[study.validation_rows(number)].tolist()
    if (folder / fold_state.STATE_FILE).exists() or not run_directory.fold_checkpoints(folder):
        return None  # killed before its last epoch was tidied up, or robbed of its checkpoints
    if stored is not None and len(stored[1]) == study.settings.epochs:
        if stored[0] != files:
            raise UserError(
                f"{folder}: was trained on other photographs; choose another --run-name"
            )
        return stored[1]
    return None


def train_fold(study: RunContext, number: int, clock: RemainingTime, stop: StopSignal) -> None:
    """All epochs of a fold that are left, its best checkpoints kept; a complete fold is left as it
    is. Raises Diverged, the best so far staying where they are.
    """
    s = study.settings
    folder = study.tree / f"fold{number:02d}"
    with run_directory.fold_lock(folder, study.writes):
        # Decided under the lock: another process may have completed the fold while this one waited.
        # Processes that share the fold take the word of the first, which has the lock.
        shared = study.who if study.compute.world > 1 else DistInfo()
        if distributed.broadcast_from_rank0(shared, lambda: finished(study, number) is not None):
            clock.fold_over(s.epochs)
            print_once(study, f"fold {number}: complete already")
            return
        begun = fold_state.load_fold_state(folder)
        fold = prepare_fold(study, number)
        state = fold_state.FoldState(number)
        if begun is not None:
            state = begun[0]
            check_fits(study, fold, state, folder)
            fold.learner.restore(begun[1], str(folder / fold_state.STATE_FILE))
            clock.fold_over(state.epoch)
            done = f"{plural(state.epoch, 'epoch')} and {state.step} of {len(fold.batches)} steps"
            print_once(study, f"fold {number}: goes on after {done}")
        elif study.writes:
            if (
                folder / fold_state.VALIDATION_FILE
            ).exists() and not run_directory.fold_checkpoints(folder):
                warn(f"{folder}: its checkpoints are missing, so the fold is trained again")
            # of a process that was killed before it had kept a state
            checkpoint.delete_displaced(folder, [])
        warn_of_absent(s.task, study.truth(fold.rows), f"fold {number}")
        keeper = Keeper(study, fold, state, folder, stop)
        reader = engine.make_eval_loader(fold.validation, fold.rows.tolist(), study.compute)
        with (
            loading.make_loader(
                fold.training, fold.batches, study.compute.workers, study.compute.device
            ) as loader,
            reader,
        ):
            while state.epoch < s.epochs:
                trained = train_epoch(study, fold, state, loader, keeper)
                finish_epoch(study, fold, state, trained, keeper, clock, reader)
        if study.writes:
            # a killed process may have come to its last state and no further
            checkpoint.delete_displaced(folder, state.kept)
            (folder / fold_state.STATE_FILE).unlink(missing_ok=True)


def warn_of_absent(task: str, truth: np.ndarray, where: str) -> None:
    """One line for the classes that are not among the people who score."""
    absent = metrics.absent_classes(task, truth)
    if absent:
        warn(
            f"{where}: classes are not among the held-out people: {len(absent)} (the first: "
            f"{absent[0]}); "
            "macro F1 leaves them out unless they are predicted"
        )


def check_fits(study: RunContext, fold: Fold, state: fold_state.FoldState, folder: Path) -> None:
    """Raise UserError where a kept state is not one of this fold: another number, or counts that it
    never reaches.
    """
    s, told = study.settings, state.probabilities
    fits = state.fold == fold.number and state.epoch <= s.epochs and state.step <= len(fold.batches)
    fits = fits and set(told) == (set(validated_tasks(s)) if state.epoch else set())
    shapes = {task: (len(fold.rows), TASKS[task].outputs) for task in told if task in TASKS}
    if not fits or any(row.shape != shapes[task] for task, rows in told.items() for row in rows):
        raise UserError(
            f"{folder / fold_state.STATE_FILE}: is not of this fold (fold {state.fold}, epoch "
            f"{state.epoch}, step "
            f"{state.step}); remove {folder} to train it again"
        )


def train_epoch(
    study: RunContext, fold: Fold, state: fold_state.FoldState, loader: Any, keeper: Keeper
) -> tuple[float, float, float]:
    """What is left of the epoch under way. Returns (mean loss, accuracy, photographs a second)."""
    model.freeze(fold.learner.model, state.epoch < study.settings.freeze)
    fold.batches.epoch, fold.batches.start = state.epoch, state.step
    first = state.epoch * len(fold.batches)
    running = metrics.RunningLoss(study.compute.device, state.sums)
    learner = fold.learner
    if study.compute.world > 1:  # made anew for each epoch: it must know which parameters learn
        shared = torch.nn.parallel.DistributedDataParallel(learner.forward)
        learner = dataclasses.replace(learner, forward=shared)
    _, speed = engine.train_one_epoch(
        learner,
        fold.recipe,
        loader,
        fold.labels,
        study.settings.task,
        study.compute,
        first + state.step,
        running,
        lambda step: keeper.after_step(running, step - first),
    )
    if study.compute.world > 1:
        distributed.broadcast_buffers(learner.model)
    check_finite(fold, running)
    mean, accuracy, _ = running.read()
    return mean, accuracy, speed


def finish_epoch(
    study: RunContext,
    fold: Fold,
    state: fold_state.FoldState,
    trained: tuple[float, float, float],
    keeper: Keeper,
    clock: RemainingTime,
    reader: loading.Loader,
) -> None:
    """Validate, keep what the epoch gave, and say so."""
    s, number = study.settings, fold.number
    outputs = engine.validate(
        fold.learner.model,
        s.heads,
        reader,
        len(fold.rows),
        study.compute,
        f"validating fold {number}",
    )
    if not all(torch.isfinite(array).all() for array in outputs.values()) or model.first_non_finite(
        fold.learner.model
    ):
        step = (state.epoch + 1) * len(fold.batches) - 1
        raise divergence(fold, step, "weights or outputs are NaN or infinite")
    answers = {task: model.probabilities(outputs, task).numpy() for task in validated_tasks(s)}
    scores, mean_loss = score_tasks(study, fold, answers), validation_loss(study, fold, outputs)
    rate = fold.recipe.rate(state.epoch * len(fold.batches))
    state.epoch, state.step, state.sums = state.epoch + 1, 0, []
    for task in validated_tasks(s):
        state.probabilities.setdefault(task, []).append(answers[task])
    mine = scores[s.task]
    state.history.append(epoch_row(state.epoch, trained, scores, mean_loss, rate, s.task))
    if study.writes:
        held_out = sorted(set(study.table["person"].iloc[fold.rows]))
        info = checkpoint.CheckpointInfo(
            s.model_type,
            s.task,
            s.transform_type,
            s.backbone or "",
            s.image_size,
            s.image_size,
            number,
            state.epoch,
            mine.macro_f1,
            mean_loss,
            score_dict(mine),
            held_out,
        )
        new = checkpoint.KeptCheckpoint(
            checkpoint.file_name(
                info,
                checkpoint.Hyperparameters(s.batch_size, s.lr, s.optim_type, s.loss_type, s.seed),
            ),
            state.epoch,
            mine.macro_f1,
        )
        checkpoint.save_if_best(
            keeper.folder, state.kept, new, fold.learner.model.state_dict(), info, s.save_top
        )
        fold_state.save_validation(
            keeper.folder, state, study.table["file"].iloc[fold.rows].tolist()
        )
    keeper.save()
    if s.tensorboard and study.writes:
        with warn_on_failure("--tensorboard"):
            write_board(keeper.folder, state.history[-1])
    if not s.quiet:
        print_once(study, epoch_line(state, s, scores, clock.epoch_over()))


def write_board(folder: Path, row: Mapping[str, float]) -> None:
    """An epoch's line of history.csv for TensorBoard; what a killed run wrote of this epoch counts
    no more.
    """
    from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

    epoch = int(row["epoch"])
    with SummaryWriter(str(folder / "tensorboard"), purge_step=epoch) as board:
        for name, value in row.items():
            if name != "epoch":
                board.add_scalar(name, value, epoch)


def print_once(study: RunContext, line: str) -> None:
    """Print a line of a fold; of several processes that share one, the first."""
    if study.writes:
        print(line, flush=True)


def validated_tasks(s: config.TrainSettings) -> list[str]:
    """The task trained for first, then what the model's other heads answer."""
    return [
        s.task,
        *(task for head in s.heads for task in tasks_answered_by(head) if task != s.task),
    ]


def score_tasks(
    study: RunContext, fold: Fold, answers: dict[str, np.ndarray]
) -> dict[str, metrics.Scores]:
    """Scores of every task's answers [images, classes], on unaltered labels."""
    decided = {task: ensemble.decide(task, array) for task, array in answers.items()}
    return {
        task: metrics.score(task, found, study.truth(fold.rows, task))
        for task, found in decided.items()
    }


def validation_loss(study: RunContext, fold: Fold, outputs: dict[str, torch.Tensor]) -> float:
    """The sum of the heads' losses, of their outputs [images, classes] on unaltered labels."""
    labels = dataset.label_tensors(study.table.iloc[fold.rows], fold.recipe.heads)
    return sum(
        loss.loss_of_outputs(fold.recipe.criteria[head], outputs[head], labels[head])
        for head in fold.recipe.heads
    )


def score_dict(scores: metrics.Scores) -> dict[str, float]:
    """Scores as plain numbers."""
    named = {
        "macro_f1": scores.macro_f1,
        "accuracy": scores.accuracy,
        "rmse": scores.rmse,
        "mae": scores.mae,
    }
    return {name: value for name, value in named.items() if value is not None}


def epoch_row(
    epoch: int,
    trained: tuple[float, float, float],
    scores: dict[str, metrics.Scores],
    mean_loss: float,
    rate: float,
    task: str,
) -> dict[str, float]:
    """An epoch's line in history.csv."""
    row = {
        "epoch": float(epoch),
        "train_loss": trained[0],
        "valid_loss": mean_loss,
        **score_dict(scores[task]),
    }
    if not math.isnan(trained[1]):
        row["train_accuracy"] = trained[1]
    row |= {f"macro_f1_{head}": found.macro_f1 for head, found in scores.items() if head != task}
    return row | {"lr": rate, "images_per_second": trained[2]}


def epoch_line(
    state: fold_state.FoldState,
    s: config.TrainSettings,
    scores: dict[str, metrics.Scores],
    left: str,
) -> str:
    """What the user reads after each epoch."""
    row = state.history[-1]
    heads = "".join(
        f"  {head} F1 {found.macro_f1:.4f}" for head, found in scores.items() if head != s.task
    )
    return (
        f"fold {state.fold}  epoch {state.epoch:>2}/{s.epochs}  loss {row['train_loss']:.4f} "
        "train "
        f"{row['valid_loss']:.4f} valid  {scores[s.task].line()}{heads}  lr {row['lr']:.2e}  "
        f"{row['images_per_second']:.1f} images/s  left {left}"
    )
