"""The driver of a run: folds, epochs, the best checkpoints of each fold, out-of-fold scores."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import audit
import augmentation
import checkpoint
import config
import dataset
import duplicates
import engine
import ensemble
import loss
import metrics
import model as models
import optim
import outoffold
import processes
import report
import suspects
from utils import (
    RunError,
    Stopped,
    StopSignal,
    UserError,
    atomic_write,
    cell,
    derive_seed,
    printable,
    sweep,
    usable_processors,
    warn,
    warn_counted,
)

SHOWN = 24  # suspects with pictures in the report
SPLIT_OF = 10  # a single split holds out one fold of so many
ALONE = processes.Processes()
SAVE_SECONDS = 60.0  # a kill inside an epoch costs no more than this


@dataclass(frozen=True)
class Study:
    """What all folds of a run share."""

    settings: config.TrainSettings
    table: pd.DataFrame  # a row per photograph, with the fold that holds its person out (-1: none)
    compute: engine.Compute
    weights: dict[str, torch.Tensor] | None  # of the pretrained backbone
    start: checkpoint.Checkpoint | None  # trained on from here
    boxes: dict[str, augmentation.Box]  # of the faces, where a file tells them
    tree: Path
    who: processes.Processes

    @property
    def folds(self) -> list[int]:
        return list(range(self.settings.cv))

    @property
    def own_folds(self) -> list[int]:
        """The folds that this process trains: every so many-th of those asked for, or with all others the one of --cv 1."""
        asked = list(self.settings.folds or self.folds)
        return asked if self.settings.cv == 1 else asked[self.who.rank :: self.who.world]

    @property
    def writes(self) -> bool:
        """Whether this process writes its folds' files: the first one of those that share a fold."""
        return self.compute.rank == 0

    def held_out(self, fold: int) -> np.ndarray:
        """Row numbers of the photographs that a fold is validated on."""
        return np.flatnonzero(self.table["fold"] == fold)

    def truth(self, rows: np.ndarray, task: str | None = None) -> np.ndarray:
        """Unaltered labels of rows."""
        return self.table[task or self.settings.task].to_numpy()[rows]


class Diverged(Exception):
    """A loss that is no number any more; ends its fold."""


class Clock:
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


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# -------------------------------------------------------------------------------------------------------- set-up


def load_table(s: config.TrainSettings) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """(photographs with their `fold`, photographs of a --valid-root that is only scored at the end or None)."""
    table = dataset.read_train(s.train_root)
    outside = dataset.read_train(s.valid_root) if s.valid_root else None
    if outside is not None:
        both = sorted(set(table["person"]) & set(outside["person"]))
        if both:
            raise UserError(f"--valid-root {s.valid_root}: {len(both)} people are in --train-root too ({both[0]}); part them")
        if s.cv == 1:
            return pd.concat([fix_labels(s, table).assign(fold=-1), outside.assign(fold=0)], ignore_index=True), None
    people = table["person"].nunique()
    if people < 2:
        raise UserError(f"{s.train_root}: holds {people} person; a split needs at least two")
    folds = dataset.assign_folds(table, s.cv if s.cv > 1 else min(SPLIT_OF, people), s.split_seed)
    fold = table["person"].map(folds)
    return fix_labels(s, table).assign(fold=fold if s.cv > 1 else fold.where(fold == 0, -1)), outside


def fix_labels(s: config.TrainSettings, table: pd.DataFrame) -> pd.DataFrame:
    """The photographs of --train-root with the labels of --label-fixes; after the split, so that no fix moves a fold."""
    if s.label_fixes is None:
        return table
    fixed, counts = suspects.apply_fixes(table, s.label_fixes)
    relabelled = int((fixed[["mask", "gender", "years"]] != table[["mask", "gender", "years"]]).any(axis=1).sum())
    print(f"--label-fixes {s.label_fixes}: corrected {', '.join(f'{column} {n}' for column, n in counts.items())} "
          f"({relabelled} photographs)")  # fmt: skip
    return fixed


def readable(
    s: config.TrainSettings, table: pd.DataFrame, outside: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Both tables without the photographs that cannot be read, folds as they were. Raises UserError (see audit)."""
    kept = audit.without_bad([table] if outside is None else [table, outside], s.skip_bad_images)
    for fold in range(s.cv):
        if not 0 < (kept[0]["fold"] == fold).sum() < len(kept[0]):
            raise UserError(f"--skip-bad-images: nobody is left on one side of fold {fold}; mend the photographs")
        if (kept[0]["fold"] != fold).sum() < 2:
            raise UserError(f"{s.train_root}: a single photograph is left to train fold {fold} on; training takes two or more")
    return kept[0], kept[1] if outside is not None else None


def set_up(s: config.TrainSettings, who: processes.Processes = ALONE) -> tuple[Study, pd.DataFrame | None]:
    """Read, check and split everything, before the first folder is made."""
    compute = processes.compute_for(s, s.batch_size, who, shared=s.cv == 1)
    start = checkpoint.read(Path(s.load_state_dict)) if s.load_state_dict else None
    weights = models.backbone_weights(s.backbone or "", s.pretrained) if start is None else None
    table, outside = readable(s, *load_table(s))
    boxes = dataset.read_boxes(s.boxes, table["file"].tolist(), table["path"].tolist()) if s.boxes else {}
    study = Study(s, table, compute, weights, start, boxes, Path(), who)
    make_model(study, 0)  # weights that do not fit are refused before a folder is made
    return study, outside


def describe(study: Study) -> dict[str, Any]:
    """Counts of the data, for run.json and the first lines."""
    table, task = study.table, config.TASKS[study.settings.task]
    counts = table[config.judged(study.settings.task)].value_counts()
    names = config.TASKS[config.judged(study.settings.task)].classes
    return {
        "photographs": len(table),
        "people": int(table["person"].nunique()),
        "people_per_fold": {str(f): int(table.loc[table["fold"] == f, "person"].nunique()) for f in study.folds},
        "photographs_per_class": {name: int(counts.get(number, 0)) for number, name in enumerate(names)},
        "regression": task.regression,
        "digest": digest(table),
        "median_age": float(table["years"].median()),
    }


def digest(table: pd.DataFrame) -> str:
    """What a run's result hangs on in its table: names, labels and folds of all photographs."""
    told = table[["file", "person", "mask", "gender", "years", "fold"]].to_csv(index=False)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def chosen(study: Study) -> dict[str, Any]:
    """What was left to the machine, as it was chosen."""
    return {"device": study.compute.device.type, "precision": study.compute.precision, "workers": study.compute.workers,
            "threads": torch.get_num_threads(), "processes": study.who.world}  # fmt: skip


def write_start(study: Study) -> None:
    """run.json and folds.csv of a run that begins."""
    versions = {name: __import__(name).__version__ for name in ("torch", "torchvision", "numpy", "pandas", "PIL")}
    machine = {"system": platform.platform(), "processors": usable_processors(), "device": str(study.compute.device)}
    if study.compute.device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(study.compute.device)
    content = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "command": sys.argv,
        "settings": dataclasses.asdict(study.settings),
        "chosen": chosen(study),
        "versions": {"python": platform.python_version(), **versions},
        "machine": machine,
        "data": describe(study),
    }  # fmt: skip
    people = study.table.drop_duplicates("person")[["person", "gender", "ageg", "fold"]]
    shown = people.assign(person=people["person"].map(cell), fold=people["fold"].map(lambda f: "" if f < 0 else f))
    with atomic_write(study.tree / "folds.csv", "w") as file:
        shown.to_csv(file, index=False)
    checkpoint.write_json(study.tree / "run.json", content)


def take_up(study: Study) -> None:
    """Note in run.json that a run goes on. Raises UserError where its data are others now."""
    content = checkpoint.read_run(study.tree)
    before = content.get("data", {}).get("digest")
    if before not in (None, digest(study.table)):
        raise UserError(f"{study.tree}: {study.settings.train_root} has other photographs, labels or folds than when the run "
                        "began; restore them, or start a new run")  # fmt: skip
    now, then = chosen(study), content.get("chosen", {})
    for key in ("device", "precision", "threads"):
        if then.get(key, now[key]) != now[key]:
            warn(f"{key}: the run began with {then[key]} and goes on with {now[key]}, so it will differ by rounding")
    content.setdefault("resumed", []).append({"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "command": sys.argv, "chosen": now})
    content = {key: value for key, value in content.items() if key not in ("finished", "failed")}
    sweep(study.tree)
    checkpoint.write_json(study.tree / "run.json", content)


# ------------------------------------------------------------------------------------------------------ one fold


def make_model(study: Study, fold: int) -> torch.nn.Module:
    """A fold's network before its first step."""
    s = study.settings
    torch.manual_seed(derive_seed("weights", s.seed, fold))
    network = models.build(s.model_type, s.task, s.backbone or "", s.image_size)
    if study.weights is not None:
        source = f"--pretrained {s.pretrained}"
        models.load_weights(models.trunk_of(network), study.weights, source)
        models.check_finite(models.trunk_of(network), source)
    if config.TASKS[s.task].regression:
        training = study.table.loc[study.table["fold"] != fold, s.task]
        models.start_at(network, float(training.mean()))
    if study.start is not None:
        fresh = models.train_on(network, study.start, s.model_type, s.task)
        models.check_finite(network, f"--load-state-dict {s.load_state_dict}")
        if fresh:
            warn(f"--load-state-dict: the backbone is taken; for --task {s.task} these start afresh: {', '.join(fresh)}")
    return network


@dataclass
class Fold:
    """One fold in training: its people, its learner, and the views it trains and validates by."""

    number: int
    learner: engine.Learner
    recipe: engine.Recipe
    training: dataset.Photos
    batches: dataset.Batches
    validation: dataset.Photos
    rows: np.ndarray  # held-out photographs
    labels: dict[str, torch.Tensor]


def prepare_fold(study: Study, number: int) -> Fold:
    """Network, optimizer, schedule, photographs and labels of a fold."""
    s, table, device = study.settings, study.table, study.compute.device
    network = models.place(make_model(study, number), device)
    optimizer = optim.make_optimizer(
        s.optim_type, models.parameter_groups(network, s.backbone_lr_scale), s.lr or 0.0, s.weight_decay or 0.0
    )
    scaler = torch.amp.GradScaler(device.type, enabled=study.compute.precision == "fp16")
    rows = study.held_out(number)
    rest = np.flatnonzero(table["fold"] != number).tolist()
    labels = dataset.label_tensors(table, s.heads, s.age_filter)
    indices, blending = oversample(study, number, rest)
    batches = dataset.Batches(
        indices, s.batch_size, ("fold", s.seed, number), least=2, rank=study.compute.rank, world=study.compute.world
    )
    factor = optim.schedule(s.lr_scheduler, len(batches), s.epochs, s.warmup_epochs, s.cycle_epochs)
    recipe = engine.Recipe(
        s.heads, loss.make_loss(s.loss_type or ""), lambda step: (s.lr or 0.0) * factor(step), s.clip_grad, (s.seed, number)
    )
    made = augmentation.forms(s.transform_type, s.image_size)
    training = augmentation.View(made.train, ("train", s.seed, number))
    names, paths = table["file"].tolist(), table["path"].tolist()
    return Fold(
        number,
        engine.Learner(network, optimizer, scaler, torch.compile(network) if s.compile else network),
        recipe,
        dataset.Photos(names, paths, [training], study.boxes, blending),
        batches,
        dataset.Photos(names, paths, [augmentation.View(made.valid)], study.boxes),
        rows,
        {task: values.to(device) for task, values in labels.items()},
    )


def oversample(study: Study, number: int, rows: list[int]) -> tuple[list[int], dataset.Blending | None]:
    """A fold's training photographs with the rarer classes' repeated, and with whom the repeated ones are blended."""
    s = study.settings
    if s.oversample == "none":
        return rows, None
    judged = config.judged(s.task)
    labels = dataset.label_tensors(study.table, (judged, *s.heads), s.age_filter)
    indices = dataset.oversampled(rows, labels[judged].numpy()[rows], f"{s.seed}/{number}")
    print(f"fold {number}: {len(indices)} photographs an epoch, {len(rows)} before --oversample {s.oversample}")
    if s.oversample == "repeat":
        return indices, None
    relabelled = study.table.assign(**{task: values.numpy() for task, values in labels.items()})
    return indices, dataset.blending(relabelled, rows, (judged, *s.heads), ("mixup", s.seed, number))


class Keeper:
    """Keeps a fold's state: at the end of each epoch, inside long ones every minute, and when asked to stop."""

    def __init__(self, study: Study, fold: Fold, state: checkpoint.FoldState, folder: Path, stop: StopSignal) -> None:
        self.study, self.fold, self.state, self.folder, self.stop = study, fold, state, folder, stop
        self.saved = time.monotonic()

    def save(self) -> None:
        """Write the state, then delete the checkpoints that it does not list."""
        if self.study.writes:
            checkpoint.write_state(self.folder, self.state, self.fold.learner.state())
            checkpoint.tidy(self.folder, self.state.kept)
        self.saved = time.monotonic()

    def after_step(self, running: metrics.RunningLoss, done: int) -> None:
        """done: steps of this epoch that are complete. Raises Stopped where that was asked for."""
        if not self.stop.number and time.monotonic() - self.saved < SAVE_SECONDS:
            return
        check_finite(self.fold, running)
        self.state.step, self.state.sums = done, running.kept()
        self.save()
        if self.stop.number:
            raise Stopped(self.stop.number, f"stopped in epoch {self.state.epoch + 1} of fold {self.fold.number}; the same "
                          f"command with --resume goes on from there ({self.study.tree})")  # fmt: skip


def check_finite(fold: Fold, running: metrics.RunningLoss) -> None:
    """Raise Diverged where a loss was no number."""
    step = running.first_bad()
    if step is not None:
        raise diverged(fold, step, "the loss is no number any more")


def diverged(fold: Fold, step: int, what: str) -> Diverged:
    """What is said of a fold that went wrong in a step, counted over the whole run."""
    epoch, inside = divmod(step, len(fold.batches))
    return Diverged(
        f"fold {fold.number}, epoch {epoch + 1}, step {inside + 1} of {len(fold.batches)}: {what} "
        f"at a learning rate of {fold.recipe.rate(step):g}; try a smaller --lr, --clip-grad 1 or --warmup-epochs 1"
    )


def train_fold(study: Study, number: int, clock: Clock, stop: StopSignal) -> None:
    """All epochs of a fold that are left, its best checkpoints kept. Raises Diverged, the best so far staying where they are."""
    s = study.settings
    folder = study.tree / f"fold{number:02d}"
    with checkpoint.locked(folder, study.writes):
        begun = checkpoint.read_state(folder)
        fold = prepare_fold(study, number)
        state = checkpoint.FoldState(number)
        if begun is not None:
            state = begun[0]
            fold.learner.restore(begun[1], str(folder / checkpoint.STATE))
            clock.fold_over(state.epoch)
            say(study, f"fold {number}: goes on after {state.epoch} epochs and {state.step} of {len(fold.batches)} steps")
        elif study.writes:
            checkpoint.tidy(folder, [])  # of a process that was killed before it had kept a state
        absent = metrics.absent_classes(s.task, study.truth(fold.rows))
        if absent:
            warn(f"fold {number}: {len(absent)} classes are not among the held-out people ({absent[0]}, ...): "
                 "macro F1 leaves them out unless they are predicted")  # fmt: skip
        keeper = Keeper(study, fold, state, folder, stop)
        with dataset.loader(fold.training, fold.batches, study.compute.workers, study.compute.device) as loader:
            while state.epoch < s.epochs:
                trained = train_epoch(study, fold, state, loader, keeper)
                finish_epoch(study, fold, state, trained, keeper, clock)
        if study.writes:
            (folder / checkpoint.STATE).unlink(missing_ok=True)


def train_epoch(
    study: Study, fold: Fold, state: checkpoint.FoldState, loader: Any, keeper: Keeper
) -> tuple[float, float, float]:
    """What is left of the epoch under way. Returns (mean loss, accuracy, photographs a second)."""
    models.freeze(fold.learner.model, state.epoch < study.settings.freeze)
    fold.batches.epoch, fold.batches.start = state.epoch, state.step
    first = state.epoch * len(fold.batches)
    running = metrics.RunningLoss(study.compute.device, state.sums)
    learner = fold.learner
    if study.compute.world > 1:  # made anew for each epoch: it must know which parameters learn
        shared = torch.nn.parallel.DistributedDataParallel(learner.forward)
        learner = dataclasses.replace(learner, forward=shared)
    _, speed = engine.train_epoch(
        learner, fold.recipe, loader, fold.labels, study.settings.task, study.compute, first + state.step, running,
        lambda step: keeper.after_step(running, step - first),
    )  # fmt: skip
    if study.compute.world > 1:
        processes.add_up(running, learner.model)
    check_finite(fold, running)
    mean, accuracy, _ = running.read()
    return mean, accuracy, speed


def finish_epoch(
    study: Study, fold: Fold, state: checkpoint.FoldState, trained: tuple[float, float, float], keeper: Keeper, clock: Clock
) -> None:
    """Validate, keep what the epoch gave, and say so."""
    s, number = study.settings, fold.number
    answers = engine.predict(
        [fold.learner.model], [[0]], fold.validation, validated_tasks(s), study.compute, fold.rows.tolist(),
        f"validating fold {number}",
    )  # fmt: skip
    if not all(np.isfinite(array).all() for array in answers.values()) or models.not_finite(fold.learner.model):
        step = (state.epoch + 1) * len(fold.batches) - 1
        raise diverged(fold, step, "the network's weights or answers are no numbers any more")
    scores, mean_loss = judge_epoch(study, fold, {task: array[0, 0] for task, array in answers.items()})
    rate = fold.recipe.rate(state.epoch * len(fold.batches))
    state.epoch, state.step, state.sums = state.epoch + 1, 0, []
    for task, array in answers.items():
        state.probabilities.setdefault(task, []).append(array[0, 0])
    mine = scores[s.task]
    state.history.append(epoch_row(state.epoch, trained, scores, mean_loss, rate, s.task))
    if study.writes:
        held_out = sorted(set(study.table["person"].iloc[fold.rows]))
        info = checkpoint.Info(
            s.model_type, s.task, s.transform_type, s.backbone or "", s.image_size, s.image_size, number, state.epoch,
            mine.macro_f1, mean_loss, score_dict(mine), held_out,
        )  # fmt: skip
        new = checkpoint.Kept(checkpoint.file_name(info, s), state.epoch, mine.macro_f1)
        checkpoint.save_best(keeper.folder, state.kept, new, fold.learner.model.state_dict(), info, s.save_top)
        checkpoint.write_validation(keeper.folder, state, study.table["file"].iloc[fold.rows].tolist())
    keeper.save()
    if not s.quiet:
        say(study, epoch_line(state, s, scores, clock.epoch_over()))


def say(study: Study, line: str) -> None:
    """Print a line of a fold; of several processes that share one, the first."""
    if study.writes:
        print(line, flush=True)


def validated_tasks(s: config.TrainSettings) -> list[str]:
    """The task trained for first, then the model's other heads."""
    return [s.task, *(head for head in s.heads if head != s.task)]


def judge_epoch(study: Study, fold: Fold, answers: dict[str, np.ndarray]) -> tuple[dict[str, metrics.Scores], float]:
    """Scores of every head's answers [images, classes] and the sum of the trained heads' losses, on unaltered labels."""
    criterion = fold.recipe.criterion
    scores, losses = {}, []
    for task, array in answers.items():
        truth = study.truth(fold.rows, task)
        scores[task] = metrics.score(task, ensemble.decide(task, array), truth)
        if task in fold.recipe.heads:
            labels = torch.tensor(truth, dtype=torch.float32 if config.TASKS[task].regression else torch.int64)
            losses.append(loss.loss_of_probabilities(criterion, task, torch.from_numpy(array), labels))
    return scores, sum(losses)


def score_dict(scores: metrics.Scores) -> dict[str, float]:
    """Scores as plain numbers."""
    named = {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy, "rmse": scores.rmse, "mae": scores.mae}
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
    row = {"epoch": float(epoch), "train_loss": trained[0], "valid_loss": mean_loss, **score_dict(scores[task])}
    if not math.isnan(trained[1]):
        row["train_accuracy"] = trained[1]
    row |= {f"macro_f1_{head}": found.macro_f1 for head, found in scores.items() if head != task}
    return row | {"lr": rate, "images_per_second": trained[2]}


def epoch_line(state: checkpoint.FoldState, s: config.TrainSettings, scores: dict[str, metrics.Scores], left: str) -> str:
    """What the user reads after each epoch."""
    row = state.history[-1]
    heads = "".join(f"  {head} F1 {found.macro_f1:.4f}" for head, found in scores.items() if head != s.task)
    return (
        f"fold {state.fold}  epoch {state.epoch:>2}/{s.epochs}  loss {row['train_loss']:.4f} train "
        f"{row['valid_loss']:.4f} valid  {scores[s.task].line()}{heads}  lr {row['lr']:.2e}  "
        f"{row['images_per_second']:.1f} images/s  left {left}"
    )


# ------------------------------------------------------------------------------------------------------- the run


def score_outside(study: Study, outside: pd.DataFrame) -> str:
    """The final ensemble, all kept checkpoints of all folds, on people whom no choice has seen."""
    s = study.settings
    members = [pair for folder in checkpoint.fold_folders(study.tree) for pair in checkpoint.ranked_members(folder)]
    rebuilt = [models.rebuild(info, found.weights, str(found.path)) for found, info in members]
    networks = [models.place(network, study.compute.device) for network in rebuilt]
    view = augmentation.View(augmentation.forms(s.transform_type, s.image_size).valid)
    photos = dataset.Photos(outside["file"].tolist(), outside["path"].tolist(), [view])
    answers = engine.predict(networks, [[0]] * len(networks), photos, [s.task], study.compute)[s.task]
    decided = ensemble.decide(s.task, ensemble.arithmetic(answers))
    scores = metrics.score(s.task, decided, outside[s.task].to_numpy())
    return f"--valid-root, scored once by the ensemble of {len(networks)} checkpoints: {scores.line()}"


def run(settings: config.TrainSettings) -> int:
    """Train all folds. Returns the exit code: 0, or 1 where a fold failed."""
    who = processes.from_environment()
    try:
        with processes.failures_told(settings.batch_size, " in a new run (--resume takes no other batch size)"):
            return run_folds(settings, who)
    finally:
        processes.leave(who)


def run_folds(settings: config.TrainSettings, who: processes.Processes) -> int:
    """What `run` does, as one of these processes."""
    study, outside = set_up(settings, who)
    if who.first:
        print(*opening(study), sep="\n")
    if settings.dry_run:
        print(*(estimate(study) if who.first else []), sep="\n")
        return 0
    study = dataclasses.replace(study, tree=processes.told_by_first(who, begin(study) if who.first else Path()))
    clock = Clock(settings.epochs * len(study.own_folds))
    failed: dict[int, str] = {}
    with StopSignal() as stop:
        for number in study.own_folds:
            if finished(study, number) is not None:
                clock.fold_over(settings.epochs)
                say(study, f"fold {number}: complete already")
                continue
            try:
                with processes.workers_told(stop, f"; the same command with --resume goes on ({study.tree})"):
                    train_fold(study, number, clock, stop)
            except Diverged as error:
                failed[number] = str(error)
                warn(str(error))
    return close(study, outside, failed) if study.writes else 1 if failed else 0


def opening(study: Study) -> list[str]:
    """The first lines of a run."""
    s, data = study.settings, describe(study)
    several = f", {study.who.world} processes" if study.who.world > 1 else ""
    return [
        f"{data['photographs']} photographs of {data['people']} people; held out per fold: "
        f"{', '.join(map(str, data['people_per_fold'].values()))} people",
        f"{s.model_type} on {s.backbone}, {s.image_size} px, {study.compute.precision} on {study.compute.device}, "
        f"{torch.get_num_threads()} threads, {study.compute.workers} workers{several}",
    ]


def begin(study: Study) -> Path:
    """The run's tree: a new one, or that of the run to go on with."""
    tree = checkpoint.open_tree(study.settings)
    study = dataclasses.replace(study, tree=tree)
    if (tree / "run.json").is_file():
        take_up(study)
    else:
        try:
            warn_of_duplicates(study)
            write_start(study)
        except RunError:  # nothing is there to go on with
            with contextlib.suppress(OSError):
                for name in ("duplicates.csv", "folds.csv"):
                    (tree / name).unlink(missing_ok=True)
                tree.rmdir()
            raise
    print(f"checkpoints: {printable(tree)}", flush=True)
    return tree


def warn_of_duplicates(study: Study) -> None:
    """One warning for near-duplicate photographs of different people, who may stand on both sides of a fold."""
    names = dict(zip(study.table["path"], study.table["file"], strict=True))
    pairs = [(names[a], names[b], d) for a, b, d in duplicates.find_duplicates(list(names), study.table["person"].tolist())]
    if not pairs:
        return
    duplicates.write_pairs(study.tree / "duplicates.csv", pairs)
    warn_counted([f"{a} and {b}" for a, b, _ in pairs], "nearly the same photograph under two people's names, a leak between "
                 f"folds unless they are one person; all pairs in {study.tree / 'duplicates.csv'}")  # fmt: skip


def close(study: Study, outside: pd.DataFrame | None, failed: dict[int, str]) -> int:
    """The tables of a tree that is complete; whichever process completes it writes them."""
    answers = {number: finished(study, number) for number in study.folds if number not in failed}
    missing = [number for number, found in answers.items() if found is None]
    if missing:
        print(f"folds {', '.join(map(str, missing))} are not complete yet; the run that completes the tree writes its table")
        return 1 if failed else 0
    task = study.settings.task
    done = [
        outoffold.held(task, number, study.table.iloc[study.held_out(number)], found)
        for number, found in answers.items()
        if found is not None
    ]
    if done:
        print(*outoffold.summary(task, done, failed), sep="\n")
        tell(study, done)
    if outside is not None and done:
        print(score_outside(study, outside))
    content = checkpoint.read_run(study.tree)
    content |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S"), "failed": failed}
    checkpoint.write_json(study.tree / "run.json", content)
    return 1 if failed else 0


def tell(study: Study, done: list[outoffold.Held]) -> None:
    """What the out-of-fold answers tell beyond their score: tables, a decision rule, suspects, the report."""
    task, tree = study.settings.task, study.tree
    rows, answers = outoffold.honest(done)
    table = outoffold.write(tree, task, rows, answers)
    extra: dict[str, list[tuple[str, object]]] = {}
    if len(done) > 1 and not config.TASKS[task].regression:
        line, gain, low = outoffold.fit_decision(tree, task, rows, answers)
        print(line)
        extra["Decision rule for macro F1"] = [("gain, nested", round(gain, 4)), ("its 95 % interval starts at", round(low, 4))]
    if task == "main":
        found = suspects.label_suspects(rows, answers)
        suspects.write_suspects(tree / "suspects.csv", found)
        print(f"{len(found)} labels to look at, the most suspicious first: {printable(tree / 'suspects.csv')}")
        paths = dict(zip(study.table["file"], study.table["path"], strict=True))
        extra["Labels to look at"] = [
            (row.file, report.Picture(paths[row.file], f"{row.kind}: {row.given}? looks {row.suggested}"))
            for row in found.head(SHOWN).itertuples()
        ]
    report.training_report(tree, study.table, table, extra)


def finished(study: Study, number: int) -> np.ndarray | None:
    """The answers [epochs, images, classes] of a fold that is complete, by this process or another; else None."""
    folder = study.tree / f"fold{number:02d}"
    stored = checkpoint.read_validation(folder, study.settings.task)
    files = study.table["file"].iloc[study.held_out(number)].tolist()
    if (folder / checkpoint.STATE).exists():
        return None  # killed before its last epoch was tidied up
    if stored is not None and len(stored[1]) == study.settings.epochs:
        if stored[0] != files:
            raise UserError(f"{folder}: was trained on other photographs; choose another --run-name")
        return stored[1]
    return None


def estimate(study: Study) -> list[str]:
    """One batch of training, and what it says of the whole run's time and disk."""
    s = study.settings
    fold = prepare_fold(study, 0)
    batches = dataset.Batches(fold.batches.indices[: s.batch_size], s.batch_size)
    seconds = 0.0
    for _ in range(2):  # the first batch pays for what happens once
        before = time.monotonic()
        loader = dataset.loader(fold.training, batches, 0, study.compute.device)
        engine.train_epoch(fold.learner, fold.recipe, loader, fold.labels, s.task, study.compute, 0)
        seconds = time.monotonic() - before
    per_photo = seconds / len(batches.indices)
    people = len(study.table) - len(fold.rows) + len(fold.rows) / 3  # a validation pass has no backward
    size = sum(t.numel() * t.element_size() for t in fold.learner.model.state_dict().values())
    disk = size * s.save_top * s.cv / 2**30
    free = checkpoint.disk_free(Path(s.save_path)) / 2**30
    return [
        f"dry run: one batch of {len(batches.indices)} took {seconds:.2f} s ({1 / per_photo:.1f} images/s)",
        f"the run: about {duration(per_photo * people * s.epochs * s.cv)} for {s.cv} folds x {s.epochs} epochs",
        f"disk: about {disk:.2f} GiB of checkpoints, {free:.1f} GiB free",
    ]
