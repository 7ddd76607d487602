"""Cross-validation: folds in turn or side by side, then the scores and the report of them all."""

from __future__ import annotations

import collections
import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import augmentation
import checkpoint
import config
import dataset
import engine
import ensemble
import metrics
import model
import out_of_fold
import run_directory
from data import csv_tables, images
from inference import pictures
from inference.predictor import PredictionRequest, Predictor
from labels import TASKS
from reporting import html, label_issues, summary
from runtime import distributed, errors, loading
from runtime.cli import RemainingTime, StopSignal, duration, handle_stop_signals
from runtime.devices import usable_processors
from runtime.errors import Stopped, plural, printable, warn, warn_on_failure
from training import fold as training_fold
from training import history, jobs, loggers, run_files
from training.run import RunContext

MAX_TILES = 12  # images in a mosaic
MAX_HEAT_MAPS_WRONG, MAX_HEAT_MAPS_RIGHT = 8, 4
MAX_LABEL_ISSUES_SHOWN = 24  # suspects with pictures in the report


def train_all_folds(context: RunContext) -> int:
    """Train this process's folds; when all have, the first process finishes the run. Returns the
    exit code: 0, or 1 where a fold diverged.
    """
    run_dir = distributed.broadcast_from_rank0(
        context.dist, lambda: run_files.create_run_dir(context)
    )
    context = dataclasses.replace(context, run_dir=run_dir)
    # from here on there is a run to resume
    errors.retry_remedy = (
        "give the same command again" if context.output.run_name else "go on with --resume"
    )
    stop, own = StopSignal(), context.share(0) if context.jobs > 1 else context
    with handle_stop_signals(stop), jobs.start(context, train_share, stop) as processes:
        code = train_share(own, stop)
        jobs.wait(processes, stop)
        distributed.on_all_ranks(context.dist, lambda: None)  # all folds of this run are trained
    if context.dist.is_rank0:
        if context.jobs > 1:
            torch.set_num_threads(context.settings["threads"] or usable_processors())
        code = 1 if finish_run(context) else code
    return code


def train_share(context: RunContext, stop: StopSignal) -> int:
    """Train this process's folds. Returns the exit code: 0, or 1 where a fold diverged."""
    remaining, code = RemainingTime(context.optim.epochs * len(context.own_folds)), 0
    for number in context.own_folds:
        try:
            training_fold.train_fold(context, number, remaining, stop)
        except training_fold.Diverged as error:
            code = 1
            warn(str(error))
        except (RuntimeError, OSError, EOFError):
            if stop.number:  # the processes that read images got the signal too
                raise Stopped(stop.number, f"stopped; {errors.retry_remedy}") from None
            raise
    return code


def finish_run(context: RunContext) -> dict[int, str]:
    """Write the scores and the report of a run that is complete; whichever command completes it
    does. Returns {fold: why it diverged}.
    """
    reasons = {number: training_fold.read_divergence(context, number) for number in context.folds}
    failed = {number: reason for number, reason in reasons.items() if reason}
    predictions = {
        number: training_fold.completed_predictions(context, number)
        for number in context.folds
        if number not in failed
    }
    missing = [number for number, array in predictions.items() if array is None]
    if context.jobs > 1 and not set(missing).isdisjoint(context.output.folds or missing):
        raise distributed.lost_process()
    if missing:
        print(
            f"{plural(len(missing), 'fold is', 'folds are')} not complete yet "
            f"({', '.join(map(str, missing))}); the command that completes the run writes its "
            "scores"
        )
        return failed
    task = context.data.task
    folds = [
        out_of_fold.fold_predictions(
            task, number, context.table.iloc[context.validation_rows(number)], array
        )
        for number, array in predictions.items()
        if array is not None
    ]
    if folds:
        print(*out_of_fold.summary(task, folds, failed), sep="\n")
        analyze_out_of_fold(context, folds)
        scores = out_of_fold.score_rows(task, *out_of_fold.nested_epoch_predictions(folds))
        with loggers.open_log(context.output.log, context.run_dir, context.settings, 0) as log:
            final = history.score_dict(scores)
            log({f"out_of_fold_{name}": value for name, value in final.items()}, 0)
        if context.holdout is not None:
            print(score_holdout(context))
    content = run_directory.read_run_json(context.run_dir)
    content |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S"), "failed": failed}
    run_directory.write_json(context.run_dir / "run.json", content)
    return failed


def analyze_out_of_fold(context: RunContext, folds: list[out_of_fold.FoldPredictions]) -> None:
    """Write what the out-of-fold predictions show: oof.csv, labels to look at, the report."""
    task, run_dir = context.data.task, context.run_dir
    rows, predictions = out_of_fold.nested_epoch_predictions(folds)
    table = out_of_fold.write_oof(run_dir, task, rows, predictions)
    extra: dict[str, list[tuple[str, object]]] = {}
    scores = out_of_fold.score_rows(task, rows, predictions)
    if len(folds) > 1:
        selected, nested = out_of_fold.selected_scores(task, folds).macro_f1, scores.macro_f1
        extra["How much choosing the epoch flatters"] = [
            ("macro F1 with each fold's own best epoch", f"{selected:.4f}"),
            ("headline: each fold's epoch chosen by the others", f"{nested:.4f}"),
            ("optimism", f"{selected - nested:+.4f}"),
        ]
    if task == "main":
        suspects = label_issues.find_label_issues(rows, predictions)
        csv_tables.write_csv(run_dir / "suspects.csv", suspects, "%.2f")
        extra["Labels to look at"] = show_suspects(suspects)
        remark = "the most suspicious first"
        if metrics.is_guessing(scores.matrix):
            remark = "this model hardly beats guessing: labels that it contradicts may be right"
            extra["Labels to look at"] = [("none are shown", remark)]
        print(
            f"{plural(len(suspects), 'label')} to look at, {remark}: "
            f"{printable(run_dir / 'suspects.csv')}"
        )
    with warn_on_failure(f"report of {run_dir}"):
        galleries = {"What the network sees": show_views(context)}
        if not TASKS[task].regression:
            galleries["Where the network looks"] = show_heat_maps(context, rows, predictions)
        summary.training_report(run_dir, context.table, table, extra, galleries)


def show_suspects(suspects: pd.DataFrame) -> list[tuple[str, object]]:
    """The most suspected labels with photographs, and what --label-fixes takes for each."""
    shown: list[tuple[str, object]] = []
    for row in suspects.head(MAX_LABEL_ISSUES_SHOWN).itertuples():
        note = f"{row.kind}: {row.given}? looks {row.suggested}"
        name = row.file if row.kind == "mask" else row.person
        fix = (name, row.kind, "" if row.kind == "age" else row.suggested)  # years are to be given
        shown.append((row.file, {"file": row.file, "note": note, "fix": fix}))
    return shown


def show_views(context: RunContext) -> html.Gallery:
    """The same images as training shows them to the network and as validation does."""
    train_set, valid_set = training_fold.make_image_sets(context, 0)
    rows = np.linspace(0, len(context.table) - 1, MAX_TILES).astype(int).tolist()
    keys = [(0, row, 0) for row in rows]
    sheets = [pictures.mosaic(photos, keys) for photos in (train_set, valid_set)]
    text = "The same photographs in training, after augmentation, and in validation."
    return html.Gallery(text, list(zip(sheets, ("training", "validation"), strict=True)))


def show_heat_maps(
    context: RunContext, rows: pd.DataFrame, predictions: np.ndarray
) -> html.Gallery:
    """Where the best network of a photograph's fold looked for the class that was predicted: for
    the photographs that it is most wrong about, and those that it is most surely right about.
    """
    data, task = context.data, context.data.task
    labels, predicted = rows[task].to_numpy(), predictions.argmax(1)
    confidence = predictions.max(1)
    order = np.lexsort((-confidence, predicted == labels))  # wrong ones first, the surest first
    right = order[predicted[order] == labels[order]][:MAX_HEAT_MAPS_RIGHT]
    wrong = order[predicted[order] != labels[order]][:MAX_HEAT_MAPS_WRONG]
    form = augmentation.forms(data.transform_type, data.image_size).valid
    paths = dict(zip(context.table["file"], context.table["path"], strict=True))
    chosen = rows.iloc[[*wrong, *right]].assign(predicted=predicted[[*wrong, *right]])
    shown: dict[int, tuple[Image.Image, str]] = {}
    shares = []
    for fold, of_fold in chosen.groupby("fold"):
        best = checkpoint.load_ranked(context.fold_dir(int(fold)))[0]
        network = model.build_from_checkpoint(best)
        photos = [(images.read_image(paths[f]), context.boxes.get(f)) for f in of_fold["file"]]
        heat_maps = pictures.explain(network, form, photos, task, of_fold["predicted"].tolist())
        for row, heat_map in zip(of_fold.itertuples(), heat_maps, strict=True):
            names, true = TASKS[task].classes, int(getattr(row, task))
            caption = names[int(row.predicted)]
            if row.predicted != true:
                caption += f" in place of {names[true]}"
            shown[row.Index] = (heat_map.picture, caption.replace("_", " "))
            shares.append(heat_map.face_share)
    text = "Bright: what spoke for the predicted class (Grad-CAM)."
    if np.isfinite(shares).any():
        text += f" On average {np.nanmean(shares):.0%} of the heat lies within the face's box."
    return html.Gallery(text, [shown[row] for row in chosen.index])


def score_holdout(context: RunContext) -> str:
    """The score of the final ensemble, all kept checkpoints of all folds, on the people of
    --valid-root, on whom nothing was chosen.
    """
    data, holdout = context.data, context.holdout
    assert holdout is not None
    folders = run_directory.fold_dirs(context.run_dir)
    voters = [stored for folder in folders for stored in checkpoint.load_ranked(folder)]
    labels: np.ndarray = holdout[data.task].to_numpy()
    metrics.warn_absent_classes(data.task, labels, f"--valid-root {data.valid_root}")
    request = PredictionRequest(data.task, config.AUTO, boxes_csv=data.boxes)
    predictor = Predictor(voters, data.task, context.compute)
    names, paths = holdout["file"].tolist(), holdout["path"].tolist()
    array = predictor.probabilities(request, names, paths).array
    predicted = ensemble.decide(data.task, ensemble.arithmetic(array))
    return (
        f"--valid-root, scored once by the ensemble of {plural(len(voters), 'checkpoint')}: "
        f"{metrics.score(data.task, predicted, labels).line()}"
    )


def estimate_cost(context: RunContext) -> list[str]:
    """Train one batch; the time and disk space that the whole run will take."""
    optim, output = context.optim, context.output
    if context.jobs > 1:
        context = context.share(0)
        torch.set_num_threads(context.threads(context.own_folds[0]))
    trainer = training_fold.FoldTrainer(context, 0)
    world, device = context.compute.world, context.compute.device
    alone = dataclasses.replace(context.compute, rank=0, world=1)
    epoch = dataclasses.replace(trainer.config, compute=alone)
    share = optim.batch_size // world
    batches = dataset.EpochBatchSampler(trainer.batches.indices[:share], share)
    step = reading = 0.0
    model.train_mode(trainer.network)
    for _ in range(2):  # the first batch pays for what happens once
        loader, start = loading.make_loader(trainer.train_set, batches, 0, device), time.monotonic()
        collections.deque(loader, maxlen=0)
        reading, start = time.monotonic() - start, time.monotonic()
        running = engine.RunningLoss(device)
        engine.train_one_epoch(trainer.compiled, trainer.optimizer, loader, epoch, running)
        step = max(0.0, time.monotonic() - start - reading)  # it reads the batch once more
    seconds = step + reading  # both take processors; a GPU works beside the workers
    if device.type != "cpu":
        seconds = max(step, reading / max(1, context.compute.workers))
    per_image = seconds / len(batches.indices)
    # a validation pass has no backward pass
    images = len(context.table) - len(trainer.valid_rows) * 2 / 3
    asked, own = len(output.folds or context.folds), len(context.own_folds)
    one_by_one = f" ({own} after another in each process)" if own < asked else ""
    whole = per_image * images * optim.epochs * own / world
    weights = trainer.network.state_dict().values()
    size = sum(t.numel() * t.element_size() for t in weights)
    disk = size * min(output.save_top, optim.epochs) * context.data.cv / 2**30
    free = run_directory.free_disk_bytes(Path(output.save_path)) / 2**30
    return [
        f"dry run: one batch of {len(batches.indices)} took {seconds:.2f} s ({1 / per_image:.1f} "
        "images/s)",
        f"the run: about {duration(whole)} for {plural(asked, 'fold')}{one_by_one} x "
        f"{plural(optim.epochs, 'epoch')}",
        f"disk: about {disk:.2f} GiB of checkpoints, {free:.1f} GiB free",
    ]
