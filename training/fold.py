"""The training of one fold: its epochs, its best checkpoints, its state for --resume."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import augmentation
import checkpoint
import dataset
import engine
import ensemble
import loss
import metrics
import model
import optim
import run_directory
from labels import TASKS, head_spec, scoring_task, tasks_predicted_by
from runtime import distributed, loading
from runtime.cli import RemainingTime, StopSignal
from runtime.errors import DistInfo, Stopped, UserError, plural, warn
from runtime.files import atomic_write, fsync_folder
from training import fold_state, history, loggers
from training import run as training_run
from training.run import RunContext

DIVERGED_FILE = "diverged.txt"  # why a fold's loss or weights became NaN or infinite
SAVE_INTERVAL_SECONDS = 60.0  # a kill inside an epoch costs no more than this


class Diverged(Exception):
    """A loss or weights that are NaN or infinite; ends its fold."""


class FoldTrainer:
    """Trains one fold of a run. Raises Diverged where its loss or weights are NaN or infinite.

    `network`, `optimizer`, `scaler` and `state` are all that training changes; everything else
    follows from the run's context and the fold's number.
    """

    def __init__(self, context: RunContext, number: int, stop: StopSignal | None = None) -> None:
        """stop: ends `fit` at the next batch."""
        self.context, self.number, self.stop = context, number, stop or StopSignal()
        self.state = fold_state.FoldState(number)
        self.saved_at = time.monotonic()
        table, data, s, compute = context.table, context.data, context.optim, context.compute
        self.network = model.to_device(training_run.make_model(context, number), compute.device)
        groups = model.parameter_groups(self.network, s.backbone_lr_scale)
        lr = s.lr or 0.0
        self.optimizer = optim.make_optimizer(s.optim_type, groups, lr, s.weight_decay or 0.0)
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
        self.compiled = (
            model.compile_model(self.network, compute.world == 1) if s.compile else self.network
        )
        self.valid_rows = context.validation_rows(number)
        labels = dataset.label_tensors(table, context.heads, data.age_filter)
        rows, blending = oversample(context, number)
        self.batches = dataset.EpochBatchSampler(
            rows,
            s.batch_size,
            ("fold", s.seed, number),
            least=2,
            rank=compute.rank,
            world=compute.world,
        )
        self.train_set, self.valid_set = make_image_sets(context, number, blending)
        factor = optim.schedule(
            s.lr_scheduler, len(self.batches), s.epochs, s.warmup_epochs, s.cycle_epochs
        )
        self.config = engine.EpochConfig(
            data.task,
            {
                head: make_criterion(s.loss_type or "", head, labels[head][rows], data.task).to(
                    compute.device
                )
                for head in context.heads
            },
            {head: values.to(compute.device) for head, values in labels.items()},
            lambda step: lr * factor(step),
            s.clip_grad,
            (s.seed, number),
            self.scaler,
            compute,
        )

    # --- state

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The weights, the optimizer's and the scaler's state, as plain types and tensors."""
        return fold_state.training_state_dict(self.network, self.optimizer, self.scaler)

    def load_state_dict(self, state: dict[str, dict[str, Any]], source: str) -> None:
        """Load what `state_dict` gave. Raises UserError where it is of another network."""
        fold_state.load_training_state(state, self.network, self.optimizer, self.scaler, source)

    def save_state(self) -> None:
        """Write the state, then delete the checkpoints that it does not list."""
        if self.context.is_writer:
            folder = self.context.fold_dir(self.number)
            fold_state.save_fold_state(folder, self.state, self.state_dict())
            checkpoint.delete_displaced(folder, self.state.kept)
        self.saved_at = time.monotonic()

    def resume(self) -> bool:
        """Load the state of a fold that was begun; whether there is one. Raises UserError for the
        state of another fold, or one with counts that this fold never reaches.
        """
        folder, context = self.context.fold_dir(self.number), self.context
        saved = fold_state.load_fold_state(folder)
        if saved is None:
            return False
        state, epochs = saved[0], context.optim.epochs
        tasks = validated_tasks(context) if state.epoch else []
        shapes = {task: (len(self.valid_rows), TASKS[task].outputs) for task in tasks}
        if (
            (state.fold, set(state.probabilities)) != (self.number, set(tasks))
            or state.epoch > epochs
            or state.step > len(self.batches)
            or any(a.shape != shapes[task] for task in tasks for a in state.probabilities[task])
        ):
            raise UserError(
                f"{folder / fold_state.STATE_FILE}: is not of this fold (fold {state.fold}, epoch "
                f"{state.epoch}, step {state.step}); remove {folder} to train it again"
            )
        self.load_state_dict(saved[1], str(folder / fold_state.STATE_FILE))
        self.state = state
        return True

    # --- training

    def fit(self, remaining: RemainingTime) -> None:
        """Train the epochs that are left; keep the best checkpoints. Raises Stopped when asked to
        stop, its state saved.
        """
        context, compute = self.context, self.context.compute
        valid_loader = engine.make_eval_loader(self.valid_set, self.valid_rows.tolist(), compute)
        train_loader = loading.make_loader(
            self.train_set, self.batches, compute.workers, compute.device
        )
        logger = context.output.log if context.is_writer else None
        folder, epoch = context.fold_dir(self.number), self.state.epoch
        log = loggers.open_log(logger, folder, context.settings, epoch + 1)
        with train_loader, valid_loader, log as log_figures:
            while self.state.epoch < context.optim.epochs:
                figures = self.train_epoch(train_loader)
                if self.state.epoch + 1 < context.optim.epochs:
                    self.batches.epoch, self.batches.start = self.state.epoch + 1, 0
                    train_loader.start()  # or each epoch would wait for its first batch
                validation = self.validate(valid_loader)
                self.finish_epoch(figures, validation)
                row = self.state.history[-1]
                log_figures({name: row[name] for name in row if name != "epoch"}, self.state.epoch)
                if not context.output.quiet:
                    line = history.epoch_line(
                        row, context.optim.epochs, context.data.task, validation.scores
                    )
                    left = remaining.epoch_over()
                    self.print_once(f"fold {self.number}  {line}  left {left}")

    def train_epoch(self, loader: loading.Loader) -> history.TrainFigures:
        """Train what is left of the current epoch."""
        model.train_mode(self.network, frozen=self.state.epoch < self.context.optim.freeze)
        self.batches.epoch, self.batches.start = self.state.epoch, self.state.step
        running = engine.RunningLoss(self.context.compute.device, self.state.sums)
        network: nn.Module = self.compiled
        if self.context.compute.world > 1:
            # wrapped anew for each epoch: DDP must know which parameters learn
            network = nn.parallel.DistributedDataParallel(network)
        # bound here: kept in self.config it would be a reference cycle, and the fold's memory would
        # stay until the garbage collector runs
        config = dataclasses.replace(self.config, after_step=self.after_step)
        speed = engine.train_one_epoch(network, self.optimizer, loader, config, running)
        if self.context.compute.world > 1:
            distributed.broadcast_buffers(self.network)
        self.check_finite(running)
        mean, accuracy, _ = running.read()
        return history.TrainFigures(mean, accuracy, speed)

    def after_step(self, running: engine.RunningLoss, done: int) -> None:
        """Save the state when the last one is old, or when asked to stop; then raise Stopped.

        running: the epoch's counts; done: its steps that are complete.
        """
        stopping = self.stop.number
        is_due = time.monotonic() - self.saved_at >= SAVE_INTERVAL_SECONDS
        if not stopping and not (is_due and self.context.is_writer):
            return
        if self.context.compute.world > 1 and not stopping and running.first_bad() is not None:
            # raised at the epoch's end, when no other process waits for this one's share of a batch
            return
        self.check_finite(running)
        if model.first_non_finite(self.network):  # --resume would refuse them
            step = self.state.epoch * len(self.batches) + done - 1
            raise self.divergence(step, "weights are NaN or infinite")
        self.state.step, self.state.sums = done, running.kept()
        self.save_state()
        if stopping:
            raise Stopped(
                stopping,
                f"stopped in epoch {self.state.epoch + 1} of fold {self.number}; the same command "
                f"with --resume goes on from there ({self.context.run_dir})",
            )

    def check_finite(self, running: engine.RunningLoss) -> None:
        """Raise Diverged where a loss was NaN or infinite."""
        step = running.first_bad()
        if step is not None:
            raise self.divergence(step, "loss is NaN or infinite")

    def divergence(self, step: int, problem: str) -> Diverged:
        """The error for a step, counted over the whole run."""
        epoch, number = divmod(step, len(self.batches))
        return Diverged(
            f"fold {self.number}, epoch {epoch + 1}, step {number + 1} of {len(self.batches)}: "
            f"{problem} at a learning rate of {self.config.learning_rate(step):g}; try a smaller "
            "--lr, --clip-grad 1 or --warmup-epochs 1"
        )

    # --- validation

    def validate(self, loader: loading.Loader) -> history.ValidationResult:
        """Predict the held-out images and score them on unaltered labels."""
        context, rows = self.context, self.valid_rows
        heads = context.heads
        outputs = engine.validate(self.network, heads, loader, len(rows), context.compute)
        finite = all(bool(torch.isfinite(array).all()) for array in outputs.values())
        if not finite or model.first_non_finite(self.network):
            last_step = (self.state.epoch + 1) * len(self.batches) - 1
            raise self.divergence(last_step, "weights or outputs are NaN or infinite")
        predictions = {
            task: model.probabilities(outputs, task).numpy() for task in validated_tasks(context)
        }
        scores = {
            task: metrics.score(task, ensemble.decide(task, array), context.labels(rows, task))
            for task, array in predictions.items()
        }
        labels = dataset.label_tensors(context.table.iloc[rows], heads)
        mean_loss = sum(
            loss.loss_of_outputs(criterion, outputs[head], labels[head])
            for head, criterion in self.config.criteria.items()
        )
        return history.ValidationResult(predictions, scores, mean_loss)

    def finish_epoch(
        self, figures: history.TrainFigures, validation: history.ValidationResult
    ) -> None:
        """Record an epoch and save it: checkpoint, validation predictions, state."""
        context, state = self.context, self.state
        folder = context.fold_dir(self.number)
        lr = self.config.learning_rate(state.epoch * len(self.batches))
        state.epoch, state.step, state.sums = state.epoch + 1, 0, []
        for task, array in validation.predictions.items():
            state.probabilities.setdefault(task, []).append(array)
        row = history.history_row(context.data.task, state.epoch, figures, validation, lr)
        state.history.append(row)
        if context.is_writer:
            self.save_checkpoint(validation)
            files = context.table["file"].iloc[self.valid_rows].tolist()
            fold_state.save_validation(folder, state, files)
        self.save_state()

    def save_checkpoint(self, validation: history.ValidationResult) -> None:
        """Save the weights where this epoch is among the fold's best."""
        context = self.context
        data, network = context.data, context.model
        scores = validation.scores[data.task]
        info = checkpoint.CheckpointInfo(
            network.model_type,
            data.task,
            data.transform_type,
            network.backbone or "",
            data.image_size,
            data.image_size,
            self.number,
            self.state.epoch,
            scores.macro_f1,
            validation.loss,
            history.score_dict(scores),
            sorted(set(context.table["person"].iloc[self.valid_rows])),
        )
        name = checkpoint.file_name(info, context.optim)
        checkpoint.save_if_best(
            context.fold_dir(self.number),
            self.state.kept,
            checkpoint.KeptCheckpoint(name, self.state.epoch, scores.macro_f1),
            self.network.state_dict(),
            info,
            context.output.save_top,
        )

    def print_once(self, line: str) -> None:
        """Print a line of the fold; of several processes that share it, the first."""
        if self.context.is_writer:
            print(line, flush=True)


def train_fold(
    context: RunContext, number: int, remaining: RemainingTime, stop: StopSignal
) -> None:
    """Train the epochs of a fold that are left; a complete fold stays as it is. Raises Diverged
    (its best checkpoints stay) and Stopped.
    """
    folder = context.fold_dir(number)
    torch.set_num_threads(context.threads(number))
    with run_directory.fold_lock(folder, context.is_writer):
        # Decided under the lock: another process may have completed the fold while this one waited.
        # Processes that share the fold follow the first, which has the lock.
        shared = context.dist if context.compute.world > 1 else DistInfo()
        if distributed.broadcast_from_rank0(
            shared, lambda: completed_predictions(context, number) is not None
        ):
            remaining.skip(context.optim.epochs)
            if context.is_writer:
                print(f"fold {number}: complete already", flush=True)
            return
        if context.is_writer:
            (folder / DIVERGED_FILE).unlink(missing_ok=True)
        trainer = FoldTrainer(context, number, stop)
        if trainer.resume():
            state = trainer.state
            remaining.skip(state.epoch)
            trainer.print_once(
                f"fold {number}: goes on after {plural(state.epoch, 'epoch')} and {state.step} of "
                f"{len(trainer.batches)} steps"
            )
        elif context.is_writer:
            has_validation = (folder / fold_state.VALIDATION_FILE).exists()
            if has_validation and not run_directory.fold_checkpoints(folder):
                warn(f"{folder}: its checkpoints are missing, so the fold is trained again")
            # left by a process that was killed before it had saved a state
            checkpoint.delete_displaced(folder, [])
        labels = context.labels(trainer.valid_rows)
        metrics.warn_absent_classes(context.data.task, labels, f"fold {number}")
        try:
            trainer.fit(remaining)
        except Diverged as error:
            if context.is_writer:
                with atomic_write(folder / DIVERGED_FILE, "w") as file:
                    file.write(str(error))
            raise
        if context.is_writer:
            # a process may have been killed right after it had saved its last state
            checkpoint.delete_displaced(folder, trainer.state.kept)
            fsync_folder(folder)  # while there is a state: no removal may be undone without it
            (folder / fold_state.STATE_FILE).unlink(missing_ok=True)
            fsync_folder(folder)


def read_divergence(context: RunContext, number: int) -> str:
    """Why a fold diverged, in this process or another; empty where it did not."""
    path = context.fold_dir(number) / DIVERGED_FILE
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def completed_predictions(context: RunContext, number: int) -> np.ndarray | None:
    """The validation predictions [epochs, images, classes] of a fold that is complete, by this
    process or another; else None.

    Complete: all epochs are validated, no state is left to resume, and a checkpoint exists. Only
    under the fold's lock does this stay true. Raises UserError where the fold was trained on other
    images.
    """
    folder = context.fold_dir(number)
    stored = fold_state.load_validation(folder, context.data.task)
    if (folder / fold_state.STATE_FILE).exists() or not run_directory.fold_checkpoints(folder):
        return None
    if stored is None or len(stored[1]) != context.optim.epochs:
        return None
    if stored[0] != context.table["file"].iloc[context.validation_rows(number)].tolist():
        raise UserError(f"{folder}: was trained on other photographs; choose another --run-name")
    return stored[1]


def oversample(context: RunContext, number: int) -> tuple[list[int], dataset.MixupPartners | None]:
    """A fold's training rows, the rarer classes' repeated by --oversample, and with whom the
    repeated ones are blended.
    """
    data, seed = context.data, context.optim.seed
    rows: list[int] = np.flatnonzero(context.table["fold"] != number).tolist()
    if data.oversample == "none":
        return rows, None
    judged = scoring_task(data.task)
    labels = dataset.label_tensors(context.table, (judged, *context.heads), data.age_filter)
    extended = dataset.oversample_rows(rows, labels[judged].numpy()[rows], f"{seed}/{number}")
    print(
        f"fold {number}: {len(extended)} photographs an epoch, {len(rows)} before --oversample "
        f"{data.oversample}"
    )
    if data.oversample == "repeat":
        return extended, None
    relabelled = context.table.assign(**{task: values.numpy() for task, values in labels.items()})
    return extended, dataset.find_mixup_partners(
        relabelled, rows, (judged, *context.heads), ("mixup", seed, number)
    )


def make_image_sets(
    context: RunContext, number: int, blending: dataset.MixupPartners | None = None
) -> tuple[dataset.ImageDataset, dataset.ImageDataset]:
    """All images as a fold's training sees them, and as its validation does."""
    data, table, boxes = context.data, context.table, context.boxes
    forms = augmentation.forms(data.transform_type, data.image_size)
    view = augmentation.View(forms.train, ("train", context.optim.seed, number))
    names, paths, cache = table["file"].tolist(), table["path"].tolist(), context.crop_cache
    valid_view = augmentation.View(forms.valid)
    return (
        dataset.ImageDataset(names, paths, [view], boxes, blending, cache),
        dataset.ImageDataset(names, paths, [valid_view], boxes, squares=cache),
    )


def make_criterion(loss_type: str, head: str, labels: Tensor, task: str) -> nn.Module:
    """The loss of a head; labels: of an epoch's images, whose class shares some losses need."""
    spec = head_spec(head)
    shares = None
    if not spec.regression:
        shares = torch.bincount(labels, minlength=spec.outputs) / len(labels)
        if TASKS[task].regression:  # a mean of values as frequent as in training errs less
            shares = torch.full_like(shares, 1 / spec.outputs)
    return loss.make_loss(loss_type, shares, head)


def validated_tasks(context: RunContext) -> list[str]:
    """The task trained for first, then the classes that the model's other heads answer."""
    answered = [task for head in context.heads for task in tasks_predicted_by(head)]
    classes = [task for task in answered if not TASKS[task].regression]
    return list(dict.fromkeys([context.data.task, *classes]))
